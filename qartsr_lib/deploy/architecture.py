"""A one-step SR network without its weights, as plain data: enough to build it anywhere."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin

from qartsr_lib.backbones.base import ARCHITECTURES, OneStepSR
from qartsr_lib.base.errors import QartsrError

NETWORKS = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}


def describe(model: OneStepSR) -> dict:
    """JSON-ready description: class, name, timestep, both networks' configurations, the prompt's shape.

    Raises:
        QartsrError: a class that is not in ARCHITECTURES.
    """
    kinds = [name for name in ARCHITECTURES if ARCHITECTURES.get(name) is type(model)]
    if not kinds:
        raise QartsrError(f"{model.name}: class {type(model).__name__} is not registered in backbones.ARCHITECTURES")
    return {
        "architecture": kinds[0],
        "backbone": model.name,
        "timestep": model.timestep,
        "scaled": model.scaled,
        "prompt": list(model.prompt_embedding.shape),
        **{name: _own_settings(getattr(model, name)) for name in NETWORKS},
    }


def build(described: Mapping) -> OneStepSR:
    """The network that `describe` saw, in eval mode; its tensors have memory and no values.

    Raises:
        QartsrError, KeyError, TypeError, ValueError: `described` is not such a description.
    """
    with torch.device("meta"):
        networks = {name: kind.from_config(dict(described[name])) for name, kind in NETWORKS.items()}
        prompt = torch.empty(described["prompt"])
    kind = ARCHITECTURES.get(described["architecture"])
    model = kind.assemble(
        described["backbone"], described["timestep"], **networks, prompt_embedding=prompt, scaled=described["scaled"]
    )
    return model.to_empty(device="cpu").to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _own_settings(network: ConfigMixin) -> dict:
    """What differs from the class's defaults, in JSON's types."""
    defaults = {name: part.default for name, part in inspect.signature(type(network).__init__).parameters.items()}
    settings = json.loads(json.dumps({name: value for name, value in network.config.items() if name in defaults}))
    same = json.loads(json.dumps({name: defaults[name] for name in settings}, default=str))
    return {name: value for name, value in settings.items() if value != same[name]}
