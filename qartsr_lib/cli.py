"""The command line `qartsr`; `python -m qartsr_lib` is the same. Commands import what they need when they run."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qartsr_lib import commands
from qartsr_lib.base.lean_imports import choose_lean_imports
from qartsr_lib.base.machine import named_path, positive, run_command, whole
from qartsr_lib.base.paths import VARIABLES
from qartsr_lib.commands import EXPORTS, QUALITIES, SHIPPED, TRAINED

EPILOG = """examples:
  qartsr upscale photo.jpg --out upscaled
  qartsr upscale photos/ --out upscaled --model w4a4
  qartsr quantize --bits W4A4 --images photos/ --out quantized
  qartsr upscale photos/ --out upscaled --checkpoint quantized
  qartsr export --checkpoint quantized --out model.safetensors
  qartsr upscale photos/ --out upscaled --checkpoint model.safetensors  # --runtime int8: of --method qartsr
  qartsr evaluate --sr upscaled --hr originals --metrics PSNR,SSIM,NIQE --out scores.csv
  qartsr reproduce --profile tiny

`qartsr COMMAND --help` tells a command's options.

environment variables:
""" + "\n".join(f"  {name:24s} {said}" for name, said in VARIABLES.items())
OVERWRITE = "compute all anew, and replace files in DIR that are no results of upscale (never an input)"
TIMESTEP = "timestep T the model was trained at: 1000, 500 or 1"
MODEL = "use a quantized model that comes with the package; in place of the four above"
TRIAL_METHOD = (
    "quantization method: fp (none, the default), maxmin, svdquant or another; trained ones get a short trial on the "
    "installed sample photographs here, so make a real model with quantize and use --checkpoint"
)
RUNTIME = (
    "how a FILE that export wrote computes: simulated in floating point (default), or in integers on a CPU "
    "(models of quantize --method qartsr, or another without scales per group)"
)
EIGHT_BIT = "layers kept at 8 bits: identity-path, passionsr, first-last or sensitive"
RANGES = "of inputs: least-squares, min-max or first-batch; nothing to methods whose scales come from each image"
TILE = (
    "cut images into overlapping tiles of N x N input pixels, which bounds the memory; each is normalized by itself, "
    "so contrasts change slowly between them (default: whole up to 512 x 512, else 256; a FILE of export: 256); "
    "osediff: side of the UNet's tiles, in 8 pixels (default: 96)"
)
COLOUR_FIX = "give results their input's colours (default: none; osediff: adain, as its authors do)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command (default: the process's own); returns the exit status.

    0 done, 1 some images failed and the others are done, 2 something the user can mend (one line on stderr), 130
    interrupted; PROGRAMS may have more.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    for length in (1, 2):
        if program := PROGRAMS.get(" ".join(words[:length])):
            module, _, function = program[0].partition(":")
            return getattr(importlib.import_module(module), function)(words[length:])

    def run(options: argparse.Namespace) -> int | None:
        if arguments is None:  # this process does nothing else
            from qartsr_lib.deploy.runtimes import keep_freed_memory

            keep_freed_memory()
            choose_lean_imports()
        return options.run(options)

    return run_command(_parser(), run, words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qartsr",
        description="Upscale images four times with a (quantized) one-step diffusion model, score the results, and "
        "reproduce the study.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.told, description=command.description, formatter_class=_Help)
        own.set_defaults(run=command.run)
        for option, settings in command.options.items():
            own.add_argument(option, **settings)
        if name == "upscale":
            group = own.add_argument_group("options of --backbone osediff")
            for option, settings in OSEDIFF_OPTIONS.items():
                group.add_argument(option, **settings)
    train = commands.add_parser("train", help="train a backbone", description="Train a backbone.")
    trained = train.add_subparsers(title="backbones", required=True, metavar="BACKBONE")
    for name, (_, told) in PROGRAMS.items():  # for the help; `main` starts them
        (trained if name.startswith("train ") else commands).add_parser(name.split()[-1], help=told)
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.required else super()._get_help_string(action)


class Command(NamedTuple):
    """A command of this file."""

    told: str  # in the list of commands
    run: Callable[[argparse.Namespace], int | None]
    description: str
    options: dict[str, dict]  # what argparse is told of each


def bench(arguments: Sequence[str]) -> int:
    """Run tests/benchmarks/bench.py of this checkout in a process of its own; returns its exit status."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "tests" / "benchmarks" / "bench.py").is_file():
        print("error: bench: measures a checkout of this project, and this is an installed package", file=sys.stderr)
        return 2
    words = [sys.executable, "-m", "tests.benchmarks.bench", *arguments]
    return subprocess.run(words, cwd=checkout, check=False).returncode


def _path(metavar: str, told: str) -> dict:
    return {"type": named_path, "metavar": metavar, "help": told}


def _needed(metavar: str, told: str) -> dict:
    return {"required": True} | _path(metavar, told)


OSEDIFF_OPTIONS = {
    "--base": {"metavar": "DIR", "help": "Stable Diffusion 2.1-base in diffusers' layout, or its hub name"},
    "--osediff": {"metavar": "FILE", "help": "OSEDiff's osediff.pkl, or weights that TRQ trained"},
    "--prompt": {"metavar": "TEXT", "help": "text or tags for all images (default: none)"},
}
COMMANDS = {
    "upscale": Command(
        "upscale images four times",
        commands.upscale,
        "Write DIR/<input name>.png, exactly four times as wide and high as each input, in sRGB, and with its "
        "transparency if it has any. The same command again computes what is not there yet.",
        {
            "inputs": {"nargs": "+"} | _path("INPUT", "image files, or folders of images"),
            "--out": _needed("DIR", "folder for the results"),
            "--overwrite": {"action": "store_true", "default": None, "help": OVERWRITE},
            "--backbone": {"help": "the model: embedded-scaled (default, as of quantize), embedded or osediff"},
            "--timestep": {"type": int, "help": TIMESTEP + " (default: 1; osediff: what its file was trained at)"},
            "--method": {"help": TRIAL_METHOD},
            "--bits": {"help": "bits of weights and activations, such as W8A8 or W4A4 (not with fp)"},
            "--model": {"metavar": "|".join(SHIPPED), "help": MODEL},
            "--checkpoint": _path("DIR|FILE", "use a model that quantize or export wrote; in place of the five above"),
            "--runtime": {"metavar": "simulate|int8", "help": RUNTIME},
            "--tile": {"type": int, "metavar": "N", "help": TILE},
            "--colour-fix": {"metavar": "adain|wavelet|none", "help": COLOUR_FIX},
        },
    ),
    "quantize": Command(
        "quantize a model on images of your own",
        commands.quantize,
        "Quantize a model, calibrated (and with a trained method finetuned) on images like those that it will upscale. "
        "Interrupted, the same command continues after the last finished module of a method that trains by modules.",
        {
            "--images": _needed("DIR", "folder of low-resolution images"),
            "--out": _needed("DIR", "folder for the quantized model"),
            "--quality": {
                "metavar": "|".join(QUALITIES),
                "help": "without training (default), or the better of that and a training",
            },
            "--method": {"help": "quantization method, such as qartsr, svdquant or maxmin, in place of --quality"},
            "--bits": {"default": "W4A4", "help": "bits of weights and activations"},
            "--backbone": {"default": "embedded-scaled", "help": "the model: embedded or embedded-scaled"},
            "--timestep": {"default": 1, "type": int, "help": TIMESTEP},
            "--eight-bit": {"default": "identity-path", "metavar": "LIST", "help": EIGHT_BIT},
            "--ranges": {"default": "least-squares", "help": RANGES},
            "--crops": {"default": 64, "type": positive, "help": "number of calibration crops of 32x32 pixels"},
            "--train-images": {"type": positive, "help": f"crops passed through training, if any (default: {TRAINED})"},
            "--seed": {"default": 0, "type": whole, "help": "same seed, same model on one machine"},
        },
    ),
    "export": Command(
        "pack a quantized model into one small file",
        commands.export,
        "Write one .safetensors file with packed codes and 16-bit floats; upscale --checkpoint FILE runs it anywhere, "
        "without the original model's files. Or a graph with integer weights for another engine, which is run once "
        "and compared with the simulation before the file is there; with --format web, and a page that runs it in a "
        "browser.",
        {
            "--checkpoint": _path("DIR|FILE", "a model that quantize wrote; for a graph also a packed file"),
            "--model": {"metavar": "|".join(SHIPPED), "help": "a quantized model that comes with the package instead"},
            "--out": _needed("FILE|DIR", "file to write; ends in .safetensors (or .safetensors.gz, smaller), .onnx, "
                             ".pte or .xml (and a .bin), or the web page's folder"),
            "--format": {"default": "packed", "metavar": "|".join(EXPORTS), "help": "what to write"},
        },
    ),
    "evaluate": Command(
        "score upscaled images against the originals",
        commands.evaluate,
        "Pair images by name, in folders and in equal subfolders: equal names, else names without the endings that "
        "data sets and programs add (x4, _LR4, _SRF_4_HR, _SR, _out and the like, or one that several images share). "
        "Images without a reference are named and left out. Write a CSV with the columns image, metric, value, note. "
        "A metric whose weights are not on this machine gets an empty value and the reason. Equal images have a PSNR "
        "of 80 dB, the most that this PSNR gives.",
        {
            "--sr": _needed("DIR", "folder of upscaled images"),
            "--hr": _needed("DIR", "folder of original images"),
            "--metrics": {"default": "PSNR,SSIM", "help": "names separated by commas"},
            "--weights": _path("DIR", "folder of metric weights"),
            "--out": _needed("FILE.csv", "CSV file to write"),
        },
    ),
}
#: Programs with command lines of their own, which are given the remaining words -> ("module:function", what it does).
PROGRAMS = {
    "reproduce": ("qartsr_lib.study.runner:main", "run the study's notebooks in order"),
    "report": ("qartsr_lib.show.page:main", "write the web page of all results, and the README's tables"),
    "bench": ("qartsr_lib.cli:bench", "time training steps of this checkout"),
    "train embedded": (
        "qartsr_lib.training.command:embedded",
        "the small backbones that are shipped, from a folder of photographs",
    ),
    "train trq": (
        "qartsr_lib.training.command:trq",
        "OSEDiff for another timestep, from Stable Diffusion 2.1-base",
    ),
}
