"""What all stages share: batches cut from photographs, and one loop of AdamW with warm-up and cosine decay, resumable.

A batch is a pure function of (seed, step), so that training can resume.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.images.degrade import degrade
from qartsr_lib.images.image import from_uint8, read_image, resize_bicubic, to_uint8, upscale_bicubic
from qartsr_lib.training.states import append_line, save_state, saved_state, tell_left_out

T = TypeVar("T")
CROP = 64
REALISTIC_SHARE = 0.25  # of the crops, degraded by the second-order pipeline; the rest bicubic
#: Photographs are also offered shrunk: smaller copies are sharper and carry finer structure.
SHRINK_FACTORS = (1.0, 0.8, 0.6)


class Crops:
    """Random square HR crops of side `size`, a multiple of 16, with their degraded, bicubic-upscaled counterparts.

    Images smaller than `size` are left out and counted aloud; a QartsrError where none is left. `count`: of those used.
    """

    def __init__(self, paths: Sequence[Path], size: int = CROP) -> None:
        self.size, self._images, self.count = size, [], 0
        for path in progress(paths, "reading photographs"):
            image = read_image(path)
            self.count += min(image.shape[-2:]) >= size
            for factor in SHRINK_FACTORS:
                height, width = (round(side * factor) for side in image.shape[-2:])
                if min(height, width) >= size:
                    self._images.append(to_uint8(image if factor == 1.0 else resize_bicubic(image, height, width)))
        if not self._images:
            raise QartsrError(f"no image is at least {size}x{size} pixels; name a folder with larger images")
        tell_left_out(len(paths), self.count, size)

    def hr(self, count: int, seed: int, step: int) -> torch.Tensor:
        """`count` HR crops, randomly flipped and turned: (count, 3, size, size) in [0, 1]."""
        rng = np.random.default_rng((seed, step))
        return torch.cat([from_uint8(self._crop(rng)) for _ in range(count)])

    def pairs(self, count: int, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` pairs (HR crop, upscaled LQ crop), both (count, 3, size, size) in [0, 1]."""
        hr = self.hr(count, seed, step)
        rng, lq = np.random.default_rng((seed, step, 1)), []
        for crop in hr:
            kind = "realistic" if rng.random() < REALISTIC_SHARE else "bicubic"
            lq.append(degrade(crop[None], kind, int(rng.integers(2**31))))
        return hr, upscale_bicubic(torch.cat(lq))

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        image = self._images[rng.integers(len(self._images))]
        top, left = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        crop = np.rot90(image[top : top + self.size, left : left + self.size], int(rng.integers(4)))
        return crop[:, ::-1] if rng.random() < 0.5 else crop


@dataclass(frozen=True)
class Schedule:
    """Length and step sizes of one stage; the seed fixes initialization and batches."""

    steps: int
    learning_rate: float
    batch_size: int = 16
    warmup: int = 50
    seed: int = 0
    checkpoint_every: int = 100
    validate_every: int = 200

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step: linear warm-up, then cosine to 1% of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        position = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * position))


def train(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    batch: Callable[[int], T],
    loss: Callable[[T, int], torch.Tensor],
    schedule: Schedule,
    folder: Path,
    label: str,
    validate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Minimize `loss(batch(step), step)` over `parameters`, continuing from `folder`/checkpoint.pt when it is there.

    An interrupted run ends with the same weights, as batches depend on the step alone. `folder`/history.jsonl gets a
    line per validation with the mean loss since the line before.

    Args:
        model: whose state_dict is checkpointed; a QartsrError where it cannot be read or does not fit.
        parameters: what the optimizer updates; training runs on their device.
        batch: step -> tensor or tuple of tensors, made in float32.
        loss: of batch and step, computed under bfloat16 autocast; Diverged where it is not finite.
    """
    parameters = [parameter.requires_grad_(True) for parameter in parameters]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint, first, losses, before = folder / "checkpoint.pt", 0, [], 0.0
    if checkpoint.exists():
        with saved_state(checkpoint) as state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first, losses, before = state["step"], state.get("losses", losses), state.get("seconds", before)
    started, steps = time.monotonic() - before, range(first, schedule.steps)
    workers = 1 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 1)  # make batches, where they can fork
    workers = workers if "fork" in multiprocessing.get_all_start_methods() else 0
    batches = DataLoader(steps, batch_size=None, collate_fn=batch, num_workers=workers)
    for step, data in zip(steps, progress(batches, label), strict=True):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(send_to_device(data, device, non_blocking=True), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            raise Diverged(f"{label}: the loss is not finite at step {step}; use another --seed and --out")
        done = step + 1
        if done % schedule.validate_every == 0 or done == schedule.steps:
            record = {"step": done, "loss": sum(losses) / len(losses), "seconds": round(time.monotonic() - started, 1)}
            append_line(folder / "history.jsonl", record | (validate() if validate else {}))
            losses.clear()
        if done % schedule.checkpoint_every == 0 or done == schedule.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            save_state(checkpoint, state | {"losses": losses, "seconds": time.monotonic() - started})
    for parameter in parameters:
        parameter.requires_grad_(False)
