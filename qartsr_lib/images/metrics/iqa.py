"""Metrics computed by pyiqa, with the options that the super-resolution field uses.

This is the only module that imports pyiqa, and it does so at the first score. pyiqa is licensed for
non-commercial use only (PolyForm-Noncommercial-1.0.0, parts under the S-Lab licence).

The options are those of PassionSR's and OSEDiff's evaluation scripts, on which the paper's tables
rest: PSNR and SSIM on BT.601 luma (pyiqa's own default is YIQ luma, which shifts PSNR by a constant
1.3 dB) without border crop; every other metric with pyiqa's defaults (LPIPS: AlexNet v0.1, MUSIQ and
MANIQA: trained on KonIQ-10k, NIQE: the original parameters).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qartsr_lib.images.metrics.base import METRICS, Compute, MetricSpec, WeightFile

if TYPE_CHECKING:
    import torch

_HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_TORCHVISION = "https://download.pytorch.org/models/"
_CLIP_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"

ALEXNET = WeightFile("alexnet-owt-7be5be79.pth", "checkpoints", _TORCHVISION + "alexnet-owt-7be5be79.pth", "7be5be79")
VGG16 = WeightFile("vgg16-397923af.pth", "checkpoints", _TORCHVISION + "vgg16-397923af.pth", "397923af")
LPIPS_LINEAR = WeightFile(
    "LPIPS_v0.1_alex-df73285e.pth",
    "pyiqa",
    _HUB + "LPIPS_v0.1_alex-df73285e.pth",
    "df73285e",
    packaged=("lpips", "weights/v0.1/alex.pth"),
)
DISTS_WEIGHTS = WeightFile("DISTS_weights-f5e65c96.pth", "pyiqa", _HUB + "DISTS_weights-f5e65c96.pth", "f5e65c96")
NIQE_PARAMETERS = WeightFile("niqe_modelparameters.mat", "pyiqa", _HUB + "niqe_modelparameters.mat")
MUSIQ_KONIQ = WeightFile("musiq_koniq_ckpt-e95806b9.pth", "pyiqa", _HUB + "musiq_koniq_ckpt-e95806b9.pth", "e95806b9")
MANIQA_KONIQ = WeightFile("ckpt_koniq10k.pt", "pyiqa", _HUB + "ckpt_koniq10k.pt")
CLIP_RN50 = WeightFile(
    "RN50.pt", "clip", f"https://openaipublic.azureedge.net/clip/models/{_CLIP_SHA256}/RN50.pt", _CLIP_SHA256
)


@functools.cache
def _pyiqa() -> ModuleType:
    """pyiqa, quiet, and with a fast window filter in SSIM."""
    import pyiqa
    from pyiqa.archs import ssim_arch

    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    ssim_arch.filter2 = _by_fft(ssim_arch.filter2)
    return pyiqa


def _by_fft(direct: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The valid cross-correlation that SSIM needs, by FFT.

    SSIM and MS-SSIM filter in float64, where torch's direct convolution takes a second per 512x512
    image; this takes a twentieth of it and differs by about 1e-13 of the image's range.
    """
    import torch
    from scipy.signal import fftconvolve  # half a second, and only needed for scoring

    def filter2(image: torch.Tensor, window: torch.Tensor, shape: str = "same") -> torch.Tensor:
        single = image.shape[1] == 1 and window.shape[:2] == (1, 1)
        if shape != "valid" or not single or image.requires_grad or image.device.type != "cpu":
            return direct(image, window, shape)
        kernel = window.flip(-2, -1).numpy()
        return torch.from_numpy(fftconvolve(image.numpy(), kernel, mode="valid", axes=(-2, -1)))

    return filter2


@contextlib.contextmanager
def _staged(weights: Mapping[str, Path], files: tuple[WeightFile, ...]) -> Iterator[None]:
    """Show pyiqa a download cache that holds exactly the given files, so that it downloads nothing.

    Pickles are loaded with weights_only=True whatever pyiqa asks for, and MANIQA's backbone is not
    fetched first, since its checkpoint (loaded with strict=True) holds the backbone's weights too.
    """
    import timm
    import torch
    from pyiqa.utils import download_util

    hub, cache, create = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR, timm.create_model
    forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with tempfile.TemporaryDirectory(prefix="qartsr-metric-") as folder:
        for file in files:
            link = Path(folder, file.cache, file.name)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(weights[file.name].resolve())
        try:
            torch.hub.set_dir(folder)
            download_util.DEFAULT_CACHE_DIR = str(Path(folder, "pyiqa"))
            timm.create_model = lambda name, pretrained=False, **options: create(name, pretrained=False, **options)
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
            with contextlib.redirect_stdout(io.StringIO()):  # pyiqa prints a line per file
                yield
        finally:
            torch.hub.set_dir(hub)
            download_util.DEFAULT_CACHE_DIR = cache
            timm.create_model = create
            if forced is None:
                del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
            else:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced


def _build(
    pyiqa_name: str, options: Mapping[str, Any], files: tuple[WeightFile, ...], weights: Mapping[str, Path]
) -> Compute:
    """The scoring function of pyiqa's metric `pyiqa_name`, on the CPU and without gradients."""
    import torch

    pyiqa = _pyiqa()
    with _staged(weights, files) if files else contextlib.nullcontext():
        metric = pyiqa.create_metric(pyiqa_name, device=torch.device("cpu"), **options)

    def compute(sr: torch.Tensor, hr: torch.Tensor | None) -> float:
        with torch.no_grad():
            return float(metric(sr, hr) if metric.metric_mode == "FR" else metric(sr))

    return compute


def _row(
    name: str,
    pyiqa_name: str,
    kind: str,
    better: str,
    description: str,
    *,
    minimum_side: int,
    options: Mapping[str, Any] | None = None,
    weights: tuple[WeightFile, ...] = (),
    one_thread: bool = True,
) -> None:
    """Register one row of the table below."""
    options = dict(options or {})
    spec = MetricSpec(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        higher_is_better=better == "higher",
        description=description,
        build=functools.partial(_build, pyiqa_name, options, weights),
        options={"pyiqa": pyiqa_name, **options},
        weights=weights,
        minimum_side=minimum_side,
        one_thread=one_thread,
        ceiling=80.0 if pyiqa_name == "psnr" else None,  # pyiqa adds 1e-8 to the mean squared error
    )
    METRICS.register(name)(spec)


LUMA = {"test_y_channel": True, "color_space": "ycbcr"}

# The paper's eight, in its order.
_row("PSNR", "psnr", "FR", "higher", "PSNR in dB on BT.601 luma; equal images give 80", minimum_side=1, options=LUMA)
_row("SSIM", "ssim", "FR", "higher", "structural similarity on BT.601 luma", minimum_side=11, options=LUMA)
_row(
    "LPIPS",
    "lpips",
    "FR",
    "lower",
    "learned perceptual distance, AlexNet v0.1",
    minimum_side=64,
    options={"net": "alex", "version": "0.1"},
    weights=(ALEXNET, LPIPS_LINEAR),
    one_thread=False,
)
_row(
    "DISTS",
    "dists",
    "FR",
    "lower",
    "deep structure and texture similarity, VGG16",
    minimum_side=32,
    weights=(VGG16, DISTS_WEIGHTS),
    one_thread=False,
)
_row(
    "NIQE",
    "niqe",
    "NR",
    "lower",
    "distance of patch statistics from pristine photographs (original parameters)",
    minimum_side=192,  # one 96x96 patch gives a number without meaning, 2x2 patches are the fewest
    weights=(NIQE_PARAMETERS,),
)
_row(
    "MUSIQ",
    "musiq",
    "NR",
    "higher",
    "multi-scale transformer trained on KonIQ-10k",
    minimum_side=32,
    weights=(MUSIQ_KONIQ,),
    one_thread=False,
)
_row(
    "MANIQA",
    "maniqa",
    "NR",
    "higher",
    "vision transformer trained on KonIQ-10k (OSEDiff's own tables use the PIPAL variant)",
    minimum_side=32,
    weights=(MANIQA_KONIQ,),
    one_thread=False,
)
_row(
    "CLIP-IQA",
    "clipiqa",
    "NR",
    "higher",
    "CLIP ResNet-50 similarity to pairs of quality prompts",
    minimum_side=32,
    weights=(CLIP_RN50,),
    one_thread=False,
)

# Weight-free ones, so that a machine without metric weights still sees structure and naturalness.
_row(
    "MS-SSIM",
    "ms_ssim",
    "FR",
    "higher",
    "multi-scale structural similarity on BT.601 luma",
    minimum_side=161,  # five scales of an 11-pixel window
    options=LUMA,
)
_row("GMSD", "gmsd", "FR", "lower", "gradient magnitude similarity deviation on luma", minimum_side=8)
_row("FSIM", "fsim", "FR", "higher", "feature similarity with colour (FSIMc)", minimum_side=8)
_row("VIF", "vif", "FR", "higher", "visual information fidelity in a steerable pyramid, on luma", minimum_side=40)
_row("PIQE", "piqe", "NR", "lower", "block distortion and noise, 0 to 100", minimum_side=16)
_row("PSNR-RGB", "psnr", "FR", "higher", "PSNR in dB over the three RGB channels", minimum_side=1)
