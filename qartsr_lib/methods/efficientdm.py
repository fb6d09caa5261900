"""EfficientDM (arXiv:2310.03270): a low-rank update merged into weights that are quantized already.

Each layer computes Q_w(W_int + B A) x: W_int is the *quantized* weight, not W, rebuilt from its codes with the step as
it is trained, which it shares with Q_w. Trained are A, B, the steps, and the offsets of activations (QALoRA); those of
weights are not. Gradients of steps have no factor. Not copied from the released code: skip and down-sampling
convolutions that stay in full precision (a list of 8-bit layers is the study's factor), and packing that leaves 3 bits
out.
"""

from __future__ import annotations

import torch
from torch import nn

from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.low_rank import MERGED_DIVISOR, kaiming_start, scaled_rank
from qartsr_lib.methods.lsq import StepLayer, StepQuantizer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.primitives import quantize
from qartsr_lib.training.finetuning.phases import LATENT, NOISE, PIXELS

LORA_SHARE = 1 / 2500
"""Learning rate of A and B over the mean step size of the layer's weight (train_efficientdm.py)."""
WEIGHT_STEP_RATE = 1e-6 * 2**6
"""1e-6 for the steps themselves, which are held over the power of two nearest them, about 2^-6 at 4 bits."""


class FreeStepQuantizer(StepQuantizer):
    """A StepQuantizer whose gradients are those of clip(round(v)), without a factor, as EfficientDM's."""

    scales_gradients = False
    reach = 0.5  # rounds before it clips


class FixedOffsetQuantizer(FreeStepQuantizer):
    """One whose offset stays as many steps as it was first, as the released code's zero-points of weights."""

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        step, _ = super().qparams(x)
        return step, self.zero_point / self.scale * step


@register_layers("lora")
class MergedLoraLayer(StepLayer):
    """Q_w(W_int + B A) x, with W_int = step x codes + offset.

    Attributes:
        codes: of the weight as first quantized, whole numbers in floating point, like W; a buffer. W itself where
            weights are not quantized.
        lora_out, lora_in: B (c_out, r), zero, and A (r, c_in k k), Kaiming uniform; both over `lora_unit`, the mean
            first step size, so that one learning rate is scale-aware.
    """

    quantizer_type, input_quantizer_type = FixedOffsetQuantizer, FreeStepQuantizer

    def _add_quantizers(self, config, name: str) -> None:
        super()._add_quantizers(config, name)
        weight, quantizer = self.weight.detach(), self.weight_quantizer
        rank, fan_in = scaled_rank(weight, MERGED_DIVISOR), weight[0].numel()
        step = weight.new_ones(()) if quantizer is None else quantizer.scale.mean()
        self.register_buffer("lora_unit", step)
        codes = weight if quantizer is None else quantize(weight, *quantizer.qparams(weight), *quantizer.code_range)
        self.register_buffer("codes", codes.detach().clone())
        self.lora_out = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.lora_in = nn.Parameter(kaiming_start(rank, fan_in, weight) / step)

    def folded_weight(self) -> torch.Tensor:
        """W_int + B A, like W: what Q_w sees."""
        update = (self.lora_unit * self.lora_out) @ (self.lora_unit * self.lora_in)
        return self.base() + update.view_as(self.weight)

    def base(self) -> torch.Tensor:
        """W_int, like W, by the present step."""
        if self.weight_quantizer is None:
            return self.codes
        step, offset = self.weight_quantizer.qparams(self.codes)
        return step * self.codes + offset

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        fixed = [[] if q is None else [q.step_units] for q in (self.weight_quantizer, self.bias_quantizer)]
        of_input = [] if self.input_quantizer is None else list(self.input_quantizer.parameters())
        return {
            "lora": [self.lora_out, self.lora_in],
            "weight steps": fixed[0],
            "activation steps": of_input + fixed[1],
        }


class EfficientDM(TrainedMethod):
    """QALoRA trained by the noise's squared error, and by those of z_L and the image for the VAE."""

    layer_kind = "lora"
    rates = (("lora", LORA_SHARE), ("weight steps", WEIGHT_STEP_RATE), ("activation steps", 5e-4))
    terms = (LATENT, NOISE, PIXELS)


METHODS.register("efficientdm")(EfficientDM("efficientdm", "EfficientDM"))
