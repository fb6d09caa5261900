"""The results contract: columns, merging, bytes, concurrent writers."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import results
from qartsr_lib.study.parts import check_part


def rows(dataset, value=23.456789012, run_id="aaa", metrics=("PSNR", "LPIPS"), bits=("W32A32", "W4A4")):
    return pd.DataFrame(
        [
            {
                "dataset": dataset,
                "backbone": "embedded",
                "timestep": timestep,
                "method": "FP" if width == "W32A32" else "MaxMin",
                "bits": width,
                "metric": metric,
                "value": value if metric == "PSNR" else np.nan,
                "ci_low": value - 1 if metric == "PSNR" else np.nan,
                "ci_high": value + 1 if metric == "PSNR" else np.nan,
                "n_images": 7 if metric == "PSNR" else 0,
                "n_seeds": 1,
                "steps": 0,
                "w_bits_effective": 32.0,
                "note": "" if metric == "PSNR" else "weights not found: put a, b",
                "run_id": run_id,
            }
            for timestep in (1, 1000)
            for width in bits
            for metric in metrics
        ]
    )


def images(dataset, run_id="aaa"):
    return pd.DataFrame(
        [
            (dataset, "embedded", 1000, "MaxMin", "W4A4", 0, image, metric, value, run_id)
            for image in ("b", "a")
            for metric, value in (("SSIM", 0.5), ("PSNR", 20.123456789), ("LPIPS", np.nan))
        ],
        columns=results.PER_IMAGE_COLUMNS,
    )


def test_columns_are_the_contract(home):
    path = results.write_table("tiny", "table1", rows("samples"))
    assert path == home / "results/tiny/table1.csv"
    header = path.read_text().splitlines()[0]
    assert header == (
        "dataset,backbone,timestep,method,bits,metric,value,ci_low,ci_high,n_images,n_seeds,steps,"
        "w_bits_effective,note,run_id"
    )


def test_values_keep_seven_digits_and_unavailable_ones_are_empty(home):
    results.write_table("tiny", "table1", rows("samples"))
    table = results.read_table("tiny", "table1")
    assert set(table["value"].dropna()) == {23.45679}
    unavailable = table[table["metric"] == "LPIPS"]
    assert unavailable["value"].isna().all()
    assert set(unavailable["note"]) == {"weights not found: put a, b"}
    assert "nan" not in (home / "results/tiny/table1.csv").read_text().lower()


def test_order_is_fixed_whatever_order_comes_in(home):
    frame = pd.concat([rows("samples"), rows("RealSR")])
    first = results.write_table("tiny", "table1", frame).read_bytes()
    second = results.write_table("tiny", "table2", frame.sample(frac=1, random_state=3)).read_bytes()
    assert first == second
    table = results.read_table("tiny", "table1")
    assert list(dict.fromkeys(table["dataset"])) == ["samples", "RealSR"]
    assert list(dict.fromkeys(table["timestep"])) == [1000, 1]
    assert list(dict.fromkeys(table["bits"])) == ["W32A32", "W4A4"]
    assert list(dict.fromkeys(table["metric"])) == ["PSNR", "LPIPS"]


def test_method_variants_follow_their_method():
    names = ["QArtSR", "MaxMin [UNet only]", "SVDQuant", "Mine", "FP", "MaxMin"]
    expected = ["FP", "MaxMin", "MaxMin [UNet only]", "SVDQuant", "QArtSR", "Mine"]
    assert sorted(names, key=lambda name: results.rank("method", name)) == expected


def test_a_run_that_lacks_a_data_set_keeps_its_rows(home):
    results.write_table("study", "table1", pd.concat([rows("samples", 20.0), rows("RealSR", 25.1234567)]))
    before = (home / "results/study/table1.csv").read_text().splitlines()
    results.write_table("study", "table1", rows("samples", 21.0, run_id="bbb"))
    after = (home / "results/study/table1.csv").read_text().splitlines()
    assert [line for line in after if "RealSR" in line] == [line for line in before if "RealSR" in line]
    table = results.read_table("study", "table1")
    assert set(table.loc[table["dataset"] == "samples", "run_id"]) == {"bbb"}
    assert len(after) == len(before)


def test_rows_of_a_present_data_set_are_replaced_as_a_whole(home):
    results.write_table("tiny", "table1", rows("samples", bits=("W32A32", "W8A8", "W4A4")))
    results.write_table("tiny", "table1", rows("samples", bits=("W32A32", "W4A4")))
    assert set(results.read_table("tiny", "table1")["bits"]) == {"W32A32", "W4A4"}


def test_a_part_of_a_table_replaces_its_own_cells_alone(home):
    results.write_table("tiny", "table3", rows("samples", 20.0), images("samples"))
    part, part_images = rows("samples", 30.0, "bbb", bits=("W4A4", "W2A2")), images("samples", "bbb")
    results.write_table("tiny", "table3", part, part_images.assign(bits="W2A2", value=9.0), by=results.KEYS)
    table, per_image = results.read_table("tiny", "table3"), results.read_per_image("tiny", "table3")
    values = table[table["metric"] == "PSNR"].groupby("bits")["value"].unique()
    assert {bits: list(found) for bits, found in values.items()} == {"W32A32": [20.0], "W4A4": [30.0], "W2A2": [30.0]}
    assert set(per_image["bits"]) == {"W4A4", "W2A2"}
    assert set(per_image[per_image["bits"] == "W2A2"]["value"]) == {9.0}
    assert set(per_image[per_image["bits"] == "W4A4"]["run_id"]) == {"aaa"}


def test_a_table_in_two_parts_is_the_table_made_at_once(home):
    results.write_table("tiny", "table3", rows("samples"), images("samples"))
    whole = {path: path.read_bytes() for path in sorted((home / "results/tiny").rglob("*.csv"))}
    for path in whole:
        path.unlink()
    for _, part in sorted(rows("samples").groupby("bits"), reverse=True):
        own = images("samples")[lambda frame, part=part: frame["bits"].isin(part["bits"])]
        results.write_table("tiny", "table3", part, own if len(own) else None, by=results.KEYS)
    assert {path: path.read_bytes() for path in sorted((home / "results/tiny").rglob("*.csv"))} == whole


def test_further_columns_follow_and_survive_merging(home):
    results.write_table("tiny", "table4", rows("samples").assign(trq=1))
    results.write_table("tiny", "table4", rows("RealSR").assign(trq=0))
    table = results.read_table("tiny", "table4")
    assert list(table.columns) == [*results.COLUMNS, "trq"]
    assert dict(table.groupby("dataset")["trq"].first()) == {"RealSR": 0, "samples": 1}


def test_writing_again_gives_the_same_bytes(home):
    path = results.write_table("tiny", "table1", rows("samples"), images("samples"))
    per_image = home / "results/tiny/per_image/table1/samples.csv"
    before = path.read_bytes(), per_image.read_bytes()
    results.write_table("tiny", "table1", rows("samples"), images("samples"))
    assert (path.read_bytes(), per_image.read_bytes()) == before


def test_per_image_values_come_back(home):
    results.write_table("tiny", "table1", rows("samples"), images("samples"))
    lines = (home / "results/tiny/per_image/table1/samples.csv").read_text().splitlines()
    assert lines[0] == "dataset,backbone,timestep,method,bits,seed,image,run_id,PSNR,SSIM,LPIPS"
    assert lines[1] == "samples,embedded,1000,MaxMin,W4A4,0,a,aaa,20.12346,0.5,"
    long = results.read_per_image("tiny", "table1")
    assert sorted(zip(long["image"], long["metric"], long["value"], strict=True)) == [
        ("a", "PSNR", 20.12346),
        ("a", "SSIM", 0.5),
        ("b", "PSNR", 20.12346),
        ("b", "SSIM", 0.5),
    ]


def test_record_is_rewritten_only_when_it_says_something_new(home):
    record = {"run_id": "aaa", "parameters": {"bits": ("W4A4",)}, "outputs_sha256": "x", "duration_s": {"build": 1.0}}
    path = home / "results/tiny/runs/aaa.json"
    results.write_table("tiny", "table1", rows("samples"), records=[record])
    results.write_table("tiny", "table1", rows("samples"), records=[{**record, "duration_s": {"build": 2.0}}])
    assert json.loads(path.read_text())["duration_s"] == {"build": 1.0}
    results.write_table("tiny", "table1", rows("samples"), records=[{**record, "outputs_sha256": "y"}])
    assert json.loads(path.read_text())["outputs_sha256"] == "y"
    dirty, clean = ({"revision": letter * 40, "dirty": letter == "d"} for letter in "dc")
    for states, kept in (((dirty, clean), clean), ((clean, dirty), clean), ((dirty, dirty | {"revision": "e"}), dirty)):
        for state in states:
            results.write_table("tiny", "table1", rows("samples"), records=[{**record, "git": state}])
        assert json.loads(path.read_text())["git"] == kept
        path.unlink()
    path.write_text("{damaged")
    results.write_table("tiny", "table1", rows("samples"), records=[record])
    assert json.loads(path.read_text())["outputs_sha256"] == "x"


def test_records_that_no_table_names_are_pruned(home):
    records = [{"run_id": "aaa"}, {"run_id": "bbb"}]
    results.write_table("tiny", "table1", rows("samples", run_id="aaa"), records=records)
    assert results.prune_records("tiny") == ["bbb"]
    assert [path.name for path in (home / "results/tiny/runs").iterdir()] == ["aaa.json"]
    assert results.prune_records("study") == []


def test_concurrent_writers_lose_nothing(home):
    names = [f"set{index}" for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: results.write_table("tiny", "table1", rows(name), images(name)), names))
    assert sorted(set(results.read_table("tiny", "table1")["dataset"])) == names


def test_full_disk_keeps_the_old_table(home, monkeypatch):
    path = results.write_table("tiny", "table1", rows("samples"))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QartsrError, match="the disk is full"):
        results.write_table("tiny", "table1", rows("samples", 1.0))
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["table1.csv"]


@pytest.mark.parametrize("content", ["", "not,a\ntable,at,all\n", "a,b\n1,2\n"])
def test_damaged_table_is_named(home, content):
    path = home / "results/tiny/table1.csv"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(QartsrError, match=r"table1\.csv: is not a"):
        results.write_table("tiny", "table1", rows("samples"))
    assert path.read_text() == content


def test_absent_table(home):
    with pytest.raises(QartsrError, match="no such table"):
        results.read_table("tiny", "table9")


def test_a_part_takes_no_metrics_from_the_rows_that_it_makes_anew(home):
    check_part("tiny", "table3", rows("a"), images("a"))  # no table yet
    results.write_table("tiny", "table3", rows("a"), images("a"))
    check_part("tiny", "table3", rows("a", metrics=("LPIPS", "MAE", "PSNR")), images("a"))
    check_part("tiny", "table3", rows("a", bits=("W2A2",), metrics=("PSNR",)), images("a"))
    with pytest.raises(QartsrError, match="table3.csv: has LPIPS of rows that this part makes anew"):
        check_part("tiny", "table3", rows("a", bits=("W4A4",), metrics=("PSNR", "MAE")), images("a"))


def test_rows_of_a_part_are_over_the_images_of_the_others(home):
    results.write_table("tiny", "table3", rows("a"), images("a"))
    part = images("a").assign(bits="W2A2")
    fewer = part[part["image"] == "a"]
    check_part("tiny", "table3", rows("a", bits=("W2A2",)), part)
    check_part("tiny", "table3", rows("b", bits=("W2A2",)), fewer.assign(dataset="b"))
    check_part("tiny", "table3", rows("a"), fewer)  # no other rows stay
    with pytest.raises(QartsrError, match="rows of a are over 2 images, this part's over 1 .1 of them the same"):
        check_part("tiny", "table3", rows("a", bits=("W2A2",)), fewer)


def test_rows_of_a_part_are_over_the_same_crops(home):
    def record(run_id, sha256, **more):
        return {"run_id": run_id, "parameters": {}, "data": {"name": "a", "sha256": sha256}} | more

    results.write_table("tiny", "table3", rows("a").assign(run_id="r"), None, [record("r", "whole")])
    for fits in (record("s", "whole", max_side=320), record("s", "written by another program")):
        check_part("tiny", "table3", rows("a", bits=("W2A2",)), images("a"), [fits])
    with pytest.raises(QartsrError, match="of a are over images cropped to None pixels a side, this part's to 64"):
        check_part("tiny", "table3", rows("a", bits=("W2A2",)), images("a"), [record("s", "b", max_side=64)])


def test_rows_of_a_part_are_made_under_the_conditions_of_the_others(home):
    def record(run_id, loss, images="crops", seeds=(0,)):
        options = {"image_loss": loss, "batch": 1, "teacher": "float32", "images": 8}
        parameters = {"options": options, "seeds": list(seeds)}
        return {"run_id": run_id, "parameters": parameters, "calibration": {"name": "c", "sha256": images}}

    results.write_table("tiny", "table3", rows("a").assign(run_id="r", n_seeds=2), None, [record("r", "l1")])
    part = rows("a", bits=("W2A2",))
    check_part("tiny", "table3", part, images("a"), [record("s", "l1")])
    with pytest.raises(QartsrError, match="its other rows have image_loss l1, this part's lpips; give it the same"):
        check_part("tiny", "table3", part, images("a"), [record("s", "lpips")])
    for name, value, told in (("images", 64, "images 8"), ("ranges", "least-squares", "ranges min-max")):
        other = record("s", "l1")
        other["parameters"]["options"][name] = value
        with pytest.raises(QartsrError, match=f"its other rows have {told}, this part's {value}; give it the same"):
            check_part("tiny", "table3", part, images("a"), [other])
    with pytest.raises(QartsrError, match="its other rows have calibration images crops, this part's others"):
        check_part("tiny", "table3", part, images("a"), [record("s", "l1", "others")])
    with pytest.raises(QartsrError, match="has 2 seeds of rows that this part makes anew with 1; give it these, too"):
        check_part("tiny", "table3", rows("a"), images("a"), [record("s", "l1")])
    check_part("tiny", "table3", rows("a"), images("a"), [record("s", "lpips", seeds=(0, 1))])  # no other rows stay
    results.write_table("tiny", "table3_loss", rows("a").assign(run_id="r"), None, [])
    check_part("tiny", "table3_loss", part, images("a"), [record("s", "lpips")])  # what it compares
