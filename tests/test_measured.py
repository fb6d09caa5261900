"""Cached measurements: resumed, traceable, equal to those of an undisturbed run."""

import json

import pandas as pd
import pytest

from qartsr_lib.base import paths
from qartsr_lib.base.cache import stable_hash
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import results
from qartsr_lib.study.measured import measure_questions

QUESTIONS = {
    ("net", t): {"parameters": {"backbone": "net", "timestep": t}, "weights_sha256": "00"} for t in (1000, 500, 1)
}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    return []


def measuring(calls, stop_at=None):
    def measure(cell):
        if cell[1] == stop_at:
            raise KeyboardInterrupt
        calls.append(cell[1])
        rows = [("photos", *cell, image, 0.1 / cell[1] + index / 3) for index, image in enumerate(("001", "002"))]
        return pd.DataFrame(rows, columns=["dataset", "backbone", "timestep", "image", "error"])

    return measure


def test_an_interrupted_measurement_continues(tmp_path, calls, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        measure_questions("tiny", QUESTIONS, measuring(calls, stop_at=1))
    resumed = measure_questions("tiny", QUESTIONS, measuring(calls))
    assert calls == [1000, 500, 1]
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path / "other"))
    whole = measure_questions("tiny", QUESTIONS, measuring([]))
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    assert resumed.table["image"].tolist() == ["001", "002"] * 3


def test_rows_of_others_stay(calls):
    measured = measure_questions("tiny", QUESTIONS, measuring(calls))
    measured.write("tries")
    measure_questions("tiny", {("net", 1): QUESTIONS["net", 1]}, measuring(calls)).write(
        "tries", by=("dataset", "timestep")
    )
    path = paths.results_dir("tiny") / "tries.csv"
    assert sorted(pd.read_csv(path)["timestep"]) == [1, 1, 500, 500, 1000, 1000]
    measure_questions("tiny", {("net", 1): QUESTIONS["net", 1]}, measuring(calls)).write("tries")
    assert sorted(pd.read_csv(path)["timestep"]) == [1, 1]


def test_every_row_names_a_record_on_disk(calls):
    measured = measure_questions("tiny", QUESTIONS, measuring(calls))
    measured.write("theorem")
    rows = pd.read_csv(paths.results_dir("tiny") / "theorem.csv", dtype=str)
    assert set(rows["run_id"]) == {stable_hash(question)[:12] for question in QUESTIONS.values()}
    for run_id in rows["run_id"].unique():
        record = json.loads((paths.results_dir("tiny") / "runs" / f"{run_id}.json").read_text())
        assert record["run_id"] == run_id and record["weights_sha256"] == "00" and record["environment"]
    assert results.prune_records("tiny") == []
    assert measured.run_ids(timestep=500) in rows["run_id"].to_list()
    assert len(measured.run_ids(backbone="net").split()) == 3


def test_settings_that_leave_nothing_to_measure_are_told_and_write_nothing(home):
    for questions in ({}, {"cell": {"parameters": {"bits": []}}}):
        with pytest.raises(QartsrError, match="settings of profile 'tiny' leave nothing to measure"):
            measure_questions("tiny", questions, lambda _: pd.DataFrame([]))
