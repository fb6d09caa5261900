"""The training loop on one device or several (accelerate), resumable, with a checkpoint that the backbone loads."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from qartsr_lib.backbones.osediff import weights_name
from qartsr_lib.backbones.osediff_targets import write_checkpoint
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import write_atomically
from qartsr_lib.base.progress import progress
from qartsr_lib.training.trq.data import DegradedCrops
from qartsr_lib.training.trq.networks import REGULARIZERS, Generator, trained
from qartsr_lib.training.trq.objectives import Draw, Objective

_FIRST, _SECOND = 0, 1  # streams of random numbers: the generator's step, the regularizer's
UNFINISHED = "unfinished.pt"


@dataclass(frozen=True)
class TrqConfig:
    """OSEDiff's settings (scripts/train/train_osediff.sh), but for precision, see DEVIATIONS.md.

    Attributes:
        timestep: label T.
        variant: name in `__main__.VARIANTS`; here for the record.
        steps: optimizer steps.
        batch: pairs per process and step.
        accumulate: batches per optimizer step.
        crop: side of the HR crops.
        learning_rate: of AdamW, constant.
        precision: "no", "bf16" or "fp16", accelerate's mixed precision.
        seed: fixes the LoRA's start, the pairs, and all noise.
        checkpoint_every: steps between checkpoints.
        regularizer: one of networks.REGULARIZERS; of variant osediff.
    """

    timestep: int
    variant: str
    steps: int = 100_000
    batch: int = 4
    accumulate: int = 1
    crop: int = 512
    learning_rate: float = 5e-5
    precision: str = "no"
    seed: int = 123
    checkpoint_every: int = 500
    regularizer: str = REGULARIZERS[0]

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise QartsrError(f"--{name.replace('_', '-')} {getattr(self, name)}: choose at least 1")
        if self.crop < 8 or self.crop % 8:
            raise QartsrError(f"--crop {self.crop}: choose a multiple of 8, such as 512")


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
        QartsrError: no usable photograph, a damaged or different earlier run; Diverged when the
            loss is not finite.
    """
    networks: list[nn.Module] = [generator]
    if objective.regularizer is not None:
        networks.append(objective.regularizer.to(accelerator.device))
    optimizers = [_adamw(network, config.learning_rate) for network in networks]
    done = _resume(folder / UNFINISHED, networks, optimizers, config)
    per_step = config.batch * config.accumulate * accelerator.num_processes
    data = DegradedCrops(paths, config.crop, config.seed, done * per_step, (config.steps - done) * per_step)
    loader = DataLoader(data, config.batch, num_workers=workers, drop_last=True)
    prepared = accelerator.prepare(*networks, *optimizers, loader)
    loader, step, started, terms = prepared[-1], done, time.monotonic(), {}
    if not accelerator.is_main_process:
        folder = None
    for number, batch in enumerate(progress(loader, f"TRQ T={config.timestep}", len(loader))):
        seed = (config.seed, done * config.accumulate + number, accelerator.process_index)
        with accelerator.accumulate(*prepared[: len(networks)]):
            terms = _step(prepared, networks, objective, batch, seed, accelerator)
        if not accelerator.sync_gradients:
            continue
        step += 1
        if folder and (step % config.checkpoint_every == 0 or step == config.steps):
            record = {"step": step, **terms, "seconds": round(time.monotonic() - started, 1)}
            _save(folder, networks, prepared[len(networks) : 2 * len(networks)], config, record)
    accelerator.wait_for_everyone()
    if folder:
        (folder / UNFINISHED).unlink(missing_ok=True)
    return (folder or Path()) / weights_name(config.timestep)


def _step(
    prepared: Sequence[Any],
    networks: Sequence[nn.Module],
    objective: Objective,
    batch: tuple[torch.Tensor, torch.Tensor],
    seed: tuple[int, ...],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Generator first, then the regularizer on what the generator made, as in the released script."""
    count = len(networks)
    models, optimizers = prepared[:count], prepared[count : 2 * count]
    with accelerator.autocast():
        z_h, image = models[0](batch[1])
        loss, terms = objective.loss(batch, z_h, image, Draw(*seed, _FIRST))
    _update(loss, networks[0], optimizers[0], accelerator)
    if count > 1:
        with accelerator.autocast():
            loss = objective.regularizer_loss(models[1], z_h, Draw(*seed, _SECOND))
        _update(loss, networks[1], optimizers[1], accelerator)
        terms["regularizer"] = loss.item()
    return terms


def _update(loss: torch.Tensor, network: nn.Module, optimizer: Any, accelerator: Accelerator) -> None:
    if not bool(torch.isfinite(loss)):
        raise Diverged("TRQ: the loss is not finite; choose a smaller --learning-rate, or --precision bf16 or no")
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        accelerator.clip_grad_norm_(trained(network).values(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _adamw(network: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(trained(network).values(), lr=learning_rate, weight_decay=1e-2)


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
    write_atomically(folder / UNFINISHED, lambda path: torch.save(state, path))
    with open(folder / "history.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def _resume(
    path: Path, networks: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer], config: TrqConfig
) -> int:
    """Load an earlier run's state; returns the number of steps that it did."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if "regularizer" not in state["config"]:
            raise QartsrError(
                f"{path}: was begun by an older version, with weaker degradation and unclamped images; "
                "finish it with that version, or remove the file to start anew"
            )
        different = [name for name, value in asdict(config).items() if state["config"][name] != value]
        different = [name for name in different if name not in ("steps", "checkpoint_every")]
        if different:
            begun = f"{different[0]} {state['config'][different[0]]}"
            raise QartsrError(f"{path}: was begun with {begun}; use that again, or remove the file to start anew")
        for network, saved, optimizer, kept in zip(
            networks, state["trained"], optimizers, state["optimizers"], strict=True
        ):
            parameters = trained(network)
            if parameters.keys() != saved.keys():
                raise KeyError("names")
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(saved[name])
            optimizer.load_state_dict(kept)
        return int(state["step"])
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise QartsrError(f"{path}: damaged, or of another version; remove it to start anew") from error
