"""Read, write, pad and resize images at the public seam: RGB float32 NCHW in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from qartsr_lib.atomic import write_atomically
from qartsr_lib.errors import QartsrError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name.

    Raises:
        QartsrError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise QartsrError(f"{folder}: no such folder; check the path")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise QartsrError(
            f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); put images there or name another folder"
        )
    return found


def read_image(path: str | Path) -> torch.Tensor:
    """Read an image file as (1, 3, H, W) float32 in [0, 1], upright; grey, alpha and 16 bits become plain RGB.

    Raises:
        QartsrError: the file is missing, truncated or not an image, or its pixels have no range of 8 or 16 bits.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            array = _rgb(_upright(opened), path)
    except FileNotFoundError as error:
        raise QartsrError(f"{path}: no such file; check the path") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise QartsrError(f"{path}: not a readable image (truncated or damaged?); replace or remove it") from error
    return from_uint8(array)


def header_size(opened: Image.Image) -> tuple[int, int]:
    """(width, height) of what `read_image` makes of a file that Pillow opened; decodes nothing."""
    # Pillow turns TIFF itself, and decodes a PNG to look for an orientation behind its pixels.
    looked_for = opened.format != "TIFF" and (opened.format != "PNG" or "exif" in opened.info)
    sideways = looked_for and _orientation(opened) in (5, 6, 7, 8)
    return opened.size[::-1] if sideways else opened.size


def _orientation(opened: Image.Image) -> int:
    """The orientation in a file's EXIF data; 1 where there is none, or none that can be read."""
    try:
        return opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF data; the pixels are not concerned
        return 1


def _upright(opened: Image.Image) -> Image.Image:
    opened.load()
    return opened if _orientation(opened) == 1 else ImageOps.exif_transpose(opened)


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W, 3) uint8. Pillow's own conversion clips 16-bit greys at 255."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() >= 0 and levels.max() <= 65535:
            image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode[0] in "IF" or image.mode == "LAB":
        raise QartsrError(f"{path}: pixels of kind {image.mode} have no range of 8 or 16 bits; save it as an RGB PNG")
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


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
