"""`python -m qartsr_lib.training.trq`: train OSEDiff for another timestep; `accelerate launch -m` for several GPUs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.osediff import FOLDER, load_osediff
from qartsr_lib.backbones.osediff_base import load_unet, load_vae, resolve_base
from qartsr_lib.backbones.osediff_prompt import embed_prompt
from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import list_images
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.training.trq.loop import TrqConfig, train
from qartsr_lib.training.trq.networks import REGULARIZERS, Generator
from qartsr_lib.training.trq.objectives import Distillation, Objective, OSEDiffLosses

#: What the frozen model is guided away from (scripts/train/train_osediff.sh).
NEGATIVE_PROMPT = (
    "painting, oil painting, illustration, drawing, art, sketch, cartoon, CG Style, 3D render, unreal engine, "
    "blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, "
    "lowres, over-smooth"
)


def _osediff_losses(options: argparse.Namespace, base: Path, unet: torch.nn.Module, device: torch.device) -> Objective:
    image_loss = IMAGE_LOSSES.get(options.image_loss)(device)
    prompt, negative = (embed_prompt(base, text).to(device) for text in (options.prompt, options.negative_prompt))
    return OSEDiffLosses(image_loss, unet, prompt, negative, options.seed + 2, options.regularizer)


def _distillation(options: argparse.Namespace, base: Path, unet: torch.nn.Module, device: torch.device) -> Objective:
    teacher = load_osediff(base=base, osediff=options.teacher, prompt=options.prompt).to(device)
    return Distillation(lambda upscaled: teacher.to_z_h(z_l := teacher.encode(upscaled), teacher.predict_noise(z_l)))


#: Name -> function that makes the objective.
VARIANTS: dict[str, Callable[..., Objective]] = {"osediff": _osediff_losses, "distil": _distillation}


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit status: 0 done, 2 something the user can mend (one line on stderr)."""
    options = _parser().parse_args(arguments)
    try:
        file = _run(options)
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    print(f"{file} written; use it with --backbone osediff --osediff {file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qartsr train trq",
        description=__doc__.split(": ", 1)[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, default = parser.add_argument, TrqConfig
    add("--timestep", type=int, required=True, help="label T: 1, 500 or 1000")
    add("--images", type=Path, required=True, metavar="DIR", help="photographs of at least the crop's size")
    add("--base", metavar="DIR", help="Stable Diffusion 2.1-base (default: in the folder of weights)")
    add("--out", type=Path, metavar="DIR", help="folder for the weights (default: where the backbone looks for them)")
    add(
        "--variant",
        choices=list(VARIANTS),
        default="osediff",
        help="osediff: its own losses; distil: the latents of a trained OSEDiff, much cheaper, another training",
    )
    add("--teacher", metavar="FILE", help="of distil: OSEDiff's file (default: osediff.pkl in the folder of weights)")
    add(
        "--regularizer",
        choices=REGULARIZERS,
        default=default.regularizer,
        help="of osediff: LoRA of the regularizing network in all layers, or in the middle block alone "
        "as the released code trains it",
    )
    add("--image-loss", default="lpips+mse", help="of osediff: a name in finetuning.losses.IMAGE_LOSSES")
    add("--prompt", default="", help="one for all images; the quantized models are used with an empty one")
    add("--negative-prompt", default=NEGATIVE_PROMPT, help="of osediff")
    add("--steps", type=int, default=default.steps, help="optimizer steps")
    add("--batch", type=int, default=default.batch, help="pairs per device and pass")
    add("--accumulate", type=int, default=default.accumulate, help="passes per optimizer step")
    add("--crop", type=int, default=default.crop, help="side of the crops in pixels")
    add("--learning-rate", type=float, default=default.learning_rate, help="of AdamW")
    add("--precision", choices=("no", "bf16", "fp16"), default=default.precision, help="mixed precision")
    add("--seed", type=int, default=default.seed, help="same seed, same training on one machine")
    add("--checkpoint-every", type=int, default=default.checkpoint_every, help="steps")
    add("--workers", type=int, default=2, help="processes that make training pairs")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    return parser


def _run(options: argparse.Namespace) -> Path:
    schedule.timestep_index(options.timestep)
    images, base = list_images(options.images), resolve_base(options.base)
    config = TrqConfig(**{field.name: getattr(options, field.name) for field in fields(TrqConfig)})
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate, cpu=options.cpu
    )
    device = accelerator.device
    unet, vae = load_unet(base).to(device), load_vae(base).to(device)
    objective = VARIANTS[options.variant](options, base, unet, device)
    prompt = embed_prompt(base, options.prompt).to(device)
    generator = Generator(unet, vae, config.timestep, prompt, objective.decodes, config.seed)
    if options.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    folder = options.out or paths.weights_dir() / FOLDER
    return train(generator, objective, images, config, folder, accelerator, options.workers)


if __name__ == "__main__":
    sys.exit(main())
