"""Make low-resolution images: bicubic, and a second-order pipeline in the manner of Real-ESRGAN.

Source of the pipeline: Real-ESRGAN (arXiv:2107.10833). It is what the embedded backbone was trained
on and what `samples-realistic` and the calibration lists are made of, so no bit of it may change.
Its strengths are milder than OSEDiff's (DEVIATIONS.md): a model of a few million parameters trained
on the full range answers with blur to images that are hardly degraded, such as RealSR's. OSEDiff's
own is `training.trq.degradation`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class SecondOrder:
    """Two stages and the closing sinc filter of Real-ESRGAN."""

    first: Stage
    second: Stage
    sinc_probability: float = 0.4
    kernel_sizes: tuple[int, ...] = field(default=tuple(range(7, 22, 2)))


#: The strengths that the embedded backbone is trained on and `samples-realistic` uses.
REALISTIC = SecondOrder(
    first=Stage(0.8, (0.2, 1.6), (0.2, 0.5, 0.3), (0.5, 1.2), (0, 8), (0.02, 0.6), (70, 95)),
    second=Stage(0.3, (0.2, 0.8), (0.2, 0.3, 0.5), (0.7, 1.1), (0, 5), (0.02, 0.4), (75, 95)),
    sinc_probability=0.2,
)


def degrade(hr: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
    """Degrade and shrink an image by four.

    Args:
        hr: (1, 3, H, W) in [0, 1]; H and W divide by 4.
        kind: "bicubic" or "realistic".
        seed: determines every random choice; "bicubic" has none.

    Returns:
        (1, 3, H/4, W/4) in [0, 1], rounded to 8-bit levels.

    Raises:
        QartsrError: unknown kind.
    """
    if kind not in DEGRADATIONS:
        raise QartsrError(f"unknown degradation {kind!r} (known: {', '.join(DEGRADATIONS)})")
    if hr.shape[-1] % SCALE or hr.shape[-2] % SCALE:
        raise ValueError(f"height and width must divide by {SCALE}, got {tuple(hr.shape)}")
    lq = DEGRADATIONS[kind](hr, np.random.default_rng(seed))
    return from_uint8(to_uint8(lq)).to(hr.device)


def _bicubic(hr: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return resize_bicubic(hr, hr.shape[-2] // SCALE, hr.shape[-1] // SCALE)


def _realistic(hr: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return second_order(hr, REALISTIC, rng)


DEGRADATIONS = {"bicubic": _bicubic, "realistic": _realistic}


def second_order(hr: torch.Tensor, config: SecondOrder, rng: np.random.Generator) -> torch.Tensor:
    """Run the second-order pipeline: (1, 3, H, W) in [0, 1] -> (1, 3, H/4, W/4) in [0, 1]."""
    height, width = hr.shape[-2] // SCALE, hr.shape[-1] // SCALE
    image = _jpeg(
        _noise(_resize(_blur(hr, config.first, config, rng), config.first, rng), config.first, rng), config.first, rng
    )
    image = _noise(_resize(_blur(image, config.second, config, rng), config.second, rng), config.second, rng)
    sinc = rng.random() < config.sinc_probability
    # Real-ESRGAN closes with resize, sinc and JPEG in either order.
    if rng.random() < 0.5:
        image = _to_size(image, height, width, rng)
        image = _filter(image, _sinc_kernel(config, rng)) if sinc else image
        return _jpeg(image, config.second, rng)
    image = _to_size(_jpeg(image, config.second, rng), height, width, rng)
    return _filter(image, _sinc_kernel(config, rng)) if sinc else image


def _to_size(image: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    mode = ("area", "bilinear", "bicubic")[rng.integers(3)]
    if mode == "area":
        return F.interpolate(image, size=(height, width), mode="area")
    resized = F.interpolate(image, size=(height, width), mode=mode, antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _resize(image: torch.Tensor, stage: Stage, rng: np.random.Generator) -> torch.Tensor:
    low, high = stage.resize_range
    up, down, _ = stage.resize_probabilities
    draw = rng.random()
    if draw < up:
        factor = rng.uniform(1.0, high)
    elif draw < up + down:
        factor = rng.uniform(low, 1.0)
    else:
        return image
    height, width = (max(8, round(side * factor)) for side in image.shape[-2:])
    return _to_size(image, height, width, rng)


def _blur(image: torch.Tensor, stage: Stage, config: SecondOrder, rng: np.random.Generator) -> torch.Tensor:
    if rng.random() >= stage.blur_probability:
        return image
    return _filter(image, _gaussian_kernel(stage.blur_sigma, config, rng))


def _filter(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolve every channel with a (k, k) kernel, edges replicated."""
    pad = kernel.shape[-1] // 2
    weight = kernel.to(image).expand(image.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(image, [pad] * 4, mode="replicate"), weight, groups=image.shape[1]).clamp(0, 1)


def _half(config: SecondOrder, rng: np.random.Generator) -> int:
    return int(rng.choice(config.kernel_sizes)) // 2


def _gaussian_kernel(sigma_range: tuple[float, float], config: SecondOrder, rng: np.random.Generator) -> torch.Tensor:
    half = _half(config, rng)
    sigma_x = rng.uniform(*sigma_range)
    isotropic = rng.random() < 0.6
    sigma_y = sigma_x if isotropic else rng.uniform(*sigma_range)
    angle = 0.0 if isotropic else rng.uniform(-np.pi, np.pi)
    shape = rng.random()
    beta = 1.0 if shape < 0.7 else rng.uniform(0.5, 4.0) if shape < 0.85 else rng.uniform(1.0, 2.0)
    return blur_kernel(half, sigma_x, sigma_y, angle, beta, plateau=shape >= 0.85)


def _sinc_kernel(config: SecondOrder, rng: np.random.Generator) -> torch.Tensor:
    return sinc_kernel(_half(config, rng), rng.uniform(np.pi / 3, np.pi))


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
    quality = int(rng.integers(stage.jpeg_quality[0], stage.jpeg_quality[1] + 1))
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="JPEG", quality=quality)
    return from_uint8(np.asarray(Image.open(buffer))).to(image)
