"""TRQ on one device or several (accelerate), resumable, with a checkpoint that the backbone loads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from qartsr_lib.backbones.osediff import FOLDER, NETWORKS, embed_prompt, load_osediff, network_files, weights_name
from qartsr_lib.backbones.osediff_checkpoint import RELEASED_TIMESTEP, write_checkpoint
from qartsr_lib.backbones.osediff_files import load_network, resolve_base
from qartsr_lib.backbones.schedule import timestep_index
from qartsr_lib.base import paths
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import check_writable, sha256
from qartsr_lib.base.progress import progress
from qartsr_lib.images.image import list_images
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.training.states import append_line, check_begun, save_state, saved_state, tell_left_out
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
    folder = options.out or paths.weights_dir() / FOLDER
    _check_target(folder, config, options.teacher)
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate, cpu=options.cpu
    )
    generator, objective = _generator_and_objective(options, config, base, accelerator.device)
    networks: list[nn.Module] = [generator]
    if objective.regularizer is not None:
        networks.append(objective.regularizer.to(accelerator.device))
    optimizers = [
        torch.optim.AdamW(trained(network).values(), lr=config.learning_rate, weight_decay=1e-2) for network in networks
    ]
    named = asdict(config) | {name: getattr(options, name) for name in ("image_loss", "prompt", "negative_prompt")}
    named["processes"] = accelerator.num_processes  # each has its share of the crops
    named["images"] = stable_hash([(path.name, path.stat().st_size) for path in images])
    named["base"] = stable_hash([sha256(path) for path in network_files(base)])
    named["teacher"] = objective.teacher_sha256
    scaler = accelerator.scaler  # of gradients, with --precision fp16 alone
    done = _resume(folder / UNFINISHED, networks, optimizers, named, scaler)
    per_step = config.batch * config.accumulate * accelerator.num_processes
    data = DegradedCrops(images, config.crop, config.seed, done * per_step, (config.steps - done) * per_step)
    if accelerator.is_main_process:
        tell_left_out(len(images), len(data.paths), config.crop)
    loader = DataLoader(data, config.batch, num_workers=options.workers, drop_last=True)
    *prepared, loader = accelerator.prepare(*networks, *optimizers, loader)
    models, optimizers = prepared[: len(networks)], prepared[len(networks) :]
    step, started = done, time.monotonic()
    for number, batch in enumerate(progress(_told(loader), f"TRQ T={config.timestep}", len(loader))):
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
            _save(folder, networks, optimizers, named, record, scaler)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / UNFINISHED).unlink(missing_ok=True)
    file = folder / weights_name(config.timestep)
    print(f"{file} written; use it with --backbone osediff --osediff {file}")


def _check_target(folder: Path, config: TrqConfig, teacher: str | None) -> None:
    """Refuse now what would be lost after hours, or lose another's work."""
    check_writable(folder, f"--out {folder}")
    file = folder / weights_name(config.timestep)
    of_teacher = Path(teacher or paths.weights_dir() / FOLDER / weights_name(RELEASED_TIMESTEP))
    if config.variant == "distil" and file.resolve() == of_teacher.resolve():
        raise QartsrError(f"{file}: is the teacher's; name another --out")
    if file.exists() and not (folder / UNFINISHED).exists():
        raise QartsrError(f"{file}: is there, without {UNFINISHED} to continue from; move it, or name another --out")


def _told(batches: Iterable[Any]) -> Iterator[Any]:
    """`batches`, with one line where a worker cannot read a photograph: torch would show its whole traceback."""
    try:
        yield from batches
    except QartsrError as error:
        raise QartsrError(str(error).strip().splitlines()[-1].rpartition("QartsrError: ")[2]) from None


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
        objective = Distillation(
            lambda image: teacher.to_z_h(z_l := teacher.encode(image), teacher.predict_noise(z_l)),
            teacher.weights_sha256,
        )
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
    folder: Path,
    networks: Sequence[nn.Module],
    optimizers: Sequence[Any],
    named: dict[str, Any],
    record: dict[str, Any],
    scaler: torch.amp.GradScaler | None,
) -> None:
    """The backbone's file first, then what a later run continues from; `named`: all options that decide the weights."""
    model = networks[0].model
    extra = named | {"done": record["step"]}
    write_checkpoint(folder / weights_name(named["timestep"]), model.unet, model.vae, extra)
    state = {
        "step": record["step"],
        "config": named,
        "trained": [{name: value.detach().cpu() for name, value in trained(network).items()} for network in networks],
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "scaler": scaler and scaler.state_dict(),
    }
    save_state(folder / UNFINISHED, state)
    append_line(folder / "history.jsonl", record)


def _resume(
    path: Path,
    networks: Sequence[nn.Module],
    optimizers: Sequence[Any],
    named: dict[str, Any],
    scaler: torch.amp.GradScaler | None,
) -> int:
    """Load an earlier run's state; returns the number of steps that it did."""
    if not path.exists():
        return 0
    with saved_state(path) as state:
        fixed = {name: value for name, value in named.items() if name not in ("steps", "checkpoint_every")}
        unwritten = {"processes": 1} | {name: named.get(name) for name in ("base", "teacher")}  # by earlier versions
        begun = unwritten | state["config"]
        check_begun(path, begun, fixed, "remove the file to start anew")
        if named["steps"] < state["step"]:
            raise QartsrError(f"--steps {named['steps']}: {state['step']} are done; choose more, or remove {path}")
        for network, saved in zip(networks, state["trained"], strict=True):
            if trained(network).keys() != saved.keys():
                raise KeyError("names")
            network.load_state_dict(saved, strict=False)
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if scaler is not None and state.get("scaler"):  # files of before hold none
            scaler.load_state_dict(state["scaler"])
        return int(state["step"])
