"""Make low-resolution images: bicubic, and a second-order pipeline in the manner of Real-ESRGAN (arXiv:2107.10833).

The embedded backbones, `samples-realistic` and the calibration lists are made with it: no bit of it may change. It is
milder than OSEDiff's (`training.trq.degradation`; why: DEVIATIONS.md).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import from_uint8, resize_bicubic, to_uint8

SCALE = 4


@dataclass(frozen=True)
class Stage:
    """One blur - resize - noise - JPEG round; ranges are (low, high)."""

    blur_probability: float
    blur_sigma: tuple[float, float]  # pixels
    resize_probabilities: tuple[float, float, float]  # up, down, keep
    resize_range: tuple[float, float]  # scale factors of down and up
    noise_sigma: tuple[float, float]  # grey levels of 255
    poisson_scale: tuple[float, float]
    jpeg_quality: tuple[int, int]
    gaussian_probability: float = 0.5  # the rest of the noise is Poisson
    grey_noise_probability: float = 0.4


REALISTIC = (
    Stage(0.8, (0.2, 1.6), (0.2, 0.5, 0.3), (0.5, 1.2), (0, 8), (0.02, 0.6), (70, 95)),
    Stage(0.3, (0.2, 0.8), (0.2, 0.3, 0.5), (0.7, 1.1), (0, 5), (0.02, 0.4), (75, 95)),
)
SINC_PROBABILITY = 0.2
KERNEL_SIZES = tuple(range(7, 22, 2))


def degrade(hr: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1], H and W divide by 4 -> (1, 3, H/4, W/4) in [0, 1], rounded to 8-bit levels.

    `kind` is "bicubic" or "realistic" (a QartsrError for others), whose random choices `seed` determines.
    """
    if kind not in DEGRADATIONS:
        raise QartsrError(f"unknown degradation {kind!r} (known: {', '.join(DEGRADATIONS)})")
    if hr.shape[-1] % SCALE or hr.shape[-2] % SCALE:
        raise ValueError(f"height and width must divide by {SCALE}, got {tuple(hr.shape)}")
    size = [side // SCALE for side in hr.shape[-2:]]
    lq = DEGRADATIONS[kind](hr, size, np.random.default_rng(seed))
    return from_uint8(to_uint8(lq)).to(hr.device)


def _realistic(hr: torch.Tensor, size: list[int], rng: np.random.Generator) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1] -> (1, 3, *size) in [0, 1]: two stages and a closing sinc filter."""
    first, second = REALISTIC
    image = _jpeg(_noise(_resize(_blur(hr, first, rng), first, rng), first, rng), first, rng)
    image = _noise(_resize(_blur(image, second, rng), second, rng), second, rng)
    sinc, jpeg_last = rng.random() < SINC_PROBABILITY, rng.random() < 0.5
    image = _to_size(image if jpeg_last else _jpeg(image, second, rng), size, rng)
    if sinc:
        image = _filter(image, sinc_kernel(int(rng.choice(KERNEL_SIZES)) // 2, rng.uniform(np.pi / 3, np.pi)))
    return _jpeg(image, second, rng) if jpeg_last else image


DEGRADATIONS = {"bicubic": lambda hr, size, rng: resize_bicubic(hr, *size), "realistic": _realistic}


def _to_size(image: torch.Tensor, size: list[int], rng: np.random.Generator) -> torch.Tensor:
    mode = ("area", "bilinear", "bicubic")[rng.integers(3)]
    if mode == "area":
        return F.interpolate(image, size=size, mode="area")
    return F.interpolate(image, size=size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def _resize(image: torch.Tensor, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    low, high = stage.resize_range
    up, down, _ = stage.resize_probabilities
    draw = rng.random()
    if draw >= up + down:
        return image
    factor = rng.uniform(1.0, high) if draw < up else rng.uniform(low, 1.0)
    return _to_size(image, [max(8, round(side * factor)) for side in image.shape[-2:]], rng)


def _blur(image: torch.Tensor, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    return _filter(image, _gaussian_kernel(stage, rng)) if rng.random() < stage.blur_probability else image


def _filter(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolve every channel with a (k, k) kernel, edges replicated."""
    pad = kernel.shape[-1] // 2
    weight = kernel.to(image).expand(image.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(image, [pad] * 4, mode="replicate"), weight, groups=image.shape[1]).clamp(0, 1)


def _gaussian_kernel(stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    half = int(rng.choice(KERNEL_SIZES)) // 2
    sigma_x = rng.uniform(*stage.blur_sigma)
    isotropic = rng.random() < 0.6
    sigma_y = sigma_x if isotropic else rng.uniform(*stage.blur_sigma)
    angle = 0.0 if isotropic else rng.uniform(-np.pi, np.pi)
    shape = rng.random()
    beta = 1.0 if shape < 0.7 else rng.uniform(0.5, 4.0) if shape < 0.85 else rng.uniform(1.0, 2.0)
    return blur_kernel(half, sigma_x, sigma_y, angle, beta, plateau=shape >= 0.85)


def blur_kernel(
    half: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0, plateau: bool = False
) -> torch.Tensor:
    """A generalized Gaussian exp(-r^(2 beta) / 2) or plateau 1 / (1 + r^(2 beta)) (Real-ESRGAN, section 3.1).

    r is the distance from the centre in sigmas, the axes turned by `angle`; beta = 1 is the plain
    Gaussian. Returns (2 half + 1, 2 half + 1) float64 of sum 1.
    """
    x, y = _grid(half)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    squared = ((u / sigma_x) ** 2 + (v / sigma_y) ** 2) ** beta
    kernel = 1.0 / (1.0 + squared) if plateau else np.exp(-0.5 * squared)
    return torch.from_numpy(kernel / kernel.sum())


def sinc_kernel(half: int, cutoff: float) -> torch.Tensor:
    """Circular low-pass filter: rings as over-sharpened images do; size and sum as `blur_kernel`'s."""
    radius = np.hypot(*_grid(half))
    radius[radius == 0] = 1e-8
    kernel = cutoff * torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy() / (2 * np.pi * radius)
    return torch.from_numpy(kernel / kernel.sum())


def _grid(half: int) -> tuple[np.ndarray, ...]:
    axis = np.arange(-half, half + 1, dtype=np.float64)
    return np.meshgrid(axis, axis)


def _noise(image: torch.Tensor, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    channels = 1 if rng.random() < stage.grey_noise_probability else image.shape[1]
    shape = (image.shape[0], channels, *image.shape[-2:])
    normal = torch.from_numpy(rng.standard_normal(shape)).to(image)
    if rng.random() < stage.gaussian_probability:
        sigma: torch.Tensor | float = rng.uniform(*stage.noise_sigma) / 255.0
    else:  # Poisson noise in its normal approximation: variance proportional to the signal
        sigma = rng.uniform(*stage.poisson_scale) * (image.mean(dim=1, keepdim=True) / 255.0).sqrt()
    return (image + sigma * normal).clamp(0, 1)


def _jpeg(image: torch.Tensor, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    low, high = stage.jpeg_quality
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="JPEG", quality=int(rng.integers(low, high + 1)))
    return from_uint8(np.asarray(Image.open(buffer))).to(image)
