"""Command line for people with images of their own; `python -m qartsr_lib --help`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.lean_imports import import_networks
from qartsr_lib.base.machine import positive

CROP = 32  # side of quantize's calibration crops, as in the study
EPILOG = """examples:
  python -m qartsr_lib upscale photo.jpg --out upscaled
  python -m qartsr_lib upscale photos/ --out upscaled --method maxmin --bits W4A4 --timestep 1
  python -m qartsr_lib quantize --method qartsr --bits W4A4 --images photos/ --out quantized
  python -m qartsr_lib upscale photos/ --out upscaled --checkpoint quantized
  python -m qartsr_lib export --checkpoint quantized --out model.safetensors
  python -m qartsr_lib upscale photos/ --out upscaled --checkpoint model.safetensors --runtime int8
  python -m qartsr_lib evaluate --sr upscaled --hr originals --metrics PSNR,SSIM,NIQE --out scores.csv
"""
TRIAL_METHOD = (
    "quantization method: fp (none, the default), maxmin, svdquant or another; trained ones get a short trial on the "
    "installed sample photographs here, so make a real model with quantize and use --checkpoint"
)
COLOUR_FIX_HELP = "give results their input's colours (default: none; osediff: adain, as its authors do)"
RUNTIME_HELP = "how a FILE that export wrote computes: simulated in floating point (default), or in integers on a CPU"
OVERWRITE_HELP = "compute all anew, and replace files in DIR that are no results of upscale (never an input)"
TILE_HELP = (
    "cut images into overlapping tiles of N x N input pixels, which bounds the memory; each is normalized by itself, "
    "so contrasts change slowly between them (default: whole up to 512 x 512, else 256; a FILE of export: 256); "
    "osediff: side of the UNet's tiles, in 8 pixels (default: 96)"
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0 done, 1 some images failed and the others are done, 2 something the user can mend (one line on stderr).
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qartsr_lib",
        description="Upscale images four times with a (quantized) one-step diffusion model, and score the results.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_upscale(commands.add_parser("upscale", help="upscale images four times", formatter_class=_Help))
    _add_quantize(commands.add_parser("quantize", help="quantize a model on images of your own", formatter_class=_Help))
    _add_export(commands.add_parser("export", help="pack a quantized model into one small file", formatter_class=_Help))
    _add_evaluate(
        commands.add_parser("evaluate", help="score upscaled images against the originals", formatter_class=_Help)
    )
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.required else super()._get_help_string(action)


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write DIR/<input name>.png, exactly four times as wide and high as each input, in sRGB, and with its "
        "transparency if it has any. The same command again computes what is not there yet."
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", type=Path, help="image files, or folders of images")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", default=None, help=OVERWRITE_HELP)
    parser.add_argument("--backbone", help="the model: embedded (default), embedded-scaled or osediff")
    parser.add_argument(
        "--timestep",
        type=int,
        help="timestep T the model was trained at: 1000, 500 or 1 (default: 1; osediff: what its file was trained at)",
    )
    parser.add_argument("--method", help=TRIAL_METHOD)
    parser.add_argument("--bits", help="bits of weights and activations, such as W8A8 or W4A4 (not with fp)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR|FILE",
        help="use a model that quantize or export wrote; in place of the four above",
    )
    parser.add_argument("--runtime", metavar="simulate|int8", help=RUNTIME_HELP)
    parser.add_argument("--tile", type=int, metavar="N", help=TILE_HELP)
    parser.add_argument("--colour-fix", metavar="adain|wavelet|none", help=COLOUR_FIX_HELP)
    own = parser.add_argument_group("options of --backbone osediff")
    own.add_argument("--base", metavar="DIR", help="Stable Diffusion 2.1-base in diffusers' layout, or its hub name")
    own.add_argument("--osediff", metavar="FILE", help="OSEDiff's osediff.pkl, or weights that TRQ trained")
    own.add_argument("--prompt", metavar="TEXT", help="text or tags for all images (default: none)")
    parser.set_defaults(run=_upscale)


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Quantize a model, calibrated (and with a trained method finetuned) on images like those that it will upscale. "
        "Interrupted, the same command continues after the last finished module."
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of low-resolution images")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the quantized model")
    parser.add_argument("--method", default="qartsr", help="quantization method, such as qartsr, svdquant or maxmin")
    parser.add_argument("--bits", default="W4A4", help="bits of weights and activations")
    parser.add_argument("--backbone", default="embedded-scaled", help="the model: embedded or embedded-scaled")
    parser.add_argument("--timestep", default=1, type=int, help="timestep T the model was trained at: 1000, 500 or 1")
    parser.add_argument("--crops", default=64, type=positive, help="number of calibration crops of 32x32 pixels")
    parser.add_argument("--train-images", default=512, type=int, help="crops passed forward and backward in training")
    parser.add_argument("--seed", default=0, type=int, help="same seed, same model on one machine")
    parser.set_defaults(run=_quantize)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one .safetensors file with packed codes and 16-bit floats; upscale --checkpoint FILE runs it anywhere, "
        "without the original model's files."
    )
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help="a model that quantize wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors", help="file to write")
    parser.set_defaults(run=_export)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Pair images by name, in folders and in equal subfolders: equal names, else names without the endings that "
        "data sets and programs add (x4, _LR4, _SRF_4_HR, _SR, _out and the like, or one that several images share). "
        "Images without a reference are named and left out. Write a CSV with the columns image, metric, value, note. "
        "A metric whose weights are not on this machine gets an empty value and the reason. Equal images have a PSNR "
        "of 80 dB, the most that this PSNR gives."
    )
    parser.add_argument("--sr", required=True, type=Path, metavar="DIR", help="folder of upscaled images")
    parser.add_argument("--hr", required=True, type=Path, metavar="DIR", help="folder of original images")
    parser.add_argument("--metrics", default="PSNR,SSIM", help="names separated by commas")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder of metric weights")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv", help="CSV file to write")
    parser.set_defaults(run=_evaluate)


def _upscale(options: argparse.Namespace) -> int:
    from qartsr_lib.deploy.upscaler import load_upscaler
    from qartsr_lib.deploy.upscaling import upscale_files
    from qartsr_lib.study.profiles import get_profile

    return upscale_files(options, partial(load_upscaler, trial=get_profile("tiny")))


def _quantize(options: argparse.Namespace) -> None:
    import_networks()
    from qartsr_lib.backbones import load_backbone
    from qartsr_lib.base.errors import check_finite
    from qartsr_lib.images.datasets.calibration import low_quality_crops
    from qartsr_lib.methods import METHODS
    from qartsr_lib.methods.checkpoint import save_quantized
    from qartsr_lib.methods.rates import training_options
    from qartsr_lib.study.profiles import get_profile

    method = METHODS.get(options.method)
    if options.method == "fp":
        raise QartsrError("--method fp: is full precision; choose qartsr, svdquant, maxmin or another method")
    crops = low_quality_crops(options.images, options.crops, CROP)
    settings = dict(
        training_options(options.method, options.bits, get_profile("tiny", train_images=options.train_images))
    )
    unfinished = options.out / "unfinished.pt"
    if method.trains:
        settings["checkpoint"] = unfinished
    backbone = load_backbone(options.backbone, options.timestep)
    try:
        result = method.build(backbone, options.bits, crops.images, seed=options.seed, **settings)
        check_finite(result.backbone.state_dict().items(), f"{method.label} {options.bits}", "use more bits")
    except Diverged:
        unfinished.unlink(missing_ok=True)  # the same command would continue from there to the same end
        raise
    save_quantized(result.backbone, options.out)
    unfinished.unlink(missing_ok=True)
    print(f"{options.out}: {method.label} {options.bits}, {result.w_bits_effective:.2f} bits per weight stored")


def _export(options: argparse.Namespace) -> None:
    import_networks()
    from qartsr_lib.deploy.packed_file import save_packed
    from qartsr_lib.methods.checkpoint import load_quantized

    model = load_quantized(options.checkpoint)
    save_packed(model, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


def _evaluate(options: argparse.Namespace) -> None:
    import qartsr_lib.backbones  # noqa: F401  registers what VAE-FD is computed with
    from qartsr_lib.images.evaluate import evaluate_folders

    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    frame = evaluate_folders(options.sr, options.hr, names, options.out, weights_dir=options.weights)
    for name, rows in frame.groupby("metric", sort=False):
        values, missing = rows["value"].dropna(), rows[rows["value"].isna()]
        reason = f"; {missing['note'].iloc[0]}" if len(missing) else ""
        mean = f"{values.mean():.4f}" if len(values) else "n/a"
        print(f"{name:10s} {mean} ({len(values)} of {len(rows)} images{reason})")
    print(f"{options.out} written")
