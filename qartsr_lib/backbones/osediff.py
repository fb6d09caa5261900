"""The backbone `osediff`: OSEDiff (arXiv:2406.08177) on Stable Diffusion 2.1-base, from files that are not shipped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from qartsr_lib.backbones import osediff_merged as merged
from qartsr_lib.backbones.base import BACKBONES
from qartsr_lib.backbones.lora import PEFT_ALPHA
from qartsr_lib.backbones.osediff_base import load_unet, load_vae, resolve_base
from qartsr_lib.backbones.osediff_checkpoint import RELEASED_TIMESTEP, read_checkpoint
from qartsr_lib.backbones.osediff_model import Inference, OSEDiff
from qartsr_lib.backbones.osediff_prompt import EMPTY_EMBEDDING, embed_prompt, empty_embedding
from qartsr_lib.base import paths
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError

FOLDER = "osediff"


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
    alpha: float = PEFT_ALPHA,
) -> OSEDiff:
    """Load OSEDiff; the first time the LoRA is merged and a merged copy kept, see `osediff_merged`.

    Args:
        timestep: label T; None for the one that `osediff` was trained at.
        base: Stable Diffusion 2.1-base, a folder in diffusers' layout or a hub name; by default
            `stable-diffusion-2-1-base` in the folder of weights (`paths.weights_dir`).
        osediff: OSEDiff's or TRQ's file; by default `osediff/` and `weights_name(timestep)` there.
        prompt: text or tags for all images; empty as for PassionSR (and most likely QArtSR).
        tile, posterior, seed: see `Inference`.
        alpha: of the LoRA, which no file states; PEFT's default.

    Raises:
        QartsrError: a file is missing, damaged, does not fit the others, or was trained at another T.
    """
    inference = Inference(tile=tile, posterior=posterior, seed=seed)
    folder = resolve_base(base)
    file = _weights(osediff, timestep)
    sources = merged.hashes(merged.network_files(folder, file))
    checkpoint = None
    key = merged.merged_key(sources, alpha)
    trained_at = merged.trained_at(key)
    if trained_at is None:
        checkpoint = read_checkpoint(file)
        trained_at = checkpoint.timestep
    if timestep not in (None, trained_at):
        raise QartsrError(
            f"{file}: was trained at T = {trained_at}, not at T = {timestep}; choose --timestep {trained_at}, "
            "or train weights with qartsr train trq"
        )
    networks = merged.load_merged(key)
    if networks is None:
        checkpoint = checkpoint or read_checkpoint(file)
        networks = load_unet(folder), load_vae(folder)
        checkpoint.apply_(*networks, alpha)
        merged.save_merged(key, *networks, sources, trained_at)
    unet, vae = networks
    embedding = _embedding(folder, file, prompt, unet)
    digest = hashlib.sha256(f"{key} {prompt}".encode()).hexdigest()
    return OSEDiff(trained_at, vae, unet, embedding, inference, digest)


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


def _embedding(base: Path, file: Path, prompt: str, unet: UNet2DConditionModel) -> torch.Tensor:
    """The prompt's embedding: kept, made by the text encoder, or (empty prompt) from PassionSR's file."""
    width, cached = unet.config.cross_attention_dim, file.parent / EMPTY_EMBEDDING
    sources = merged.prompt_files(base)
    if not prompt and not (base / "text_encoder").is_dir() and cached.is_file():
        return empty_embedding(cached, width)
    key = stable_hash({"prompt": prompt, "sources": merged.hashes(sources)})
    embedding = merged.load_prompt(key) if sources else None
    if embedding is None:
        embedding = embed_prompt(base, prompt)
        merged.save_prompt(key, embedding)
    if embedding.shape[-1] != width:
        raise QartsrError(
            f"{base}: text embeddings have width {embedding.shape[-1]}, the UNet needs {width}; use one base model"
        )
    return embedding


BACKBONES.register("osediff")(load_osediff)
