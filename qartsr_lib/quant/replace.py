"""Layers of a network put in the place of others."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_layers(
    model: nn.Module, chosen: Callable[[str, nn.Module], bool], convert: Callable[[str, nn.Module], nn.Module]
) -> int:
    """Put `convert(name, layer)` in the place of every chosen layer, in place.

    All are chosen before the first is converted. A layer registered under several names is converted
    once, under its first one, and stays one.

    Returns:
        How many layers were converted.
    """
    places = [
        (parent, key, name, layer)
        for parent_name, parent in model.named_modules()
        for key, layer in parent._modules.items()
        if layer is not None and chosen(name := f"{parent_name}.{key}" if parent_name else key, layer)
    ]
    converted: dict[int, nn.Module] = {}
    for _, _, name, layer in places:
        if id(layer) not in converted:
            converted[id(layer)] = convert(name, layer)
    for parent, key, _, layer in places:
        setattr(parent, key, converted[id(layer)])
    return len(converted)
