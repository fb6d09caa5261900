"""Images at the public seam, RGB float32 NCHW in [0, 1]: reading, writing, cropping, padding, resizing, comparing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically
from qartsr_lib.base.registry import Registry
from qartsr_lib.images.image_files import decode, explained, orientation

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif")
#: Name -> function(device) -> distance of images (N, 3, H, W) by features of a backbone; backbones register them.
DISTANCES: Registry[Callable[[str], Callable]] = Registry("feature distance")
_LUMA = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255.0

_log = logging.getLogger(__name__)
_told: set[str] = set()


def list_images(folder: str | Path, below: bool = False) -> list[Path]:
    """Image files directly in `folder` (or also `below` it), sorted; a QartsrError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise QartsrError(f"{folder}: no such folder; check the path")
    entries = folder.rglob("*") if below else folder.iterdir()
    found = sorted(path for path in entries if is_listed(path, folder))
    if not found:
        raise QartsrError(
            f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); put images there or name another folder"
        )
    return found


def is_listed(path: Path, folder: Path) -> bool:
    """Whether `list_images` takes a file in or below `folder`: by its ending, and not hidden (as macOS's ._x.png)."""
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_image(path: str | Path, profiles: bool = True) -> torch.Tensor:
    """Read an image file as (1, 3, H, W) float32 in [0, 1], upright and in sRGB; see `image_files.decode`.

    What is not taken as it stands in the file (transparency, which is ignored; a colour profile, further frames) is
    logged as a warning, each kind once per process.
    """
    found = decode(path, profiles)
    ignored = "" if found.alpha is None else "its transparency is ignored, and colours under invisible pixels count"
    for note in (*found.notes, ignored):
        if note and note not in _told:
            _told.add(note)
            _log.warning("note: %s: %s (others like it are not named)", path, note)
    return from_uint8(found.rgb)


def header_size(path: Path) -> tuple[int, int]:
    """(width, height) of what `read_image` makes of a file; decodes nothing.

    An orientation behind the pixels of a PNG, where few programs write it, is not seen.
    """
    with explained(path), Image.open(path) as opened:
        # Pillow turns TIFF itself, and decodes a PNG to look for an orientation behind its pixels.
        before = opened.format != "PNG" or bool({"exif", "XML:com.adobe.xmp"} & opened.info.keys())
        looked_for = opened.format != "TIFF" and before
        sideways = looked_for and orientation(opened) in (5, 6, 7, 8)
        return opened.size[::-1] if sideways else opened.size


def from_uint8(array: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].float().div_(255.0)


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] -> (H, W, 3) uint8, clamped and rounded to the nearest level."""
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"expected a (1, 3, H, W) image, got {tuple(image.shape)}")
    levels = image.detach().float().cpu().clamp(0, 1).mul(255.0).round().to(torch.uint8)
    return levels[0].permute(1, 2, 0).contiguous().numpy()


def write_png(path: str | Path, image: torch.Tensor) -> Path:
    """Save a (1, 3, H, W) image in [0, 1] as an 8-bit PNG, atomically."""
    array = to_uint8(image)
    return write_atomically(path, lambda temporary: Image.fromarray(array).save(temporary, format="PNG"))


def central_crop(image: torch.Tensor, side: int, multiple: int = 1) -> torch.Tensor:
    """The central `side` x `side` pixels of (..., H, W), from a `multiple` on; all of a side that is no longer."""
    for axis in (-2, -1):
        length = image.shape[axis]
        start = max(0, (length - side) // (2 * multiple) * multiple)
        image = image.narrow(axis, start, min(side, length))
    return image


def random_crop(image: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """`height` x `width` pixels of (..., H, W), anywhere."""
    top = int(rng.integers(image.shape[-2] - height + 1))
    left = int(rng.integers(image.shape[-1] - width + 1))
    return image[..., top : top + height, left : left + width]


def resize_bicubic(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 3, height, width) in [0, 1]: antialiased, a = -0.5, as Pillow and MATLAB's imresize."""
    resized = F.interpolate(image, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def upscale_bicubic(image: torch.Tensor, factor: int = 4) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 3, factor H, factor W) by bicubic interpolation: the SR model's input."""
    return resize_bicubic(image, image.shape[-2] * factor, image.shape[-1] * factor)


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad right and bottom by reflection, repeated for short sides, until both sides divide by `multiple`."""
    for axis in (-2, -1):
        size = image.shape[axis]
        index = np.pad(np.arange(size), (0, -size % multiple), mode="reflect")
        image = image.index_select(axis, torch.from_numpy(index).to(image.device))
    return image


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of two images in [0, 1], for a quick look (tables have `metrics`); infinite when they are equal."""
    return float(-10.0 * torch.log10(torch.mean((a.double() - b.double()) ** 2)))


def psnr_y(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of the luma of two RGB images in [0, 1]."""
    return psnr(luma(a), luma(b))


def luma(image: torch.Tensor) -> torch.Tensor:
    """BT.601 luma of an RGB image in [0, 1]: (N, 1, H, W) in [16/255, 235/255]."""
    return (image * _LUMA.to(image)).sum(dim=1, keepdim=True) + 16.0 / 255.0
