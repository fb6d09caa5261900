"""PassionSR (arXiv:2411.17106): learnable equivalent transformation, learnable bounds, calibrated part by part.

    y = Q_W(s W) Q_A((x - o) / s) + Q_B(B) + W o

Distributed quantization calibration: encoder, UNet, decoder in inference order, each first the transformation (LET: s
and o), then the bounds (LBQ), each behind the already quantized parts. Left out of the shared setting: bounds of
channel halves, and quantized attention products with their factors. Not copied from the released code: the decoder's
target is the full-precision image (as in the paper's figure), not the original; ranges come from all calibration
images, not the first batch.
"""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.channel_layers import ShiftedLayer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.layers import LayerConfig
from qartsr_lib.quant.learned import RoundFirstQuantizer, power_of_two
from qartsr_lib.training.finetuning.phases import LATENT, NOISE, PIXELS, Z_H, Phase, split, three_parts


@register_layers("equivalent")
class EquivalentLayer(ShiftedLayer):
    """LET and LBQ. `offset_units`, (c_in,), is o over the power of two nearest the input's width, zero at the start."""

    quantizer_type = RoundFirstQuantizer

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        super()._add_quantizers(config, name)
        self.offset_units = nn.Parameter(torch.zeros_like(self.log_phi))
        self.register_buffer("offset_unit", self.weight.new_tensor(1.0))

    @property
    def offset(self) -> torch.Tensor:
        """o, (c_in,)."""
        return self.offset_units * self.offset_unit

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"transformation": [self.log_phi, self.offset_units], "bounds": self.quantizer_parameters()}

    def set_ranges(self) -> None:
        self.offset_unit.copy_(power_of_two(self._highest.max() - self._lowest.min()))
        super().set_ranges()


class PassionSR(TrainedMethod):
    """PassionSR in the shared setting; LET and LBQ of each part get equal shares of the images."""

    layer_kind = "equivalent"
    rates = (("transformation", 1e-5), ("bounds", 1e-5))

    def phases(self, backbone: nn.Module, images: int, seed: int) -> list[Phase]:
        terms = ((LATENT, LATENT), (NOISE, Z_H), (PIXELS, PIXELS))
        shares, plan = iter(split(images, 6)), []
        for blocks, (first, second) in zip(three_parts(backbone), terms, strict=True):
            plan.append(Phase(blocks, next(shares), (first,), trained=blocks, kinds=("transformation",)))
            plan.append(Phase((), next(shares), (second,), trained=blocks, kinds=("bounds",)))
        return plan


METHODS.register("passionsr")(PassionSR("passionsr", "PassionSR"))
