"""Integer execution on a CPU: convolutions and linear layers as int8 products with int32 sums (oneDNN).

With codes c_w and c_a, W^ = s_w c_w + z_w and x^ = s_a c_a + z_a, a layer's output is

    sum W^ x^ = s_w s_a (sum c_w c_a) + z_w s_a (sum c_a) + z_a (sum W^)

each sum over the taps inside the image. The first is the integer product; the second one channel, the same for
all outputs; the third depends on the output channel and on which taps the border cuts off. Codes of up to 8 bits
are held in 8: activations unsigned, weights counted from the middle.
"""

from __future__ import annotations

import copy
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.around_product import Finish, InputQuantizer, Norm, encode, finish_
from qartsr_lib.deploy.geometry import Geometry, rows_by_tap
from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.quant.layers import replace_layers

ROWS = 64
"""Into at most so many rows a linear layer's tokens are laid, for the threads."""
SIZES = 8
"""Of images whose border constants are kept."""
WHOLE, HALVED = "whole", "halved"
#: (c_out, c_in, k) of the products that `weights_of_8_bits` tries, on images of both sizes; k = 0 is a linear layer.
TRIED, TRIED_SIDES = ((64, 64, 3), (32, 3, 3), (80, 64, 1), (5, 7, 3), (48, 160, 0)), (5, 32)
SAFE = 64
"""Two products of 255 and weights up to it add up to less than 2^15."""


def int8_form(model: nn.Module) -> nn.Module:
    """A copy of a packed model (load_packed, inference_form with half=True) whose quantized layers compute in integers.

    QartsrError when not one layer can (scales per group or token have no integer product), or without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise QartsrError("--runtime int8: this PyTorch was built without oneDNN; use --runtime simulate")
    converted = copy.deepcopy(model)

    def chosen(_: str, layer: nn.Module) -> bool:
        return isinstance(layer, InferenceLayer) and layer.is_integer

    if not replace_layers(converted, chosen, lambda _, layer: IntegerLayer(layer)):
        raise QartsrError(
            "--runtime int8: no layer of this model is an integer product, as scales per group of channels and "
            "activations of 32 bits have none; use --runtime simulate, or one of quantize --method qartsr --bits W4A4"
        )
    return converted.eval()


def integer_constants(layer: InferenceLayer) -> tuple[torch.Tensor, ...]:
    """What turns a layer that `is_integer` into one integer product.

    Codes of the weight, counted from the middle, int8, like W; and in float64 s_w s_a (c_out,), of the product;
    z_w s_a (c_out,), of the codes' sums; z_a (sum of W^ over the input channels) + W o, what each tap inside the image
    adds, (c_out,) or (c_out, k, k).
    """
    channels, middle = len(layer.codes), 2 ** (layer.form.weight.bits - 1)
    scale = layer.scale.reshape(-1).expand(channels).double()
    zero_point = scale * (middle + layer.form.weight.code_range[0])  # of codes counted from the middle
    if layer.zero_point is not None:
        zero_point = zero_point + layer.zero_point.reshape(-1).double()
    input_scale = layer.input_scale.double()
    per_tap = layer.input_zero_point.double() * layer.weight().double().sum(1)
    if layer.behind is not None:
        per_tap = per_tap + layer.behind.double().reshape(per_tap.shape)
    codes = (layer.codes.to(torch.int16) - middle).to(torch.int8)
    return codes, scale * input_scale, zero_point * input_scale, per_tap


class IntegerProduct(nn.Module):
    """Codes uint8 (N, H, W, c_in) -> scale * (sum of c_w c_a), float32 (N, H', W', c_out); sums are exact.

    Processors without VNNI or AMX add two products of 8-bit codes in 16 bits, which saturate: 2 x 255 x 127 > 32,767.
    Where a product tried here is wrong, weights of 8 bits become two halves of 7 bits, multiplied side by side.

    Args:
        codes, scale: of the weight, int8, (c_out, c_in) or (c_out, c_in, k, k); (c_out,).
        weights: WHOLE, or HALVED for codes that 16 bits are too few for; None for what is exact here.
    """

    def __init__(
        self, codes: torch.Tensor, scale: torch.Tensor, geometry: Geometry, weights: str | None = None
    ) -> None:
        super().__init__()
        large = int(codes.max()) > SAFE or int(codes.min()) < -SAFE
        self.halved = large and (weights or weights_of_8_bits()) == HALVED
        if self.halved:
            codes = torch.cat([lower := codes >> 1, codes - lower], 1)  # of twice as many channels
        self.shape = None
        if codes.ndim == 2:
            packed = torch.ops.onednn.qlinear_prepack(codes, None)
        else:
            self.shape = [list(pair) for pair in (geometry.stride, geometry.padding, geometry.dilation)]
            packed = torch.ops.onednn.qconv_prepack(codes, scale.float(), 1.0, 0, *self.shape, 1, None)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale.float())
        self.register_buffer("no_zero_point", torch.zeros(len(codes), dtype=torch.int64))

    def forward(self, codes: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """`scale` in the place of the layer's, such as ones for the bare sums."""
        if self.halved:
            codes = torch.cat([codes, codes], -1)
        factors = (self.packed, self.scale if scale is None else scale, self.no_zero_point, None)
        rest = (1.0, 0, torch.float32, "none", [], "")
        if self.shape is None:
            return torch.ops.onednn.qlinear_pointwise(codes, 1.0, 0, *factors, *rest)
        image = codes.permute(0, 3, 1, 2)
        return torch.ops.onednn.qconv2d_pointwise(image, 1.0, 0, *factors, *self.shape, 1, *rest).permute(0, 2, 3, 1)


class IntegerLayer(nn.Module):
    """An InferenceLayer that `is_integer` in integers; its outputs are equal to 1e-5 of their size."""

    def __init__(self, layer: InferenceLayer) -> None:
        super().__init__()
        self.geometry, self.is_convolution = layer.geometry, layer.is_convolution
        codes, scale, sum_scale, per_tap = integer_constants(layer)
        self.product = IntegerProduct(codes, scale, self.geometry)
        self.register_buffer("sum_scale", sum_scale.float())
        self.register_buffer("per_tap", per_tap.reshape(len(codes), *self.geometry.kernel))
        self.register_buffer("bias", torch.zeros(len(codes)) if layer.bias is None else layer.bias.float())
        rows = None if layer.side_in is None else rows_by_tap(layer.side_in, self.geometry).bfloat16()
        self.register_buffer("side_in", rows)
        self.register_buffer("side_out", None if rows is None else layer.side_out.t().contiguous())
        inputs = codes.shape[1]
        self.quantizer = InputQuantizer(
            offset=torch.zeros(inputs) if layer.offset is None else layer.offset,
            phi=torch.ones(inputs) if layer.phi is None else layer.phi,
            zero_point=layer.input_zero_point.item(),
            scale=layer.input_scale.item(),
            largest=float(layer.form.input.code_range[1]),
            rows=rows,
            sees_scaled=layer.form.side_after_scaling,
        )
        self._finishes: dict[tuple[int, int], Finish] = {}

    def forward(
        self,
        x: torch.Tensor,
        norm: Norm | None = None,
        added: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
        moments: bool = True,
    ) -> torch.Tensor:
        """The layer's output, float32; a convolution takes in what lies around it, and its output keeps its moments.

        Before it come `norm` of x, and an input enlarged by nearest neighbours to `size`; to the output are added
        `added` (N, c_out) and `residual`, which is like it. The `moments` are for a GroupNorm behind it.
        """
        if self.is_convolution:
            pixels = x.permute(0, 2, 3, 1)
        else:
            tokens = x.shape[:-1].numel()
            pixels = x.reshape(1, rows := math.gcd(tokens, ROWS), tokens // rows, -1)
        codes, sums, planes = encode(pixels, self.quantizer, norm)
        if size is not None:  # in the layout of (N, C, H, W)
            codes = F.interpolate(codes.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
            sums = F.interpolate(sums[:, None], size)[:, 0]
            planes = None if planes is None else F.interpolate(planes, size)
        y = self.product(codes)
        del codes  # memory: large images have large intermediate results
        beside = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
        how, wanted = self._finish(*sums.shape[1:]), moments and self.is_convolution
        found = finish_(y, sums, planes, how, added, beside, wanted)
        if not self.is_convolution:
            return y.view(*x.shape[:-1], -1)
        y = y.permute(0, 3, 1, 2)
        if wanted and not y.is_inference():
            y.known_moments = (found, y._version)  # they hold for as long as it is not changed
        return y

    def _finish(self, height: int, width: int) -> Finish:
        """For images of this size: rows and columns with the same taps inside are of one kind."""
        if (height, width) not in self._finishes:
            if len(self._finishes) >= SIZES:
                self._finishes.clear()
            rows, row_kinds = self.geometry.inside(height, 0).unique(dim=0, return_inverse=True)
            columns, column_kinds = self.geometry.inside(width, 1).unique(dim=0, return_inverse=True)
            table = torch.einsum("hk,wl,okl->hwo", rows.double(), columns.double(), self.per_tap) + self.bias
            of_size = (table.float().contiguous(), row_kinds.int(), column_kinds.int())
            self._finishes[height, width] = Finish(self.geometry, self.sum_scale, self.side_out, *of_size)
        return self._finishes[height, width]


@lru_cache(maxsize=1)
def weights_of_8_bits() -> str:
    """WHOLE where this process multiplies codes of 8 bits exactly, else HALVED; QartsrError where that is wrong, too.

    Found by multiplying the largest: an environment variable can forbid oneDNN the instructions that the processor has.
    """
    for weights in (WHOLE, HALVED):
        if all(_is_exact(weights, *shape, side) for shape in TRIED for side in TRIED_SIDES):
            return weights
    raise QartsrError("--runtime int8: integer products are not exact on this processor; use --runtime simulate")


def _is_exact(weights: str, c_out: int, c_in: int, kernel: int, side: int) -> bool:
    """Against float64, for weights of -128 and 127 and activations of 255 and 0."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (c_out, c_in, *[kernel] * 2 * bool(kernel)), generator=generator) * 255 - 128
    x = (torch.rand(1, side, side, c_in, generator=generator) < 0.9).to(torch.uint8) * 255
    geometry = Geometry((kernel,) * 2, padding=(kernel // 2,) * 2) if kernel else Geometry()
    found = IntegerProduct(codes.to(torch.int8), ones := torch.ones(c_out), geometry, weights)(x, ones)
    wanted = codes.double().reshape(c_out, c_in, *geometry.kernel)
    wanted = F.conv2d(x.permute(0, 3, 1, 2).double(), wanted, padding=geometry.padding)
    return torch.equal(found.double(), wanted.permute(0, 2, 3, 1))
