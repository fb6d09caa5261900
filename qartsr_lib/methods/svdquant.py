"""SVDQuant (arXiv:2411.05007): outliers moved to the weight, its largest singular part kept in 16 bits. No training.

    y = L1 L2 x~ + Q_W(W~ - L1 L2) Q_A(x~) + Q_B(B),    x~ = x / phi, W~ = phi W

phi is searched on a grid by the layer's output error, then L is refined: L <- SVD_r(W~ - Q(W~ - L)),
as long as the output error falls (deepcompressor). In the shared setting weights are quantized per
channel and activations per tensor and statically; svdquant_released has the released quantizers.
The layers that deepcompressor leaves in 16 bits (SDXL's ResNet convolutions among them) are quantized.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from qartsr_lib.base.progress import progress
from qartsr_lib.methods.base import METHODS, Method, MethodResult, check_calibration_images
from qartsr_lib.methods.low_rank import SIDE_DIVISOR, SideBranchConv2d, SideBranchLinear, scaled_rank, truncated_svd
from qartsr_lib.methods.phi_search import SearchedLayer
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.bits import Bits, parse_bits
from qartsr_lib.quant.layers import LAYER_KINDS, InferenceParts, LayerConfig
from qartsr_lib.quant.quantizers import QPARAM_BITS
from qartsr_lib.quant.report import w_bits_effective
from qartsr_lib.quant.scheme import SHARED_SETTING, QuantScheme
from qartsr_lib.quant.states import calibrate, quant_modules

REFINEMENTS = 100


class SmoothedLayer(SearchedLayer):
    """Common part of SmoothedLinear and SmoothedConv2d.

    Attributes:
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k); they see the smoothed input x~.
    """

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        super()._add_quantizers(config, name)
        self.log_phi.requires_grad_(False)
        rank = scaled_rank(self.weight, SIDE_DIVISOR)
        self.register_buffer("side_out", self.weight.new_zeros(len(self.weight), rank))
        self.register_buffer("side_in", self.weight.new_zeros(rank, self.weight[0].numel()))

    def folded_weight(self) -> torch.Tensor:
        """W~ - L1 L2: what Q_W sees."""
        return self.times_phi(self.weight) - (self.side_out @ self.side_in).view_as(self.weight)

    def inference_parts(self) -> InferenceParts:
        side = {"side_out": self.side_out, "side_in": self.side_in, "side_after_scaling": True}
        return replace(super().inference_parts(), **side)

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        """L1 L2 x~, from the smoothed input before its quantization."""
        return self.side_branch(self.scaled_input(x))

    @torch.no_grad()
    def start(self) -> None:
        """Choose phi by the grid search, then refine L, both by the error of the output on kept inputs."""
        self._refine(self.search_phi())
        self.forget()

    def set_phi(self, log_phi: torch.Tensor) -> None:
        """Take phi, L from the smoothed weight, and the ranges that belong to them."""
        self.log_phi.copy_(log_phi)
        self._set_side(self.times_phi(self.weight))
        self.set_ranges()

    def _refine(self, error: float) -> None:
        whole = self.times_phi(self.weight)
        for _ in range(REFINEMENTS if self.weight_quantizer is not None else 0):
            kept = self.side_out.clone(), self.side_in.clone()
            self._set_side(whole - self.weight_quantizer(self.folded_weight()))
            self.weight_quantizer.set_range_from(self.folded_weight())
            now = self.output_error()
            if now >= error:
                self.side_out.copy_(kept[0])
                self.side_in.copy_(kept[1])
                self.weight_quantizer.set_range_from(self.folded_weight())
                return
            error = now

    def _set_side(self, matrix: torch.Tensor) -> None:
        side_out, side_in = truncated_svd(matrix, self.side_in.shape[0])
        self.side_out.copy_(side_out)
        self.side_in.copy_(side_in)

    @property
    def side_branch_bits(self) -> int:
        """L1, L2 and phi in 16 bits."""
        return super().side_branch_bits + QPARAM_BITS * (self.side_out.numel() + self.side_in.numel())


class SmoothedLinear(SmoothedLayer, SideBranchLinear):
    """SmoothedLayer for nn.Linear."""


class SmoothedConv2d(SmoothedLayer, SideBranchConv2d):
    """SmoothedLayer for nn.Conv2d."""


class SVDQuant(Method):
    """SVDQuant; deterministic, so `seed` has no effect.

    Args:
        name, label: registry key and table name.
        setting: quantizers and layer kind; the bits are filled in by `build`.
    """

    def __init__(self, name: str, label: str, setting: QuantScheme) -> None:
        self.name, self.label, self.setting = name, label, setting

    def scheme(self) -> QuantScheme:
        return self.setting

    def build(
        self, backbone: nn.Module, bits: str | Bits, calibration_images: list[torch.Tensor], *, seed: int = 0, **options
    ) -> MethodResult:
        self.check_options(options)
        bits = parse_bits(bits)
        quantized = copy.deepcopy(backbone)
        scheme = self.scheme().at(bits, backbone.eight_bit_layers)
        layers = quantize_(quantized, scheme)
        if not bits.is_full_precision:
            check_calibration_images(calibration_images)
            calibrate(quantized, quantized.upscale, calibration_images)
            for layer in progress(quant_modules(quantized), f"{self.label} {bits} layers"):
                if isinstance(layer, SmoothedLayer):
                    layer.start()
            quantized.quantization = replace(quantized.quantization, method=self.name)
        return MethodResult(quantized, layers, w_bits_effective(layers), steps=0)


LAYER_KINDS.register("smoothed")({nn.Linear: SmoothedLinear, nn.Conv2d: SmoothedConv2d})
METHODS.register("svdquant")(SVDQuant("svdquant", "SVDQuant", replace(SHARED_SETTING, layer_kind="smoothed")))
