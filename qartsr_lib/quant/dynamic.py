"""Quantizers whose scales come from the values themselves: nothing is calibrated, and no scale is stored."""

from __future__ import annotations

import torch

from qartsr_lib.base.registry import Registry
from qartsr_lib.quant.granularity import PerChannel, PerGroup, PerHalf
from qartsr_lib.quant.primitives import affine_qparams, fake_quantize, integer_range, symmetric_qparams
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig

#: Name, which packed files keep -> the quantizer.
DYNAMIC_QUANTIZERS: Registry[type[DynamicQuantizer]] = Registry("dynamic quantizer")


class DynamicQuantizer(Quantizer):
    """Base of all; for gradients the scale is a constant. `qparams`, of values, is the subclass's."""

    kind: str  # in DYNAMIC_QUANTIZERS
    granularities: tuple[type, ...]  # that it can do
    stored_parameter_bits = 0
    is_static = False

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__(config, shape, name, device)
        if not isinstance(config.granularity, self.granularities):
            known = " or ".join(kind.__name__ for kind in self.granularities)
            raise ValueError(f"{name}: a dynamic quantizer per {self.kind} needs {known}, got {config.granularity}")
        self.scale.fill_(1.0)  # finite: loads as calibrated
        self.calibrated = True

    def set_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Nothing to fix."""


class TokenQuantizer(DynamicQuantizer):
    """Symmetric, with a scale per token (pixel) and group of channels; unsigned where a whole image is not negative.

    This is the activation quantizer of SVDQuant's released code (deepcompressor, `sint4`, group 64, dynamic,
    `allow_unsigned`).
    """

    kind, granularities = "token", (PerGroup,)
    reach = 0.5  # no value lies outside; else a group's largest may count as beyond, its scale being rounded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x_hat, same shape as x."""
        grouped = self.config.granularity.view(x)
        lower, upper = torch.aminmax(grouped.detach(), dim=self.config.granularity.axis, keepdim=True)
        unsigned = (lower >= 0).flatten(1).all(1)
        every = bool(unsigned.all())
        if not every and unsigned.any():
            return torch.cat([self(image) for image in x.split(1)])
        if every:
            qmin, qmax = integer_range(self.config.bits, symmetric=False)
            scale = upper / qmax
        else:
            qmin, qmax = self.code_range
            scale = symmetric_qparams(lower, upper, qmin, qmax)
        scale = scale.clamp(min=torch.finfo(x.dtype).tiny)  # a zero pixel has none
        return fake_quantize(grouped, scale, None, qmin, qmax, self.reach).reshape(x.shape)


class RangeQuantizer(DynamicQuantizer):
    """Asymmetric, from the smallest to the largest value of each image and half of its channels (QuantVSR)."""

    kind, granularities = "range", (PerHalf,)
    reach = 0.5  # rounds before it clips, as the released code; else an end of the range may count as beyond it

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grouped, halves = self.config.granularity.view(x.detach()), self.config.granularity.axis - 1
        within = [axis for axis in range(1, grouped.ndim) if axis != grouped.ndim + halves]
        lower, upper = grouped.amin(within, keepdim=True), grouped.amax(within, keepdim=True)
        return affine_qparams(lower, upper, self.config.bits, self.config.zero_point)


class ChannelTokenQuantizer(DynamicQuantizer):
    """Symmetric, with a scale per channel of each image times one per token (pixel): LSGQuant's DRAQ.

    x[t, c] is first divided by s[c], the largest magnitude of its channel, then has a scale per token; together one
    scale for each value, s[c] d[t].
    """

    kind, granularities = "channel and token", (PerChannel,)
    reach = 0.5

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        values, axis = x.detach(), self.config.granularity.axis
        tokens = [place for place in range(1, x.ndim) if place != x.ndim + axis]
        magnitudes = values.abs()
        channel = magnitudes.amax(tokens, keepdim=True) if tokens else magnitudes
        channel = channel.clamp(min=torch.finfo(x.dtype).tiny)
        lower, upper = torch.aminmax(values / channel, dim=axis, keepdim=True)
        scale = symmetric_qparams(lower, upper, *self.code_range) * channel
        return scale.clamp(min=torch.finfo(x.dtype).tiny), None  # not 0 where a token and a channel have zeros alone


for _quantizer in (TokenQuantizer, RangeQuantizer, ChannelTokenQuantizer):
    DYNAMIC_QUANTIZERS.register(_quantizer.kind)(_quantizer)
