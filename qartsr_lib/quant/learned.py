"""A quantizer whose range is trained: learnable bounds, the "quantization parameters" of QArtSR section 3.4."""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.errors import QartsrError
from qartsr_lib.quant.primitives import affine_qparams
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig


class LearnedQuantizer(Quantizer):
    """Asymmetric fake quantization with trainable bounds l and u (LBQ, PassionSR, arXiv:2411.17106).

    scale = (u - l) / (2^b - 1) and z = l, so that gradients reach both bounds by the chain rule
    through Eq. 3. `lower` and `upper` have the granularity's parameter shape; they start at the
    range that `set_range` or calibration gives. The buffers `scale` and `zero_point` keep that
    first range.

    Raises:
        QartsrError: a symmetric configuration, which has no two bounds.
    """

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__(config, shape, name, device)
        if config.symmetric:
            raise QartsrError(f"{name}: learned bounds need an asymmetric quantizer; set symmetric to False")
        self.lower = nn.Parameter(torch.full_like(self.scale, torch.nan))
        self.upper = nn.Parameter(torch.full_like(self.scale, torch.nan))

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero-point of the present bounds, differentiable in them."""
        super().qparams(x)  # un-calibrated: tells so
        return affine_qparams(self.lower, self.upper, self.config.bits, self.config.zero_point)

    @torch.no_grad()
    def set_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        super().set_range(lower, upper)
        self.lower.copy_(lower)
        self.upper.copy_(upper)
