"""EfficientDM (arXiv:2310.03270): a low-rank update merged into weights that are quantized already.

Each layer computes Q_w(W_int + B A) x: W_int is the *quantized* weight, not W, and only A, B and the quantizers' scales
and offsets are trained (QALoRA). Not copied from the released code: skip and down-sampling convolutions that stay in
full precision, and packing that leaves 3 bits out.
"""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.low_rank import MERGED_DIVISOR, kaiming_start, scaled_rank
from qartsr_lib.methods.lsq import StepLayer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.training.finetuning.phases import LATENT, NOISE, PIXELS

LORA_SHARE = 1 / 2500
"""Learning rate of A and B over the mean step size of the layer's weight (train_efficientdm.py)."""
WEIGHT_STEP_RATE = 1e-6 * 2**6
"""1e-6 for the steps themselves, which are held over the power of two nearest them, about 2^-6 at 4 bits."""


@register_layers("lora")
class MergedLoraLayer(StepLayer):
    """Q_w(W_int + B A) x.

    Attributes:
        base: W_int in floating point, the weight as first quantized; a buffer.
        lora_out, lora_in: B (c_out, r), zero, and A (r, c_in k k), Kaiming uniform; both over `lora_unit`, the mean
            first step size, so that one learning rate is scale-aware.
    """

    def _add_quantizers(self, config, name: str) -> None:
        super()._add_quantizers(config, name)
        weight, quantizer = self.weight.detach(), self.weight_quantizer
        rank, fan_in = scaled_rank(weight, MERGED_DIVISOR), weight[0].numel()
        step = weight.new_ones(()) if quantizer is None else quantizer.scale.mean()
        self.register_buffer("lora_unit", step)
        with torch.no_grad():
            self.register_buffer("base", (weight if quantizer is None else quantizer(weight)).clone())
        self.lora_out = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.lora_in = nn.Parameter(kaiming_start(rank, fan_in, weight) / step)

    def folded_weight(self) -> torch.Tensor:
        """W_int + B A, like W: what Q_w sees."""
        update = (self.lora_unit * self.lora_out) @ (self.lora_unit * self.lora_in)
        return self.base + update.view_as(self.weight)

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        weight = [] if self.weight_quantizer is None else list(self.weight_quantizer.parameters())
        others = (self.input_quantizer, self.bias_quantizer)
        return {
            "lora": [self.lora_out, self.lora_in],
            "weight steps": weight,
            "activation steps": [p for quantizer in others if quantizer is not None for p in quantizer.parameters()],
        }


class EfficientDM(TrainedMethod):
    """QALoRA trained by the noise's squared error, and by those of z_L and the image for the VAE."""

    layer_kind = "lora"
    rates = (("lora", LORA_SHARE), ("weight steps", WEIGHT_STEP_RATE), ("activation steps", 5e-4))
    terms = (LATENT, NOISE, PIXELS)


METHODS.register("efficientdm")(EfficientDM("efficientdm", "EfficientDM"))
