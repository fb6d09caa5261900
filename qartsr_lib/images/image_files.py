"""What an image file holds: upright pixels in sRGB, transparency, and what a user should know of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import stand_in
from qartsr_lib.images.icc import to_srgb

#: Pixels of the largest image that can be read, far above Pillow's limit for files from the web: users name
#: their own files here, and a result of `upscale` has 16 times the pixels of its input.
LARGEST = 2**32
Image.MAX_IMAGE_PIXELS = LARGEST
_TOO_LARGE = (
    f"states more than {LARGEST // 10**6} million pixels, the most that is read here "
    "(a damaged file, if that is not its size); cut it into parts"
)
_REASONS = {
    FileNotFoundError: "no such file; check the path",
    PermissionError: "may not be read; change its rights (chmod +r)",
    IsADirectoryError: "is a folder; name an image file",
    Image.DecompressionBombError: _TOO_LARGE,
    MemoryError: "not enough memory to read it; cut it into parts",
}
#: Endings of raw camera files, in which Pillow finds a small preview.
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
_DRAWING = "an XML file or SVG drawing; export it as PNG"
#: First bytes of what is no image, in small letters -> what it is.
_OTHERS = {b"<svg": _DRAWING, b"<?xml": _DRAWING, b"%pdf": "a PDF; export its pages as PNG"}
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8", b"BM", b"RIFF")

#: Orientation of EXIF -> what turns the pixels upright. Pillow's exif_transpose also writes the whole EXIF block anew,
#: and fails where any other tag in it is odd.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Raw mode of a grey PNG with few bits -> what Pillow multiplies its levels by, but not the one that is transparent.
_WIDENED = {"L;2": 85, "L;4": 17}

_BITS, _PHOTOMETRIC, _PLANAR = 258, 262, 284  # tags of TIFF


@dataclass(frozen=True)
class Decoded:
    """What an image file holds."""

    rgb: np.ndarray  # (H, W, 3) uint8
    alpha: np.ndarray | None  # (H, W) uint8, 255 for opaque; None where every pixel is
    notes: tuple[str, ...]  # a clause for each thing that is not taken as it stands in the file


def decode(path: str | Path, profiles: bool = True) -> Decoded:
    """Read an image file, converting colours by an embedded profile unless `profiles` is False.

    A QartsrError says whether it is missing, damaged, too large, no image, or without a range of 8 or 16 bits.
    """
    path = Path(path)
    # Not by name: Pillow 13.0.0 then maps the pixels of some files, and those of sideways TIFFs by the wrong size.
    with explained(path), open(path, "rb") as stream, Image.open(stream) as opened:
        if path.suffix.lower() in _RAW:
            raise QartsrError(f"{path}: a raw camera file; develop it and save it as a TIFF or PNG")
        if opened.width * opened.height > LARGEST:
            raise QartsrError(f"{path}: {_TOO_LARGE}")
        notes = [_frames(opened)]
        deep = opened.mode in ("RGB", "RGBA", "LA") and ";16" in str(opened.tile[:1])
        widened = _WIDENED.get(opened.tile[0].args if opened.format == "PNG" and opened.tile else "", 1)
        _check_planes(path, opened)
        opened.load()
        if widened > 1 and isinstance(opened.info.get("transparency"), int):
            opened.info["transparency"] *= widened
        turn = _UPRIGHT.get(orientation(opened))
        image = opened if turn is None else opened.transpose(turn)
        if image.mode == "La":  # premultiplied; Pillow converts it to nothing else
            image = image.convert("LA")
        stored, alpha = image.mode, _alpha(image, deep)
        if image.mode.startswith("I"):
            image, note = _eight_bits(image, *_levels(opened))
            notes.append(note)
        if image.mode[0] in "IF" or image.mode == "LAB":
            raise QartsrError(f"{path}: {_rangeless(image)}; save it as an RGB image of 8 bits")
        if image.mode not in ("L", "CMYK"):
            image = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")  # P to RGB at once may warn
        if deep and alpha is not None and isinstance(opened.info.get("transparency"), tuple):
            notes.append("of its transparent colour 8 of 16 bits are read: colours next to it are transparent too")
        if deep:
            notes.append(_dark(8 + int(np.asarray(image).max()).bit_length()))
        icc = opened.info.get("icc_profile") if profiles else None
        if icc:
            image, note = to_srgb(image, stored, icc)
            notes.append(note)
        if image.mode == "CMYK":
            notes.append("CMYK is converted without a colour profile: its colours are approximate")
        rgb = np.asarray(image.convert("RGB"), dtype=np.uint8)
    return Decoded(rgb, alpha, tuple(note for note in notes if note))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever reading `path` raises into a QartsrError that names it and says why."""
    try:
        yield
    except QartsrError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise QartsrError(f"{path}: {_reason(path, error)}") from error


def orientation(opened: Image.Image) -> int:
    """The orientation in a file's EXIF data; 1 where there is none, or none that can be read."""
    try:
        return opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF data; the pixels are not concerned
        return 1


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "a link to a file that is not there"
    if reason := next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), None):
        return reason
    try:
        with open(path, "rb") as stream:
            head = stream.read(64)
    except OSError as failed:
        return f"cannot be read ({failed.strerror}); check the path and the disk"
    return f"not a readable image: {_content(head, error)}"


def _content(head: bytes, error: Exception) -> str:
    """What a file is that begins with `head` and could not be read."""
    if other := stand_in(head, _OTHERS):
        return other
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "HEIC cannot be read here; save it as PNG or JPEG"
    unidentified = isinstance(error, UnidentifiedImageError)
    if unidentified and not head.startswith(_SIGNATURES):
        return "of no kind that is known here; save it as PNG or JPEG, or remove it"
    said = "" if unidentified else f" ({' '.join(str(error).split())[:80] or type(error).__name__})"
    return f"damaged, incomplete or of a rare kind{said}; copy it again or save it as PNG"


def _frames(opened: Image.Image) -> str:
    try:
        count = getattr(opened, "n_frames", 1)
    except Exception:  # a later frame is damaged; the first is not concerned
        opened.seek(0)
        return "its frames after the first are damaged, and the first is used"
    return f"the first of its {count} {'pages' if opened.format == 'TIFF' else 'frames'} is used" if count > 1 else ""


def _check_planes(path: Path, opened: Image.Image) -> None:
    """A QartsrError for a TIFF whose planes of 16 bits Pillow (13.0.0) reads as planes of 8, without a word."""
    if opened.format != "TIFF" or not opened.tile or opened.tile[0].codec_name != "raw":
        return
    planes, bits = opened.tag_v2.get(_PLANAR, 1), opened.tag_v2.get(_BITS, (8,))
    if planes == 2 and max(bits) > 8:
        raise QartsrError(f"{path}: colours of {max(bits)} bits in separate planes are not read; save it as a PNG")


def _alpha(image: Image.Image, deep: bool) -> np.ndarray | None:
    """(H, W) uint8; None where all pixels are opaque."""
    key = image.info.get("transparency")
    if image.mode.startswith("I") and isinstance(key, int):  # one 16-bit grey is transparent
        alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
    elif image.mode.startswith("I") or not image.has_transparency_data:
        return None
    else:
        if deep and isinstance(key, tuple):  # a colour of 16 bits, of which Pillow keeps the upper 8
            image = image.copy()
            image.info["transparency"] = tuple(level >> 8 for level in key)
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else alpha


def _levels(opened: Image.Image) -> tuple[int, bool]:
    """The highest level of 16-bit greys, and whether it is black: Pillow 13 turns round those of 8 bits alone.

    A TIFF's may be of 12 bits, which Pillow hands on as they are.
    """
    if opened.format != "TIFF" or not opened.mode.startswith("I;16"):
        return 65535, False
    return 2 ** opened.tag_v2.get(_BITS, (16,))[0] - 1, opened.tag_v2.get(_PHOTOMETRIC) == 0


def _eight_bits(image: Image.Image, highest: int = 65535, turned: bool = False) -> tuple[Image.Image, str]:
    """16-bit greys as 8-bit ones (Pillow's own conversion clips at 255), others unchanged; a note or "".

    highest, turned: see `_levels`.
    """
    levels = np.asarray(image).astype(np.int64)
    levels = highest - levels if turned else levels
    brightest = int(levels.max())
    if levels.min() < 0 or brightest > highest:
        return image, ""
    note = _dark(brightest.bit_length() or 16) if highest == 65535 else ""
    return Image.fromarray(((levels * 255 + highest // 2) // highest).astype(np.uint8)), note


def _dark(bits: int) -> str:
    """What to say of 16-bit pixels that need no more than `bits` bits."""
    if bits > 14:
        return ""
    looks = "nearly black" if bits < 14 else "dark"
    return (
        f"its 16-bit values stay below {2**bits} ({bits} bits), so it comes out {looks}; "
        f"if that is all of its range, multiply the values by {2 ** (16 - bits)} first"
    )


def _rangeless(image: Image.Image) -> str:
    if image.mode == "LAB":
        return "Lab colours are not read"
    low, high = (f"{level:.6g}" for level in image.getextrema())
    return f"pixels of kind {image.mode} have no range of 8 or 16 bits (these go from {low} to {high})"
