"""Sweeps: built once, scored from PNGs, resumable, the same numbers after kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from study_fakes import IMAGES, PROFILE, FakeBackbone, fake_parts, fake_score, sweep

from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.images.datasets import DATASETS
from qartsr_lib.study import results
from qartsr_lib.study import sweep as study
from qartsr_lib.study.evaluator import Evaluator, Experiment
from qartsr_lib.study.profiles import get_profile
from qartsr_lib.study.sweep import grid, run_table
from qartsr_lib.training.states import save_state

CELLS = len(PROFILE.timesteps) * (1 + len(PROFILE.bits))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished sweep, for tests that only read it: (run, what it computed)."""
    log, built, loaded = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QARTSR_HOME", str(tmp_path_factory.mktemp("finished")))
        patch.delenv("DATA_ROOT", raising=False)
        yield sweep(log=log, built=built, loaded=loaded), {"log": log, "built": built, "loaded": loaded}


def test_grid_has_full_precision_once_per_timestep():
    experiments = grid(PROFILE, ("maxmin", "other"))
    assert len(experiments) == len(set(experiments)) == 2 * (1 + 2 * 2)
    full = [item for item in experiments if item.method == "fp"]
    assert [(item.timestep, item.bits) for item in full] == [(1000, "W32A32"), (1, "W32A32")]


def test_each_model_is_built_once_and_each_image_upscaled_once(finished):
    run, (log, built, loaded) = finished[0], finished[1].values()
    assert len(loaded) == len(PROFILE.timesteps)
    assert len(built) == len(set(built)) * 2 == CELLS, "FP and MaxMin once per timestep"
    assert len(log) == CELLS * IMAGES
    assert len(run.table) == CELLS * len(PROFILE.metrics)


def test_one_model_serves_all_its_data_sets(home):
    built, loaded = [], []
    profile = replace(PROFILE, datasets=("samples", "samples-realistic"), max_images=1)
    experiments = grid(profile, ("maxmin",))
    random.Random(0).shuffle(experiments)
    run = run_table(experiments, profile, parts=fake_parts(built=built, loaded=loaded))
    assert len(built) == CELLS
    assert len(loaded) == len(profile.timesteps)
    assert set(run.table["dataset"]) == {"samples", "samples-realistic"}


def test_full_precision_needs_no_calibration(home, monkeypatch):
    monkeypatch.setattr(study, "calibration_list", lambda *_: pytest.fail("not needed"))
    built = []
    experiments = [item for item in grid(PROFILE, ()) if item.timestep == 1]
    run_table(experiments, PROFILE, parts=fake_parts(built=built))
    assert [item[3] for item in built] == [0]


def test_values_are_means_over_the_saved_pngs(finished):
    run, _ = finished
    experiment = Experiment("plain", 1, "maxmin", "W4A4", "samples")
    pairs = DATASETS.get("samples").pairs(max_images=IMAGES)
    expected = np.mean([fake_score(run.images[experiment, pair.id], pair.hr, ["PSNR"])["PSNR"][0] for pair in pairs])
    row = run.table.query("timestep == 1 and bits == 'W4A4' and metric == 'PSNR'").iloc[0]
    assert row["value"] == pytest.approx(expected, rel=1e-12)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert (row["n_images"], row["n_seeds"], row["w_bits_effective"]) == (IMAGES, 1, 4.0)
    assert "fewer than ten" in row["note"]
    assert Image.open(run.images[experiment, pairs[0].id]).mode == "RGB"


def test_unavailable_metric_is_a_reason_and_never_a_number(finished):
    absent = finished[0].table.query("metric == 'ABSENT'")
    assert len(absent) == CELLS
    assert absent["value"].isna().all()
    assert set(absent["note"]) == {"weights not found"}
    assert set(absent["n_images"]) == {0}


def test_seeds_are_averaged_per_image_before_the_interval(home):
    profile = replace(PROFILE, timesteps=(1,), bits=("W4A4",))
    experiments = [replace(grid(profile, ("maxmin",))[-1], seed=seed) for seed in (0, 1, 2)]
    run = run_table(experiments, profile, parts=fake_parts())
    row = run.table.query("metric == 'PSNR'").iloc[0]
    values = run.per_image.query("metric == 'PSNR'")
    assert (row["n_seeds"], row["n_images"], len(values)) == (3, IMAGES, 3 * IMAGES)
    assert row["value"] == pytest.approx(values["value"].mean(), rel=1e-12)
    assert len(run.records) == 1
    assert run.records[0]["parameters"]["seeds"] == [0, 1, 2]


def test_options_and_label_tell_variants_apart(home):
    built = []
    plain = Experiment("plain", 1, "maxmin", "W4A4", "samples")
    variant = replace(plain, options=(("bias", "b"),), label="MaxMin [bias b]")
    run = run_table([plain, variant], PROFILE, parts=fake_parts(built=built))
    assert set(run.table["method"]) == {"MaxMin", "MaxMin [bias b]"}
    assert run.table["run_id"].nunique() == 2
    assert built[1][-1] == (("bias", "b"),)


def test_second_run_finds_everything_and_gives_the_same(finished):
    first, log, loaded = finished[0], [], []
    second = sweep(log=log, loaded=loaded)
    assert log == []
    assert len(loaded) == len(PROFILE.timesteps), "loaded only to know the weights' hash"
    assert first.table.equals(second.table)


@pytest.mark.parametrize("change", ["weights", "calibration", "image", "options", "source", "threads"])
def test_what_determines_a_run_is_in_its_key(home, monkeypatch, change):
    experiment = Experiment("plain", 1, "maxmin", "W4A4", "samples")
    profile, parts, log = replace(PROFILE, max_images=1), fake_parts(), []
    run_table([experiment], profile, parts=parts)
    again = fake_parts(log=log)
    if change == "weights":
        load = again.load_backbone

        def other(*arguments):
            backbone = load(*arguments)
            backbone.weights_sha256 = "other"
            return backbone

        again = replace(again, load_backbone=other)
    elif change == "calibration":
        profile = replace(profile, n_calibration=3)
    elif change == "image":
        monkeypatch.setattr("qartsr_lib.images.datasets.samples.CROP", 160)
    elif change == "options":
        experiment = replace(experiment, options=(("bias", "b"),))
    elif change == "source":
        monkeypatch.setattr("qartsr_lib.base.provenance.source_sha256", lambda: "edited")
    else:
        monkeypatch.setattr("qartsr_lib.base.provenance.torch.get_num_threads", lambda: 99)
    run_table([experiment], profile, parts=again)
    assert len(log) == 1


def test_metrics_are_scored_again_without_upscaling_again(home):
    experiment, log = Experiment("plain", 1, "fp", "W32A32", "samples"), []
    run_table([experiment], replace(PROFILE, metrics=("PSNR",)), parts=fake_parts())
    parts = replace(fake_parts(log=log), identity=lambda names: {name: {"version": 2} for name in names})
    run = run_table([experiment], replace(PROFILE, metrics=("PSNR",)), parts=parts)
    assert log == []
    assert run.table["value"].notna().all()


def test_metrics_with_weights_are_shared_by_tables_that_differ_in_the_others(home):
    asked = []
    parts = fake_parts()

    def score(sr, hr, names):
        asked.append(tuple(names))
        return parts.score(sr, hr, names)

    weights = {"DISTS": {"vgg16.pth": "sha"}, "NIQE": {"niqe.mat": "sha"}}
    identity = lambda names: {name: {"weights": weights.get(name, {})} for name in names}  # noqa: E731
    found = []
    for metrics in (("PSNR", "DISTS", "SSIM", "NIQE"), ("PSNR", "DISTS", "NIQE")):
        profile = replace(PROFILE, metrics=metrics)
        run = run_table(grid(profile, ("maxmin",))[:1], profile, parts=replace(parts, score=score, identity=identity))
        found.append(run.table.set_index("metric")["value"])
        assert list(found[-1].index) == list(metrics), "in the order in which they were asked for"
    images = asked.count(("PSNR", "SSIM"))
    assert images and asked.count(("DISTS", "NIQE")) == images and asked.count(("PSNR",)) == images
    assert len(asked) == 3 * images
    assert found[0][found[1].index].equals(found[1])


def test_damaged_cache_entry_is_computed_again(finished):
    before, log = finished[0], []
    for path in sorted(before.images.values())[:2]:
        path.write_bytes(path.read_bytes()[:100])
    after = sweep(log=log)
    assert len(log) == 2
    assert before.table.equals(after.table)


def test_lost_description_of_a_model_in_memory_is_made_again(home):
    profile, experiment = replace(PROFILE, max_images=1), Experiment("plain", 1, "maxmin", "W4A4", "samples")
    evaluator = study._evaluator([experiment], profile, None, fake_parts(), RunCache(home / "cache"), "cpu")
    before = evaluator.model_info(experiment)
    for path in (home / "cache/model").rglob("answer.json"):
        path.write_text("{")
    assert evaluator.model_info(experiment) == before | {"seconds": evaluator.model_info(experiment)["seconds"]}


def test_records_name_the_run_and_hold_no_paths(finished):
    run, _ = finished
    assert {record["run_id"] for record in run.records} == set(run.table["run_id"])
    maxmin = next(record for record in run.records if record["parameters"]["method"] == "maxmin")
    assert maxmin["calibration"]["name"] == "samples-calibration"
    assert maxmin["data"]["images"] == IMAGES
    assert maxmin["evaluation"]["batch"] == 1
    assert {"git", "environment", "duration_s", "peak_memory_mib", "weights_sha256"} <= set(maxmin)
    assert os.environ["QARTSR_HOME"] not in json.dumps(run.records)


def test_absent_data_sets_are_skipped_and_named(home, tmp_path, capsys):
    profile = replace(PROFILE, datasets=("samples", "RealSR"), timesteps=(1,))
    run = run_table(grid(profile, ()), profile, data_root=tmp_path, parts=fake_parts())
    assert set(run.table["dataset"]) == {"samples"}
    assert "RealSR is skipped: no folder RealSR" in capsys.readouterr().out
    with pytest.raises(QartsrError, match="no data set of this run is available"):
        run_table(grid(replace(profile, datasets=("RealSR",)), ()), profile, data_root=tmp_path, parts=fake_parts())


def test_settings_that_leave_nothing_are_told(home):
    with pytest.raises(QartsrError, match="parts: the settings of profile 'smoke' leave nothing to measure"):
        run_table([], PROFILE, parts=fake_parts(), label="parts")


def test_broken_pair_stops_before_anything_is_computed(home, tmp_path):
    for folder, size in (("LR", 8), ("HR", 31)):
        (tmp_path / "Urban100" / folder).mkdir(parents=True)
        Image.new("RGB", (size, size)).save(tmp_path / "Urban100" / folder / "img_001.png")
    profile, log = replace(PROFILE, datasets=("samples", "Urban100")), []
    with pytest.raises(QartsrError, match=r"img_001\.png: is 31x31"):
        run_table(grid(profile, ()), profile, data_root=tmp_path, parts=fake_parts(log=log))
    assert log == []


class _Broken(FakeBackbone):
    def upscale(self, lq):
        return lq.repeat(1, 1, 4, 4) / 0.0 * 0.0


class _Plain:
    label, trains = "FP", False

    def build(self, backbone, *_, **__):
        return SimpleNamespace(backbone=backbone, w_bits_effective=32.0, steps=0, note="")


def test_output_that_is_not_finite_is_a_row_without_value(home):
    run = run_table(
        [Experiment("plain", 1, "fp", "W32A32", "samples")],
        PROFILE,
        parts=replace(fake_parts(), load_backbone=lambda *_: _Broken(1), method=lambda name: _Plain()),
    )
    assert run.table["value"].isna().all() and run.table["note"].str.contains("not finite").all()
    assert (run.table["n_images"] == 0).all() and run.images == {}


def test_training_that_diverges_is_a_row_without_value_and_not_tried_twice(home):
    tried = []

    class Diverging:
        label, trains = "QArtSR", True

        def build(self, backbone, bits, images, **options):
            tried.append(bits)
            options["checkpoint"].parent.mkdir(parents=True, exist_ok=True)
            options["checkpoint"].write_bytes(b"unfinished")
            raise Diverged("QArtSR W4A4: loss is not finite after 8 images; use smaller rates")

    parts = fake_parts()
    parts = replace(parts, method=lambda name, fake=parts.method: Diverging() if name == "qartsr" else fake(name))
    cells = [Experiment("plain", 1, "qartsr", "W4A4", "samples"), Experiment("plain", 1, "maxmin", "W4A4", "samples")]
    first, again = (run_table(cells, PROFILE, parts=parts) for _ in range(2))
    assert tried == ["W4A4"] and not list(home.rglob("unfinished/*.pt"))
    for run in (first, again):
        values = run.table.set_index(["method", "metric"])
        assert np.isnan(values.loc[("QArtSR", "PSNR"), "value"]) and values.loc[("MaxMin", "PSNR"), "value"] > 0
        assert "not finite after 8 images" in values.loc[("QArtSR", "PSNR"), "note"]
        assert {experiment.method for experiment, _ in run.images} == {"maxmin"}


def test_same_experiment_twice_is_a_programming_error(home):
    experiment = Experiment("plain", 1, "fp", "W32A32", "samples")
    with pytest.raises(ValueError, match="twice"):
        run_table([experiment, experiment], PROFILE, parts=fake_parts())


def test_own_cache_can_be_given(home, tmp_path):
    cache = RunCache(tmp_path / "elsewhere")
    run = run_table(grid(PROFILE, ()), PROFILE, parts=fake_parts(), cache=cache)
    assert all(path.is_relative_to(tmp_path / "elsewhere") for path in run.images.values())


def _start(home: Path, log: Path, seconds: float) -> subprocess.Popen:
    script = Path(__file__).with_name("study_fakes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)}
    return subprocess.Popen(
        [sys.executable, str(script), str(home), str(log), str(seconds)], env=environment, stderr=subprocess.DEVNULL
    )


def _kill_in_the_middle(home: Path, log: Path, more: int) -> None:
    """Start the sweep, wait until `more` further images are computed, kill it with signal 9."""
    target = (len(log.read_text().splitlines()) if log.exists() else 0) + more
    process = _start(home, log, 0.3)
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < target:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _files(home: Path) -> dict[str, bytes]:
    """Every table and per-image file; run records without what legitimately differs."""
    root = home / "results"
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.csv")}
    for path in root.rglob("*.json"):
        record = json.loads(path.read_text())
        kept = {key: value for key, value in record.items() if key not in results.VOLATILE}
        files[str(path.relative_to(root))] = json.dumps(kept).encode()
    return files


@pytest.mark.slow
def test_killed_three_times_ends_with_the_same_bytes(tmp_path):
    """Signal 9 in the middle of a sweep, three times; nothing that had finished is computed again."""
    killed, undisturbed, log = tmp_path / "killed", tmp_path / "undisturbed", tmp_path / "log"
    for more in (2, 4, 3):
        _kill_in_the_middle(killed, log, more)
    assert not (killed / "results").exists(), "it was killed before the table was written"
    assert _start(killed, log, 0.0).wait() == 0
    assert CELLS * IMAGES <= len(log.read_text().splitlines()) <= CELLS * IMAGES + 3
    assert _start(undisturbed, tmp_path / "other-log", 0.0).wait() == 0
    assert _files(killed) == _files(undisturbed)
    assert len(_files(killed)) == 2 + CELLS


def test_unknown_profile_field_is_caught_before_a_sweep():
    with pytest.raises(QartsrError):
        get_profile("smoke", nonsense=1)


def test_a_seed_that_diverged_is_not_counted():
    keys = {"dataset": "d", "backbone": "b", "timestep": 1, "method": "m", "bits": "W4A4", "metric": "PSNR"}
    cells = [("one", 0, 20.0), ("two", 0, 21.0), ("one", 1, None), ("two", 1, None)]
    scored = pd.DataFrame([keys | {"run_id": "r", "image": i, "seed": s, "value": v, "note": ""} for i, s, v in cells])
    info = {"w_bits_effective": 4.0, "note": "", "steps": 8}
    assert study._row(scored.astype({"value": float}), [info, info])["n_seeds"] == 1
    unavailable = scored.assign(value=float("nan"))
    assert study._row(unavailable, [info, info])["n_seeds"] == 2  # no metric, which says nothing of seeds


def test_the_time_of_an_interrupted_training_counts_where_it_is_told(tmp_path):
    here = SimpleNamespace(_unfinished=lambda _: tmp_path / "state.pt")
    assert Evaluator._spent(here, None) == 0
    (tmp_path / "state.pt").write_text("another method's own")
    assert Evaluator._spent(here, None) == 0
    save_state(tmp_path / "state.pt", {"history": [{"seconds": 1.5, "loss": 1.0}, {"seconds": 2.0, "loss": 1.0}]})
    assert Evaluator._spent(here, None) == 3.5
