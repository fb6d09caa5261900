"""Metrics computed by pyiqa, with the options that the super-resolution field uses.

This alone imports pyiqa (non-commercial use only: PolyForm-Noncommercial-1.0.0, parts under the S-Lab licence), at the
first score. The options are those of PassionSR's and OSEDiff's evaluation scripts, on which the paper's tables rest:
PSNR and SSIM on BT.601 luma (pyiqa's default is YIQ luma, which shifts PSNR by a constant 1.3 dB) without border crop;
every other metric with pyiqa's defaults. Slow parts have equal, faster forms (`quicker.py`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from qartsr_lib.images.metrics import METRICS, Compute, MetricSpec, quicker
from qartsr_lib.images.metrics.converted import CONVERTED, write_as_published
from qartsr_lib.images.metrics.weights import WeightFile


def _published(url: str, cache: str = "pyiqa", packaged: str | None = None) -> WeightFile:
    """A weight file whose URL states its checksum or the first 8 digits, or else none."""
    stated = re.search(r"(?<=-)[0-9a-f]{8}(?=\.)|(?<=/)[0-9a-f]{64}(?=/)", url)
    return WeightFile(url, cache, stated and stated[0], packaged)


_HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_TORCHVISION = "https://download.pytorch.org/models/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"

ALEXNET = _published(_TORCHVISION + "alexnet-owt-7be5be79.pth", "checkpoints")
VGG16 = _published(_TORCHVISION + "vgg16-397923af.pth", "checkpoints")
LPIPS_LINEAR = _published(_HUB + "LPIPS_v0.1_alex-df73285e.pth", packaged="lpips/weights/v0.1/alex.pth")
DISTS_WEIGHTS = _published(_HUB + "DISTS_weights-f5e65c96.pth", packaged="DISTS_pytorch/weights.pt")
NIQE_PARAMETERS = _published(_HUB + "niqe_modelparameters.mat")
MUSIQ_KONIQ = _published(_HUB + "musiq_koniq_ckpt-e95806b9.pth")
MANIQA_KONIQ = _published(_HUB + "ckpt_koniq10k.pt")
CLIP_RN50 = _published(_CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt", "clip")


@functools.cache
def _pyiqa() -> ModuleType:
    """pyiqa, quiet and quicker."""
    import pyiqa
    from pyiqa.archs import fsim_arch, ssim_arch, vif_arch

    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    quicker.quicken_modules(ssim_arch, fsim_arch, vif_arch)
    return pyiqa


@contextlib.contextmanager
def _staged(weights: Mapping[str, Path], files: tuple[WeightFile, ...]) -> Iterator[None]:
    """Show pyiqa a download cache that holds exactly the given files, so that it downloads nothing.

    Pickles are loaded with weights_only=True whatever pyiqa asks for. MANIQA's backbone is not fetched first: its
    checkpoint (loaded with strict=True) holds the backbone's weights too.
    """
    import timm
    import torch
    from pyiqa.utils import download_util

    create = timm.create_model
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qartsr-metric-"))
        for file in files:
            link = Path(folder, file.cache, file.name)
            link.parent.mkdir(exist_ok=True)
            found = weights[file.name].resolve()
            write_as_published(found, link) if found.suffix == CONVERTED else link.symlink_to(found)
        stack.callback(torch.hub.set_dir, torch.hub.get_dir())
        torch.hub.set_dir(folder)
        stack.enter_context(mock.patch.object(download_util, "DEFAULT_CACHE_DIR", str(Path(folder, "pyiqa"))))
        untrained = lambda name, pretrained=False, **options: create(name, **options)  # noqa: E731
        stack.enter_context(mock.patch.object(timm, "create_model", untrained))
        stack.enter_context(mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # pyiqa prints a line per file
        yield


def _build(
    pyiqa_name: str, options: Mapping[str, Any], files: tuple[WeightFile, ...], weights: Mapping[str, Path]
) -> Compute:
    """The scoring function of pyiqa's metric `pyiqa_name`, on the CPU and without gradients."""
    import torch

    pyiqa = _pyiqa()
    with _staged(weights, files) if files else contextlib.nullcontext():
        metric = pyiqa.create_metric(pyiqa_name, device=torch.device("cpu"), **options)
    quicker.quicken(pyiqa_name, metric.net)
    return torch.no_grad()(lambda sr, hr: float(metric(sr, hr) if metric.metric_mode == "FR" else metric(sr)))


_LUMA = {"test_y_channel": True, "color_space": "ycbcr"}
_ALEX = {"net": "alex", "version": "0.1"}
_NIQE = "distance of patch statistics from pristine photographs (original parameters)"
_CLIP_IQA = "CLIP ResNet-50 similarity to pairs of quality prompts"
_MANIQA = "vision transformer trained on KonIQ-10k (OSEDiff's own tables use the PIPAL variant)"
#: Name, pyiqa's name, kind, what is better, smallest side, options, weights, description; the paper's eight come first
#: in its order, then those without weights, so that every machine sees structure and naturalness.
_ROWS = (
    ("PSNR", "psnr", "FR", "higher", 1, _LUMA, (), "PSNR in dB on BT.601 luma; equal images give 80"),
    ("SSIM", "ssim", "FR", "higher", 11, _LUMA, (), "structural similarity on BT.601 luma"),
    ("LPIPS", "lpips", "FR", "lower", 64, _ALEX, (ALEXNET, LPIPS_LINEAR), "learned perceptual distance, AlexNet v0.1"),
    ("DISTS", "dists", "FR", "lower", 32, {}, (VGG16, DISTS_WEIGHTS), "deep structure and texture similarity, VGG16"),
    ("NIQE", "niqe", "NR", "lower", 192, {}, (NIQE_PARAMETERS,), _NIQE),  # from 2x2 patches of 96x96 on
    ("MUSIQ", "musiq", "NR", "higher", 32, {}, (MUSIQ_KONIQ,), "multi-scale transformer trained on KonIQ-10k"),
    ("MANIQA", "maniqa", "NR", "higher", 32, {}, (MANIQA_KONIQ,), _MANIQA),
    ("CLIP-IQA", "clipiqa", "NR", "higher", 32, {}, (CLIP_RN50,), _CLIP_IQA),
    ("MS-SSIM", "ms_ssim", "FR", "higher", 161, _LUMA, (), "multi-scale structural similarity on BT.601 luma"),
    ("GMSD", "gmsd", "FR", "lower", 8, {}, (), "gradient magnitude similarity deviation on luma"),
    ("FSIM", "fsim", "FR", "higher", 8, {}, (), "feature similarity with colour (FSIMc)"),
    ("VIF", "vif", "FR", "higher", 40, {}, (), "visual information fidelity in a steerable pyramid, on luma"),
    ("PIQE", "piqe", "NR", "lower", 16, {}, (), "block distortion and noise, 0 to 100"),
    ("PSNR-RGB", "psnr", "FR", "higher", 1, {}, (), "PSNR in dB over the three RGB channels"),
)

for _name, _pyiqa_name, _kind, _better, _side, _options, _files, _description in _ROWS:
    METRICS.register(_name)(
        MetricSpec(
            name=_name,
            kind=_kind,
            higher_is_better=_better == "higher",
            description=_description,
            build=functools.partial(_build, _pyiqa_name, _options, _files),
            options={"pyiqa": _pyiqa_name, **_options},
            weights=_files,
            minimum_side=_side,
            one_thread=all(file is NIQE_PARAMETERS for file in _files),  # all others with weights are networks
            ceiling=80.0 if _pyiqa_name == "psnr" else None,  # pyiqa adds 1e-8 to the mean squared error
        )
    )
