"""Full precision: the reference row, W32A32."""

from __future__ import annotations

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import METHODS, Method, MethodResult
from qartsr_lib.quant.scheme import parse_bits


class FullPrecision(Method):
    """Returns the backbone itself, unchanged; needs no calibration images."""

    name, label = "fp", "FP"

    def build(self, backbone, bits="W32A32", calibration_images=None, *, seed=0, **options) -> MethodResult:
        self.check_options(options)
        if not parse_bits(bits).is_full_precision:
            raise QartsrError(f"bits '{parse_bits(bits)}': method 'fp' is W32A32; choose a method that quantizes")
        return MethodResult(backbone)


METHODS.register("fp")(FullPrecision())
