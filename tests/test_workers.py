"""Sweeps on several workers: faults struck at real processes, and the parts one by one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed import KilledWorker
from study_fakes import PROFILE, fake_parts
from worker_fakes import EXPERIMENTS, PHASES, parts

from qartsr_lib.base import provenance, registry
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.machine import checked_workers
from qartsr_lib.study import parallel
from qartsr_lib.study import sweep as study
from qartsr_lib.study.evaluator import MARK, Experiment
from qartsr_lib.study.parallel import connected, local, measure_model
from qartsr_lib.study.sweep import grid, run_table
from tests.faults.__main__ import COMMAND, main
from tests.faults.strikes import CLUSTER, FAULTS, compared, interrupt, strike
from tests.faults.trial import Trial, end_with, loopback, sweep

CHECKOUT = Path(__file__).resolve().parent.parent
PYTHONPATH = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
FAKE_SWEEP = (sys.executable, str(CHECKOUT / "tests" / "worker_fakes.py"))
IMAGES = len(EXPERIMENTS) * PROFILE.max_images
#: Kills and Ctrl-C have tests of their own, which see more; `python -m tests.faults` has every fault.
TESTED = [fault for fault in FAULTS if fault[1] == CLUSTER and "signal" not in fault[0] and fault[0] != "Ctrl-C"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Home of an undisturbed sweep in this process."""
    home = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QARTSR_HOME", str(home))
        sweep(EXPERIMENTS, PROFILE, "", 0.0, parts())
    return home


class TrialHere(Trial):
    """Runs what follows a fault in this process, which has loaded everything."""

    def run(self, workers: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QARTSR_HOME", str(self.home))
            patch.setattr("qartsr_lib.base.provenance.torch.get_num_threads", lambda: 1)
            sweep(EXPERIMENTS, PROFILE, workers, 0.0, parts())


@pytest.fixture
def trial(tmp_path, monkeypatch) -> Trial:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    return TrialHere(tmp_path / "trial", FAKE_SWEEP, pause=0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler with two workers that can import the stand-ins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        with loopback(tmp_path_factory.mktemp("cluster")) as address:
            yield address


def images_begun(trial: Trial) -> list[str]:
    return [piece for event, piece, _ in trial.notes() if event == "begin" and piece.startswith("sr/")]


def phases(trial: Trial) -> list[list[int]]:
    """[phase, process] of every finished phase of the training."""
    path = trial.home / "phases"
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


def tables(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in (home / "results").rglob("*.csv")}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TESTED, ids=" - ".join)
def test_sweep_survives(fault, trial, reference, cluster):
    assert strike(fault, trial, reference, cluster) == (0, 0, 0)
    assert tables(trial.home) == tables(reference)
    assert len(set(images_begun(trial))) == IMAGES


@pytest.mark.slow
def test_killed_workers_training_continues_elsewhere_after_its_last_phase(trial, reference, cluster):
    process = trial.start(cluster)
    while len(phases(trial)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(phases(trial)[0][1], signal.SIGKILL)
    assert process.wait(60) == 0
    assert [phase for phase, _ in phases(trial)] == list(range(PHASES)), "every phase once"
    assert len({worker for _, worker in phases(trial)}) == 2
    assert trial.done_twice() == 0
    assert len(images_begun(trial)) == IMAGES
    assert tables(trial.home) == tables(reference)


@pytest.mark.slow
def test_interrupted_local_workers_end_and_a_plain_run_continues(trial, reference):
    """With as many threads per worker as here, results have the same keys on workers and without."""
    interrupt(trial, "2")
    trial.run("")
    assert trial.done_twice() == 0
    assert IMAGES <= len(images_begun(trial)) <= IMAGES + 2
    assert tables(trial.home) == tables(reference)


@pytest.mark.slow
def test_interrupted_work_on_a_cluster_ends_with_its_image(trial, cluster):
    trial = replace(trial, pause=1.0)
    process = trial.start(cluster)
    trial.wait_until_in_the_middle(process, finished=1)
    begun = len(images_begun(trial))
    os.killpg(process.pid, signal.SIGINT)
    end_with(process, "the same command continues")
    time.sleep(1.5)
    assert not trial.unfinished()
    assert len(images_begun(trial)) <= begun + 1, "each worker had one or two more images of its model before it"


def test_what_a_cell_registered_is_refused_before_workers_start(monkeypatch):
    monkeypatch.setitem(registry._outside, "mine", registry._IN_A_CELL)
    experiments = [replace(EXPERIMENTS[0], method="mine")]
    with pytest.raises(QartsrError, match="workers do not know 'mine'.* WORKERS empty"):
        run_table(experiments, PROFILE, parts=fake_parts(), workers="2")


@pytest.mark.slow
def test_work_on_a_cluster_outlives_its_client_and_is_joined_by_the_next(trial, cluster):
    process = trial.start(cluster)
    trial.wait_until_in_the_middle(process)
    process.kill()
    process.communicate()
    left = time.monotonic() + 120
    while len(images_begun(trial)) < IMAGES - 3:
        assert time.monotonic() < left, "nobody works on"
        time.sleep(0.2)
    trial.run(cluster)
    assert len(images_begun(trial)) == IMAGES


@pytest.mark.slow
def test_a_worker_that_differs_is_named(tmp_path, cluster):
    """It would put its results under other keys."""
    make, items = one_image(tmp_path)
    same = make().identity
    same["environment"] |= {"threads": 77}
    message = r"differs in environment\.threads: 77 and 1"
    with connected(cluster) as client, pytest.raises(QartsrError, match=message):
        client.submit(measure_model, "sweep", make, same, items, key="differs").result()


@pytest.mark.slow
def test_local_workers_get_their_threads_and_leave_the_environment_alone(home):
    before, threads = dict(os.environ), 2 if torch.get_num_threads() == 1 else 1
    cells = [Experiment("plain", 1, "fp", "W32A32", "samples")]
    with local(1, threads) as client:
        run = run_table(cells, PROFILE, parts=fake_parts(), workers=client)
    assert before == dict(os.environ)
    assert {record["environment"]["threads"] for record in run.records} == {threads}
    assert {record["workers"] for record in run.records} == {"1 workers of a Dask cluster"}


def one_image(folder: Path):
    """(what makes an evaluator over an empty cache that workers can see, [(experiment, pair)])."""
    profile, experiment = replace(PROFILE, max_images=1), Experiment("plain", 1, "fp", "W32A32", "samples")
    pairs = study.available_data(["samples"], None, 1)[0]["samples"]
    cache = RunCache(folder / "cache")
    cache.root.mkdir()
    (cache.root / MARK).write_text("mark")
    return partial(study._evaluator, [experiment], profile, None, fake_parts(), cache, "cpu"), [(experiment, pairs[0])]


def test_workers_are_named_by_number_address_or_file(tmp_path, monkeypatch):
    (tmp_path / "scheduler.json").touch()
    monkeypatch.chdir(tmp_path)
    assert [checked_workers(name) for name in ("2", 2, "tcp://host:8786")] == ["2", "2", "tcp://host:8786"]
    assert checked_workers("scheduler.json") == str(tmp_path / "scheduler.json")
    for wrong in ("0", "-1", "two", "host:8786", "nowhere.json"):
        with pytest.raises(QartsrError, match="workers '"):
            checked_workers(wrong)


def test_no_scheduler_at_the_address_is_one_line(monkeypatch):
    monkeypatch.setattr(parallel, "CONNECT_TIMEOUT", 0.5)
    with pytest.raises(QartsrError, match="no Dask scheduler answers there"), connected("tcp://127.0.0.1:9"):
        pass


def test_one_task_per_model_of_all_data_sets(home):
    profile = replace(PROFILE, datasets=("samples", "samples-realistic"), max_images=2)
    experiments = grid(profile, ("maxmin",))
    models = study._models(sorted(experiments, key=lambda item: item.dataset))
    assert len(models) == len(profile.timesteps) * (1 + len(profile.bits))
    assert all([item.dataset for item in model] == ["samples", "samples-realistic"] for model in models)
    pair = study.available_data(["samples"], None, 1)[0]["samples"][0]
    titles = {parallel._title({"source": source}, [(models[0][0], pair)]) for source in "aab"}
    assert len(titles) == 2, "the same sweep asks for the same tasks"


@pytest.fixture
def on_worker(monkeypatch):
    """Tasks run in this process as on a worker."""
    worker = SimpleNamespace(address="tcp://one", get_current_task=lambda: "task")
    worker.state = SimpleNamespace(tasks={"task": SimpleNamespace(state="executing")})
    monkeypatch.setattr("distributed.get_worker", lambda: worker)
    monkeypatch.setattr(parallel, "_evaluators", {})
    return worker


def test_a_worker_tells_what_it_has_and_measures_what_is_asked(home, on_worker):
    make, items = one_image(home)
    here = {"source": provenance.source_sha256(), "QARTSR_HOME": "mark"}
    same, values, abouts = measure_model("sweep", make, here, [])
    assert (values, abouts) == ([], {}) and same["environment"] == provenance.environment("cpu")
    again, values, abouts = measure_model("sweep", make, same, items)
    assert again == same and list(abouts) == [items[0][0]]
    assert values == [(*items[0], make().measure(*items[0]))]
    on_worker.state.tasks["task"].state = "cancelled"
    assert measure_model("sweep", make, same, items) is None


@pytest.mark.parametrize("name", ["environment", "source", "metrics", "metrics that are not available", "QARTSR_HOME"])
def test_workers_must_agree(home, on_worker, name):
    make, items = one_image(home)
    same, *_ = measure_model("sweep", make, {}, [])
    if name == "QARTSR_HOME":
        (home / "cache" / MARK).unlink()
    else:
        same = same | {name: {"a": "b"}}
    with pytest.raises(QartsrError, match=f"worker tcp://one differs in {name}"):
        measure_model("sweep", make, same, items)


def ended(result=None, cancelled=False):
    """A future that gives or raises `result`."""

    def give():
        if isinstance(result, Exception):
            raise result
        return result

    return SimpleNamespace(result=give, cancelled=lambda: cancelled, key="qartsr W4A4 T=1-0123")


@pytest.mark.parametrize(
    ("future", "status", "message"),
    [
        (ended(cancelled=True), "running", "somebody else cancelled qartsr W4A4 T=1; finished work is kept"),
        (ended(cancelled=True), "closed", "the Dask scheduler was lost; finished work is kept, run again"),
        (ended(QartsrError("the disk is full")), "running", "the disk is full"),
        (
            ended(KilledWorker("key", SimpleNamespace(address="tcp://one"), 3)),
            "running",
            "qartsr W4A4 T=1: 4 workers died while computing it",
        ),
        (ended(ModuleNotFoundError("No module named 'qartsr_lib'")), "running", "workers cannot import the library"),
    ],
)
def test_how_a_task_ended_badly(future, status, message):
    with pytest.raises(QartsrError, match=message):
        parallel._answer(future, SimpleNamespace(status=status))


def test_what_a_task_found_out():
    assert parallel._answer(ended(({}, [], {})), SimpleNamespace(status="running")) == ({}, [], {})


def test_a_worker_with_several_threads_takes_one_experiment_at_a_time(on_worker):
    inside, most = [], []

    def measure(experiment, pair):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    evaluator = SimpleNamespace(measure=measure, about=lambda _: {}, require=lambda *_: None, identity={})
    arguments = ("sweep", lambda: evaluator, {}, [(0, 0)] * 3)
    threads = [threading.Thread(target=measure_model, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 12 and set(most) == {1}


def test_interrupted_plain_run_says_how_to_continue(home, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_table(grid(PROFILE, ()), PROFILE, parts=replace(fake_parts(), score=interrupt))
    assert "the same command continues there" in capsys.readouterr().err


def test_what_counts_as_done_twice(tmp_path):
    trial = Trial(tmp_path, ())
    lines = ["begin sr a 1", "begin sr a 2", "end sr a 1", "end sr a 2", "begin sr b 1", "begin sr b 2", "end sr b 2"]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    assert trial.done_twice() == 0, "at once, and begun anew after its first computer died"
    between = ["look sr c 1", "begin sr c 2", "end sr c 2", "begin sr c 1", "end sr c 1"]
    (tmp_path / "log").write_text("\n".join([*lines, *between]) + "\n")
    assert trial.done_twice() == 0, "finished between the other's look and its beginning"
    again = ["look sr a 3", "begin sr a 3", "end sr a 3", "look scores b 3", "begin scores b 3"]
    (tmp_path / "log").write_text("\n".join([*lines, *again]) + "\n")
    assert trial.done_twice() == 1
    assert trial.done_twice(damaged=["sr/a"]) == 0
    assert trial.unfinished() == {}


def test_what_counts_as_lost_and_changed(tmp_path):
    rows = {"reference": ["samples,1,x", "samples,500,y", "samples,1000,z"], "run": ["samples,1,x", "samples,500,Y"]}
    for home, lines in rows.items():
        (tmp_path / home / "results").mkdir(parents=True)
        (tmp_path / home / "results/t.csv").write_text("\n".join(["dataset,timestep,value", *lines]) + "\n")
    assert compared(tmp_path / "reference", tmp_path / "run") == (1, 1)
    assert compared(tmp_path / "run", tmp_path / "reference") == (0, 2), "changed, and one that was not asked for"
    assert compared(tmp_path / "run", tmp_path / "nowhere") == (2, 0)


def test_unknown_fault_is_one_line(capsys):
    assert main(["--only", "earthquake"]) == 2
    assert "no fault is called 'earthquake'; known: worker killed" in capsys.readouterr().err
    assert COMMAND[1:3] == ("-m", "tests.faults")
