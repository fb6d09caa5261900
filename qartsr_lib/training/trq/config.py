"""OSEDiff's settings for its training, which are options of the command as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any

from qartsr_lib.base.errors import QartsrError

#: What the frozen model is guided away from (scripts/train/train_osediff.sh).
NEGATIVE_PROMPT = (
    "painting, oil painting, illustration, drawing, art, sketch, cartoon, CG Style, 3D render, unreal engine, "
    "blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, "
    "lowres, over-smooth"
)
#: LoRA in all layers that OSEDiff adapts, as its paper says; or in the middle block alone (16 of 258), as its released
#: code trains it: each add_adapter of diffusers leaves only the newest adapter active, here none is switched on again.
REGULARIZERS = ("paper", "released")


def _option(text: str, default: Any = MISSING, choices: Sequence[str] | None = None) -> Any:
    """A field that is an option of the command line, too."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrqConfig:
    """OSEDiff's settings (scripts/train/train_osediff.sh), but for precision, see DEVIATIONS.md."""

    timestep: int = _option("label T: 1, 500 or 1000")
    variant: str = _option(
        "osediff: its own losses; distil: the latents of a trained OSEDiff, much cheaper, another training",
        "osediff",
        ("osediff", "distil"),
    )
    steps: int = _option("optimizer steps", 100_000)
    batch: int = _option("pairs per device and pass", 4)
    accumulate: int = _option("passes per optimizer step", 1)
    crop: int = _option("side of the crops in pixels", 512)
    learning_rate: float = _option("of AdamW, constant", 5e-5)
    precision: str = _option("mixed precision", "no", ("no", "bf16", "fp16"))
    seed: int = _option("of the LoRA's start, the pairs, and all noise: same seed, same training on one machine", 123)
    checkpoint_every: int = _option("steps", 500)
    regularizer: str = _option(
        "of osediff: LoRA of the regularizing network in all layers, or in the middle block as in the released code",
        "paper",
        REGULARIZERS,
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise QartsrError(f"--{name.replace('_', '-')} {getattr(self, name)}: choose at least 1")
        if self.crop < 8 or self.crop % 8:
            raise QartsrError(f"--crop {self.crop}: choose a multiple of 8, such as 512")
