"""Quantized models that come with the package; tests/benchmarks/shipped_models.py makes them and their card."""

from __future__ import annotations

from pathlib import Path

from qartsr_lib.base.errors import QartsrError, did_you_mean
from qartsr_lib.deploy.zipped import ZIPPED

FOLDER = Path(__file__).resolve().parents[1] / "backbones" / "weights" / "quantized"
#: Name in `upscale --model` -> bits.
SHIPPED = {"w4a4": "W4A4", "w3a3": "W3A3", "w2a2": "W2A2"}


def shipped_model(name: str) -> Path:
    """The packed file of the model `name`; a QartsrError for one that does not exist."""
    if name.lower() not in SHIPPED:
        advice = did_you_mean(name.lower(), SHIPPED) or f"choose one of {', '.join(SHIPPED)}"
        raise QartsrError(f"--model {name}: {advice}, or name a file with --checkpoint")
    return FOLDER / f"{name.lower()}{ZIPPED}"
