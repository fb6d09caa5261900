"""The model that `upscale`'s options name, watched for numbers that are not finite, and in bounded memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.lean_imports import import_networks

MODEL_OPTIONS = ("backbone", "timestep", "method", "bits")  # which a checkpoint decides
OWN_OPTIONS = ("base", "osediff", "prompt")  # of one backbone


def _refuse(options: argparse.Namespace, names: Sequence[str]) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise QartsrError(
                f"--{name}: has no effect on {options.checkpoint}, which says what the model is; "
                f"leave out --{name} or --checkpoint"
            )


def load_upscaler(options: argparse.Namespace, trial):
    """(function from a low-quality image to its upscaled one, the model behind it).

    The function raises Diverged where a stage's numbers are not finite.

    Args:
        trial: calibration and training settings of a method that is tried without a checkpoint.

    Raises:
        QartsrError: options or files that do not fit.
    """
    packed = options.checkpoint is not None and options.checkpoint.suffix == ".safetensors"
    if options.checkpoint is not None:
        _refuse(options, MODEL_OPTIONS)
    if packed:
        _refuse(options, OWN_OPTIONS)
    elif options.runtime is not None:
        raise QartsrError(f"--runtime {options.runtime}: needs --checkpoint FILE.safetensors, which export writes")
    import_networks()
    from qartsr_lib.backbones import OneStepSR, own_options
    from qartsr_lib.backbones.watch import watch_
    from qartsr_lib.images.tiling import TILE

    model = _packed_model(options) if packed else _model(options, trial)
    if not isinstance(model, OneStepSR):
        if options.tile is not None:
            raise QartsrError(f"--tile: backbone {model.name!r} has no such option; leave it out")
        return model.upscale, model
    watch_(model, options.checkpoint or f"of {model.name} at T = {model.timestep}")
    if not packed and "tile" in own_options(model.name):
        return model.upscale, model
    return _tiled(model, options.tile, TILE if packed else None), model


def _tiled(model, chosen: int | None, default: int | None):
    """`model.upscale` in tiles of `chosen` pixels a side, else of `default` or `default_tile`, which is told once."""
    from qartsr_lib.images.tiling import default_tile, upscale_in_tiles

    told: set[int] = set()

    def upscale(lq):
        height, width = lq.shape[-2:]
        side = chosen or default or default_tile(height, width)
        if chosen is None and max(height, width) > side and side not in told:
            told.add(side)
            tqdm.write(
                f"note: {width} x {height} pixels, and all images as large, are upscaled in tiles of {side} x {side}; "
                "--tile N sets another size",
                file=sys.stderr,
            )
        return upscale_in_tiles(model, lq, side)

    return upscale


def _packed_model(options: argparse.Namespace):
    from qartsr_lib.deploy.packed_file import load_packed
    from qartsr_lib.deploy.runtimes import RUNTIMES
    from qartsr_lib.images.tiling import check_tile

    check_tile(options.tile)
    runtime = RUNTIMES.get(options.runtime or "simulate")
    return runtime(load_packed(options.checkpoint))


def _model(options: argparse.Namespace, trial):
    from qartsr_lib.backbones import load_backbone, own_options
    from qartsr_lib.images.tiling import check_tile

    def load(name: str, timestep: int | None):
        own = {option: value for option in OWN_OPTIONS if (value := getattr(options, option)) is not None}
        if "tile" not in own_options(name):
            check_tile(options.tile)
        elif options.tile is not None:
            own["tile"] = options.tile
        return load_backbone(name, timestep, **own)

    if options.checkpoint is not None:
        from qartsr_lib.methods.checkpoint import load_quantized

        return load_quantized(options.checkpoint, load)
    backbone, name = options.backbone or "embedded", options.method or "fp"
    if name == "fp":
        if options.bits not in (None, "W32A32"):
            raise QartsrError(
                f"--bits {options.bits}: method fp is full precision; add --method maxmin, or leave --bits out"
            )
        return load(backbone, options.timestep)
    from qartsr_lib.images.datasets.calibration import calibration_list
    from qartsr_lib.methods import METHODS
    from qartsr_lib.methods.rates import training_options
    from qartsr_lib.quant.bits import parse_bits

    method, bits = METHODS.get(name), parse_bits(options.bits or "W4A4")
    model = load(backbone, options.timestep)
    settings = dict(training_options(name, str(bits), trial))
    return method.build(model, bits, calibration_list(trial).images, **settings).backbone
