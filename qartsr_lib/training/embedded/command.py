"""Train the embedded backbones from a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path

from qartsr_lib.base.machine import positive


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of training photographs")
    add("--describe", help="what the images are, for the record (default: the folder's name)")
    add("--validation", type=Path, help="folder of photographs to watch the quality on while training")
    add("--out", type=Path, required=True, help="folder for weights and histories; a second run continues there")
    recipes = "embedded, embedded-scaled, embedded-frozen (default: those that are shipped, the first two)"
    add("--recipes", nargs="+", metavar="NAME", help=recipes)
    add("--timesteps", nargs="+", type=int, metavar="T", help="labels, 1..1000 (default: the paper's, 1000 500 1)")
    add("--steps-scale", type=float, default=1.0, help="multiply every stage's number of steps")
    add("--device", default="cpu", help="cpu, or cuda for a GPU")
    add("--seed", type=int, default=0)
    add("--threads", type=positive, help="CPU threads (default: PyTorch's)")


def run(options: argparse.Namespace) -> int:
    """Train; returns 0. Imports what takes seconds only here, not for a list of options."""
    from qartsr_lib.training.embedded.pipeline import train_all

    train_all(options)
    return 0
