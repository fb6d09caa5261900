"""Save and load quantized backbones: safetensors for the numbers, versioned JSON for the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from qartsr_lib.base.errors import QartsrError, check_finite
from qartsr_lib.base.files import sha256, write_atomically, write_text
from qartsr_lib.methods.base import METHODS
from qartsr_lib.quant.apply import QuantRecord, quantize_
from qartsr_lib.quant.quantizers import Quantizer
from qartsr_lib.quant.scheme import QuantScheme

DESCRIPTION = "quantized.json"
FORMAT = "qartsr-quantized-backbone"
VERSION = 1
_ENTRIES = {"backbone": str, "timestep": int, "method": str, "bits": str, "steps": list, "tensors": dict}


def save_quantized(backbone: nn.Module, folder: str | Path) -> Path:
    """Write a calibrated quantized backbone into `folder`; `load_quantized` gives the same bits.

    The tensors go into a file named after their hash and the description is renamed into place last, so that an
    interrupted save leaves an earlier checkpoint readable, which is replaced else.

    Args:
        backbone: quantized by quantize_ or a method; has `.name` and `.timestep`.

    Returns:
        The path of the JSON description.

    Raises:
        QartsrError: the backbone is not quantized, calibrated or finite, or the disk is full.
    """
    folder = Path(folder)
    record = getattr(backbone, "quantization", None)
    if record is None:
        raise QartsrError(f"{folder}: the backbone to save is not quantized; quantize it first")
    for module in backbone.modules():
        if isinstance(module, Quantizer) and not module.calibrated:
            raise QartsrError(f"{folder}: cannot save, {module.name} is not calibrated; run calibrate() first")
    check_finite(backbone.state_dict().items(), f"{folder}: the backbone to save", "quantize it again")
    tensors = write_atomically(folder / "tensors.safetensors", lambda path: save_model(backbone, str(path)))
    digest = sha256(tensors)
    final = tensors.replace(tensors.with_name(f"tensors-{digest[:16]}.safetensors"))
    described = {
        "_type": FORMAT,
        "_version": VERSION,
        "backbone": backbone.name,
        "timestep": backbone.timestep,
        "scaling_factor": float(backbone.vae.config.scaling_factor),  # of the VAE's latents, no tensor
        "method": record.method,
        "bits": str(record.steps[0][0].bits),
        "steps": [{"scheme": scheme.to_dict(), "only": list(only)} for scheme, only in record.steps],
        "tensors": {"file": final.name, "sha256": digest},
    }
    path = write_text(folder / DESCRIPTION, json.dumps(described, indent=2) + "\n")
    for stale in set(folder.glob(f"tensors-{'[0-9a-f]' * 16}.safetensors")) - {final}:  # not a user's own files
        stale.unlink()
    return path


def load_quantized(folder: str | Path, load_backbone: Callable[[str, int], nn.Module] | None = None) -> nn.Module:
    """The backbone that `save_quantized` wrote, in eval mode and ready to run.

    Args:
        load_backbone: the full-precision backbone of (name, timestep), whose weights are then replaced. Default:
            qartsr_lib.backbones.load_backbone.

    Raises:
        QartsrError: a file is missing, truncated, damaged, of another version, or does not fit the backbone; Diverged
            where a tensor is not finite.
    """
    folder = Path(folder)
    described = read_description(folder)
    tensors = _checked_tensors(folder, described["tensors"])
    if load_backbone is None:
        from qartsr_lib.backbones import load_backbone  # imported late: it brings in diffusers
    backbone = load_backbone(described["backbone"], described["timestep"])
    if "scaling_factor" in described:  # files of earlier versions lack it
        backbone.vae.register_to_config(scaling_factor=described["scaling_factor"])
    try:
        steps = tuple((QuantScheme.from_dict(step["scheme"]), tuple(step["only"])) for step in described["steps"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QartsrError(f"{folder / DESCRIPTION}: entry 'steps' is damaged; save the checkpoint again") from error
    METHODS.names()  # layer kinds are registered beside the methods that use them
    for scheme, only in steps:
        quantize_(backbone, scheme, only)
    backbone.quantization = QuantRecord(steps, described["method"])
    try:
        load_model(backbone, tensors)
    except (SafetensorError, OSError) as error:
        raise QartsrError(f"{tensors}: not a readable tensor file; save the checkpoint again") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        misfit = f"does not fit the backbone {described['backbone']!r} of this version"
        raise QartsrError(f"{folder}: {misfit} ({lines[min(1, len(lines) - 1)][:160]})") from error
    check_finite(backbone.state_dict().items(), tensors, "quantize again with sound weights and images")
    return backbone.eval()


def read_description(folder: str | Path) -> dict:
    """The checked JSON description of a saved backbone: backbone, timestep, method, bits, steps, tensors.

    Raises:
        QartsrError: no such checkpoint, not JSON, another kind of file, another version, or incomplete.
    """
    path = Path(folder) / DESCRIPTION
    if Path(folder).is_file():
        raise QartsrError(
            f"{folder}: is a file; name a folder that quantize wrote (upscale also takes a packed FILE.safetensors)"
        )
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise QartsrError(f"{path}: no such file; name a folder that quantize wrote") from error
    except (OSError, ValueError) as error:
        raise QartsrError(f"{path}: not readable JSON; save the checkpoint again") from error
    if not isinstance(described, dict) or described.get("_type") != FORMAT:
        raise QartsrError(f"{path}: not a quantized backbone; name a folder that quantize wrote")
    version = described.get("_version")
    if version != VERSION:
        raise QartsrError(f"{path}: format version {version}, but this program reads version {VERSION}; save it again")
    for key, kind in _ENTRIES.items():
        if not isinstance(described.get(key), kind):
            raise QartsrError(f"{path}: entry {key!r} is missing or damaged; save the checkpoint again")
    return described


def _checked_tensors(folder: Path, entry: dict) -> Path:
    """Path of the tensor file after its hash was compared."""
    if not all(isinstance(entry.get(key), str) for key in ("file", "sha256")):
        raise QartsrError(f"{folder / DESCRIPTION}: entry 'tensors' is damaged; save the checkpoint again")
    path = folder / Path(entry["file"]).name  # never outside the folder
    if not path.is_file():
        raise QartsrError(f"{path}: missing; copy the whole folder or save the checkpoint again")
    if sha256(path) != entry["sha256"]:
        raise QartsrError(f"{path}: truncated or damaged (its hash differs); save the checkpoint again")
    return path
