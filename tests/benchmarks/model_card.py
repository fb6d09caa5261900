"""`python -m tests.benchmarks.model_card`: write the model card of the embedded backbones from measured records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.show.tables.render import to_markdown
from qartsr_lib.study import results

TEMPLATE = Path(__file__).with_name("model_card.md")


def main() -> None:
    path = write_text(PACKAGED_WEIGHTS / "README.md", card(PACKAGED_WEIGHTS))
    print(f"{path} written")


def card(folder: Path) -> str:
    """The card's text from `folder`/training.json and results/study/quality.csv, when that exists."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    environment = record["environment"]
    return TEMPLATE.read_text(encoding="utf-8").format(
        **{name: record[name] for name in ("images", "crop", "latent_weight")},
        **{name: environment[name] for name in ("device", "threads")},
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
        settings = (schedule[name] for name in ("steps", "learning_rate", "batch_size", "seed"))
        rows.append((stage, *settings, round(seconds)))
    return pd.DataFrame(rows, columns=["stage", "steps", "learning rate", "batch", "seed", "seconds"])


def _validation(record: dict) -> pd.DataFrame:
    more = {"PSNR (RGB)": "psnr_rgb_bicubic", "PSNR (realistic)": "psnr_y_realistic"}
    bicubic = record["validation"]["bicubic"]
    rows = [{"recipe": "bicubic"} | {name: bicubic[key] for name, key in {"PSNR": "psnr_y_bicubic", **more}.items()}]
    for run in record["runs"]:
        full, silent, identity = (run["contribution"][name] for name in ("full", "no noise", "identity"))
        known = {"recipe": run["recipe"], "T": str(run["timestep"]), "steps": str(run["history"][-1]["step"])}
        known |= {"PSNR": full["psnr_y_bicubic"], "no noise": silent["psnr_y_bicubic"]}
        known |= {"identity": identity["psnr_y_bicubic"]} | {name: full[key] for name, key in more.items()}
        rows.append(known)
    columns = ["recipe", "T", "steps", "PSNR", "no noise", "identity", *more]
    return pd.DataFrame(rows, columns=columns).map(_short)


def _reconstruction(record: dict) -> str:
    quality = record["validation"].get("reconstruction")
    if quality is None:
        return ""
    luma, rgb = (_short(quality[name]) for name in ("psnr_y", "psnr_rgb"))
    return f"The pretrained VAE alone gives the HR crops back at {luma} dB ({rgb} RGB)."


def _tests() -> str:
    """Test-set rows of results/study/quality.csv, with their run ids; or how to measure them."""
    how = "`make reproduce PROFILE=study NOTEBOOKS=02 DATA_ROOT=folder` measures them (results/study/quality.csv)."
    try:
        table = results.read_table("study", "quality")
    except QartsrError:
        return f"Not measured for these weights yet: {how}"
    rows = table[table["metric"].isin(["PSNR", "SSIM", "PSNR-RGB"]) & ~table["dataset"].str.startswith("samples")]
    keys = ["dataset", "backbone", "timestep", "n_images", "run_id"]
    wide = rows.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index().map(_short)
    return f"Measured once for these weights; the run ids name the records. {how}\n\n{to_markdown(wide)}"


def _short(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "" if pd.isna(cell) else f"{cell:.4g}" if abs(cell) < 1 else f"{cell:.2f}"


if __name__ == "__main__":
    main()
