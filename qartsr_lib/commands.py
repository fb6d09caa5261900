"""What the commands of `cli` do, given their options; each imports what it needs when it runs.

Wrong options and files are a QartsrError.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time

from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import check_name, check_writable
from qartsr_lib.base.lean_imports import import_networks
from qartsr_lib.deploy.shipped import SHIPPED, shipped_model
from qartsr_lib.deploy.zipped import is_packed

__all__ = ["EXPORTS", "QUALITIES", "SHIPPED", "TRAINED", "evaluate", "export", "quantize", "upscale"]

CROP = 32  # side of quantize's calibration crops, as in the study
TRAINED = 512  # crops passed through training, if nothing else is said
KEPT_APART = 4  # further crops, on which quantize measures what it made
#: Passes of full precision over a crop that quantizing takes: at all, for a calibration crop, for an image of training.
#: No less than Groupwise took, the slowest: 670 with 16 crops (one thread), 1,110 with 64 (two); QArtSR trains in 6.
AT_ALL, CALIBRATION, TRAINING = 750, 6, 11
#: Of quantize --quality -> the methods of which the nearest to full precision is kept: on BSDS500/val a short training
#: of 4 bits loses what the calibration had gained, and one of 2 bits gains.
QUALITIES = {"fast": ("groupwise-untrained",), "best": ("groupwise-untrained", "groupwise")}
#: Formats of export -> who runs it.
EXPORTS = {
    "packed": "qartsr",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
    "web": "ONNX Runtime",
}


def upscale(options: argparse.Namespace) -> int:
    """Upscale images; returns the exit status."""
    from qartsr_lib.deploy.upscaling import upscale_files
    from qartsr_lib.study.profiles import get_profile

    def load(options: argparse.Namespace) -> tuple:
        import_networks()
        from qartsr_lib.deploy.upscaler import load_upscaler

        return load_upscaler(options, get_profile("tiny"))

    _choose_shipped(options)
    return upscale_files(options, load)


def _choose_shipped(options: argparse.Namespace) -> None:
    """Make the file of `--model`, if that is given, the checkpoint."""
    if options.model is not None:
        if options.checkpoint is not None:
            raise QartsrError(f"--model {options.model}: give it or --checkpoint, not both")
        options.checkpoint = shipped_model(options.model)


def quantize(options: argparse.Namespace) -> None:
    """Quantize a model on a folder of images, and say how near it is to full precision on further crops."""
    from qartsr_lib.backbones import load_backbone
    from qartsr_lib.methods.checkpoint import DESCRIPTION, save_quantized
    from qartsr_lib.methods.setting import Setting
    from qartsr_lib.study.profiles import get_profile

    methods = _methods(options)
    check_writable(options.out, f"--out {options.out}")
    crops, apart = _crops(options)
    setting = Setting(options.eight_bit, options.ranges)
    profile = get_profile("tiny", train_images=options.train_images or TRAINED, setting=setting.options)
    backbone = load_backbone(options.backbone, options.timestep)
    _warn(options, crops)
    if (options.out / DESCRIPTION).exists():
        print(f"note: {options.out}: the model that is there is replaced when the new one is ready", file=sys.stderr)
    for method in methods:
        trained = profile.train_images if method.trains else 0
        print(_expected(method, backbone, options.bits, setting, crops, trained), flush=True)
    unfinished = options.out / "unfinished.pt"
    made = []
    for method in methods:
        try:
            result = _build(method, backbone, crops, profile, options, unfinished)
        except Diverged as error:
            if not made:
                raise
            print(f"note: {error}; {made[0][2]} is kept", file=sys.stderr)
        else:
            made.append((*_distance(result.backbone, backbone, apart or crops), method.label, result))
    _, near, label, result = min(made, key=lambda one: one[0])
    save_quantized(result.backbone, options.out)
    if any(method.trains for method in methods):  # else it is another method's, and may be hours of work
        unfinished.unlink(missing_ok=True)
    others = "".join(f"; {other}: {further:.1f} dB" for _, further, other, _ in made if other != label)
    seen = f"{len(apart)} further crops" if apart else f"the {len(crops)} crops themselves, as there are no others"
    print(
        f"{options.out}: {label} {options.bits}, {result.w_bits_effective:.2f} bits per weight stored, "
        f"{near:.1f} dB from full precision on {seen}{others}"
    )


def _methods(options: argparse.Namespace) -> list:
    """The methods that quantize builds, those of --quality or the one of --method."""
    from qartsr_lib.methods import METHODS
    from qartsr_lib.quant.scheme import parse_bits

    quality = options.quality or next(iter(QUALITIES))
    if quality not in QUALITIES:
        raise QartsrError(f"--quality {quality}: choose one of {', '.join(QUALITIES)}")
    if options.method and options.quality:
        raise QartsrError(f"--quality {quality}: give it or --method {options.method}, not both")
    methods = [METHODS.get(name) for name in ((options.method,) if options.method else QUALITIES[quality])]
    bits = parse_bits(options.bits)
    options.bits = str(bits)  # w4a4 is W4A4
    if bits.is_full_precision:
        raise QartsrError(f"--bits {bits}: is full precision; choose 2 to 8 bits, such as W4A4")
    if options.method == "fp":
        raise QartsrError("--method fp: is full precision; choose qartsr, svdquant, maxmin or another method")
    if options.train_images is not None and not any(method.trains for method in methods):
        other = "choose a --method that does" if options.method else "add --quality best"
        raise QartsrError(f"--train-images: {methods[0].label} does not train; leave it out, or {other}")
    return methods


def _crops(options: argparse.Namespace) -> tuple[list, list]:
    """Calibration crops of the user's images, and KEPT_APART others or as many as there are."""
    import torch

    from qartsr_lib.images.datasets.calibration import low_quality_crops

    crops = low_quality_crops(options.images, options.crops + KEPT_APART, CROP).images
    crops, apart = crops[: options.crops], crops[options.crops :]
    if max(float(crop.std()) for crop in crops) < 1 / 255:
        raise QartsrError(f"--images {options.images}: all crops are of one colour; name a folder of photographs")
    return crops, [crop for crop in apart if not any(torch.equal(crop, other) for other in crops)]


def _warn(options: argparse.Namespace, crops: list) -> None:
    from qartsr_lib.images.datasets.advice import warnings_about
    from qartsr_lib.images.image import list_images

    for line in warnings_about(crops, len(list_images(options.images))):
        print(f"warning: {options.images}: {line}", file=sys.stderr)


def _build(method, backbone, crops: list, profile, options: argparse.Namespace, unfinished):
    """`method`'s model; a training that is interrupted leaves its state in `unfinished`."""
    from qartsr_lib.base.errors import check_finite
    from qartsr_lib.methods.rates import training_options

    settings = dict(training_options(method.name, options.bits, profile))
    kept = {"checkpoint": unfinished} if method.trains else {}
    try:
        result = method.build(backbone, options.bits, crops, seed=options.seed, **settings, **kept)
        check_finite(result.backbone.state_dict().items(), f"{method.label} {options.bits}", "use more bits")
    except Diverged:
        if kept:
            unfinished.unlink(missing_ok=True)  # the same command would continue from there to the same end
        raise
    return result


def _distance(quantized, backbone, crops: list) -> tuple[float, float]:
    """What decides between two models, as between the study's learning rates, and PSNR-Y in dB; means over `crops`.

    The first is the log of squared error times perceptual distance, both to full precision's image: less is nearer.
    """
    from qartsr_lib.backbones.features import pretrained_distance
    from qartsr_lib.images.image import psnr_y
    from qartsr_lib.methods.rates import log_distance

    distance = pretrained_distance("cpu")
    pairs = [(quantized.upscale(crop), backbone.upscale(crop)) for crop in crops]
    near = [psnr_y(*pair) for pair in pairs]
    tiny = sys.float_info.min  # of an image that is full precision's own
    apart = [max(float(distance(*pair)), tiny) for pair in pairs]
    logs = map(log_distance, near, apart)
    return sum(logs) / len(near), sum(near) / len(near)


def _expected(method, backbone, bits: str, setting, crops: list, trained: int) -> str:
    """What quantizing will give and take, from the layers' sizes and the time of full precision on the largest crop."""
    from qartsr_lib.methods.base import stored_bits

    largest = max(crops, key=lambda crop: crop.numel())
    backbone.upscale(largest)  # the first call of a process takes longer
    started = time.perf_counter()
    backbone.upscale(largest)
    forward = time.perf_counter() - started
    minutes = forward * (AT_ALL + CALIBRATION * len(crops) + TRAINING * trained) / 60
    size = ("at least " if method.calibration_adds_bits else "") + f"{stored_bits(method, backbone, bits, setting):.2f}"
    return f"{method.label} {bits}: {size} bits per weight stored; {math.ceil(minutes)} minutes at most"


def export(options: argparse.Namespace) -> None:
    """Write a quantized model as one file, packed or for another engine, or as a web page."""
    name, path, told = options.format, options.out, ""
    if name not in EXPORTS:
        raise QartsrError(f"--format {name}: choose one of {', '.join(EXPORTS)}")
    if name == "packed" and options.model is not None:
        raise QartsrError(f"--model {options.model}: is packed already; choose another --format")
    _choose_shipped(options)
    if options.checkpoint is None:
        raise QartsrError(f"--checkpoint: name a model that quantize wrote, or --model {'|'.join(SHIPPED)}")
    check_name(path, "--out")
    check_writable(path if name == "web" else path.parent, f"--out {path}")
    import_networks()
    from qartsr_lib.deploy.packed_file import load_packed, save_packed
    from qartsr_lib.methods.checkpoint import load_quantized

    if name == "packed":
        save_packed(load_quantized(options.checkpoint), path)
    else:
        from qartsr_lib.deploy.export import check_export, save_exported
        from qartsr_lib.deploy.web import FETCH, MODEL, check_web, save_web

        if web := name == "web":
            check_web(path)
        check_export("onnx" if web else name, path / MODEL if web else path)  # before the model is loaded
        load = load_packed if is_packed(options.checkpoint) else load_quantized
        model = load(options.checkpoint)
        distance = save_web(model, path) if web else save_exported(model, path, name)
        told = f"; {EXPORTS[name]} from the simulation: {distance}"
        if web:
            folder = shlex.quote(str(path))
            told += f"\nonce: (cd {folder} && {FETCH})\nthen: python -m http.server -d {folder}"
            path /= MODEL
    files = (path, path.with_suffix(".bin")) if name == "openvino" else (path,)
    print(f"{path}: {sum(file.stat().st_size for file in files) / 1e6:.2f} MB{told}")


def evaluate(options: argparse.Namespace) -> None:
    """Score a folder of images against their originals."""
    import qartsr_lib.backbones  # noqa: F401  registers what VAE-FD is computed with
    from qartsr_lib.images.evaluate import evaluate_folders

    if options.weights is not None and not options.weights.is_dir():
        raise QartsrError(f"--weights {options.weights}: no such folder; name one with metric weights")
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    frame = evaluate_folders(options.sr, options.hr, names, options.out, weights_dir=options.weights)
    for name, rows in frame.groupby("metric", sort=False):
        values, missing = rows["value"].dropna(), rows[rows["value"].isna()]
        reason = f"; {missing['note'].iloc[0]}" if len(missing) else ""
        mean = f"{values.mean():.4f}" if len(values) else "n/a"
        print(f"{name:10s} {mean} ({len(values)} of {len(rows)} images{reason})")
    print(f"{options.out} written")
