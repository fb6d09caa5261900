"""LSGQuant (arXiv:2602.03182), our port: no code was published.

    y = L1 L2 x + Q_W(R H^T) Q_A(H x) + B

Q_A divides each channel by its largest magnitude, then has a scale per token, both from the input itself (DRAQ): no
integer product computes that, as the channels' scales stand inside the sum. R, as large as W, and L are trained
together (QAO). How long a layer is trained follows from its sensitivity, the variance of its channels' means from image
to image: not at all, for a few steps, or to the end (VOLTS). What could not be found out: DEVIATIONS.md.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.rotated_layers import RotatedLayer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.dynamic import ChannelTokenQuantizer
from qartsr_lib.quant.granularity import PerChannel
from qartsr_lib.quant.layers import LayerConfig
from qartsr_lib.quant.scheme import QuantScheme
from qartsr_lib.training.finetuning.phases import LATENT, NOISE, PIXELS, Phase, everything

FROZEN, LIGHT = 0.001, 0.075
"""Published thresholds of sensitivity: up to the first a layer is not trained, up to the second for LIGHT_IMAGES."""
LIGHT_IMAGES = 30
KINDS = ("light side", "light residual", "side", "residual")


@register_layers("lsgquant")
class SensitivityLayer(RotatedLayer):
    """One whose residual is trained.

    Attributes:
        whole: R, like W, a parameter.
        sensitivity: a buffer of one number.
    """

    input_quantizer_type = ChannelTokenQuantizer

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        super()._add_quantizers(config, name)
        self.whole = nn.Parameter(super().residual().detach())
        self.register_buffer("sensitivity", self.weight.new_zeros(()))
        self._means: list[torch.Tensor] = []

    def residual(self) -> torch.Tensor:
        return self.whole

    def observe(self, x: torch.Tensor) -> None:
        self._means.append(x.movedim(self.input_axis, 0).flatten(1).mean(dim=1))

    @torch.no_grad()
    def start(self) -> None:
        super().start()
        if len(self._means) > 1:
            self.sensitivity.fill_(torch.stack(self._means).var(dim=0).mean())
        self._means = []

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        if self.sensitivity <= FROZEN:
            return {}
        prefix = "light " if self.sensitivity <= LIGHT else ""
        return {f"{prefix}side": [self.side_out, self.side_in], f"{prefix}residual": [self.whole]}


class LSGQuant(TrainedMethod):
    """Everything at once, layers of middling sensitivity for the first images only; squared errors as Q-DM."""

    layer_kind = "lsgquant"
    rates = tuple((kind, 1e-5) for kind in KINDS)

    def scheme(self) -> QuantScheme:
        return replace(super().scheme(), activation_granularity=PerChannel(), activation_symmetric=True, bias_bits=None)

    def untrained(self, *arguments, **options) -> nn.Module:
        student = super().untrained(*arguments, **options)
        found = [module.sensitivity for module in student.modules() if isinstance(module, SensitivityLayer)]
        if found and not max(found) > LIGHT:
            differ = f"no layer's input differs enough between the calibration images to be trained past {LIGHT_IMAGES}"
            raise QartsrError(f"{self.label}: {differ} images; calibrate with more photographs, or other ones")
        return student

    def phases(self, backbone: nn.Module, images: int, seed: int) -> list[Phase]:
        terms, light = (LATENT, NOISE, PIXELS), min(images, LIGHT_IMAGES)
        plan = [Phase(everything(backbone), light, terms)]
        return [*plan, Phase((), images - light, terms, kinds=KINDS[2:])] if images > light else plan


METHODS.register("lsgquant")(LSGQuant("lsgquant", "LSGQuant"))
