"""TRQ on one device or several (accelerate), resumable, with a checkpoint that the backbone loads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from qartsr_lib.backbones.osediff import FOLDER, NETWORKS, embed_prompt, load_osediff, weights_name
from qartsr_lib.backbones.osediff_checkpoint import write_checkpoint
from qartsr_lib.backbones.osediff_files import load_network, resolve_base
from qartsr_lib.backbones.schedule import timestep_index
from qartsr_lib.base import paths
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.images.image import list_images
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.training.states import append_line, save_state, saved_state
from qartsr_lib.training.trq.config import TrqConfig
from qartsr_lib.training.trq.degradation import DegradedCrops
from qartsr_lib.training.trq.objectives import Distillation, Generator, Objective, OSEDiffLosses, seeded, trained

UNFINISHED = "unfinished.pt"


def train_trq(options: argparse.Namespace) -> None:
    """Train as `options` (see `training.command.trq`) say, or continue where an earlier run in the folder stopped.

    The folder gets the weight file, in the layout of osediff.pkl, history.jsonl and, until the end, unfinished.pt.

    Raises:
        QartsrError: a file is missing, no usable photograph, a damaged or different earlier run; Diverged when the loss
            is not finite.
    """
    timestep_index(options.timestep)
    images, base = list_images(options.images), resolve_base(options.base)
    config = TrqConfig(**{field.name: getattr(options, field.name) for field in fields(TrqConfig)})
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate, cpu=options.cpu
    )
    generator, objective = _generator_and_objective(options, config, base, accelerator.device)
    folder = options.out or paths.weights_dir() / FOLDER
    networks: list[nn.Module] = [generator]
    if objective.regularizer is not None:
        networks.append(objective.regularizer.to(accelerator.device))
    optimizers = [
        torch.optim.AdamW(trained(network).values(), lr=config.learning_rate, weight_decay=1e-2) for network in networks
    ]
    done = _resume(folder / UNFINISHED, networks, optimizers, config)
    per_step = config.batch * config.accumulate * accelerator.num_processes
    data = DegradedCrops(images, config.crop, config.seed, done * per_step, (config.steps - done) * per_step)
    loader = DataLoader(data, config.batch, num_workers=options.workers, drop_last=True)
    *prepared, loader = accelerator.prepare(*networks, *optimizers, loader)
    models, optimizers = prepared[: len(networks)], prepared[len(networks) :]
    step, started = done, time.monotonic()
    for number, batch in enumerate(progress(loader, f"TRQ T={config.timestep}", len(loader))):
        seed = config.seed, done * config.accumulate + number, accelerator.process_index
        with accelerator.accumulate(*models):  # generator first, then the regularizer on what it made, as released
            with accelerator.autocast():
                z_h, image = models[0](batch[1])
                loss, terms = objective.loss(batch, z_h, image, seeded(*seed, 0))
            _update(loss, networks[0], optimizers[0], accelerator)
            if objective.regularizer is not None:
                with accelerator.autocast():
                    loss = objective.regularizer_loss(models[1], z_h, seeded(*seed, 1))
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
    file = folder / weights_name(config.timestep)
    print(f"{file} written; use it with --backbone osediff --osediff {file}")


def _generator_and_objective(
    options: argparse.Namespace, config: TrqConfig, base: Path, device: torch.device
) -> tuple[Generator, Objective]:
    unet, vae = (load_network(kind, base / name).to(device) for name, kind in NETWORKS.items())
    if config.variant == "osediff":
        image_loss = IMAGE_LOSSES.get(options.image_loss)(device)
        prompts = [embed_prompt(base, text).to(device) for text in (options.prompt, options.negative_prompt)]
        objective = OSEDiffLosses(image_loss, unet, *prompts, config.seed + 2, config.regularizer)
    else:
        teacher = load_osediff(base=base, osediff=options.teacher, prompt=options.prompt).to(device)
        objective = Distillation(lambda image: teacher.to_z_h(z_l := teacher.encode(image), teacher.predict_noise(z_l)))
    prompt = embed_prompt(base, options.prompt).to(device)
    generator = Generator(unet, vae, config.timestep, prompt, objective.decodes, config.seed)
    for network in (generator.model.unet, generator.model.vae) if options.gradient_checkpointing else ():
        network.enable_gradient_checkpointing()
    return generator, objective


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
            begun = f"{path}: was begun with {name} {state['config'][name]}"
            if state["config"][name] != value and name not in ("steps", "checkpoint_every"):
                raise QartsrError(f"{begun}; use that again, or remove the file to start anew")
        for network, saved in zip(networks, state["trained"], strict=True):
            if trained(network).keys() != saved.keys():
                raise KeyError("names")
            network.load_state_dict(saved, strict=False)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        return int(state["step"])
