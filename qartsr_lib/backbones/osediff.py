"""The backbone `osediff`: OSEDiff (arXiv:2406.08177) on Stable Diffusion 2.1-base, from files that are not shipped."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from qartsr_lib.backbones.base import BACKBONES
from qartsr_lib.backbones.osediff_checkpoint import PEFT_ALPHA, RELEASED_TIMESTEP, read_checkpoint
from qartsr_lib.backbones.osediff_files import (
    NETWORK_WEIGHTS,
    empty_network,
    first_line,
    load_network,
    load_tensors,
    read_weights,
    resolve_base,
    weight_files,
)
from qartsr_lib.backbones.osediff_model import Inference, OSEDiff
from qartsr_lib.base import paths
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError, check_finite
from qartsr_lib.base.files import sha256, write_atomically

FOLDER = "osediff"
#: PassionSR's cached embedding of the empty prompt; looked for beside OSEDiff's file.
EMPTY_EMBEDDING = "empty_context_embedding.pt"
NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
#: What decides the merged weights beside their sources.
MERGED = {"version": 1, "alpha": PEFT_ALPHA}
Kept = tuple[dict[str, torch.Tensor], dict[str, str]]  # tensors and notes


def weights_name(timestep: int) -> str:
    """File name of the weights for a label T: osediff.pkl as released (T = 1000), else what TRQ writes."""
    return "osediff.pkl" if timestep == RELEASED_TIMESTEP else f"osediff-T{timestep:04d}.pkl"


def load_osediff(
    timestep: int | None = None,
    *,
    base: str | Path | None = None,
    osediff: str | Path | None = None,
    prompt: str = "",
    tile: int = Inference.tile,
    posterior: str = Inference.posterior,
    seed: int = Inference.seed,
) -> OSEDiff:
    """Load OSEDiff; the first time the LoRA is merged and a merged copy kept.

    Args:
        timestep: label T; None for the one that `osediff` was trained at.
        base: Stable Diffusion 2.1-base, see `resolve_base`.
        osediff: OSEDiff's or TRQ's file; by default `weights_name(timestep)` in the folder of weights.
        prompt: text or tags for all images; empty as for PassionSR (and most likely QArtSR).
        tile, posterior, seed: see `Inference`.

    Raises:
        QartsrError: a file is missing, damaged, does not fit the others, or was trained at another T.
    """
    inference = Inference(tile=tile, posterior=posterior, seed=seed)
    folder, file = resolve_base(base), _weights(osediff, timestep)
    files = network_files(folder)
    tensors, notes = _kept(f"merged {MERGED}", [file, *files], lambda: _merged(folder, file, files, timestep))
    trained_at = int(notes["timestep"])
    _check_timestep(file, trained_at, timestep)
    unet, vae = (_network(name, folder, tensors) for name in NETWORKS)
    embedding, made_from = _embedding(folder, file, prompt, unet.config.cross_attention_dim)
    digest = hashlib.sha256(f"{notes['sha256']} {made_from} {prompt}".encode()).hexdigest()
    return OSEDiff(trained_at, vae, unet, embedding, inference, digest)


def _merged(base: Path, file: Path, files: Iterable[Path], timestep: int | None) -> Kept:
    """The tensors of both networks with the LoRA merged; timestep label and sha256 of all sources."""
    checkpoint = read_checkpoint(file)
    _check_timestep(file, checkpoint.timestep, timestep)
    networks = {name: load_network(kind, base / name) for name, kind in NETWORKS.items()}
    checkpoint.apply_(**networks)
    sources = {path.relative_to(base).as_posix(): sha256(path) for path in files} | {"osediff": sha256(file)}
    digest = stable_hash({**MERGED, "sources": sources})
    states = {name: network.state_dict() for name, network in networks.items()}
    tensors = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    return tensors, {"timestep": str(checkpoint.timestep), "sha256": digest}


def _check_timestep(file: Path, trained_at: int, timestep: int | None) -> None:
    if timestep not in (None, trained_at):
        raise QartsrError(
            f"{file}: was trained at T = {trained_at}, not at T = {timestep}; choose --timestep {trained_at}, "
            "or train weights with qartsr train trq"
        )


def _network(name: str, base: Path, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A network whose tensors are those of a file, not copies of them: nothing is initialized first."""
    state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    network = empty_network(NETWORKS[name], base / name)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _weights(osediff: str | Path | None, timestep: int | None) -> Path:
    if osediff is not None:
        file = Path(osediff).expanduser()
        if not file.is_file():
            raise QartsrError(f"{file}: no such file; name OSEDiff's weights with --osediff")
        return file
    name = weights_name(RELEASED_TIMESTEP if timestep is None else timestep)
    file = paths.weights_dir() / FOLDER / name
    if not file.is_file():
        hint = "get OSEDiff's release" if name == "osediff.pkl" else "train it with qartsr train trq"
        raise QartsrError(f"{file}: no such weights; {hint}, or name a file with --osediff")
    return file


def network_files(base: Path) -> list[Path]:
    """All of the base model that the merged networks depend on."""
    found = [base / name / "config.json" for name in NETWORKS]
    for name in NETWORKS:
        found += weight_files(base / name, *NETWORK_WEIGHTS)
    return found


def _kept(what: str, files: Iterable[Path], make: Callable[[], Kept]) -> Kept:
    """What `make` gives, kept in `.cache/osediff` while its sources `files` stay as they are.

    It is read back even when it was just made: kernels round by where a tensor begins in memory.
    """
    marks = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    path = paths.cache_dir() / FOLDER / f"{stable_hash([what, marks])}.safetensors"
    try:
        return _read(path)
    except (OSError, SafetensorError):  # not there, or damaged
        tensors, notes = make()
    try:
        for leftover in path.parent.glob(".*.safetensors"):  # of processes that were killed, gigabytes perhaps
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink(missing_ok=True)
        write_atomically(path, lambda temporary: save_file(tensors, temporary, notes))
        return _read(path)
    except (QartsrError, OSError, SafetensorError) as error:
        warnings.warn(f"what makes the next start fast could not be kept: {error}", stacklevel=2)
    return tensors, notes


def _read(path: Path) -> Kept:
    with safe_open(path, "pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata()  # noqa: SIM118


def _embedding(base: Path, file: Path, prompt: str, width: int) -> tuple[torch.Tensor, str]:
    """The prompt's embedding by the text encoder, or (empty prompt) from PassionSR's file: (1, tokens, `width`).

    And a hash of the files that it was made from, the same on every machine.
    """
    cached = file.parent / EMPTY_EMBEDDING
    if not prompt and not (base / "text_encoder").is_dir() and cached.is_file():
        found = load_tensors(cached)
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else ()
        if shape[-1:] != (width,) or len(shape) not in (2, 3) or shape[:-2] not in ((), (1,)):
            raise QartsrError(f"{cached}: no text embedding of width {width}; remove the file or get it again")
        check_finite([("embedding", found)], cached, "get it again")
        return found.float().reshape(1, -1, width), sha256(cached)
    sources = sorted(path for part in ("text_encoder", "tokenizer") for path in (base / part).glob("*.*"))

    def make() -> Kept:
        hashes = {path.relative_to(base).as_posix(): sha256(path) for path in sources}
        return {"embedding": embed_prompt(base, prompt)}, {"sha256": stable_hash(hashes)}

    kept, notes = _kept(f"embedding and hash: {prompt}", sources, make)
    embedding = kept["embedding"].clone()
    if embedding.shape[-1] != width:
        raise QartsrError(
            f"{base}: text embeddings have width {embedding.shape[-1]}, the UNet needs {width}; use one base model"
        )
    return embedding, notes["sha256"]


@torch.no_grad()
def embed_prompt(base: Path, prompt: str) -> torch.Tensor:
    """Last hidden state of the base model's text encoder, final normalization applied: (1, 77, 1024) float32.

    The prompt is cut after 77 tokens. A QartsrError where text_encoder/ or tokenizer/ is missing or damaged.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # seconds, and needed once per prompt

    for part in ("text_encoder", "tokenizer"):
        if not (base / part).is_dir():
            raise QartsrError(
                f"{base / part}: missing, the prompt cannot be embedded; complete the base model's folder "
                f"(or, without a prompt, put {EMPTY_EMBEDDING} beside OSEDiff's file)"
            )
    folder = base / "text_encoder"
    state = read_weights(folder, "model.safetensors", "pytorch_model.bin")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        config = CLIPTextConfig.from_pretrained(folder)
        encoder, report = CLIPTextModel.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(prompt, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        embedding = encoder.eval()(tokens.input_ids).last_hidden_state
    except Exception as error:  # transformers and tokenizers raise many kinds for damaged files
        raise QartsrError(
            f"{base}: text_encoder or tokenizer is damaged ({first_line(error)}); get them again"
        ) from error
    if report.get("missing_keys"):
        raise QartsrError(f"{folder}: key {min(report['missing_keys'])} is missing; get it again")
    return embedding.contiguous()


BACKBONES.register("osediff")(load_osediff)
