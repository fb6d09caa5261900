"""`python -m tests.benchmarks.fullsize`: what a full-size OSEDiff costs on this machine, with random weights.

Time and memory do not depend on the values, so no weight file is needed. The network is Stable
Diffusion 2.1-base's by its published configurations, the image a 128x128 crop of a photograph.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.base import load_backbone, parameter_count
from qartsr_lib.backbones.osediff import EMPTY_EMBEDDING
from qartsr_lib.backbones.osediff_checkpoint import attach_, unet_targets, vae_targets, write_checkpoint
from qartsr_lib.backbones.osediff_configs import PROMPT_TOKENS, UNET_CONFIG, VAE_CONFIG
from qartsr_lib.backbones.osediff_model import OSEDiff
from qartsr_lib.base import paths, provenance
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.machine import positive, run_command
from qartsr_lib.images.image import central_crop, list_images, read_image, write_png

SIDE = 128
LIMIT_GIB = 24
RANDOM = "random"  # in the place of the weights' hash
RECORD = "osediff_fullsize_cpu.json"


@torch.no_grad()
def fill_randomly_(network: nn.Module, device: str = "cpu", seed: int = 0) -> nn.Module:
    """Give a network of the meta device random weights that keep the size of what flows through.

    Weights are uniform with variance 1 / fan-in, normalizations the identity, biases zero. This is
    for measuring time and memory, which do not depend on the values.
    """
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.uniform_(-1, 1, generator=generator).mul_((3 / parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(1.0 if name == "weight" else 0.0)
    return network


def random_osediff(
    timestep: int = 1000,
    device: str = "cpu",
    unet_config: Mapping[str, object] = UNET_CONFIG,
    vae_config: Mapping[str, object] = VAE_CONFIG,
    seed: int = 0,
) -> OSEDiff:
    """OSEDiff with random weights, ready for inference: float32, channels_last, gradients off.

    Args:
        timestep: label T.
        device: where the weights are made; they never lie anywhere else.
        unet_config, vae_config: full size by default.
    """
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
    unet, vae = fill_randomly_(unet, device, seed), fill_randomly_(vae, device, seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    prompt = torch.randn(1, PROMPT_TOKENS, unet.config.cross_attention_dim, generator=generator)
    model = OSEDiff(timestep, vae, unet, prompt, weights_sha256=RANDOM)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def write_random_files(folder: Path, **configs: Mapping[str, object]) -> dict[str, Path]:
    """A random base model and osediff.pkl on disk (3.8 GB at full size), to be loaded as real ones are.

    Returns:
        The arguments "base" and "osediff" of `load_osediff`.
    """
    model = random_osediff(**configs)
    for name, network in (("unet", model.unet), ("vae", model.vae)):
        network.save_pretrained(folder / "base" / name)
    for network, targets in ((model.unet, unet_targets), (model.vae, vae_targets)):
        for index, layer in enumerate(attach_(network, targets(network), rank=4)):
            torch.nn.init.normal_(layer.lora_B[layer.adapter].weight, std=1e-3 * (1 + index % 3))
    file = write_checkpoint(folder / "osediff.pkl", model.unet, model.vae, {"timestep": model.timestep})
    torch.save(model.prompt_embedding, folder / EMPTY_EMBEDDING)
    return {"base": folder / "base", "osediff": file}


def photograph(image: Path | None, side: int = SIDE) -> tuple[str, torch.Tensor]:
    """(name, central crop (1, 3, side, side) in [0, 1]) of a photograph; by default a packaged sample."""
    if image is None:
        from qartsr_lib.images.datasets.samples import photographs

        chosen = photographs("test")[0]
        name, found = chosen.path.stem, read_image(chosen.path)
    else:
        name, found = image.stem, read_image(list_images(image)[0] if image.is_dir() else image)
    if min(found.shape[-2:]) < side:
        raise QartsrError(f"--image {image}: smaller than {side}x{side} pixels; name a larger one")
    return name, central_crop(found, side)


def measure(model: OSEDiff, lq: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """Upscale once; (seconds by stage, sizes and whether all values are finite; the image)."""
    upscaled, seconds, started = model.prepare(lq), {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = round(time.perf_counter() - started, 2), time.perf_counter()

    with torch.no_grad():
        z_l = model.encode(upscaled)
        lap("encode")
        eps = model.predict_noise(z_l)
        lap("UNet")
        image = model.decode(model.to_z_h(z_l, eps))
        lap("decode")
    found = {
        "input": list(lq.shape[-2:]),
        "output": list(image.shape[-2:]),
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        "finite": bool(torch.isfinite(image).all()),
    }
    return found, image.clamp(0, 1)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write a record; 1 when the model did not fit into LIMIT_GIB, 2 for wrong arguments."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    schedule.timestep_index(options.timestep)
    if options.write_files is not None:
        files = write_random_files(options.write_files, timestep=options.timestep)
        print(" ".join(f"--{name} {path}" for name, path in files.items()))
        return 0
    load = partial(random_osediff, options.timestep)
    if options.base or options.osediff:
        load = partial(load_backbone, "osediff", None, base=options.base, osediff=options.osediff)
    record = run(load, options.image, options.out)
    write_text(options.record or paths.results_dir("paper") / RECORD, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0 if record["within_limit"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fullsize", description=__doc__.split(": ", 1)[1])
    add = parser.add_argument
    add("--image", type=Path, help="photograph to take the crop from (default: a packaged sample)")
    add("--timestep", type=int, default=1000, help="label T of random weights (default: 1000)")
    add("--threads", type=positive, help="CPU threads (default: PyTorch's)")
    add("--out", type=Path, metavar="FILE.png", help="keep the upscaled image too")
    add("--record", type=Path, metavar="FILE.json", help=f"the record (default: results/paper/{RECORD})")
    add("--write-files", type=Path, metavar="DIR", help="only write a random base model and osediff.pkl, 3.8 GB")
    add("--base", metavar="DIR", help="load this base model in place of random weights made in memory")
    add("--osediff", metavar="FILE", help="and this OSEDiff file")
    return parser


def run(load: Callable[[], OSEDiff], image: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """The whole measurement as a record.

    Args:
        load: makes the model.
        image: photograph, see `photograph`.
        out: where to keep the upscaled image, if anywhere.
    """
    name, lq = photograph(image)
    started = time.perf_counter()
    model = load()
    loading = round(time.perf_counter() - started, 1)
    found, upscaled = measure(model, lq)
    if out is not None:
        write_png(out, upscaled)
    peak = provenance.peak_memory_mib() / 1024
    random = model.weights_sha256 == RANDOM
    return {
        "what": f"OSEDiff with {'random weights' if random else 'weights from files'}, float32, full precision",
        "image": name,
        "timestep": model.timestep,
        "parameters": {
            "UNet": parameter_count(model.unet),
            "VAE encoder": parameter_count(model.vae.encoder) + parameter_count(model.vae.quant_conv),
            "VAE decoder": parameter_count(model.vae.decoder) + parameter_count(model.vae.post_quant_conv),
        },
        "seconds_loading": loading,
        **found,
        "peak_memory_gib": round(peak, 2),
        "limit_gib": LIMIT_GIB,
        "within_limit": peak <= LIMIT_GIB and found["finite"],
        "environment": provenance.environment("cpu"),
        "git": provenance.git_state(),
    }


if __name__ == "__main__":
    sys.exit(main())
