"""SVDQuant with its released code's quantizers: groups of 64, symmetric, activations dynamic per token.

Far finer than the shared setting, so it is a row of its own ("SVDQuant [as released]"). What the
released code leaves in 16 bits (ResNet convolutions, samplers, projections) is quantized here too,
convolutions with groups of 64 input channels shared over the kernel: on a convolutional network
nothing would be quantized otherwise. Biases are in full precision, as released.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from qartsr_lib.methods.base import METHODS
from qartsr_lib.methods.svdquant import SmoothedConv2d, SmoothedLayer, SmoothedLinear, SVDQuant
from qartsr_lib.quant.dynamic import DynamicQuantizer
from qartsr_lib.quant.granularity import PerGroup
from qartsr_lib.quant.layers import LAYER_KINDS
from qartsr_lib.quant.scheme import SHARED_SETTING

GROUP = 64
RELEASED_SETTING = replace(
    SHARED_SETTING,
    weight_granularity=PerGroup(GROUP),
    weight_symmetric=True,
    activation_granularity=PerGroup(GROUP),
    activation_symmetric=True,
    bias_bits=None,
    layer_kind="smoothed-dynamic",
)


class DynamicLayer(SmoothedLayer):
    """A SmoothedLayer whose activation quantizer has no range to be set."""

    input_quantizer_type = DynamicQuantizer

    def set_input_range(self) -> None:
        """Nothing to set."""


class DynamicLinear(DynamicLayer, SmoothedLinear):
    """DynamicLayer for nn.Linear."""


class DynamicConv2d(DynamicLayer, SmoothedConv2d):
    """DynamicLayer for nn.Conv2d."""


LAYER_KINDS.register("smoothed-dynamic")({nn.Linear: DynamicLinear, nn.Conv2d: DynamicConv2d})
METHODS.register("svdquant-released")(SVDQuant("svdquant-released", "SVDQuant [as released]", RELEASED_SETTING))
