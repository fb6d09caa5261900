"""The embedded backbones: OSEDiff's shape at a few million parameters, trained here, shipped with the package.

The recipes share one VAE (pretrained once, decoder frozen for all T) and one initial UNet; `embedded` is OSEDiff's,
`embedded-frozen` a control that is not shipped. The files hold float16 values; loaded as float32, those rounded weights
are the W32A32 reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from qartsr_lib.backbones.base import BACKBONES, OneStepSR, network_sha256
from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError, check_finite

PACKAGED_WEIGHTS = Path(__file__).resolve().parent / "weights" / "embedded"
_MEND = "restore it from the repository or run `make backbone`"

#: No attention in the VAE: its middle has 16,384 tokens for a 512x512 image. No quantized path narrower than 32.
VAE_CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 32, 64),
    "latent_channels": 16,
    "norm_num_groups": 2,  # 16 channels each: narrower groups train a quarter slower on a CPU
    "mid_block_add_attention": False,
}

#: Most layers sit at the resolution of the LQ image; attention only at 32x32 = 1,024 tokens for 512x512.
UNET_CONFIG = {
    "in_channels": 16,
    "out_channels": 16,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 64, 80),
    "layers_per_block": (3, 1, 1),
    "attention_head_dim": (4, 4, 5),  # diffusers reads this as the number of heads: 5 heads of 16 channels
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
    "time_embedding_dim": 128,
}

PROMPT_TOKENS = 8


class Recipe(NamedTuple):
    """What distinguishes one family of embedded backbones."""

    scaled: bool  # the UNet sees sqrt(alpha_T) z_L
    trains_encoder: bool  # the encoder belongs to what each timestep trains, else it is the pretrained one


#: By registry name, which begins the weight files' names.
RECIPES = {
    "embedded": Recipe(scaled=False, trains_encoder=True),
    "embedded-scaled": Recipe(scaled=True, trains_encoder=False),
    "embedded-frozen": Recipe(scaled=False, trains_encoder=False),
}
SHIPPED_RECIPES = ("embedded", "embedded-scaled")


def build_vae(state: Mapping[str, torch.Tensor] | None = None) -> AutoencoderKL:
    """A VAE, (N, 3, H, W) <-> (N, 16, H/4, W/4), with the weights and scaling factor of `state`, else untrained."""
    state = dict(state or {"scaling_factor": 1.0})
    vae = AutoencoderKL(**VAE_CONFIG, scaling_factor=float(state.pop("scaling_factor")))
    if state:
        vae.load_state_dict(state)
    return vae


def build_unet(state: Mapping[str, torch.Tensor] | None = None) -> UNet2DConditionModel:
    """A UNet on (N, 16, h, w), h and w divisible by 4, with the weights of `state`, else untrained."""
    unet = UNet2DConditionModel(**UNET_CONFIG)
    if state:
        unet.load_state_dict(state)
    return unet


def build_prompt_embedding() -> torch.Tensor:
    """The constant stand-in for the text embedding: (1, 8, 32), standard normal, fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, PROMPT_TOKENS, UNET_CONFIG["cross_attention_dim"], generator=generator)


def weights_name(recipe: str, timestep: int) -> str:
    """File name of what one recipe trains for one timestep label."""
    return f"{recipe}-T{timestep:04d}.safetensors"


def load_embedded(recipe: str, timestep: int = 1, folder: str | Path | None = None) -> OneStepSR:
    """Assemble a backbone from the shared VAE and the file of `recipe` and `timestep`.

    The latter is looked for in `folder`, in QARTSR_BACKBONE_WEIGHTS, then in the package, the VAE beside it; a
    QartsrError where one is missing, damaged or not finite, or does not fit the architecture.
    """
    path = _find(weights_name(recipe, timestep), folder)
    vae_path = path.with_name("vae.safetensors")  # not another folder's: the UNet was trained on its latents
    if not vae_path.is_file():
        raise QartsrError(f"{vae_path}: no such file, and {path.name} needs the VAE that it was trained with; add it")
    vae_state, state = _read(vae_path), _read(path)
    unet_state = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    vae_state |= {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
    try:
        vae, unet = build_vae(vae_state), build_unet(unet_state)
    except (RuntimeError, KeyError) as error:
        raise QartsrError(
            f"{path} and {vae_path.name}: does not fit this version's architecture; run `make backbone` again"
        ) from error
    digest = hashlib.sha256(vae_path.read_bytes() + path.read_bytes()).hexdigest()
    scaled = RECIPES[recipe].scaled
    model = OneStepSR(recipe, timestep, vae, unet, build_prompt_embedding(), scaled=scaled, weights_sha256=digest)
    model.loaded_sha256 = network_sha256(model)
    return model


def _find(name: str, folder: str | Path | None) -> Path:
    for candidate in (folder, paths.named_folder(None, "QARTSR_BACKBONE_WEIGHTS"), PACKAGED_WEIGHTS):
        if candidate and (Path(candidate) / name).is_file():
            return Path(candidate) / name
    shipped = ", ".join(sorted(path.name for path in PACKAGED_WEIGHTS.glob("*.safetensors"))) or "none"
    raise QartsrError(
        f"{name}: no such backbone weights (shipped: {shipped}); choose a --timestep that is there, or train it with "
        "`make backbone` and point QARTSR_BACKBONE_WEIGHTS at the folder"
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise QartsrError(f"{path}: damaged weight file; {_MEND}") from error
    check_finite(state.items(), path, _MEND)
    return state


for _name in RECIPES:
    BACKBONES.register(_name)(partial(load_embedded, _name))
