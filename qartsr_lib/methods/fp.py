"""Full precision: the reference row, W32A32."""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import METHODS, Method, MethodResult
from qartsr_lib.quant.bits import Bits, parse_bits
from qartsr_lib.quant.report import report, w_bits_effective


class FullPrecision(Method):
    """Returns the backbone itself, unchanged; needs no calibration images."""

    name = "fp"
    label = "FP"

    def build(
        self,
        backbone: nn.Module,
        bits: str | Bits = "W32A32",
        calibration_images: list[torch.Tensor] | None = None,
        *,
        seed: int = 0,
        **options,
    ) -> MethodResult:
        self.check_options(options)
        bits = parse_bits(bits)
        if not bits.is_full_precision:
            raise QartsrError(f"bits {str(bits)!r}: method 'fp' is W32A32; choose a method that quantizes")
        layers = report(backbone)
        return MethodResult(backbone, layers, w_bits_effective(layers), steps=0)


METHODS.register(FullPrecision.name)(FullPrecision())
