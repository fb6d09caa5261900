"""Pairing of folders, the long frame and its CSV, and every bad input in one line."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qartsr_lib import evaluate, metrics
from qartsr_lib.errors import QartsrError
from qartsr_lib.images import write_png


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


@pytest.mark.parametrize(
    ("sr_name", "hr_name"),
    [
        ("a.png", "a.png"),
        ("a.png", "a.jpg"),
        ("Canon_001_LR4.png", "Canon_001_HR.png"),
        ("Canon_001_LR4.png", "Canon_001_LR4.png"),
        ("0801x4.png", "0801.png"),
        ("0801.png", "0801x4.png"),
        ("0801_LR4x4.png", "0801_HR.PNG"),
    ],
)
def test_partners_are_found(folders, sr_name, hr_name):
    sr, hr = folders
    _touch(sr, sr_name)
    _touch(hr, hr_name, "unused.png")
    assert evaluate.pair_folders(sr, hr) == [(sr / sr_name, hr / hr_name)]


def test_an_equal_name_wins_over_an_equal_stem(folders):
    sr, hr = folders
    _touch(sr, "a.png", "b_LR4.png")
    _touch(hr, "a.png", "ax4.png", "a_HR.png", "b_HR.png")
    assert evaluate.pair_folders(sr, hr) == [(sr / "a.png", hr / "a.png"), (sr / "b_LR4.png", hr / "b_HR.png")]


@settings(max_examples=50, deadline=None)
@given(stem=st.text("abx4_LRH0", min_size=1, max_size=6), suffix=st.sampled_from(["", "_LR4", "_HR", "x4"]))
def test_a_suffix_never_changes_the_bare_stem(stem, suffix):
    from pathlib import Path

    bare = evaluate._bare_stem(Path(stem + suffix + ".png"))
    assert bare == evaluate._bare_stem(Path(stem + ".png"))
    assert bare and stem.startswith(bare)


def test_a_missing_partner_is_named(folders):
    sr, hr = folders
    _touch(sr, "a.png", "lonely.png")
    _touch(hr, "a.png")
    with pytest.raises(QartsrError, match=r"lonely\.png: no image in .*hr has the same name"):
        evaluate.pair_folders(sr, hr)


def test_two_fitting_references_are_refused(folders):
    sr, hr = folders
    _touch(sr, "a_LR4.png")
    _touch(hr, "a.png", "a_HR.png")
    with pytest.raises(QartsrError, match=r"a_LR4\.png: more than one reference fits \(a\.png and a_HR\.png"):
        evaluate.pair_folders(sr, hr)


def test_two_images_of_one_reference_are_refused(folders):
    sr, hr = folders
    _touch(sr, "a.png", "a.jpg")
    _touch(hr, "a.png")
    with pytest.raises(QartsrError, match=r"a\.jpg and .*a\.png both belong to the reference a\.png"):
        evaluate.pair_folders(sr, hr)


@pytest.mark.parametrize("which", ["sr", "hr"])
@pytest.mark.parametrize("state", ["empty", "missing"])
def test_empty_and_missing_folders(folders, which, state):
    for folder in folders:
        if folder.name != which:
            _touch(folder, "a.png")
        elif state == "missing":
            folder.rmdir()
    with pytest.raises(QartsrError, match=f"{which}: (holds no image|no such folder)"):
        evaluate.pair_folders(*folders)


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


def test_rows_of_one_pair_are_those_of_the_frame(folders):
    sr, hr = _image(folders[0] / "a.png", 1), _image(folders[1] / "a.png", 2)
    names = ["PSNR", "SSIM", "LPIPS"]
    rows = evaluate.score_pair(sr, hr, names)
    assert [set(row) for row in rows] == [{"image", "metric", "value", "note"}] * 3
    assert math.isnan(rows[2]["value"]) and rows[2]["note"]
    pd.testing.assert_frame_equal(pd.DataFrame(rows), evaluate.evaluate_pairs([(sr, hr)], names), check_dtype=False)


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


def test_an_output_that_cannot_be_written_is_named(folders, tmp_path):
    for folder in folders:
        _image(folder / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(QartsrError, match="cannot be written"):
        evaluate.evaluate_folders(*folders, ["PSNR"], tmp_path / "file" / "out.csv")


def test_a_folder_as_output_is_refused_before_scoring(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate_pairs", lambda *_: pytest.fail("scored"))
    for name in ("sr", "hr"):
        write_png(tmp_path / name / "cat.png", torch.rand(1, 3, 16, 16))
    with pytest.raises(QartsrError, match="is a folder; name a CSV file"):
        evaluate.evaluate_folders(tmp_path / "sr", tmp_path / "hr", ["PSNR"], tmp_path)
