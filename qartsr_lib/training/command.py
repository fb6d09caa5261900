"""`qartsr train embedded` and `qartsr train trq`; what takes seconds to import is imported when they train.

On several GPUs the latter is `accelerate launch -m qartsr_lib train trq`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path

from qartsr_lib.base.machine import above_zero, positive, run_command, whole
from qartsr_lib.training.trq.config import NEGATIVE_PROMPT, TrqConfig


def embedded(arguments: Sequence[str] | None = None) -> int:
    """Train the embedded backbones; see `run_command` for the exit status."""
    text = "Train the embedded backbones from a folder of images."
    parser = argparse.ArgumentParser(prog="qartsr train embedded", description=text)
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of training photographs")
    add("--describe", help="what the images are, for the record (default: the folder's name)")
    add("--validation", type=Path, help="folder of photographs (its first 24) to watch the quality on while training")
    add("--out", type=Path, required=True, help="folder for weights and histories; a second run continues there")
    recipes = "embedded, embedded-scaled, embedded-frozen (default: those that are shipped, the first two)"
    add("--recipes", nargs="+", metavar="NAME", help=recipes)
    add("--timesteps", nargs="+", type=int, metavar="T", help="labels, 1..1000 (default: the paper's, 1000 500 1)")
    add("--steps-scale", type=above_zero, default=1.0, help="multiply every stage's number of steps")
    add("--device", default="cpu", help="cpu, or cuda for a GPU")
    add("--seed", type=whole, default=0)
    add("--threads", type=positive, help="CPU threads (default: PyTorch's)")

    def run(options: argparse.Namespace) -> None:
        from qartsr_lib.training.embedded.pipeline import train_all

        train_all(options)

    return run_command(parser, run, arguments)


def trq(arguments: Sequence[str] | None = None) -> int:
    """Train OSEDiff for another timestep, by TrqConfig's and a few more options; see `run_command`."""
    text, shown = "Train OSEDiff for another timestep.", argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="qartsr train trq", description=text, formatter_class=shown)
    add = parser.add_argument
    for option in fields(TrqConfig):
        needed = option.default is MISSING
        kind = {"type": int, "required": True} if needed else {"type": _type_of(option), "default": option.default}
        add(f"--{option.name.replace('_', '-')}", **kind, **option.metadata)
    add("--images", type=Path, required=True, metavar="DIR", help="photographs of at least the crop's size")
    add("--base", metavar="DIR", help="Stable Diffusion 2.1-base (default: in the folder of weights)")
    add("--out", type=Path, metavar="DIR", help="folder for the weights (default: where the backbone looks for them)")
    add("--teacher", metavar="FILE", help="of distil: OSEDiff's file (default: osediff.pkl in the folder of weights)")
    add("--image-loss", default="lpips+mse", help="of osediff: a name in finetuning.losses.IMAGE_LOSSES")
    add("--prompt", default="", help="one for all images; the quantized models are used with an empty one")
    add("--negative-prompt", default=NEGATIVE_PROMPT, help="of osediff")
    add("--workers", type=whole, default=2, help="processes that make training pairs")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more time")

    def run(options: argparse.Namespace) -> None:
        from qartsr_lib.training.trq.loop import train_trq

        train_trq(options)

    return run_command(parser, run, arguments)


def _type_of(option: Field) -> Callable[[str], object]:
    """Of argparse: of an option of TrqConfig that has a default."""
    kinds = {int: whole, float: above_zero}  # what is too small is told by TrqConfig
    return kinds.get(type(option.default), type(option.default))
