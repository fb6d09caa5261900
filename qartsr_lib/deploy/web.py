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
    """Refuse a folder with files of the page's names and without model.json: they are of something else."""
    names = (MODEL, *(file.name for file in PAGE.iterdir()))
    other = next((name for name in sorted(names) if (folder / name).exists()), None)
    if other and not (folder / ABOUT).exists():
        raise QartsrError(f"{folder / other}: is there, and would be replaced; move it, or name another folder")


def save_web(model: OneStepSR, folder: Path) -> Distance:
    """Write the page of a quantized model into `folder`; errors are those of `check_web` and `save_exported`.

    What is returned is `save_exported`'s.
    """
    check_web(folder)
    found = save_exported(model, folder / MODEL, "onnx")
    size = (folder / MODEL).stat().st_size / 1e6
    about = {
        "title": f"Model: {model.name}, T = {model.timestep}, {size:.1f} MB. Engine: onnxruntime-web {VERSION}.",
        "factor": model.factor,
        "multiple": model.multiple,
        "tile": TILE,
        "fetch": FETCH,
    }
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")  # first: by it `check_web` knows an unfinished page
    for file in PAGE.iterdir():
        write_text(folder / file.name, file.read_text(encoding="utf-8"))
    return found
