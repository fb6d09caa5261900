"""`python -m qartsr_lib.show.model_card`: write the model card of the embedded backbones from measured records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.show.tables.render import to_markdown
from qartsr_lib.study import results

TEXT = """# Model card: the embedded backbones

Two OSEDiff-shaped one-step x4 super-resolution models, small enough for any machine. They exist to study quantization;
they are neither OSEDiff nor good upscalers, and no number measured on them is the paper's.

- **Shape.** Bicubic-upscaled image -> AutoencoderKL encoder (factor 4, 16 channels) -> z_L -> one UNet2DConditionModel
  call at timestep T -> Eq. (6) -> z_H -> decoder. No text: a constant prompt embedding feeds the cross-attention.
- **Recipes.** `embedded`: encoder and UNet train together, the UNet sees z_L (OSEDiff's recipe). `embedded-scaled`: the
  encoder is frozen and the UNet sees sqrt(alpha_T) z_L. T = 1000, 500, 1 each; one VAE and one decoder for all.
- **Files.** float16 values; loaded as float32, and those rounded weights are the W32A32 reference.
- **Start.** The VAE begins as a 4x4 block cosine transform (`qartsr_lib/training/initial.py`), the UNet as a noise
  predictor on HR latents, like Stable Diffusion's.
- **Loss.** L1 of the image + {latent_weight} x L1 of z_H to the HR image's latent in the pretrained VAE.
- **Training data.** {images}; random {crop}x{crop} crops, also of copies shrunk to 0.8 and 0.6.
- **Degradation.** 75% bicubic, 25% second-order pipeline in the manner of Real-ESRGAN at mild strengths
  (`qartsr_lib/degrade.py`).
- **Machine.** {device}, {threads} threads, torch {torch}; bfloat16 autocast.
- **Retrain.** `make backbone IMAGES=folder` (resumable; same seed, same weights on one machine).

## Training

{stages}

## Quality on validation crops (BSDS500/val, 24 central crops of 192x192; every choice rests on these)

PSNR in dB, on luma unless marked RGB. "no noise": predicted noise set to zero; "identity": z_L decoded directly.
{reconstruction}

{validation}

## Size and time of a forward pass to 512x512

{sizes}

{shares}

## Quality on the test sets

{tests}
"""


def main() -> None:
    folder = PACKAGED_WEIGHTS
    write_text(folder / "README.md", card(folder))
    print(f"{folder / 'README.md'} written")


def card(folder: Path) -> str:
    """The card's text from `folder`/training.json and results/study/quality.csv, when that exists."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    environment = record["environment"]
    return TEXT.format(
        images=record["images"],
        crop=record["crop"],
        latent_weight=record["latent_weight"],
        device=environment["device"],
        threads=environment["threads"],
        torch=environment["versions"]["torch"],
        stages=to_markdown(_stages(record)),
        reconstruction=_reconstruction(record),
        validation=to_markdown(_validation(record)),
        sizes=to_markdown(pd.DataFrame(record["sizes"])),
        shares=to_markdown(pd.DataFrame(record["time_shares"])),
        tests=_tests(),
    )


def _stages(record: dict) -> pd.DataFrame:
    """One row per stage: steps, learning rate, batch, seed, seconds."""
    rows = []
    for stage, seconds in record["seconds"].items():
        schedule = record["schedules"].get(stage) or record["schedules"][stage.split("-T")[0]]
        rows.append(
            (
                stage,
                schedule["steps"],
                schedule["learning_rate"],
                schedule["batch_size"],
                schedule["seed"],
                round(seconds),
            )
        )
    return pd.DataFrame(rows, columns=["stage", "steps", "learning rate", "batch", "seed", "seconds"])


def _validation(record: dict) -> pd.DataFrame:
    bicubic = record["validation"]["bicubic"]
    rows = [
        ("bicubic", "", "", bicubic["psnr_y_bicubic"], "", "", bicubic["psnr_rgb_bicubic"], bicubic["psnr_y_realistic"])
    ]
    for run in record["runs"]:
        full, silent, identity = (run["contribution"][name] for name in ("full", "no noise", "identity"))
        rows.append(
            (
                run["recipe"],
                run["timestep"],
                run["history"][-1]["step"],
                full["psnr_y_bicubic"],
                silent["psnr_y_bicubic"],
                identity["psnr_y_bicubic"],
                full["psnr_rgb_bicubic"],
                full["psnr_y_realistic"],
            )
        )
    columns = ["recipe", "T", "steps", "PSNR", "no noise", "identity", "PSNR (RGB)", "PSNR (realistic)"]
    return pd.DataFrame([[_short(cell) for cell in row] for row in rows], columns=columns)


def _reconstruction(record: dict) -> str:
    quality = record["validation"].get("reconstruction")
    if quality is None:
        return ""
    luma, rgb = (_short(quality[name]) for name in ("psnr_y", "psnr_rgb"))
    return f"The pretrained VAE alone gives the HR crops back at {luma} dB ({rgb} RGB)."


def _tests() -> str:
    """Test-set rows of results/study/quality.csv, with their run ids; or how to measure them."""
    how = "`make reproduce PROFILE=study NOTEBOOKS=00 DATA_ROOT=folder` measures them (results/study/quality.csv)."
    try:
        table = results.read_table("study", "quality")
    except QartsrError:
        return f"Not measured for these weights yet: {how}"
    shown = table[table["metric"].isin(["PSNR", "SSIM", "PSNR-RGB"]) & ~table["dataset"].str.startswith("samples")]
    wide = shown.pivot_table(
        index=["dataset", "backbone", "timestep", "n_images", "run_id"], columns="metric", values="value", sort=False
    )
    return f"Measured once for these weights; the run ids name the records. {how}\n\n" + to_markdown(
        wide.reset_index().map(_short)
    )


def _short(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.4g}" if abs(cell) < 1 else f"{cell:.2f}"


if __name__ == "__main__":
    main()
