"""One file per quantized model: dense codes, 16-bit floats, and a versioned JSON description.

The tensors of one kind are joined into one, in the order of the network's layers, because a safetensors header with an
entry for each would be larger than some of them. What the description does not say (shapes, positions) follows from the
network that it describes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import nn

from qartsr_lib.backbones.base import ARCHITECTURES, OneStepSR
from qartsr_lib.base.errors import QartsrError, check_finite
from qartsr_lib.base.files import write_atomically
from qartsr_lib.base.provenance import tensors_sha256
from qartsr_lib.deploy.layer import Form, InferenceLayer, inference_form
from qartsr_lib.deploy.zipped import SUFFIX, ZIPPED, is_packed, is_zipped, plain, zipped
from qartsr_lib.quant.attention import QuantAttnProcessor
from qartsr_lib.quant.layers import replace_layers
from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig

FORMAT = "qartsr-packed-model"
VERSION = 1
NETWORKS = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}
_KEY = "qartsr"
_OWN_HASH = "description_sha256"  # which files of before 2026-11-30 lack


def save_packed(model: OneStepSR, path: str | Path) -> OneStepSR:
    """Write a quantized and calibrated model to `path`, replacing an earlier file at the very end.

    `path` ends in .safetensors, or in .safetensors.gz for a smaller file.

    Returns the model that the file holds, all floats rounded to 16 bits; `load_packed` gives the same bits.

    Raises:
        QartsrError: not quantized, not representable (see inference_form), or the disk is full.
    """
    path = Path(path)
    if not is_packed(path):
        raise QartsrError(f"{path}: name a file that ends in {SUFFIX} or {ZIPPED}")
    record = getattr(model, "quantization", None)
    if record is None:
        raise QartsrError(f"{path}: the model to export is not quantized; quantize it first")
    packed = inference_form(model, half=True)
    places = [getattr(layer, "form", None) for layer in _candidates(packed)]
    forms = list(dict.fromkeys(filter(None, places)))
    tensors = _joined(packed)
    described = {
        "_type": FORMAT,
        "_version": VERSION,
        "method": record.method,
        "bits": str(record.steps[0][0].bits),
        **_architecture(packed),
        "forms": [asdict(form) for form in forms],
        "layers": [forms.index(form) if form else -1 for form in places],
        "attention": _attention(packed),
        "sha256": tensors_sha256(tensors),
    }
    described[_OWN_HASH] = _description_digest(described)
    metadata = {_KEY: json.dumps(described, separators=(",", ":"))}
    if is_zipped(path):
        write_atomically(path, lambda temporary: temporary.write_bytes(zipped(save(tensors, metadata))))
    else:
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
        model = _built(described)
        _fill(model, tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise QartsrError(f"{path}: does not fit the networks of this version ({error}); export it again") from error
    check_finite(model.state_dict().items(), path, "export a sound model again")
    model.weights_sha256 = described["sha256"]
    return model


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` take, the last one filled up with zeros."""
    return (count * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes of any shape, uint8 -> uint8 (packed_size,), least significant bit first; ValueError above."""
    flat = codes.reshape(-1, 1).numpy()
    if flat.size and int(flat.max()) >= 2**bits:
        raise ValueError(f"code {int(flat.max())} does not fit in {bits} bits")
    each = np.unpackbits(flat, axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each.reshape(-1), bitorder="little"))


def unpack(stream: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of `pack`: uint8 (packed_size,) -> codes of `shape`, uint8."""
    count = int(np.prod(shape))
    each = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(each, axis=1, bitorder="little").reshape(shape))


def _architecture(model: OneStepSR) -> dict:
    """A network without its weights, as plain data: enough for `_built` to build it anywhere."""
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


def _own_settings(network: ConfigMixin) -> dict:
    """What differs from the class's defaults, in JSON's types."""
    parameters = inspect.signature(type(network).__init__).parameters
    given = {name: value for name, value in network.config.items() if name in parameters}
    defaults = {name: parameters[name].default for name in given}
    given, defaults = (json.loads(json.dumps(settings, default=str)) for settings in (given, defaults))
    return {name: value for name, value in given.items() if value != defaults[name]}


def _built(described: Mapping) -> OneStepSR:
    """The described network in eval mode, with InferenceLayers; its tensors have memory and no values."""
    with torch.device("meta"):
        networks = {name: kind.from_config(dict(described[name])) for name, kind in NETWORKS.items()}
        prompt = torch.empty(described["prompt"])
    kind = ARCHITECTURES.get(described["architecture"])
    name, timestep, scaled = (described[key] for key in ("backbone", "timestep", "scaled"))
    model = kind.assemble(name, timestep, **networks, prompt_embedding=prompt, scaled=scaled)
    model = model.to_empty(device="cpu").to(memory_format=torch.channels_last).eval().requires_grad_(False)
    forms, candidates = [Form.from_dict(form) for form in described["forms"]], _candidates(model)
    if len(candidates) != len(described["layers"]):
        raise ValueError(f"{len(described['layers'])} layers described, {len(candidates)} found")
    places = zip(candidates, described["layers"], strict=True)
    found = {id(layer): forms[number] for layer, number in places if number >= 0}
    replace_layers(model, lambda _, layer: id(layer) in found, lambda _, layer: InferenceLayer(layer, found[id(layer)]))
    attention = described["attention"] or {"modules": ()}
    for name in attention["modules"]:
        module, config = model.get_submodule(name), QuantizerConfig.from_dict(attention["config"])
        module.set_processor(QuantAttnProcessor(module.get_processor(), config, name))
    return model.eval()


def _candidates(model: nn.Module) -> list[nn.Module]:
    """All Linear and Conv2d layers of the float network, and what took their place."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d | InferenceLayer)]


def _attention(model: nn.Module) -> dict | None:
    """Where attention products are quantized, and how; None for nowhere."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantAttnProcessor)}
    if not found:
        return None
    quantizer = next(iter(found.values())).activation_quantizers()[0]
    return {"config": asdict(quantizer.config), "modules": [name.rpartition(".")[0] for name in found]}


def _stored(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, int | None]]:
    """Kind of every tensor, "codes4" etc. for codes and their bits; each once, in the order of the network."""
    seen = set()
    for layer in model.modules():
        if isinstance(layer, InferenceLayer):
            seen.update(map(id, layer.buffers()))
            bits = layer.form.weight.bits
            yield f"codes{bits}", layer.codes, bits
            for name, part in layer.float_parts().items():
                yield name, part, None
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in seen:
            yield "others", tensor, None


def _joined(model: nn.Module) -> dict[str, torch.Tensor]:
    """Kind -> all tensors of that kind in a row: codes as bytes, the others as float16."""
    parts: dict[str, list[torch.Tensor]] = {}
    for kind, tensor, bits in _stored(model):
        tensor = tensor.detach().cpu()
        parts.setdefault(kind, []).append(pack(tensor, bits) if bits else tensor.reshape(-1).half())
    return {kind: torch.cat(parts[kind]) for kind in sorted(parts)}


@torch.no_grad()
def _fill(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of `_joined`, in place."""
    used = dict.fromkeys(tensors, 0)
    for kind, tensor, bits in _stored(model):
        start, count = used[kind], packed_size(tensor.numel(), bits) if bits else tensor.numel()
        used[kind] = start + count
        part = tensors[kind][start : used[kind]]
        if len(part) < count:
            raise ValueError(f"too few {kind}")
        tensor.copy_(unpack(part, bits, tuple(tensor.shape)) if bits else part.reshape(tensor.shape))
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.load_state_dict(module.state_dict())  # has a range now
    left = [kind for kind, count in used.items() if count != len(tensors[kind])]
    if left:
        raise ValueError(f"too many {left[0]}")


def _description_digest(described: Mapping) -> str:
    """Over all entries but itself, in the order of their names."""
    rest = {name: value for name, value in described.items() if name != _OWN_HASH}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The description and the tensors in a file, checked against their hashes."""
    if not path.is_file():
        raise QartsrError(f"{path}: no such file; make it with qartsr export")
    try:
        with plain(path) as unzipped, safe_open(str(unzipped), framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(described, dict) or described.get("_type") != FORMAT:
                raise QartsrError(f"{path}: not a packed model; make one with qartsr export")
            if (version := described.get("_version")) != VERSION:
                raise QartsrError(
                    f"{path}: format version {version}, but this program reads version {VERSION}; export again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, EOFError, ValueError, zlib.error) as error:
        raise QartsrError(f"{path}: truncated or not a safetensors file; export it again") from error
    own = _description_digest(described)
    if described.get("sha256") != tensors_sha256(tensors) or described.get(_OWN_HASH, own) != own:
        raise QartsrError(f"{path}: damaged (its hash differs); export it again")
    return described, tensors
