"""Numbers against committed ones: equal, changed, within the floor, absent, new; and how the floor is measured."""

from __future__ import annotations

import subprocess

import pandas as pd
import pytest
import torch
from test_results import images, rows

from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import results
from qartsr_lib.study.profiles import get_profile
from tests.benchmarks import compare, noise_measurement
from tests.benchmarks.noise_floor import Floor, floor_file
from tests.benchmarks.noise_measurement import Case, Variant, measure, nudged

FLOORS = """kind,bits,quantity,table,image,relative
static,W32A32,PSNR,0.0001,0.0002,0.00001
static,W4A4,PSNR,0.1,0.2,0.005
static,W4A4,NIQE,0.2,0.3,0.02
static,W4A4,error_z_h,0.01,0.02,0.03
static,W2A2,PSNR,0.4,0.5,0.03
trained,W4A4,PSNR,0.3,0.4,0.01
"""


@pytest.fixture
def floor(tmp_path) -> Floor:
    path = tmp_path / "floor.csv"
    path.write_text(FLOORS)
    return Floor.read(path)


@pytest.fixture
def reference(home, tmp_path):
    """A profile with Table 1, and a copy of its tables as the reference."""
    results.write_table("tiny", "table1", rows("samples"), images("samples"), [{"run_id": "aaa"}])
    folder = tmp_path / "reference"
    folder.mkdir()
    path = home / "results/tiny/table1.csv"
    (folder / path.name).write_text(path.read_text())
    return folder


def call(reference, tmp_path, *more) -> int:
    words = ["--profile", "tiny", "--reference", str(reference), "--floor", str(tmp_path / "floor.csv"), *more]
    return compare.main(words)


def change(home, change_rows) -> None:
    path = home / "results/tiny/table1.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change_rows(table).to_csv(path, index=False)


def shifted(by: float, bits: str, column: str = "value"):
    def change_rows(table):
        where = (table["bits"] == bits) & (table["metric"] == "PSNR") & (table["timestep"] == "1")
        assert where.sum() == 1
        table.loc[where, column] = str(float(table.loc[where, column].iloc[0]) + by)
        return table

    return change_rows


def test_equal_trees_pass(home, reference, tmp_path, floor, capsys):
    assert call(reference, tmp_path) == 0
    assert "0 absent, 0 new, 0 beyond the noise floor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("by", "bits", "column", "status"),
    [
        (0.15, "W4A4", "value", 0),  # twice the range of 0.1
        (0.25, "W4A4", "value", 1),
        (0.35, "W4A4", "ci_low", 0),  # an end of an interval moves like one image
        (0.0001, "W32A32", "value", 0),
        (0.01, "W32A32", "value", 1),
        (1, "W4A4", "n_images", 1),  # counts do not move at all
    ],
)
def test_numbers_are_judged_by_bits_and_column(home, reference, tmp_path, floor, capsys, by, bits, column, status):
    change(home, shifted(by, bits, column))
    assert call(reference, tmp_path) == status
    out = capsys.readouterr().out
    assert f"{status} beyond" in out and (f"{bits} PSNR: {column}" in out) == bool(status)


def test_absent_and_new_rows_and_tables(home, reference, tmp_path, floor, capsys):
    change(home, lambda table: table.iloc[1:])
    assert call(reference, tmp_path) == 1
    assert "1 absent, 0 new, 0 beyond" in capsys.readouterr().out
    change(home, lambda table: pd.concat([table, table.iloc[:1].assign(method="Mine")]))
    assert call(reference, tmp_path) == 1
    assert "1 absent, 1 new, 0 beyond" in capsys.readouterr().out
    (home / "results/tiny/table1.csv").rename(home / "results/tiny/table9.csv")
    assert call(reference, tmp_path) == 1
    out = capsys.readouterr().out
    assert "absent  table1\n" in out and "new     table9\n" in out


def test_a_new_table_is_listed_and_is_no_difference(home, reference, tmp_path, floor, capsys):
    (home / "results/tiny/table9.csv").write_text((home / "results/tiny/table1.csv").read_text())
    assert call(reference, tmp_path) == 0
    out = capsys.readouterr().out
    assert "new     table9\n" in out and "0 absent, 1 new, 0 beyond" in out
    change(home, lambda table: pd.concat([table, table.iloc[:1].assign(method="Mine")]))
    assert call(reference, tmp_path) == 1  # a new row of a known table differs


def test_a_value_that_became_unavailable_differs(home, reference, tmp_path, floor, capsys):
    change(home, lambda table: table.assign(value=""))
    assert call(reference, tmp_path, "--lines", "1") == 1
    out = capsys.readouterr().out
    assert "-> n/a" in out and "... and 3 more (--all)" in out


def test_run_ids_notes_and_timings_do_not_count(home, reference, tmp_path, floor):
    change(home, lambda table: table.assign(run_id="other", note="else"))
    assert call(reference, tmp_path) == 0
    known = pd.DataFrame([{"method": "MaxMin", "bits": "W4A4", "runtime": "int8", "latency_ms": "5", "file_MB": "1.5"}])
    slower, larger = known.assign(latency_ms="9"), known.assign(file_MB="1.6")
    assert compare.differences({"deployment": slower}, {"deployment": known}, floor) == []
    (found,) = compare.differences({"deployment": larger}, {"deployment": known}, floor)
    assert (found.column, found.was, found.now) == ("file_MB", "1.5", "1.6")


def test_rows_that_cannot_be_told_apart_are_named(floor):
    table = pd.DataFrame({"method": ["a", "a"], "value": ["1", "2"]})
    with pytest.raises(QartsrError, match=r"table1\.csv: two rows are the same \(a\)"):
        compare.differences({"table1": table}, {"table1": table}, floor)


@pytest.mark.parametrize("profile", ["tiny", "study"])
def test_every_committed_row_can_be_told_apart(profile, floor):
    committed = compare.read_folder(compare.CHECKOUT / "results" / profile)
    assert committed and compare.differences(committed, committed, floor) == []


def test_tolerances(floor):
    assert floor.tolerance("static", "W4A4", "PSNR", "table", 0) == pytest.approx(0.2)
    assert floor.tolerance("trained", "W4A4", "PSNR", "image", 0) == pytest.approx(0.8)
    assert floor.tolerance("static", "W3A3", "PSNR", "table", 0) == pytest.approx(0.8)  # as the next lower width
    assert floor.tolerance("trained", "W2A2", "PSNR", "table", 0) == pytest.approx(0.6)  # the lowest there is
    assert floor.tolerance("static", "W4A4", "LPIPS", "table", 0.5) == pytest.approx(
        2 * 0.025 * 0.5, rel=1e-3
    )  # quartile
    assert floor.measured("error_z_h") and not floor.measured("params_M")


def test_against_git(home, tmp_path, floor):
    results.write_table("tiny", "table1", rows("samples"), images("samples"), [{"run_id": "aaa"}])
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "results"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(home), *words], check=True, capture_output=True)
    committed = compare.read_revision("HEAD", "tiny", home)
    now = compare.read_folder(home / "results/tiny")
    assert list(committed) == ["table1"] and compare.differences(now, committed, floor) == []
    assert compare.read_revision("HEAD", "study", home) == {}
    with pytest.raises(QartsrError, match="--reference"):
        compare.read_revision("no-such-revision", "tiny", home)


def test_problems_are_one_line(home, tmp_path, capsys):
    assert compare.main(["--floor", str(tmp_path / "absent.csv")]) == 2
    assert "--measure-floor makes it" in capsys.readouterr().err
    (tmp_path / "floor.csv").write_text("a,b\n1,2\n")
    assert call(tmp_path, tmp_path) == 2
    assert "is not a noise floor" in capsys.readouterr().err


def test_nudged_weights_move_by_one_unit_in_the_last_place():
    backbone = load_backbone("embedded", 1)
    weights, moved = (model.unet.conv_in.weight for model in (backbone, nudged(backbone, 1)))
    steps = (moved.view(torch.int32) - weights.view(torch.int32)).abs()
    assert set(steps.unique().tolist()) == {0, 1}
    assert nudged(backbone, None) is backbone
    assert not torch.equal(moved, nudged(backbone, 2).unet.conv_in.weight)


@pytest.mark.slow
def test_the_floor_of_a_low_bit_model_is_larger_than_of_full_precision(home):
    profile = get_profile("smoke", n_calibration=1)
    cases = [Case("embedded", 1, "fp", "W32A32"), Case("embedded", 1, "maxmin", "W4A4")]
    same = measure(cases[:1], profile, variants=(Variant(1), Variant(1)))
    assert (same[["table", "image"]] == 0).all(axis=None)  # the same rounding, the same numbers
    found = measure(cases, profile, variants=(Variant(1), Variant(1, 1))).set_index(["bits", "quantity"])
    full, low = (found.loc[(bits, "PSNR"), "table"] for bits in ("W32A32", "W4A4"))
    assert 0 <= full < 1e-3 and low > max(10 * full, 1e-5)  # on AVX2 not one pixel of full precision changes
    assert ("W4A4", "error_z_h") in found.index


def test_the_committed_floor_has_what_tables_need():
    floor = Floor.read(floor_file(compare.CHECKOUT / "results"))
    tolerances = [
        floor.tolerance(kind, bits, "PSNR", "table", 25.0)
        for kind, bits in (("static", "W32A32"), ("static", "W4A4"), ("trained", "W4A4"))
    ]
    assert tolerances == sorted(tolerances) and 0 < tolerances[0] < 1e-3 and tolerances[2] < 1


def test_default_cases_have_a_trained_method():
    cases = noise_measurement.default_cases(get_profile("tiny"))
    assert {case.kind for case in cases} == {"static", "trained"}
    assert {case.bits for case in cases if case.method == "maxmin"} == {"W8A8", "W6A6", "W4A4", "W3A3", "W2A2"}
