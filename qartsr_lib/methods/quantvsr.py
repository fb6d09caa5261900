"""QuantVSR (arXiv:2508.04485): side branches with ranks by the complexity of their inputs, and learned biases.

    y = L1 L2 x + Q_W((W - L1 L2) H^T) Q_A(H x) + B

Made for video; images have no complexity in time. Inputs are quantized dynamically, and inputs and weights in halves of
the channels, each half rotated by itself (the rotation is in the released code and the paper's figure). After L has
been trained, B is: only where a layer has one, so that nothing more is stored. QArtSR shares an author with it:
"QArtSR [as QuantVSR]" quantizes as it does where QArtSR's paper is silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from qartsr_lib.methods.base import METHODS, register_layers
from qartsr_lib.methods.low_rank import SIDE_DIVISOR, scaled_rank
from qartsr_lib.methods.qartsr import FinetuneLayer, QArtSR
from qartsr_lib.methods.rotated_layers import RotatedLayer
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.quant.dynamic import RangeQuantizer
from qartsr_lib.quant.granularity import PerHalf
from qartsr_lib.quant.layers import LayerConfig
from qartsr_lib.quant.scheme import QuantScheme
from qartsr_lib.quant.states import quant_modules
from qartsr_lib.training.finetuning.phases import LATENT, NOISE, PIXELS, Phase, everything, split

LOWEST, HIGHEST = 16, 64
"""Published ranks: a layer starts with the lowest, which is the study's rank here, see `low_rank.scaled_rank`."""
QUARTILE = 0.25


@register_layers("quantvsr")
class ComplexityLayer(RotatedLayer):
    """Remembers how complex its calibration inputs are, which a rank is chosen by."""

    parts, input_quantizer_type = 2, RangeQuantizer

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        self.complexities: list[float] = []
        super()._add_quantizers(config, name)

    def observe(self, x: torch.Tensor) -> None:
        channels = x.movedim(self.input_axis, 0).flatten(1)
        if channels.shape[1] > 1:  # the time embedding has no space
            self.complexities.append(float(channels.std(dim=1).mean()))

    def tuned_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"side": [self.side_out, self.side_in], "bias": [] if self.bias is None else [self.bias]}

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *rest) -> None:
        if (found := state.get(f"{prefix}side_in")) is not None:
            self.set_side(len(found))
        super()._load_from_state_dict(state, prefix, *rest)


def allot_ranks(layers: Sequence[ComplexityLayer]) -> None:
    """Start every layer with its rank, and forget the complexities.

    Each calibration image adds 1 to the published rank of a layer whose input is among the most complex quarter of all
    layers' inputs, and takes 1 away where it is among the least complex; the sum stays within LOWEST and HIGHEST.
    """
    seen = torch.tensor([value for layer in layers for value in layer.complexities])
    low, high = (float(seen.quantile(share)) for share in (QUARTILE, 1 - QUARTILE))
    for layer in layers:
        change = sum((value >= high) - (value <= low) for value in layer.complexities)
        published = min(max(LOWEST + change, LOWEST), HIGHEST)
        layer.set_side(round(published / LOWEST * scaled_rank(layer.weight, SIDE_DIVISOR)))
        layer.start()
        layer.complexities = []


class QuantVSR(TrainedMethod):
    """L, then B, by half of the images each, by squared errors as Q-DM (the paper's is that of the UNet's output)."""

    layer_kind = "quantvsr"
    calibration_adds_bits = True
    rates = (("side", 1e-3), ("bias", 1e-3))

    def scheme(self) -> QuantScheme:
        halves = {"weight_granularity": PerHalf(), "activation_granularity": PerHalf()}
        return replace(super().scheme(), **halves, bias_bits=None)

    def phases(self, backbone: nn.Module, images: int, seed: int) -> list[Phase]:
        terms, (side, bias) = (LATENT, NOISE, PIXELS), split(images, 2)
        plan = [Phase(everything(backbone), side, terms, kinds=("side",))]
        return [*plan, Phase((), bias, terms, kinds=("bias",))] if bias else plan

    def untrained(self, *arguments, **options) -> nn.Module:
        student = super().untrained(*arguments, **options)
        if layers := [module for module in quant_modules(student) if isinstance(module, ComplexityLayer)]:
            allot_ranks(layers)
        return student


@register_layers("finetune-halves")
class HalvesLayer(FinetuneLayer):
    """QArtSR's, with QuantVSR's quantizers."""

    input_quantizer_type = RangeQuantizer


class QArtSRInHalves(QArtSR):
    """QArtSR with dynamic inputs, and inputs and weights quantized in halves of the channels."""

    layer_kind = "finetune-halves"

    def scheme(self) -> QuantScheme:
        return replace(super().scheme(), weight_granularity=PerHalf(), activation_granularity=PerHalf())


METHODS.register("quantvsr")(QuantVSR("quantvsr", "QuantVSR"))
METHODS.register("qartsr-halves")(QArtSRInHalves("qartsr-halves", "QArtSR [as QuantVSR]"))
