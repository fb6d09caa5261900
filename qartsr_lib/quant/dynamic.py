"""Fake quantization whose scale comes from the values themselves, one per token and group of channels."""

from __future__ import annotations

import torch

from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.primitives import fake_quantize, integer_range, symmetric_qparams
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig


class DynamicQuantizer(Quantizer):
    """Symmetric per token (pixel) and group of channels; unsigned where a whole input is not negative.

    This is the activation quantizer of SVDQuant's released code (deepcompressor, `sint4`, group 64,
    dynamic, `allow_unsigned`). Nothing is calibrated and no scale is stored.

    Args:
        config: with a PerGroup granularity along the channels.
    """

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__(config, shape, name, device)
        if not isinstance(config.granularity, PerGroup):
            raise ValueError(f"{name}: a dynamic quantizer needs groups, got {config.granularity}")
        self.scale.fill_(1.0)  # finite: loads as calibrated
        self._calibrated = True

    @property
    def stored_parameter_bits(self) -> int:
        """0: scales are computed."""
        return 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x_hat, same shape as x."""
        grouped = self.config.granularity.view(x)
        lower, upper = torch.aminmax(grouped, dim=self.config.granularity.axis, keepdim=True)
        if bool((lower >= 0).all()):
            qmin, qmax = integer_range(self.config.bits, symmetric=False)
            scale = (upper / qmax).clamp(min=torch.finfo(x.dtype).tiny)
        else:
            qmin, qmax = self.code_range
            scale = symmetric_qparams(lower, upper, self.config.bits, self.config.narrow_range)
        return fake_quantize(grouped, scale, None, qmin, qmax).reshape(x.shape)

    def set_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Nothing to fix."""
