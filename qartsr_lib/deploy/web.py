"""A quantized model as a web page that upscales photographs in the browser, by onnxruntime-web.

The folder holds the page (`web_page`), model.onnx and model.json, which tells the page what the model needs. The engine
is not among them: `FETCH`, run in that folder, gets it from npm. A server of files is all else that it takes.
"""

from __future__ import annotations

import json
from pathlib import Path

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.deploy.export import save_exported
from qartsr_lib.deploy.export_check import Distance

PAGE = Path(__file__).resolve().parent / "web_page"
VERSION = "1.30.0"
FETCH = f"npm pack onnxruntime-web@{VERSION} && tar -xzf onnxruntime-web-{VERSION}.tgz"
MODEL, ABOUT = "model.onnx", "model.json"
TILE = 128  # side of the page's tiles, low-quality pixels: seconds and 1 GB each, where a browser may have 4 GB


def check_web(folder: Path) -> None:
    """Refuse a folder with files of the page's names and without this page's model.json: they are of something else."""
    names = (MODEL, ABOUT, *(file.name for file in PAGE.iterdir()))
    other = next((name for name in sorted(names) if (folder / name).exists()), None)
    if other and not _is_ours(folder / ABOUT):
        raise QartsrError(f"{folder / other}: is there, and would be replaced; move it, or name another folder")


def save_web(model: OneStepSR, folder: Path) -> Distance:
    """Write the page of a quantized model into `folder`; errors are those of `check_web` and `save_exported`.

    What is returned is `save_exported`'s.
    """
    check_web(folder)
    begun = (folder / ABOUT).exists()
    _write_about(model, folder, "not finished")  # first: by it `check_web` knows an unfinished page
    try:
        found = save_exported(model, folder / MODEL, "onnx")
    except QartsrError:
        if not begun:
            (folder / ABOUT).unlink()
        raise
    _write_about(model, folder, f"{(folder / MODEL).stat().st_size / 1e6:.1f} MB")
    for file in PAGE.iterdir():
        write_text(folder / file.name, file.read_text(encoding="utf-8"))
    return found


def _write_about(model: OneStepSR, folder: Path, size: str) -> None:
    about = {
        "title": f"Model: {model.name}, T = {model.timestep}, {size}. Engine: onnxruntime-web {VERSION}.",
        "factor": model.factor,
        "multiple": model.multiple,
        "tile": TILE,
        "fetch": FETCH,
    }
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def _is_ours(about: Path) -> bool:
    """Whether `_write_about` wrote the file: others, TensorFlow.js' models, have its name, too."""
    try:
        return "onnxruntime-web" in json.loads(about.read_text(encoding="utf-8"))["fetch"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
