"""Groupwise, the study's own method: SVDQuant's released quantizers, weights rounded against the layer's own inputs.

    y = L1 L2 x~ + Q_W(W^ + F1 F2) Q_A(x~) + B + W o,    x~ = (x - o) / phi

1. As SVDQuant [as released] (methods/svdquant.py): phi, L and o; a scale per 64 input channels and kernel position,
   here with all 2^b codes; inputs with a scale per pixel and 64 channels.
2. What Q_W sees is fitted to what Q_A gives: W^ = argmin |W^ Q_A(x~) - (W~ - L) x~|^2 + LAMBDA |W^ - W~ + L|^2, which
   makes up for the error of the input (GPTAQ, arXiv:2504.02692), and rounded column by column with the error fed to the
   columns that are left (GPTQ, arXiv:2210.17323). "Groupwise [untrained]" ends here; with a scale per output channel
   alone it stores no more than SVDQuant and QArtSR do.
3. L, F (as QArtSR, Eq. 9; F starts at zero, so that training starts from 2) and the scales of Q_W are trained end to
   end by the image loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import METHODS, CalibratedMethod, register_layers
from qartsr_lib.methods.low_rank import MERGED_DIVISOR, kaiming_start, scaled_rank
from qartsr_lib.methods.svdquant import RELEASED_SETTING, DynamicLayer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.granularity import PerChannel, PerGroup, broadcast_along
from qartsr_lib.quant.layers import LayerConfig
from qartsr_lib.quant.observers import Thinned
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.training.finetuning.phases import Term

WINDOWS = 64  # of every calibration image, whose products are fitted
MOST = 128  # calibration images whose windows are kept, 13 MB each (embedded, crops of 32); of more, evenly spread ones
LAMBDA, DAMPING = 0.05, 0.01  # over the mean of the diagonal of x x^T: of the fit, and of the rounding


class TunedScale(Quantizer):
    """A symmetric Quantizer whose scales are trained: `log_scale`, zero at first, is the log of a factor on each."""

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__(config, shape, name, device)
        self.log_scale = nn.Parameter(torch.zeros_like(self.scale))

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale, zero_point = super().qparams(x)
        return scale * self.log_scale.exp(), zero_point


@register_layers("groupwise")
class GroupwiseLayer(DynamicLayer):
    """The layer of the module's docstring.

    Args:
        fit: whether W^ is fitted to the quantized inputs; W~ - L without.
        feedback: whether rounding feeds errors on; to the nearest code without.
        windows: of every calibration image, whose products are fitted.

    Attributes:
        base: W^ on the grid of its quantizer's first scales, like W; a buffer.
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k).
        merged_out, merged_in: F1 (c_out, r'), zero, and F2 (r', c_in k k).
    """

    quantizer_type = TunedScale

    def _add_quantizers(
        self, config: LayerConfig, name: str, *, fit: bool = True, feedback: bool = True, windows: int = WINDOWS
    ) -> None:
        super()._add_quantizers(config, name)
        self.fit, self.feedback, self.windows = fit, feedback, windows
        weight = self.weight.detach()
        for factor in ("side_out", "side_in"):  # buffers of SVDQuant, which does not train
            values = self._buffers.pop(factor)
            setattr(self, factor, nn.Parameter(values))
        rank = scaled_rank(weight, MERGED_DIVISOR)
        self.merged_out = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.merged_in = nn.Parameter(kaiming_start(rank, weight[0].numel(), weight))
        self.register_buffer("base", weight.clone())

    def observe(self, x: torch.Tensor) -> None:
        super().observe(x)
        for image in x.split(1):
            self._windows.offer(lambda image=image: self._some_windows(image))

    def forget(self) -> None:
        super().forget()
        self._windows = Thinned(MOST)

    def folded_weight(self) -> torch.Tensor:
        """W^ + F1 F2: what Q_W sees, W^ by the present scales, so that it stays on their grid."""
        base, quantizer = self.base, self.weight_quantizer
        if quantizer is not None:
            base = (quantizer.config.granularity.view(base) * quantizer.log_scale.exp()).reshape(base.shape)
        return base + (self.merged_out @ self.merged_in).view_as(base)

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        scales = [] if self.weight_quantizer is None else [self.weight_quantizer.log_scale]
        kinds = {"side": [self.side_out, self.side_in], "merged": [self.merged_out, self.merged_in]}
        return {**kinds, "scales": scales}

    def set_ranges(self) -> None:
        self.base.copy_(super().folded_weight())  # SVDQuant's phi and L are searched for with W~ - L rounded as it is
        super().set_ranges()

    @torch.no_grad()
    def start(self) -> None:
        windows = self._windows.kept
        super().start()  # forgets them
        if self.weight_quantizer is None:
            return
        seen, wanted = (torch.cat(parts).double() for parts in zip(*map(self._products, windows), strict=True))
        square, base = seen.t() @ seen, self.base.flatten(1).double()
        ridge = _ridge(square, LAMBDA)
        solved = torch.linalg.solve(square + ridge, seen.t() @ wanted + ridge @ base.t()).t() if self.fit else base
        fitted = solved.view_as(self.base)
        self.weight_quantizer.set_range_from(fitted.float())
        self.base.copy_(rounded(fitted, square, self.weight_quantizer) if self.feedback else fitted)
        self.drop_cache()

    def _some_windows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Windows of one image x, (n, c_in, taps), 1 where they lie on it, (n, 1, taps), and its least values."""
        lowest = x.movedim(self.input_axis, 0).flatten(1).amin(1).view(1, -1, 1)
        if isinstance(self, nn.Linear):
            rows = x.reshape(-1, x.shape[-1], 1)
            return *(_spread(each, self.windows) for each in (rows, torch.ones_like(rows[:, :1]))), lowest
        around = self._reversed_padding_repeated_twice  # what torch pads by, "same" and other modes than zeros included
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        how = (self.kernel_size, self.dilation, 0, self.stride)
        images = (F.pad(image, around, mode) for image in (x, torch.ones_like(x[:, :1])))
        windows = (F.unfold(image, *how).movedim(1, -1).flatten(0, 1) for image in images)
        taps = self.weight[0, 0].numel()
        return *(_spread(each, self.windows).unflatten(1, (-1, taps)) for each in windows), lowest

    def _products(self, windows: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """What multiplies the weight in each window, (n, c_in taps), and the outputs wanted of it, (n, c_out)."""
        x, on_image, lowest = windows
        phi, shift = (broadcast_along(values, 1, 3) for values in (self.log_phi.exp(), self.offset))
        # One image of the layer's input, as its quantizer decides by whole ones: windows, and a pixel of least values.
        image = torch.cat([x.where(on_image > 0, lowest), lowest.expand_as(x[:1])])
        image = ((image - shift) / phi).movedim(1, -1)[None].movedim(-1, self.input_axis)
        if self.input_quantizer is not None:
            image = self.input_quantizer(image)
        quantized = image.movedim(self.input_axis, -1)[0, :-1].movedim(-1, 1)
        seen = ((quantized + shift / phi) * on_image).flatten(1)  # W o behind the layer gives the shift back
        return seen, (x / phi).flatten(1) @ self.base.flatten(1).t()


def rounded(weight: torch.Tensor, square: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """`weight` (c_out, ...), rounded by `quantizer` so that the error of its products is small (GPTQ).

    Args:
        square: x x^T over the inputs x, (c_in k k, c_in k k), float64.
    """
    scale, _ = quantizer.qparams(weight)
    grouped = quantizer.config.granularity.view(weight)
    scales = scale.expand(grouped.shape).reshape(weight.shape).flatten(1).double()
    order = square.diag().argsort(descending=True, stable=True)
    damped = square + _ridge(square, DAMPING)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left, found = weight.flatten(1).double()[:, order], torch.empty_like(scales)
    for column, place in enumerate(order.tolist()):
        codes = (left[:, column] / scales[:, place]).round().clamp(*quantizer.code_range)
        found[:, place] = codes * scales[:, place]
        error = (left[:, column] - found[:, place]) / factor[column, column]
        left[:, column:] -= error[:, None] * factor[column, column:]
    return found.view(weight.shape).float()


def _ridge(square: torch.Tensor, share: float) -> torch.Tensor:
    """`share` of the mean of the diagonal, on a diagonal; not 0 for a layer that sees nothing but zeros."""
    size = share * square.diag().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return size * torch.eye(len(square), dtype=square.dtype, device=square.device)


def _spread(rows: torch.Tensor, count: int = WINDOWS) -> torch.Tensor:
    """At most `count` of the rows, evenly spread, in memory of their own."""
    places = torch.linspace(0, len(rows) - 1, min(count, len(rows)), device=rows.device).round().long()
    return rows[places]


SETTING = replace(RELEASED_SETTING, narrow_range=False, layer_kind="groupwise")


class Groupwise(TrainedMethod):
    """End-to-end training alone; a module at a time first was not tried."""

    layer_kind = "groupwise"
    rates = (("side", 3e-4), ("merged", 3e-4), ("scales", 3e-4))
    terms = (Term("image"),)

    def scheme(self):
        return SETTING


class UntrainedGroupwise(CalibratedMethod):
    """Options: the layer's own, and `group`, of how many input channels share a scale of each position of a kernel."""

    options = ("fit", "feedback", "windows", "group")

    def scheme(self, *, group: int | None = None, **own):
        for name, value in (own if group is None else own | {"group": group}).items():
            if name in ("fit", "feedback") and type(value) is not bool:
                raise QartsrError(f"option {name}={value!r}: choose True or False")
            if name in ("windows", "group") and (type(value) is not int or value < 1):
                raise QartsrError(f"option {name}={value!r}: choose a whole number from 1 on")
        granularity = PerGroup(group, per_position=True) if group else self.setting.weight_granularity
        return replace(self.setting, weight_granularity=granularity, layer_options=tuple(own.items()))


METHODS.register("groupwise")(Groupwise("groupwise", "Groupwise"))
for _name, _label, _granularity in (
    ("groupwise-untrained", "Groupwise [untrained]", SETTING.weight_granularity),
    ("groupwise-per-channel", "Groupwise [untrained, a scale per channel]", PerChannel()),
):
    METHODS.register(_name)(UntrainedGroupwise(_name, _label, replace(SETTING, weight_granularity=_granularity)))
