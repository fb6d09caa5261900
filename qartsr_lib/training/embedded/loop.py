"""One optimisation loop for every training stage: AdamW, warm-up and cosine decay, resumable."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_atomically
from qartsr_lib.base.progress import progress

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

    The state of `model` after the call is that of the last step, whether or not the run was
    interrupted: batches depend on the step alone. `folder`/history.jsonl gets a line per
    validation with the mean loss since the line before.

    Raises:
        QartsrError: the checkpoint cannot be read or does not fit.

    Args:
        model: whose state_dict is checkpointed.
        parameters: what the optimizer updates; training runs on their device.
        batch: step -> training data, made in float32.
        loss: data, step -> scalar loss, computed under bfloat16 autocast.
    """
    parameters = [parameter.requires_grad_(True) for parameter in parameters]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint = folder / "checkpoint.pt"
    first = _resume(checkpoint, model, optimizer)
    losses: list[float] = []
    started = time.monotonic()
    steps = range(first, schedule.steps)
    for step, data in zip(steps, progress(_prefetched(batch, steps, device), label), strict=True):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(_moved(data, device), step)
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
            _log(folder / "history.jsonl", record | (validate() if validate else {}))
            losses.clear()
        if done % schedule.checkpoint_every == 0 or done == schedule.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            write_atomically(checkpoint, lambda path, state=state: torch.save(state, path))
    for parameter in parameters:
        parameter.requires_grad_(False)


def _resume(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; returns the number of steps already done."""
    if not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise QartsrError(
            f"{checkpoint}: damaged, or of another version; remove it to train this stage anew"
        ) from error
    return state["step"]


class _Steps(Dataset):
    def __init__(self, batch: Callable[[int], T]) -> None:
        self.batch = batch

    def __getitem__(self, step: int) -> T:
        return self.batch(step)


def _prefetched(batch: Callable[[int], T], steps: range, device: torch.device) -> DataLoader:
    """batch(step) for every step in order, made by other processes where processes can fork.

    On a GPU all CPU cores make batches; beside training on the CPU one process is enough.
    """
    workers = 1 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 1)
    if "fork" not in multiprocessing.get_all_start_methods():
        workers = 0
    return DataLoader(_Steps(batch), batch_size=None, sampler=steps, num_workers=workers)


def _moved(data: T, device: torch.device) -> T:
    """A tensor, or a tuple of tensors, on `device`."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    return tuple(item.to(device, non_blocking=True) for item in data)


def _log(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
