"""Pairing of folders, the long frame and its CSV, and every bad input in one line."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from qartsr_lib import cli
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images import evaluate, metrics
from qartsr_lib.images.image import write_png


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("QARTSR_METRIC_WEIGHTS", raising=False)
    metrics.forget()


@pytest.fixture
def folders(tmp_path):
    sr, hr = tmp_path / "sr", tmp_path / "hr"
    sr.mkdir()
    hr.mkdir()
    return sr, hr


def _image(path, seed=0, height=24, width=32):
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return write_png(path, pixels)


def _touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"x")


def test_the_frame_and_its_csv(folders, tmp_path):
    sr, hr = folders
    for seed, name in enumerate(["b", "a"]):
        _image(hr / f"{name}_HR.png", seed)
        _image(sr / f"{name}_LR4.png", seed + 10)
    _image(hr / "unused.png")
    out = tmp_path / "new" / "scores.csv"
    frame = evaluate.evaluate_folders(sr, hr, ["PSNR", "MUSIQ", "PSNR", "MS-SSIM"], out)
    assert list(frame.columns) == ["image", "metric", "value", "note"]
    assert list(frame["image"]) == ["a_LR4.png"] * 3 + ["b_LR4.png"] * 3
    assert list(frame["metric"]) == ["PSNR", "MUSIQ", "MS-SSIM"] * 2
    assert frame["value"].dtype == np.float64
    by_metric = frame.groupby("metric")
    assert by_metric["value"].count().to_dict() == {"PSNR": 2, "MUSIQ": 0, "MS-SSIM": 0}
    assert (by_metric.get_group("PSNR")["note"] == "").all()
    assert by_metric.get_group("MUSIQ")["note"].str.contains("weights not found").all()
    assert by_metric.get_group("MS-SSIM")["note"].str.contains("too small").all()
    written = pd.read_csv(out, keep_default_na=False, dtype={"value": str})
    assert (written["value"] == "").sum() == 4
    pd.testing.assert_frame_equal(pd.read_csv(out).fillna({"note": ""}), frame, check_dtype=False)
    assert [path.name for path in out.parent.iterdir()] == ["scores.csv"]  # no temporary file is left


def test_nothing_is_read_or_written_for_an_unknown_metric(folders, tmp_path):
    _touch(folders[0], "lonely.png")  # pairing the folders would raise another message
    with pytest.raises(QartsrError, match="unknown metric 'PSN'"):
        evaluate.evaluate_folders(*folders, ["SSIM", "PSN"], tmp_path / "out.csv")
    with pytest.raises(QartsrError, match="no metric named"):
        evaluate.evaluate_folders(*folders, [], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_different_sizes_are_found_before_the_first_metric(folders, tmp_path, monkeypatch):
    sr, hr = folders
    for name, height in (("a.png", 24), ("z.png", 20)):
        _image(sr / name)
        _image(hr / name, height=height)
    monkeypatch.setattr(evaluate, "score", lambda *args: pytest.fail("a metric ran"))
    with pytest.raises(QartsrError, match=r"z\.png is 32x24 and .*z\.png is 32x20: .*never resized"):
        evaluate.evaluate_folders(sr, hr, ["PSNR"], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
@pytest.mark.parametrize("which", [0, 1])
def test_unreadable_images_are_named(folders, tmp_path, damage, which):
    for folder in folders:
        _image(folder / "a.png")
    bad = folders[which] / "a.png"
    bad.write_bytes({"text": b"hello", "truncated": bad.read_bytes()[:-800], "empty": b""}[damage])
    with pytest.raises(QartsrError, match=rf"{folders[which].name}/a\.png: not a readable image"):
        evaluate.evaluate_folders(*folders, ["PSNR"], tmp_path / "out.csv")


def test_an_output_that_cannot_be_written_is_named_before_scoring(folders, tmp_path, monkeypatch):
    for folder in folders:
        _image(folder / "a.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluate, "evaluate_pairs", lambda *_: pytest.fail("scored"))
    with pytest.raises(QartsrError, match="file is a file; name another folder"):
        evaluate.evaluate_folders(*folders, ["PSNR"], tmp_path / "file" / "out.csv")


def test_a_folder_as_output_is_refused_before_scoring(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_pairs", lambda *_: pytest.fail("scored"))
    for name in ("sr", "hr"):
        write_png(tmp_path / name / "cat.png", torch.rand(1, 3, 16, 16))
    with pytest.raises(QartsrError, match="is a folder; name a CSV file"):
        evaluate.evaluate_folders(tmp_path / "sr", tmp_path / "hr", ["PSNR"], tmp_path)


def _shades(path, height, width, rows=slice(None), columns=slice(None)):
    """A picture that names its own rows and columns, or a part of it."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 5 % 256, x * 5 % 256, (y + x) % 256], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[rows, columns]).save(path)


def test_a_reference_that_does_not_divide_by_four_is_cropped_from_the_top_left(folders, home, tmp_path, capsys):
    sr, hr = folders
    _shades(hr / "comic.png", 38, 51)
    _shades(sr / "comic.png", 38, 51, slice(36), slice(48))
    _shades(hr / "odd.png", 21, 21)
    _shades(sr / "odd.png", 21, 21)
    frame = evaluate.evaluate_folders(sr, hr, ["PSNR-RGB"], tmp_path / "out.csv")
    assert list(frame["value"]) == [80.0, 80.0], "the same pixels"
    comic, odd = frame["note"]
    assert "reference cropped at the right and bottom" in comic and "cropped" not in odd
    assert "1 x reference cropped" in capsys.readouterr().err
    assert Image.open(hr / "comic.png").size == (51, 38), "the original is as it was"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((63, 48), "x.png is 63x48 and .*x.png is 64x48: .*crop the images"),
        ((60, 48), "x.png is 60x48"),
        ((16, 12), "x.png is 16x12 .* is this the input.* crop"),
    ],
)
def test_other_sizes_are_refused(folders, tmp_path, size, message):
    _image(folders[1] / "x.png", height=48, width=64)
    _image(folders[0] / "x.png", height=size[1], width=size[0])
    with pytest.raises(QartsrError, match=message):
        evaluate.evaluate_folders(*folders, ["PSNR"], tmp_path / "out.csv")


def test_values_at_the_ceiling_say_so(folders):
    same, other = _image(folders[1] / "a.png"), _image(folders[0] / "b.png", 1)
    rows = evaluate.evaluate_pairs([(same, same)], ["PSNR", "SSIM", "PSNR-RGB"])
    assert list(rows["value"]) == [80.0, 1.0, 80.0]
    assert list(rows["note"].str.contains("80 is the most")) == [True, False, True]
    assert list(evaluate.evaluate_pairs([(other, same)], ["PSNR"])["note"]) == [""]
    assert metrics.score(same, same, ["PSNR"]) == {"PSNR": (80.0, "")}, "notes of the study's tables are as they were"


def test_the_command_prints_counts_and_reasons_and_what_is_left_out(folders, tmp_path, capsys):
    sr, hr = folders
    for seed, (name, side) in enumerate([("a", 24), ("b", 24), ("c", 8)]):
        _image(hr / f"{name}.png", seed, side, side)
        _image(sr / f"{name}_out.png", seed + 9, side, side)
    _image(sr / "comparison_grid.png")
    _image(hr / "d.png")
    (sr / "._a_out.png").write_bytes(b"no image")
    out = tmp_path / "new" / "deeper" / "scores.csv"
    command = ["evaluate", "--sr", str(sr), "--hr", str(hr), "--metrics", "PSNR,SSIM,MUSIQ", "--out", str(out)]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    frame = pd.read_csv(out)
    mean = frame.loc[frame["metric"] == "PSNR", "value"].mean()
    psnr, ssim, musiq, _ = told.out.splitlines()
    assert psnr == f"PSNR       {mean:.4f} (3 of 3 images)"
    assert "(2 of 3 images; image too small: 8x8" in ssim
    assert "n/a (0 of 3 images; weights not found" in musiq
    assert "1 image(s) left out: comparison_grid.png (no reference has its name)" in told.err
    assert "1 of 4 references have no image" in told.err and "._a" not in told.err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "80 dB" in capsys.readouterr().out


def test_images_in_subfolders_keep_their_folder_in_the_table(folders, tmp_path):
    for folder, seed in zip(folders, (1, 2), strict=True):
        for name in ("Set5", "Set14"):
            _image(folder / name / "baby.png", seed)
    frame = evaluate.evaluate_folders(*folders, ["PSNR"], tmp_path / "out.csv")
    assert list(frame["image"]) == ["Set14/baby.png", "Set5/baby.png"]


def test_an_image_as_output_is_refused(folders, tmp_path):
    for folder in folders:
        _image(folder / "a.png")
    before = (folders[0] / "a.png").read_bytes()
    with pytest.raises(QartsrError, match="has the ending of an image"):
        evaluate.evaluate_folders(*folders, ["PSNR"], folders[0] / "a.png")
    assert (folders[0] / "a.png").read_bytes() == before
