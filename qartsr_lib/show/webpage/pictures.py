"""The figures of the page: which, in what order, with what words, as data URIs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.show.webpage.captions import CAPTIONS, Caption

#: Charts are stored without loss; a PNG of more bytes holds photographs, where this quality's loss is not seen.
CHART_BYTES, QUALITY = 400_000, 90


@dataclass(frozen=True)
class Figure:
    """One figure as the page shows it."""

    name: str
    profile: str
    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int


def read_figures(profiles: Sequence[str]) -> list[Figure]:
    """The figures of all profiles in the order of CAPTIONS; one that several have is the first profile's.

    Raises:
        QartsrError: a figure is damaged.
    """
    found: dict[str, tuple[str, Path]] = {}
    for profile in profiles:
        for path in sorted(paths.figures_dir(profile).glob("*.png")):
            found.setdefault(path.stem, (profile, path))
    chosen = sorted(found, key=lambda name: (_place(name), name))
    return [_figure(name, *found[name]) for name in chosen]


def data_uri(path: Path) -> str:
    """A file as it is, as a data URI; its type follows from its name."""
    return _uri(path.read_bytes(), path.suffix.removeprefix("."))


def _figure(name: str, profile: str, path: Path) -> Figure:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise QartsrError(f"{path}: not a readable figure; restore it from git or run its notebook again") from error
    caption, chart = _caption(name), path.stat().st_size <= CHART_BYTES
    return Figure(
        name, profile, caption.title, caption.text, caption.alt, _uri(_webp(image, chart), "webp"), *image.size
    )


def _webp(image: Image.Image, chart: bool) -> bytes:
    options = {"lossless": True, "quality": 40, "method": 2} if chart else {"quality": QUALITY, "method": 4}
    stream = io.BytesIO()
    image.save(stream, "WEBP", **options)
    return stream.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _place(name: str) -> int:
    return next((place for place, item in enumerate(CAPTIONS) if re.fullmatch(item.pattern, name)), len(CAPTIONS))


def _caption(name: str) -> Caption:
    """The words of a figure; its name where none were written."""
    place = _place(name)
    if place == len(CAPTIONS):
        words = name.replace("_", " ")
        return Caption(re.escape(name), words, "", words)
    found = CAPTIONS[place]
    parts = re.fullmatch(found.pattern, name).groupdict()
    return Caption(found.pattern, *(text.format(**parts) for text in (found.title, found.text, found.alt)))
