"""One file per quantized model: dense codes, 16-bit floats, and a versioned JSON description.

The tensors of one kind are joined into one, in the order of the network's layers, because a
safetensors header with an entry for each would be larger than some of them. What the description
does not say (shapes, positions) follows from the network that it describes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError, check_finite
from qartsr_lib.base.files import write_atomically
from qartsr_lib.deploy.architecture import build, describe
from qartsr_lib.deploy.bitpack import pack, packed_size, unpack
from qartsr_lib.deploy.inference_form import inference_form
from qartsr_lib.deploy.layer import Form, InferenceLayer, config_from_dict, config_to_dict
from qartsr_lib.quant.attention import QuantAttnProcessor
from qartsr_lib.quant.quantizers import Quantizer
from qartsr_lib.quant.replace import replace_layers

FORMAT = "qartsr-packed-model"
VERSION = 1
_KEY = "qartsr"
_OTHERS = "others"


def save_packed(model: OneStepSR, path: str | Path) -> OneStepSR:
    """Write a quantized model to `path` (.safetensors).

    Args:
        model: quantized by a method or by quantize_, and calibrated.
        path: an earlier file of that name is replaced at the very end.

    Returns:
        The model that the file holds, all floats rounded to 16 bits; `load_packed` gives the same bits.

    Raises:
        QartsrError: not quantized, not representable (see inference_form), or the disk is full.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise QartsrError(f"{path}: name a file that ends in .safetensors")
    record = getattr(model, "quantization", None)
    if record is None:
        raise QartsrError(f"{path}: the model to export is not quantized; quantize it first")
    packed = inference_form(model, half=True)
    layers = _layers(packed)
    forms = list(dict.fromkeys(layer.form for layer in layers.values()))
    tensors = _joined(packed, layers)
    described = {
        "_type": FORMAT,
        "_version": VERSION,
        "method": record.method,
        "bits": str(record.steps[0][0].bits),
        **describe(packed),
        "forms": [form.to_dict() for form in forms],
        "layers": _places(packed, layers, forms),
        "attention": _attention(packed),
        "sha256": _digest(tensors),
    }
    metadata = {_KEY: json.dumps(described, separators=(",", ":"))}
    write_atomically(path, lambda temporary: save_file(tensors, str(temporary), metadata))
    return packed


def load_packed(path: str | Path) -> OneStepSR:
    """The model that `save_packed` wrote, ready to run; neither training code nor other weights are needed.

    Raises:
        QartsrError: the file is missing, truncated, damaged, not finite, of another version, or something else.
    """
    path = Path(path)
    described, tensors = _read(path)
    try:
        model = build(described)
        layers = _place(model, described)
        _place_attention(model, described["attention"])
        _fill(model, layers, tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise QartsrError(f"{path}: does not fit the networks of this version ({error}); export it again") from error
    check_finite(model.state_dict().items(), path, "export a sound model again")
    model.weights_sha256 = described["sha256"]
    return model


def read_packed_description(path: str | Path) -> dict:
    """The description in a packed file: method, bits, backbone, timestep and the networks' configurations.

    Raises:
        QartsrError: as for load_packed.
    """
    return _read(Path(path), tensors=False)[0]


def _layers(model: nn.Module) -> dict[str, InferenceLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, InferenceLayer)}


def _candidates(model: nn.Module) -> list[str]:
    """Names of all Linear and Conv2d layers of the float network, and of what took their place."""
    kinds = (nn.Linear, nn.Conv2d, InferenceLayer)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds)]


def _places(model: nn.Module, layers: dict[str, InferenceLayer], forms: list[Form]) -> list[int]:
    """Per candidate the number of its form, -1 for a layer in floating point."""
    return [forms.index(layers[name].form) if name in layers else -1 for name in _candidates(model)]


def _place(model: nn.Module, described: dict) -> dict[str, InferenceLayer]:
    """Put empty InferenceLayers where the description has some."""
    forms, names = [Form.from_dict(form) for form in described["forms"]], _candidates(model)
    if len(names) != len(described["layers"]):
        raise ValueError(f"{len(described['layers'])} layers described, {len(names)} found")
    found = {
        id(model.get_submodule(name)): forms[number]
        for name, number in zip(names, described["layers"], strict=True)
        if number >= 0
    }
    replace_layers(model, lambda _, layer: id(layer) in found, lambda _, layer: InferenceLayer(layer, found[id(layer)]))
    return _layers(model.eval())


def _attention(model: nn.Module) -> dict | None:
    """Where attention products are quantized, and how; None for nowhere."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantAttnProcessor)}
    if not found:
        return None
    quantizer = next(iter(found.values())).activation_quantizers()[0]
    return {"config": config_to_dict(quantizer.config), "modules": [name.rpartition(".")[0] for name in found]}


def _place_attention(model: nn.Module, described: dict | None) -> None:
    for name in described["modules"] if described else ():
        module = model.get_submodule(name)
        config = config_from_dict(described["config"])
        module.set_processor(QuantAttnProcessor(module.get_processor(), config, name))


def _others(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor outside the quantized layers, each once, in the order of the network."""
    inside = {id(buffer) for layer in _layers(model).values() for buffer in layer.buffers()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            yield tensor


def _joined(model: nn.Module, layers: dict[str, InferenceLayer]) -> dict[str, torch.Tensor]:
    """Kind -> all tensors of that kind in a row: "codes4" etc. as bytes, the others as float16."""
    parts: dict[str, list[torch.Tensor]] = {}
    for layer in layers.values():
        bits = layer.form.weight.bits
        parts.setdefault(f"codes{bits}", []).append(pack(layer.codes.cpu(), bits))
        for name, part in layer.float_parts().items():
            parts.setdefault(name, []).append(part.detach().cpu().reshape(-1).half())
    parts[_OTHERS] = [tensor.detach().cpu().reshape(-1).half() for tensor in _others(model)]
    return {name: torch.cat(found) for name, found in sorted(parts.items()) if found}


@torch.no_grad()
def _fill(model: nn.Module, layers: dict[str, InferenceLayer], tensors: dict[str, torch.Tensor]) -> None:
    used = dict.fromkeys(tensors, 0)

    def take(kind: str, count: int) -> torch.Tensor:
        start = used[kind]
        used[kind] = start + count
        if used[kind] > len(tensors[kind]):
            raise ValueError(f"too few {kind}")
        return tensors[kind][start : used[kind]]

    for layer in layers.values():
        bits, shape = layer.form.weight.bits, tuple(layer.codes.shape)
        layer.codes.copy_(unpack(take(f"codes{bits}", packed_size(layer.codes.numel(), bits)), bits, shape))
        for name, part in layer.float_parts().items():
            part.copy_(take(name, part.numel()).reshape(part.shape))
    for tensor in _others(model):
        tensor.copy_(take(_OTHERS, tensor.numel()).reshape(tensor.shape))
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.load_state_dict(module.state_dict())  # has a range now
    left = [kind for kind, count in used.items() if count != len(tensors[kind])]
    if left:
        raise ValueError(f"too many {left[0]}")


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path, tensors: bool = True) -> tuple[dict, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise QartsrError(f"{path}: no such file; make it with python -m qartsr_lib export")
    found: dict[str, torch.Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if isinstance(described, dict) and described.get("_version") == VERSION and tensors:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise QartsrError(f"{path}: truncated or not a safetensors file; export it again") from error
    if not isinstance(described, dict) or described.get("_type") != FORMAT:
        raise QartsrError(f"{path}: not a packed model; make one with python -m qartsr_lib export")
    if described.get("_version") != VERSION:
        version = described.get("_version")
        raise QartsrError(f"{path}: format version {version}, but this program reads version {VERSION}; export again")
    if tensors and described.get("sha256") != _digest(found):
        raise QartsrError(f"{path}: damaged (its hash differs); export it again")
    return described, found
