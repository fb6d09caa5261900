"""The command `upscale`: a batch of images, each read, enlarged and written on its own."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import check_name, check_writable, sha256, write_atomically
from qartsr_lib.base.progress import progress
from qartsr_lib.base.provenance import folder_sha256
from qartsr_lib.deploy.upscaling_inputs import find_inputs, result_files
from qartsr_lib.images.colour_fix import colour_fix
from qartsr_lib.images.datasets.pairing import named
from qartsr_lib.images.image import from_uint8, resize_bicubic, to_uint8, upscale_bicubic
from qartsr_lib.images.image_files import LARGEST, decode, explained
from qartsr_lib.images.stamp import read_stamp, stamped_png

SCALE = 4
#: Options that change pixels, besides those of which `_settings` has what they lead to.
_SETTINGS = ("method", "bits", "runtime", "tile", "base", "osediff", "prompt")


def upscale_files(options: argparse.Namespace, load: Callable[[argparse.Namespace], tuple]) -> int:
    """Upscale every input that can be; print what was written, left out and failed.

    `load` gives (function from an image to the upscaled one, the model behind it) for `options`, those of the command
    line; it is called when there is work for it. Returns the exit status: 0 all done, 1 some failed, 2 all failed.
    Wrong options, and results that cannot be written, are a QartsrError.
    """
    out = options.out
    check_writable(out, f"--out {out}")
    colour_fix(options.colour_fix or "none")
    paths, failures, notes = find_inputs(options.inputs, out)
    batch = Batch(options, result_files(paths, out), failures)
    longer = [place.name for path, place in batch.places.items() if place.stem != path.stem]
    if longer:
        notes.append(f"inputs whose names differ in their endings alone: results are called {named(longer)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for path in paths:
        batch.attempt(path, lambda path: check_name(batch.places[path], f"{path}: its result"))
    left = [path for path in paths if path not in failures]
    try:
        if any(batch.attempt(path, read) for path in left):  # wrong files are told before a model is loaded
            batch.run(*load(options))
    finally:
        batch.tell()
    return (1 if batch.written or batch.finished else 2) if batch.failures else 0


def read(path: Path) -> tuple[torch.Tensor, np.ndarray | None, tuple[str, ...]]:
    """(image to upscale, its transparency or None, notes); what is invisible has the colour of what is next to it.

    QartsrError for what is no readable image, or so large that its result could not be read.
    """
    found = decode(path)
    rgb, alpha = found.rgb, found.alpha
    if rgb.size // 3 > LARGEST // SCALE**2:
        raise QartsrError(
            f"{path}: has {rgb.size // 3_000_000} million pixels; at most {LARGEST // SCALE**2 // 10**6} million are "
            "upscaled; cut it into parts"
        )
    if alpha is not None and alpha.any():
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(alpha == 0, return_distances=False, return_indices=True)
        rgb = rgb[tuple(nearest)]
    return from_uint8(rgb), alpha, found.notes


def _enlarged(alpha: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (SCALE h, SCALE w) uint8, bicubic."""
    height, width = (SCALE * side for side in alpha.shape)
    image = torch.from_numpy(alpha.astype(np.float32))[None, None] / 255
    return resize_bicubic(image, height, width).mul(255).round().to(torch.uint8)[0, 0].numpy()


def _short_hash(text: str | Path) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def _settings(options: argparse.Namespace, model: torch.nn.Module, fix: str) -> str:
    """Hash of all that pixels depend on but the input: model, options and this program."""
    checkpoint = options.checkpoint
    if checkpoint is not None and checkpoint.is_dir():
        from qartsr_lib.methods.checkpoint import DESCRIPTION

        checkpoint /= DESCRIPTION  # states the hash of the tensors
    return stable_hash(
        {
            "options": {name: str(value) for name, value in vars(options).items() if name in _SETTINGS},
            "model": [model.name, model.timestep, model.weights_sha256],
            "checkpoint": checkpoint and sha256(checkpoint),
            "colour_fix": fix,
            "program": folder_sha256(""),
        }
    )


@dataclass
class Batch:
    """What becomes of the inputs.

    Attributes:
        places: input -> file for its result.
        failures: input -> why it has no result.
        written, finished: numbers of results made now, and found from an earlier run.
        notes: what was done to inputs -> which.
    """

    options: argparse.Namespace
    places: dict[Path, Path]
    failures: dict[Path, str]
    written: int = 0
    finished: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)

    def attempt(self, path: Path, action: Callable[[Path], object]) -> object:
        """`action(path)`; None when it failed, which is remembered."""
        try:
            return action(path)
        except QartsrError as error:
            message = str(error)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            message = "not enough memory for it; cut it into parts, or try a smaller --tile"
        self.failures[path] = message if message.startswith(str(path)) else f"{path}: {message}"
        return None

    def run(self, upscale: Callable[[torch.Tensor], torch.Tensor], model: torch.nn.Module) -> None:
        """Upscale all that did not fail yet, one after the other; a failed one does not stop the others."""
        name = self.options.colour_fix or model.colour_fix
        fix, settings = colour_fix(name), _settings(self.options, model, name)

        def enlarge(path: Path) -> bytes | None:
            stamp = self._stamp(path, settings)
            if stamp is None:
                return None
            lq, alpha, notes = read(path)
            result = to_uint8(fix(upscale(lq), upscale_bicubic(lq)))
            for note in notes:
                self.notes.setdefault(note, []).append(str(path))
            return stamped_png(result if alpha is None else np.dstack([result, _enlarged(alpha)]), stamp)

        for path in progress([path for path in self.places if path not in self.failures], "upscaling"):
            data = self.attempt(path, enlarge)
            if data is not None:
                write_atomically(self.places[path], lambda file, data=data: file.write_bytes(data))
                self.written += 1

    def _stamp(self, path: Path, settings: str) -> str | None:
        """What the result of `path` will say that it was made from; None where that result is there."""
        with explained(path):
            content = sha256(path)
        # photo.jpg and photo.png are two, and so are two folders' photo.jpg
        ending, place_of_input = (_short_hash(text) for text in (path.suffix, path.resolve()))
        stamp, place = f"{ending} {place_of_input} {content} {settings}", self.places[path]
        if place.is_dir():
            raise QartsrError(f"{path}: {place}, its result, is a folder; move that or name another --out")
        if self.options.overwrite or not os.path.lexists(place):
            return stamp
        there = read_stamp(place)
        if there is None:
            raise QartsrError(
                f"{path}: its result would replace {place}, which is no result of upscale or was changed since; "
                "move that file, name another --out, or add --overwrite"
            )
        before_ending, *before_place, before_content, before_settings = there.split(" ")
        moved = before_place != [place_of_input] and before_content != content
        if before_ending != ending or moved:
            raise QartsrError(
                f"{path}: its result would replace {place}, the result of another input; "
                "name another --out, or add --overwrite"
            )
        if (before_content, before_settings) == (content, settings):
            self.finished += 1
            return None
        if before_content == content:
            note = "an earlier result, made with other settings or another version, is replaced"
            self.notes.setdefault(note, []).append(str(path))
        return stamp

    def tell(self) -> None:
        """Print what was noted, what failed and what there is now."""
        for note, paths in self.notes.items():
            print(f"note: {named(paths)}: {note}", file=sys.stderr)
        for message in self.failures.values():
            print(f"error: {message}", file=sys.stderr)
        if self.written or self.finished:
            finished = f", {self.finished} already there" if self.finished else ""
            failed = f", {len(self.failures)} failed" if self.failures else ""
            print(f"{self.written} image(s) written to {self.options.out}{finished}{failed}")
