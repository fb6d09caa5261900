"""OSEDiff's training pairs, degraded step by step as its released code does it.

Source: OSEDiff's `dataloaders/realesrgan.py` with `params_realesrgan.yml`, which calls BasicSR (Real-ESRGAN,
arXiv:2107.10833). Equal to it in distribution, so its peculiarities are kept: nothing is antialiased, the second resize
is relative to a quarter of the original and not to what the first left, nothing is rounded between the steps, and the
JPEG tables of luminance are transposed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn, idctn
from torch.utils.data import Dataset

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.degrade import SCALE, Stage, blur_kernel, sinc_kernel
from qartsr_lib.images.image import header_size, random_crop, read_image

FIRST = Stage(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95))
SECOND = Stage(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95))
SINC_PROBABILITY, FINAL_SINC_PROBABILITY = 0.1, 0.8
HALF_SIZES = (3, 11)  # of kernels of 7, 9, ..., 21 pixels; end excluded
#: Probability, isotropic, range of beta (a side of 1 is drawn first), plateau.
_SHAPES = (
    (0.45, True, (1, 1), False),
    (0.25, False, (1, 1), False),
    (0.12, True, (0.5, 4), False),
    (0.03, False, (0.5, 4), False),
    (0.12, True, (1, 2), True),
    (0.03, False, (1, 2), True),
)
_MODES = ("area", "bilinear", "bicubic")
_GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


class DegradedCrops(Dataset):
    """Pairs (HR crop, degraded and upscaled crop), both (3, size, size) float32 in [0, 1]; half of them are mirrored.

    Pair number n depends on `seed` and n alone, so that a training can continue, on any number of processes.

    Args:
        paths: photographs, read when needed; those with a side under `size`, a multiple of 8, are left out.
        first, count: numbers of the pairs, first .. first + count - 1.
    """

    def __init__(self, paths: Sequence[Path], size: int, seed: int, first: int, count: int) -> None:
        self.paths = [path for path in paths if min(header_size(path)) >= size]
        if not self.paths:
            raise QartsrError(f"--images: no image is at least {size}x{size} pixels; name a folder with larger ones")
        self.size, self.seed, self.first, self.count = size, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((self.seed, self.first + index))
        image = read_image(self.paths[rng.integers(len(self.paths))])
        hr = random_crop(image, self.size, self.size, rng)
        hr = hr.flip(-1) if rng.random() < 0.5 else hr
        return hr[0].contiguous(), degraded(hr, rng)[0]


def degraded(hr: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """`hr`, (1, 3, H, W) in [0, 1], sides dividing by 4, degraded, shrunk by four, enlarged, then rounded to 8 bits."""
    size = hr.shape[-2:]
    image = _filter(hr, _kernel(FIRST, rng))
    image = F.interpolate(image, scale_factor=_factor(FIRST, rng), mode=_mode(rng))
    image = jpeg(_noise(image, FIRST, rng), rng.uniform(*FIRST.jpeg_quality))
    if rng.random() < SECOND.blur_probability:
        image = _filter(image, _kernel(SECOND, rng))
    factor = _factor(SECOND, rng)
    image = F.interpolate(image, [max(1, int(side / SCALE * factor)) for side in size], mode=_mode(rng))
    image = _noise(image, SECOND, rng)
    jpeg_first, quality = rng.random() < 0.5, rng.uniform(*SECOND.jpeg_quality)
    image = jpeg(image, quality) if jpeg_first else image
    image = F.interpolate(image, [side // SCALE for side in size], mode=_mode(rng))
    if rng.random() < FINAL_SINC_PROBABILITY:
        image = _filter(image, sinc_kernel(int(rng.integers(*HALF_SIZES)), rng.uniform(np.pi / 3, np.pi)))
    image = image if jpeg_first else jpeg(image, quality)
    image = F.interpolate(image, size, mode=_mode(rng))
    return (image * 255.0).round().clamp(0, 255) / 255.0


def _mode(rng: np.random.Generator) -> str:
    return _MODES[rng.integers(len(_MODES))]


def _factor(stage: Stage, rng: np.random.Generator) -> float:
    low, high = stage.resize_range
    return (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[rng.choice(3, p=stage.resize_probabilities)]


def _kernel(stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    half = int(rng.integers(*HALF_SIZES))
    if rng.random() < SINC_PROBABILITY:
        return sinc_kernel(half, rng.uniform(np.pi / (3 if half < 6 else 5), np.pi))
    _, isotropic, (low, high), plateau = _SHAPES[rng.choice(len(_SHAPES), p=[shape[0] for shape in _SHAPES])]
    sigma = rng.uniform(*stage.blur_sigma)
    across, angle = (sigma, 0.0) if isotropic else (rng.uniform(*stage.blur_sigma), rng.uniform(-np.pi, np.pi))
    beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return blur_kernel(half, sigma, across, angle, beta, plateau)


def _filter(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolve every channel with a (k, k) kernel, edges mirrored; not clamped."""
    half = kernel.shape[-1] // 2
    # numpy's, because torch's refuses to mirror more than there is, as in small crops
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (half, half), (half, half)), mode="reflect")
    weight = kernel.to(image).expand(image.shape[1], 1, -1, -1)
    return F.conv2d(torch.from_numpy(padded), weight, groups=image.shape[1])


def _noise(image: torch.Tensor, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian or Poisson noise, of one grey or three colours; (1, 3, h, w), clamped to [0, 1]."""
    grey, clean = rng.random() < stage.grey_noise_probability, image.numpy()
    if rng.random() < stage.gaussian_probability:
        shape = (1, 1 if grey else clean.shape[1], *clean.shape[-2:])
        noise = rng.uniform(*stage.noise_sigma) / 255.0 * rng.standard_normal(shape)
    else:
        signal = np.tensordot(_GREY, clean, (0, 1))[:, None] if grey else clean
        levels = np.clip(np.round(signal * 255.0), 0, 255) / 255.0
        photons = 2 ** np.ceil(np.log2(len(np.unique(levels))))  # that a camera counts at white
        noise = rng.uniform(*stage.poisson_scale) * (rng.poisson(levels * photons) / photons - levels)
    return torch.from_numpy((clean + noise).astype(clean.dtype)).clamp(0, 1)


def jpeg(image: torch.Tensor, quality: float) -> torch.Tensor:
    """JPEG with half the resolution in colour, but for its 8-bit rounding: BasicSR's DiffJPEG, not differentiable.

    `image` is (1, 3, h, w), clamped to [0, 1], its sides filled up to multiples of 16 with black; quality 0 to 100.
    """
    height, width = image.shape[-2:]
    scale = 50.0 / quality if quality < 50 else 2.0 - quality / 50.0
    pixels = F.pad(image.clamp(0, 1) * 255.0, (0, -width % 16, 0, -height % 16))[0]
    luma, *chroma = np.tensordot(_TO_YCBCR, pixels.numpy(), 1)
    first, second = (table * scale for table in _tables())
    planes = [_quantized(luma - 128.0, first) + 128.0]
    for plane in chroma:
        small = plane.reshape(plane.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3))
        planes.append(_quantized(small, second).repeat(2, axis=0).repeat(2, axis=1))
    pixels = np.tensordot(_TO_RGB, np.stack(planes), 1)[None, :, :height, :width]
    return torch.from_numpy(pixels.clip(0, 255) / 255.0).to(image)


def _quantized(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Blocks of 8x8 transformed, divided by the table, rounded, and back."""
    blocks = plane.reshape(plane.shape[0] // 8, 8, -1, 8)
    table = table[:, None, :]
    rounded = np.round(dctn(blocks, axes=(1, 3), norm="ortho") / table) * table
    return idctn(rounded, axes=(1, 3), norm="ortho").reshape(plane.shape)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The standard's tables of luminance (transposed, see the module) and chrominance: quality 50 has them as is."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="JPEG", quality=50)
    found = Image.open(buffer).quantization
    return np.reshape(found[0], (8, 8)).T.astype(float), np.reshape(found[1], (8, 8)).astype(float)
