"""The gallery's files and index, from the small run of test_pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_pictures import pairs, run, setting  # noqa: F401

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import luma, psnr, read_image, upscale_bicubic, write_png
from qartsr_lib.show import tables as reports
from qartsr_lib.show.gallery import write_gallery
from qartsr_lib.show.shown import show_gallery
from qartsr_lib.study.evaluator import Experiment

pytestmark = pytest.mark.usefixtures("home")


def entries(index, photograph="dog"):
    found = json.loads(index.read_text(encoding="utf-8"))["pictures"]
    return [entry for entry in found if entry["photograph"] == photograph]


def test_every_model_of_the_settings_once(run, pairs):  # noqa: F811
    settings = [setting("embedded_paper"), setting("embedded_T1")]
    index = write_gallery(run, pairs, settings, ["absent", "dog"])
    found = entries(index)
    assert {entry["photograph"] for entry in json.loads(index.read_text())["pictures"]} == {"dog"}
    keys = [(entry["backbone"], entry["timestep"], entry["method"], entry["bits"]) for entry in found]
    assert len(set(keys)) == len(keys)
    # original, bicubic, full precision on both models, DiffBIR; rivals on both, QArtSR on T = 1, at two bit widths
    assert len(keys) == 2 + 2 + 1 + 2 * (2 * 2 + 1)
    assert ("embedded", 1000, "QArtSR", "W4A4") not in keys


def test_pictures_are_the_outputs_and_diverged_ones_have_none(run, pairs):  # noqa: F811
    index = write_gallery(run, pairs, [setting("embedded_T1")], ["dog"])
    found = {(entry["method"], entry["bits"]): entry for entry in entries(index)}
    diverged = found["LSQ", "W2A2"]
    assert diverged["file"] == "" and diverged["psnr_y"] is None
    experiment = next(
        cell for cell, _ in run.images if (cell.method, cell.bits, cell.timestep) == ("qartsr", "W4A4", 1)
    )
    ours = found["QArtSR", "W4A4"]
    wanted = read_image(run.images[experiment, "dog"])
    shown = np.asarray(Image.open(index.parent / ours["file"]), dtype=float)
    assert np.abs(shown - 255 * wanted[0].permute(1, 2, 0).numpy()).mean() < 3
    dog = next(pair for pair in pairs if pair.id == "dog")
    original = luma(read_image(dog.hr))
    assert ours["psnr_y"] == pytest.approx(float(psnr(luma(wanted), original)), abs=1e-4)
    enlarged = psnr(luma(upscale_bicubic(read_image(dog.lq))), original)
    assert found["bicubic", ""]["psnr_y"] == pytest.approx(float(enlarged), abs=1e-4)
    assert found["original", ""]["psnr_y"] is None


def test_pictures_of_an_earlier_choice_are_removed(run, pairs):  # noqa: F811
    index = write_gallery(run, pairs, [setting("embedded_T1")], ["cat", "dog"])
    assert len(list(index.parent.glob("cat/*.webp"))) > 3
    write_gallery(run, pairs, [setting("embedded_T1")], ["dog"])
    assert list(index.parent.glob("cat/*.webp")) == []
    before = {path: path.read_bytes() for path in index.parent.rglob("*.*")}
    write_gallery(run, pairs, [setting("embedded_T1")], ["dog"])
    assert before == {path: path.read_bytes() for path in index.parent.rglob("*.*")}


def test_a_part_of_the_table_adds_its_pictures(run, pairs):  # noqa: F811
    """Once part by part is the whole; a part made again takes its earlier place."""
    parts = [setting("embedded_paper"), setting("embedded_T1")]
    index = write_gallery(run, pairs, parts, ["cat", "dog"])
    whole = {path: path.read_bytes() for path in index.parent.rglob("*.webp")}
    wanted = json.loads(index.read_text())
    shutil.rmtree(index.parent)
    for one, photograph in (
        (parts[0], "cat"),
        (parts[1], "cat"),
        (parts[0], "dog"),
        (parts[1], "dog"),
        *[(parts[1], "cat")] * 2,
    ):
        write_gallery(run, pairs, [one], [photograph], keep=True)
    assert whole == {path: path.read_bytes() for path in index.parent.rglob("*.webp")}
    found = json.loads(index.read_text())
    assert (found["photographs"], found["settings"]) == (wanted["photographs"], wanted["settings"])
    assert len(found["pictures"]) == len(wanted["pictures"])
    assert all(entry in wanted["pictures"] for entry in found["pictures"])


def test_systems_whose_names_differ_in_a_sign_have_a_picture_each(run, pairs):  # noqa: F811
    def named(name, number):
        cell = Experiment("outside", 0, "fp", "W32A32", "samples", label=name)
        row = run.table[run.table["method"] == "DiffBIR"].assign(method=name)
        picture = write_png(pairs[0].hr.parent / f"system{number}.png", torch.full((1, 3, 64, 48), number / 4))
        return row, {(cell, pair.id): picture for pair in pairs}

    (first, firsts), (second, seconds) = named("EDSR", 1), named("EDSR+", 3)
    both = dataclasses.replace(run, table=pd.concat([run.table, first, second]), images=run.images | firsts | seconds)
    index = write_gallery(both, pairs, [setting("embedded_T1")], ["dog"])
    files = {entry["method"]: entry["file"] for entry in entries(index)}
    shown = {name: np.asarray(Image.open(index.parent / files[name])).mean() / 255 for name in ("EDSR", "EDSR+")}
    assert shown == {"EDSR": pytest.approx(0.25, abs=0.02), "EDSR+": pytest.approx(0.75, abs=0.02)}


def test_methods_of_earlier_parts_keep_their_place_in_a_setting(run, pairs):  # noqa: F811
    (old,) = reports.settings([("embedded", 1)], ["MaxMin", "QArtSR"])
    (new,) = reports.settings([("embedded", 1)], ["LSQ"])
    index = write_gallery(run, pairs, [old], ["dog"])
    write_gallery(run, pairs, [new], ["dog"], keep=True)
    found = json.loads(index.read_text())
    (setting,) = found["settings"]
    assert setting["timesteps"] == {"FP": 1, "MaxMin": 1, "QArtSR": 1, "LSQ": 1}, "or the page shows LSQ alone"
    assert {"MaxMin", "QArtSR", "LSQ"} <= {entry["method"] for entry in found["pictures"]}


def test_a_run_without_sample_photographs_leaves_the_gallery(run, pairs):  # noqa: F811
    index = write_gallery(run, pairs, [setting("embedded_T1")], ["dog"])
    before = {path: path.read_bytes() for path in index.parent.rglob("*.*")}
    real = dataclasses.replace(run, table=run.table.assign(dataset="RealSR"), images={})
    assert show_gallery(real, pairs, [setting("embedded_T1")], ["dog"], keep=False, save=True).empty
    assert before == {path: path.read_bytes() for path in index.parent.rglob("*.*")}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"photographs": [], "settings": []}', '{"photographs": [{}], "settings": [], "pictures": []}']
)
def test_a_damaged_index_is_named_and_kept(run, pairs, text):  # noqa: F811
    index = write_gallery(run, pairs, [setting("embedded_T1")], ["dog"])
    index.write_text(text)
    with pytest.raises(QartsrError, match="index.json: is not a gallery's index"):
        write_gallery(run, pairs, [setting("embedded_T1")], ["dog"], keep=True)
    assert index.read_text() == text
    assert list(index.parent.rglob("*.webp"))
