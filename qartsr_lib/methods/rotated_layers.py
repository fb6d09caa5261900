"""Layers with a side branch whose input and residual weight are rotated before quantization (QuantVSR, LSGQuant).

    y = L1 L2 x + Q_W(R H^T) Q_A(H x) + Q_B(B)

R starts as W - L1 L2, L as the truncated SVD of W, and H is a randomized Hadamard matrix (quant.rotation).
"""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.low_rank import SIDE_DIVISOR, scaled_rank, side_branch, truncated_svd
from qartsr_lib.quant.layers import InferenceParts, LayerConfig, QuantLayer
from qartsr_lib.quant.quantizers import Quantizer, check_seen
from qartsr_lib.quant.rotation import block_size, random_signs, rotated
from qartsr_lib.quant.states import QuantState


class RotatedLayer(QuantLayer):
    """Base of both: calibration shows every input to `observe`; L and the weight's ranges follow from W alone.

    Attributes:
        signs: of H, (c_in,).
        side_out, side_in: L1 (c_out, r) and L2 (r, c_in k k).
    """

    parts = 1  # equal ones of the input channels, each rotated by itself

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        if getattr(self, "groups", 1) != 1:
            raise QartsrError(f"{name}: a grouped convolution cannot be rotated; exclude it with `only`")
        self.requires_grad_(False)
        super()._add_quantizers(config, name)
        self.register_buffer("signs", random_signs(self.weight.detach()))
        self.set_side(scaled_rank(self.weight, SIDE_DIVISOR))

    def set_side(self, rank: int) -> None:
        """Start anew with L of that rank, cut to full rank."""
        side_out, side_in = truncated_svd(self.weight.detach(), rank)
        self.side_out, self.side_in = nn.Parameter(side_out), nn.Parameter(side_in)
        self.drop_cache()

    @torch.no_grad()
    def start(self) -> None:
        """Set the weight's ranges, which then stay."""
        if self.weight_quantizer is not None:
            self.weight_quantizer.set_range_from(self.folded_weight())

    @property
    def rotation(self) -> int:
        """Size of H's blocks, the largest power of two in a part of the channels; one part for an odd number."""
        channels = len(self.signs)
        return block_size(channels // self.parts if channels % self.parts == 0 else channels)

    def residual(self) -> torch.Tensor:
        """R, like W."""
        return self.weight - (self.side_out @ self.side_in).view_as(self.weight)

    def folded_weight(self) -> torch.Tensor:
        """R H^T: what Q_W sees."""
        return rotated(self.residual(), self.signs, self.rotation, self.input_axis)

    def inference_parts(self) -> InferenceParts:
        side = {"side_out": self.side_out, "side_in": self.side_in}
        return InferenceParts(**side, signs=self.signs, rotation=self.rotation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state is QuantState.CALIBRATING:
            check_seen(self.name, x)
            self.observe(x.detach())
        if self.state is not QuantState.QUANTIZED:
            return super().forward(x)
        quantized = self.quantized_input(rotated(x, self.signs, self.rotation, self.input_axis))
        return self._operate(quantized, *self.quantized_parameters()).add_(side_branch(self, x))

    def activation_quantizers(self) -> list[Quantizer]:
        return []  # all are dynamic

    def observe(self, x: torch.Tensor) -> None:
        """See an input in full precision."""
        raise NotImplementedError
