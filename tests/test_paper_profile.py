"""The notebooks in profile `paper`, end to end on a tiny random pipeline in the real files' layout."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from osediff_stand_in import checkpoint, write_checkpoint, write_weights

from qartsr_lib.backbones import osediff
from qartsr_lib.backbones.osediff_model import Inference
from qartsr_lib.images.image import write_png
from qartsr_lib.study import profiles

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
#: Minutes for all notebooks at all T, so only by request: QARTSR_LONG_TESTS=1.
LONG = bool(os.environ.get("QARTSR_LONG_TESTS"))
NUMBERS = ("00", "01", "02", "03", "04", "05") if LONG else ("01", "05")
TIMESTEPS = [(1000,), (1000, 500, 1)] if LONG else [(1000,)]
SMALL = {"bits": ("W4A4",), "finetune_bits": ("W4A4",), "ablation_bits": ("W4A4",), "metrics": ("PSNR",)}
SMALL |= {"finetune_metrics": ("PSNR",), "n_calibration": 2, "calibration_size": 16, "train_images": 14}
SMALL |= {
    "max_images": 1,
    "finetune_images": 1,
    "image_loss": "vae-features+mse",
    "methods": ("maxmin", "qartsr"),
    "component_steps": 2,
}


def write_data(root: Path) -> Path:
    """A pair of RealSR and two calibration photographs, noise all of them."""
    torch.manual_seed(0)
    write_png(root / "RealSR" / "HR" / "one.png", torch.rand(1, 3, 64, 64))
    write_png(root / "RealSR" / "LR" / "one.png", torch.rand(1, 3, 16, 16))
    for name in ("one", "two"):
        write_png(root / "DIV2K_train" / f"{name}.png", torch.rand(1, 3, 80, 80))
    return root


def execute(number: str, data_root: Path) -> dict:
    """The variables of a notebook after its code cells ran in this process."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    variables: dict = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), path.name, "exec"), variables)
        if "parameters" in cell["metadata"].get("tags", []):
            variables |= {"PROFILE": "paper", "DATA_ROOT": str(data_root)}
    return variables


@pytest.fixture
def paper(home, tmp_path, monkeypatch):
    """A cut-down profile `paper` with synthetic weights at T = 1000; returns the folder of weights."""
    monkeypatch.setitem(profiles.PROFILES, "paper", dataclasses.replace(profiles.PROFILES["paper"], **SMALL))
    monkeypatch.setattr(osediff, "Inference", partial(Inference, smallest=16))  # else everything is 512x512
    weights = write_weights(tmp_path / "weights")
    monkeypatch.setenv("QARTSR_WEIGHTS", str(weights))
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_notebooks_run(paper, timesteps, tmp_path):
    for timestep in timesteps[1:]:
        content = checkpoint(seed=timestep) | {"qartsr": {"timestep": timestep}}
        write_checkpoint(paper / "osediff" / f"osediff-T{timestep:04d}.pkl", content)
    data = write_data(tmp_path / "data")
    for number in NUMBERS:
        variables = execute(number, data)
        assert variables["profile"].timesteps == timesteps
    table = variables["run"].table
    models = table[table["backbone"] == "osediff"]
    assert set(models["timestep"]) == {1000, 1} & set(timesteps) and set(table["backbone"]) == {"osediff", "bicubic"}
    assert {"FP", "MaxMin", "QArtSR"} == set(models["method"])


def test_without_weights_one_line_says_what_to_put_where(home, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("QARTSR_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(profiles.NotReady, match="profile paper needs the weights .*config.json and 4 more; put them"):
        profiles.ready(profiles.PROFILES["paper"])
