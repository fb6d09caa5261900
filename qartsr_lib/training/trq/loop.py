"""The training loop on one device or several (accelerate), resumable, with a checkpoint that the backbone loads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from qartsr_lib.backbones.osediff import weights_name
from qartsr_lib.backbones.osediff_checkpoint import write_checkpoint
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.training.states import append_line, save_state, saved_state
from qartsr_lib.training.trq.config import TrqConfig
from qartsr_lib.training.trq.degradation import DegradedCrops
from qartsr_lib.training.trq.networks import Generator, trained
from qartsr_lib.training.trq.objectives import Draw, Objective

UNFINISHED = "unfinished.pt"


def train(
    generator: Generator,
    objective: Objective,
    paths: Sequence[Path],
    config: TrqConfig,
    folder: Path,
    accelerator: Accelerator,
    workers: int = 0,
) -> Path:
    """Train `generator`; continues where an earlier run in `folder` stopped.

    Args:
        paths: training photographs.
        folder: gets osediff-T....pkl (or osediff.pkl for T = 1000), history.jsonl and, until the end, unfinished.pt.
        workers: processes that make pairs, beside this one.

    Returns:
        The weight file, in the layout of osediff.pkl.

    Raises:
        QartsrError: no usable photograph, a damaged or different earlier run; Diverged when the loss is not finite.
    """
    networks: list[nn.Module] = [generator]
    if objective.regularizer is not None:
        networks.append(objective.regularizer.to(accelerator.device))
    optimizers = [
        torch.optim.AdamW(trained(network).values(), lr=config.learning_rate, weight_decay=1e-2) for network in networks
    ]
    done = _resume(folder / UNFINISHED, networks, optimizers, config)
    per_step = config.batch * config.accumulate * accelerator.num_processes
    data = DegradedCrops(paths, config.crop, config.seed, done * per_step, (config.steps - done) * per_step)
    loader = DataLoader(data, config.batch, num_workers=workers, drop_last=True)
    *prepared, loader = accelerator.prepare(*networks, *optimizers, loader)
    models, optimizers = prepared[: len(networks)], prepared[len(networks) :]
    step, started = done, time.monotonic()
    for number, batch in enumerate(progress(loader, f"TRQ T={config.timestep}", len(loader))):
        seed = config.seed, done * config.accumulate + number, accelerator.process_index
        with accelerator.accumulate(*models):  # generator first, then the regularizer on what it made, as released
            with accelerator.autocast():
                z_h, image = models[0](batch[1])
                loss, terms = objective.loss(batch, z_h, image, Draw(*seed, 0))
            _update(loss, networks[0], optimizers[0], accelerator)
            if objective.regularizer is not None:
                with accelerator.autocast():
                    loss = objective.regularizer_loss(models[1], z_h, Draw(*seed, 1))
                _update(loss, networks[1], optimizers[1], accelerator)
                terms["regularizer"] = loss.item()
        if not accelerator.sync_gradients:
            continue
        step += 1
        if accelerator.is_main_process and (step % config.checkpoint_every == 0 or step == config.steps):
            record = {"step": step, **terms, "seconds": round(time.monotonic() - started, 1)}
            _save(folder, networks, optimizers, config, record)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / UNFINISHED).unlink(missing_ok=True)
    return folder / weights_name(config.timestep)


def _update(loss: torch.Tensor, network: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
    if not bool(torch.isfinite(loss)):
        raise Diverged("TRQ: the loss is not finite; choose a smaller --learning-rate, or --precision bf16 or no")
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        accelerator.clip_grad_norm_(trained(network).values(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _save(
    folder: Path, networks: Sequence[nn.Module], optimizers: Sequence[Any], config: TrqConfig, record: dict[str, Any]
) -> None:
    """The backbone's file first, then what a later run continues from."""
    model = networks[0].model
    extra = asdict(config) | {"done": record["step"]}
    write_checkpoint(folder / weights_name(config.timestep), model.unet, model.vae, extra)
    state = {
        "step": record["step"],
        "config": asdict(config),
        "trained": [{name: value.detach().cpu() for name, value in trained(network).items()} for network in networks],
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    save_state(folder / UNFINISHED, state)
    append_line(folder / "history.jsonl", record)


def _resume(path: Path, networks: Sequence[nn.Module], optimizers: Sequence[Any], config: TrqConfig) -> int:
    """Load an earlier run's state; returns the number of steps that it did."""
    if not path.exists():
        return 0
    with saved_state(path) as state:
        for name, value in asdict(config).items():
            begun = state["config"][name]
            if begun != value and name not in ("steps", "checkpoint_every"):
                raise QartsrError(
                    f"{path}: was begun with {name} {begun}; use that again, or remove the file to start anew"
                )
        for network, saved in zip(networks, state["trained"], strict=True):
            if trained(network).keys() != saved.keys():
                raise KeyError("names")
            network.load_state_dict(saved, strict=False)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        return int(state["step"])
