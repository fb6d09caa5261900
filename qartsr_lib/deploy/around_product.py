"""What an integer layer does before and after its product, each in one loop: compiled where possible, else by PyTorch.

The PyTorch forms (`plain_...`) say what the loops compute. Loops give codes with the same bits; of a normed input and
of outputs, numbers differ by a few units in the last place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.native import at
from qartsr_lib.deploy.geometry import Geometry, side_output, side_products
from qartsr_lib.deploy.loops import library

#: GroupNorm's sums are taken over this many stretches of an image.
PARTS = 64


@dataclass(frozen=True)
class Norm:
    """GroupNorm as scale * x + shift, each (N, C), and whether SiLU follows."""

    scale: torch.Tensor
    shift: torch.Tensor
    silu: bool

    @classmethod
    def of(cls, layer: nn.GroupNorm, silu: bool, x: torch.Tensor) -> Norm:
        """A GroupNorm of x (N, C, H, W), from the moments that x keeps (`known_moments`) or new ones."""
        moments, version = getattr(x, "known_moments", (None, None))
        if moments is None or version != x._version:
            moments = moments_of(x.permute(0, 2, 3, 1))
        pixels, groups = x.shape[-2] * x.shape[-1], layer.num_groups
        images, parts, _, channels = moments.shape
        loops = library()
        if loops is None:
            total, squares = (part.view(images, groups, -1).mean(-1) / pixels for part in moments.sum(1).unbind(1))
            inverse = ((squares - total.square()).clamp(min=0) + layer.eps).rsqrt()
            scale = inverse.repeat_interleave(channels // groups, 1) * layer.weight
            shift = layer.bias - total.repeat_interleave(channels // groups, 1) * scale
            return cls(scale.float(), shift.float(), silu)
        scale, shift = torch.empty(2, images, channels)
        sizes = (images, parts, channels, groups, pixels, layer.eps)
        loops.fold(moments.data_ptr(), *sizes, *at(layer.weight, layer.bias, scale, shift))
        return cls(scale, shift, silu)


@dataclass(frozen=True)
class InputQuantizer:
    """Q_A of (x - offset) / phi, with codes in 0..largest.

    Attributes:
        offset, phi: (c_in,), float32; zeros and ones where there are none.
        zero_point, scale, largest: single numbers.
        rows: L2 of a low-rank branch from `rows_by_tap`, bfloat16, or None.
        sees_scaled: L2 sees the scaled input instead of x.
    """

    offset: torch.Tensor
    phi: torch.Tensor
    zero_point: float
    scale: float
    largest: float
    rows: torch.Tensor | None = None
    sees_scaled: bool = False

    def __post_init__(self) -> None:
        step = self.phi.double() * self.scale
        summand = -(self.offset.double() / self.phi.double() + self.zero_point) / self.scale
        wide = None if self.rows is None else self.rows.float().contiguous()
        object.__setattr__(self, "wide_rows", wide)
        folded = (self.offset, self.phi, self.phi.reciprocal(), (1 / step).float(), summand.float())
        object.__setattr__(self, "folded", folded)  # what the loop computes with


@dataclass(frozen=True)
class Finish:
    """What is added to a layer's integer product besides what comes from its input.

    Attributes:
        sum_scale: (c_out,), of the codes' sums under the kernel.
        side_out: (r, c_out), L1 transposed, or None.
        constants: what the taps inside the image add, and the bias: (row kinds, column kinds, c_out).
        rows, columns: which kind each output row and column is, int32.
    """

    geometry: Geometry
    sum_scale: torch.Tensor
    side_out: torch.Tensor | None
    constants: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


def encode(
    x: torch.Tensor, quantizer: InputQuantizer, norm: Norm | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Of x (N, H, W, c_in) or of its normed form: codes, uint8; their sums over the channels, float32; L2 x tap by tap.

    L2 x is formed while the input is at hand: as a pass of its own, it took as long as encoding.
    """
    loops, rows = library(), quantizer.rows
    if loops is None:
        return plain_encode(x, quantizer, norm)
    x = x.float().contiguous()
    images, channels = 1 if norm is None else len(x), x.shape[-1]
    codes, sums = torch.empty_like(x, dtype=torch.uint8), x.new_empty(x.shape[:-1])
    planes = None if rows is None else x.new_empty(len(rows), *sums.shape, dtype=torch.bfloat16)
    seen = 0 if rows is None else 1 + quantizer.sees_scaled
    loops.encode(
        *(x.data_ptr(), *((None, None, 0) if norm is None else (*at(norm.scale, norm.shift), norm.silu))),
        *(*at(*quantizer.folded), quantizer.zero_point, quantizer.scale, quantizer.largest, seen),
        *(*at(quantizer.wide_rows), 0 if rows is None else len(rows)),
        *(images, sums.numel() // images, channels, *at(codes, sums, planes)),
    )
    return codes, sums, planes


def plain_encode(x, quantizer: InputQuantizer, norm: Norm | None = None):
    """`encode` by PyTorch."""
    if norm is not None:
        shape = (len(x), *[1] * (x.ndim - 2), -1)
        x = x * norm.scale.view(shape) + norm.shift.view(shape)
        x = F.silu(x) if norm.silu else x
    scaled = (x - quantizer.offset) / quantizer.phi
    codes = ((scaled - quantizer.zero_point) / torch.tensor(quantizer.scale)).clamp(0, quantizer.largest).round()
    seen = (scaled if quantizer.sees_scaled else x).bfloat16()
    planes = None if quantizer.rows is None else side_products(seen, quantizer.rows, Geometry())[0]
    return codes.to(torch.uint8), codes.sum(-1), planes


def finish_(
    y: torch.Tensor,
    sums: torch.Tensor,
    planes: torch.Tensor | None,
    how: Finish,
    added: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    moments: bool = False,
) -> torch.Tensor | None:
    """Add to y (N, H', W', c_out): sum_scale * (sum of the codes under the kernel) + L1 L2 x + constants, and more.

    `sums` (N, H, W) and `planes`, L2 x, come from `encode`; the more is `added` (N, c_out) and
    `residual`, which is like y. Returns y's moments (see `moments_of`) if asked.
    """
    loops = library()
    if loops is None:
        plain_finish_(y, sums, planes, how, added, residual)
        return moments_of(y) if moments else None
    images, height, _, channels = y.shape
    found = torch.empty(images, height, 2, channels, dtype=torch.float64) if moments else None
    axes = [how.geometry.axis(axis, sums.shape[1 + axis]) for axis in (0, 1)]
    loops.finish(
        *(y.data_ptr(), images, channels, *at(*axes, sums, how.sum_scale, planes, how.side_out)),
        *(0 if how.side_out is None else len(how.side_out), *at(how.constants, how.rows, how.columns)),
        *(how.constants.shape[1], *at(added, residual, found)),
    )
    return found


def plain_finish_(y, sums, planes, how: Finish, added=None, residual=None) -> None:
    """`finish_` by PyTorch."""
    kernel = how.geometry
    under = F.unfold(sums[:, None], kernel.kernel, kernel.dilation, kernel.padding, kernel.stride).sum(1)
    y += under.view(*y.shape[:3], 1) * how.sum_scale
    y += how.constants[how.rows.long()][:, how.columns.long()]
    if planes is not None:
        y += side_output(planes.unflatten(0, (kernel.taps, -1)), how.side_out.t(), kernel)
    if added is not None:
        y += added[:, None, None]
    if residual is not None:
        y += residual


def moments_of(x: torch.Tensor) -> torch.Tensor:
    """Sums and sums of squares of x (N, H, W, C) by channel, over parts of an image: (N, parts, 2, C), float64."""
    loops = library()
    if loops is None:
        wide = x.double()
        return torch.stack([wide.sum((1, 2)), wide.square().sum((1, 2))], 1)[:, None]
    x = x.float().contiguous()
    found = torch.empty(len(x), PARTS, 2, x.shape[-1], dtype=torch.float64)
    loops.moments(x.data_ptr(), len(x), x.shape[1] * x.shape[2], x.shape[-1], PARTS, found.data_ptr())
    return found
