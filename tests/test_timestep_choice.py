"""TRQ's choice of T, on calibration images."""

import pandas as pd
import pytest
import torch
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.base import registry
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import luma, psnr
from qartsr_lib.methods import METHODS
from qartsr_lib.study.experiments import timestep as choice_of_t
from qartsr_lib.study.experiments.timestep import measure_timesteps, timestep_table, write_choice


def test_every_timestep_is_measured_against_its_own_full_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    backbone = tiny_backbone()
    monkeypatch.setattr(choice_of_t, "load_backbone", lambda name, timestep: backbone)
    images = CalibrationList("photos", lq_images(2), "hash")
    rows = measure_timesteps("tiny", ["embedded"], [1000, 1], ["W4A4"], images).table
    assert rows["timestep"].tolist() == [1000, 1000, 1, 1] and set(rows["dataset"]) == {"photos"}
    quantized = METHODS.get("maxmin").build(backbone, "W4A4", images.images).backbone
    with torch.no_grad():
        a, b = (model.upscale(images.images[0])[0].clamp(0, 1) for model in (quantized, backbone))
    weights = torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1) / 255
    error = ((a - b) * weights).sum(0).square().mean()
    assert rows["psnr_fp"][0] == pytest.approx(float(-10 * error.log10()), abs=0.05)


def test_a_part_of_the_choice_keeps_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    monkeypatch.setattr(choice_of_t, "load_backbone", lambda name, timestep: tiny_backbone())
    images = CalibrationList("photos", lq_images(2), "hash")
    for keep, wanted in ((False, ["W4A4"]), (True, ["W4A4", "W2A2"]), (False, ["W2A2"])):
        choice = measure_timesteps("tiny", ["embedded"], [1000, 1], wanted[-1:], images)
        written = write_choice(choice, "choice", keep)
        assert [bits for _, bits in timestep_table(written).index] == wanted
        assert len(written) == 2 * 2 * len(wanted)


def test_the_highest_mean_is_chosen():
    rows = [("b", 1000, "W4A4", 20.0), ("b", 1000, "W4A4", 22.0), ("b", 1, "W4A4", 25.0), ("b", 1, "W4A4", 15.0)]
    frame = pd.DataFrame(rows, columns=["backbone", "timestep", "bits", "psnr_fp"])
    table = timestep_table(frame)
    assert list(table.columns) == ["T = 1000", "T = 1", "chosen"]
    assert list(table.loc[("b", "W4A4")]) == [21.0, 20.0, 1000]


def test_the_choice_is_made_under_the_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    backbone = tiny_backbone()
    monkeypatch.setattr(choice_of_t, "load_backbone", lambda name, timestep: backbone)
    images = CalibrationList("photos", lq_images(1), "hash")
    setting = (("eight_bit", "identity-path"), ("ranges", "least-squares"))
    plain, own = (measure_timesteps("tiny", ["embedded"], [1], ["W4A4"], images, chosen) for chosen in ((), setting))
    built = METHODS.get("maxmin").build(backbone, "W4A4", images.images, **dict(setting)).backbone
    with torch.no_grad():
        wanted = psnr(*(luma(model.upscale(images.images[0])) for model in (built, backbone)))
    assert own.table["psnr_fp"][0] == pytest.approx(wanted, abs=1e-4) != pytest.approx(plain.table["psnr_fp"][0])
    assert own.table["run_id"][0] != plain.table["run_id"][0]


def test_what_others_registered_has_a_key_of_its_own(monkeypatch):
    """Its code may change over the same weights."""
    asked = []
    monkeypatch.setattr(choice_of_t, "measure_questions", lambda _, questions, measure: asked.append(questions))
    for found in (None, "the hash of its file"):
        with monkeypatch.context() as patched:
            if found:
                patched.setitem(registry._outside, "embedded", found)
            measure_timesteps("tiny", ["embedded"], [1], ["W4A4"], CalibrationList("c", [], "0"))
    (plain,), (others,) = (questions.values() for questions in asked)
    assert others == plain | {"outside": {"embedded": "the hash of its file"}} != plain
