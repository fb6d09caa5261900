"""One optimisation loop for every training stage: AdamW, warm-up and cosine decay, resumable."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

from qartsr_lib.base.progress import progress
from qartsr_lib.training.states import append_line, save_state, saved_state

T = TypeVar("T")


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
        loss: of batch and step, computed under bfloat16 autocast.
    """
    parameters = [parameter.requires_grad_(True) for parameter in parameters]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        with saved_state(checkpoint) as state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
    losses, started, steps = [], time.monotonic(), range(first, schedule.steps)
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
        done = step + 1
        if done % schedule.validate_every == 0 or done == schedule.steps:
            record = {"step": done, "loss": sum(losses) / len(losses), "seconds": round(time.monotonic() - started, 1)}
            append_line(folder / "history.jsonl", record | (validate() if validate else {}))
            losses.clear()
        if done % schedule.checkpoint_every == 0 or done == schedule.steps:
            save_state(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done})
    for parameter in parameters:
        parameter.requires_grad_(False)
