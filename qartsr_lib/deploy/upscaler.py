"""The model that `upscale`'s options name, watched for numbers that are not finite, and in bounded memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

from qartsr_lib.backbones import OneStepSR, load_backbone, own_options
from qartsr_lib.backbones.base import watch_
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.zipped import is_packed
from qartsr_lib.images import tiling

MODEL_OPTIONS = ("backbone", "timestep", "method", "bits")  # which a checkpoint decides
OWN_OPTIONS = ("base", "osediff", "prompt")  # of one backbone


def load_upscaler(options: argparse.Namespace, trial) -> tuple[Callable[[torch.Tensor], torch.Tensor], OneStepSR]:
    """(function from a low-quality image to its upscaled one, the model behind it).

    The function raises Diverged where a stage's numbers are not finite; options or files that do not fit are a
    QartsrError. `trial` are calibration and training settings of a method that is tried without a checkpoint.
    """
    checkpoint = options.checkpoint
    packed = checkpoint is not None and is_packed(checkpoint)
    # A folder's full-precision weights come from `--base` and `--osediff`; its own hold the prompt's embedding.
    decided = () if checkpoint is None else MODEL_OPTIONS + (OWN_OPTIONS if packed else ("prompt",))
    for name in decided:
        if getattr(options, name) is not None:
            raise QartsrError(
                f"--{name}: has no effect on {checkpoint}, which says what the model is; leave it out"
            )
    if options.runtime is not None and not packed:
        needed = "needs --checkpoint FILE.safetensors, which export writes"
        raise QartsrError(f"--runtime {options.runtime}: {needed} (int8: of a model of quantize --method qartsr)")
    if packed:
        from qartsr_lib.deploy.packed_file import load_packed
        from qartsr_lib.deploy.runtimes import RUNTIMES

        tiling.check_tile(options.tile)
        model = RUNTIMES.get(options.runtime or "simulate")(load_packed(checkpoint))
    else:
        model = _model(options, trial)
    if not isinstance(model, OneStepSR):
        if options.tile is not None:
            raise QartsrError(f"--tile: backbone {model.name!r} has no such option; leave it out")
        return model.upscale, model
    watch_(model, checkpoint or f"of {model.name} at T = {model.timestep}")
    if not packed and "tile" in own_options(model.name):
        return model.upscale, model
    chosen, told = options.tile, set()

    def upscale(lq: torch.Tensor) -> torch.Tensor:  # in tiles, of which a default is told once
        height, width = lq.shape[-2:]
        side = chosen or (tiling.TILE if packed else tiling.default_tile(height, width))
        if chosen is None and max(height, width) > side and side not in told:
            told.add(side)
            tqdm.write(
                f"note: {width} x {height} pixels, and all images as large, are upscaled in tiles of {side} x {side}; "
                "--tile N sets another size",
                file=sys.stderr,
            )
        return tiling.upscale_in_tiles(model, lq, side)

    return upscale, model


def _model(options: argparse.Namespace, trial) -> torch.nn.Module:
    def load(name: str, timestep: int | None) -> torch.nn.Module:
        own = {option: value for option in OWN_OPTIONS if (value := getattr(options, option)) is not None}
        if "tile" not in own_options(name):
            tiling.check_tile(options.tile)
        elif options.tile is not None:
            own["tile"] = options.tile
        return load_backbone(name, timestep, **own)

    if options.checkpoint is not None:
        from qartsr_lib.methods.checkpoint import load_quantized

        return load_quantized(options.checkpoint, load)
    backbone, name = options.backbone or "embedded-scaled", options.method or "fp"
    if name == "fp":
        if options.bits not in (None, "W32A32"):
            raise QartsrError(
                f"--bits {options.bits}: method fp is full precision; add --method maxmin, or leave --bits out"
            )
        return load(backbone, options.timestep)
    from qartsr_lib.images.datasets.calibration import calibration_list
    from qartsr_lib.methods import METHODS
    from qartsr_lib.methods.rates import training_options
    from qartsr_lib.quant.scheme import parse_bits

    method, bits = METHODS.get(name), parse_bits(options.bits or "W4A4")
    model = load(backbone, options.timestep)
    settings = dict(training_options(name, str(bits), trial))
    return method.build(model, bits, calibration_list(trial).images, **settings).backbone
