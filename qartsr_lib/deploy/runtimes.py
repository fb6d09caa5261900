"""How a packed model computes."""

from __future__ import annotations

from collections.abc import Callable

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry
from qartsr_lib.deploy.blocks import fuse_
from qartsr_lib.deploy.int8 import int8_form

#: Name -> function from a packed model to one that upscales in that way.
RUNTIMES: Registry[Callable[[OneStepSR], OneStepSR]] = Registry("runtime", __package__)


@RUNTIMES.register("simulate")
def simulate(model: OneStepSR) -> OneStepSR:
    """Floating-point products of dequantized numbers, on any device."""
    return model


@RUNTIMES.register("int8")
def int8(model: OneStepSR) -> OneStepSR:
    """Integer products on a CPU.

    Raises:
        QartsrError: the model lies on a GPU, or as int8_form says.
    """
    if model.prompt_embedding.is_cuda:
        raise QartsrError("runtime int8 computes on a CPU; on a GPU use simulate, which is faster there")
    converted = int8_form(model)
    fuse_(converted)
    return converted
