"""Colour profiles (ICC) of image files: pixels converted to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

#: Levels by which a profile may differ from sRGB and still count as sRGB; the writings of sRGB differ by 1.
_SAME = 2
_GREYS = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
#: ICC colour space -> (modes of the images that it fits, mode in which it is applied).
_SPACES = {"RGB": ((*_GREYS, "P", "PA", "RGB", "RGBA"), "RGB"), "GRAY": (_GREYS, "L"), "CMYK": (("CMYK",), "CMYK")}


def to_srgb(image: Image.Image, stored: str, icc: bytes) -> tuple[Image.Image, str]:
    """`image` (L, RGB or CMYK) in sRGB by relative colorimetry with black point compensation, and a note or "".

    As it is where the profile `icc` is sRGB, broken, or for other colours than those of the file, of mode `stored`.
    """
    try:
        space, name, transform = _transform(icc)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image, "its colour profile is broken and ignored (sRGB is assumed)"
    fits, mode = _SPACES.get(space, ((), ""))
    if stored not in fits:
        return image, f"its colour profile ({name}) is for {space} colours, not its own, and ignored (sRGB is assumed)"
    if transform is None:
        return image, ""
    return ImageCms.applyTransform(image.convert(mode), transform), f"colours converted from its profile ({name})"


@lru_cache(maxsize=16)
def _transform(icc: bytes) -> tuple[str, str, ImageCms.ImageCmsTransform | None]:
    """(colour space of a profile, its name, the way to sRGB); no way for sRGB itself and for unknown spaces."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    name = " ".join((profile.profile.profile_description or "without a name").split())[:60]
    if space not in _SPACES:
        return space, name, None
    mode = _SPACES[space][1]
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
    return space, name, None if mode != "CMYK" and _is_srgb(transform, mode) else transform


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves greys and a lattice of colours as they are: names of profiles prove nothing."""
    grey = np.repeat(np.arange(256)[:, None], 3, axis=1)
    lattice = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 3)
    levels = (grey if mode == "L" else np.concatenate([grey, lattice])).astype(np.uint8)
    found = np.asarray(ImageCms.applyTransform(Image.fromarray(levels[None]).convert(mode), transform))[0]
    return bool(np.abs(found.astype(int) - levels).max() <= _SAME)
