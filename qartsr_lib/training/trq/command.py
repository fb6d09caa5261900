"""Train OSEDiff for another timestep."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, fields
from pathlib import Path

from qartsr_lib.training.trq.config import NEGATIVE_PROMPT, TrqConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command, those of `TrqConfig` among them."""
    for option in fields(TrqConfig):
        given = {name: value for name, value in option.metadata.items() if value is not None}
        if option.default is MISSING:
            given |= {"type": int, "required": True}
        else:
            given |= {"type": type(option.default), "default": option.default}
        parser.add_argument(f"--{option.name.replace('_', '-')}", **given)
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="photographs of at least the crop's size")
    add("--base", metavar="DIR", help="Stable Diffusion 2.1-base (default: in the folder of weights)")
    add("--out", type=Path, metavar="DIR", help="folder for the weights (default: where the backbone looks for them)")
    add("--teacher", metavar="FILE", help="of distil: OSEDiff's file (default: osediff.pkl in the folder of weights)")
    add("--image-loss", default="lpips+mse", help="of osediff: a name in finetuning.losses.IMAGE_LOSSES")
    add("--prompt", default="", help="one for all images; the quantized models are used with an empty one")
    add("--negative-prompt", default=NEGATIVE_PROMPT, help="of osediff")
    add("--workers", type=int, default=2, help="processes that make training pairs")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more time")


def run(options: argparse.Namespace) -> int:
    """Train and name the file; returns 0. Imports what takes seconds only here, not for a list of options."""
    from accelerate import Accelerator

    from qartsr_lib.backbones import schedule
    from qartsr_lib.backbones.osediff import FOLDER, NETWORKS, embed_prompt, load_osediff
    from qartsr_lib.backbones.osediff_files import load_network, resolve_base
    from qartsr_lib.base import paths
    from qartsr_lib.images.image import list_images
    from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
    from qartsr_lib.training.trq.loop import train
    from qartsr_lib.training.trq.networks import Generator
    from qartsr_lib.training.trq.objectives import Distillation, OSEDiffLosses

    schedule.timestep_index(options.timestep)
    images, base = list_images(options.images), resolve_base(options.base)
    config = TrqConfig(**{field.name: getattr(options, field.name) for field in fields(TrqConfig)})
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate, cpu=options.cpu
    )
    device = accelerator.device
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
    if options.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    folder = options.out or paths.weights_dir() / FOLDER
    file = train(generator, objective, images, config, folder, accelerator, options.workers)
    print(f"{file} written; use it with --backbone osediff --osediff {file}")
    return 0
