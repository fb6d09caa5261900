"""Read, write, pad and resize images at the public seam: RGB float32 NCHW in [0, 1]."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from qartsr_lib.base.atomic import write_atomically
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image_files import decode, orientation

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif")

_log = logging.getLogger(__name__)
_told: set[str] = set()


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; hidden ones are left out.

    Raises:
        QartsrError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise QartsrError(f"{folder}: no such folder; check the path")
    found = sorted(path for path in folder.iterdir() if is_listed(path))
    if not found:
        raise QartsrError(
            f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); put images there or name another folder"
        )
    return found


def is_listed(path: Path) -> bool:
    """Whether `list_images` takes a file: by its ending, and not hidden (as the ._x.png that macOS adds)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_image(path: str | Path, profiles: bool = True) -> torch.Tensor:
    """Read an image file as (1, 3, H, W) float32 in [0, 1], upright and in sRGB.

    Grey and 16 bits become plain RGB. What is not taken as it stands in the file (transparency, which is
    ignored; a colour profile, further frames) is logged as a warning, each kind once per process.

    Args:
        profiles: convert colours by an embedded profile; False takes the stored numbers.

    Raises:
        QartsrError: see `image_files.decode`.
    """
    found = decode(path, profiles)
    ignored = "" if found.alpha is None else "its transparency is ignored, and colours under invisible pixels count"
    for note in (*found.notes, ignored):
        if note and note not in _told:
            _told.add(note)
            _log.warning("note: %s: %s (others like it are not named)", path, note)
    return from_uint8(found.rgb)


def header_size(opened: Image.Image) -> tuple[int, int]:
    """(width, height) of what `read_image` makes of a file that Pillow opened; decodes nothing."""
    # Pillow turns TIFF itself, and decodes a PNG to look for an orientation behind its pixels.
    looked_for = opened.format != "TIFF" and (opened.format != "PNG" or "exif" in opened.info)
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
    """The central `side` x `side` pixels of (..., H, W), all of a side that is no longer.

    Args:
        multiple: the crop begins at a multiple of it.
    """
    for axis in (-2, -1):
        length = image.shape[axis]
        start = max(0, (length - side) // (2 * multiple) * multiple)
        image = image.narrow(axis, start, min(side, length))
    return image


def resize_bicubic(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bicubic resize (a = -0.5, the kernel of Pillow and of MATLAB's imresize).

    Args:
        image: (N, 3, H, W) in [0, 1].

    Returns:
        (N, 3, height, width), clamped to [0, 1].
    """
    resized = F.interpolate(image, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def upscale_bicubic(image: torch.Tensor, factor: int = 4) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 3, factor H, factor W) by bicubic interpolation: the SR model's input."""
    return resize_bicubic(image, image.shape[-2] * factor, image.shape[-1] * factor)


def pad_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad right and bottom by reflection until both sides divide by `multiple`.

    Sides shorter than the padding are reflected repeatedly, so every size of at least 1 works.
    """
    height, width = image.shape[-2:]
    rows = _reflect_index(height, -height % multiple, image.device)
    columns = _reflect_index(width, -width % multiple, image.device)
    return image.index_select(-2, rows).index_select(-1, columns)


def _reflect_index(size: int, extra: int, device: torch.device) -> torch.Tensor:
    """Indices 0..size-1 followed by `extra` reflected ones (edge not repeated, period 2 size - 2)."""
    position = torch.arange(size + extra, device=device)
    if size == 1:
        return torch.zeros_like(position)
    period = 2 * (size - 1)
    position = position % period
    return torch.minimum(position, period - position)
