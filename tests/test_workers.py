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

from qartsr_lib.base import provenance
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import cells as study
from qartsr_lib.study.cells import grid, run_table
from qartsr_lib.study.experiment import Experiment
from qartsr_lib.study.workers import connected, connection, local, resolved, task
from qartsr_lib.study.workers import sweep as on_workers
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


@pytest.mark.slow
def test_work_on_a_cluster_outlives_its_client_and_is_joined_by_the_next(trial, cluster):
    process = trial.start(cluster)
    trial.wait_until_in_the_middle(process)
    process.kill()
    process.communicate()
    while len(images_begun(trial)) < IMAGES - 3:
        before = len(images_begun(trial))
        time.sleep(3)
        assert len(images_begun(trial)) > before, "nobody works on"
    trial.run(cluster)
    assert len(images_begun(trial)) == IMAGES


@pytest.mark.slow
def test_a_worker_that_differs_is_named(tmp_path, cluster):
    """It would put its results under other keys, and this process would wait for them in vain."""
    work, make = one_image(tmp_path)
    identity = task.identity_of(make(), work[0][0])
    identity["environment"] |= {"threads": 77}
    with connected(cluster) as client:
        error = client.submit(task.measure_model, make, identity, work, key="differs").result()
    assert isinstance(error, QartsrError)
    assert "differs in environment.threads: 77 and 1" in str(error)


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
    """([(experiment, pair)], what makes their evaluator), over an empty cache."""
    profile = replace(PROFILE, max_images=1)
    pairs = study.available_data(["samples"], None, 1)[0]["samples"]
    make = partial(study._evaluator, profile, None, False, "cpu", fake_parts(), RunCache(folder / "cache"))
    return [(Experiment("plain", 1, "fp", "W32A32", "samples"), pairs[0])], make


def test_workers_are_named_by_number_address_or_file(tmp_path, monkeypatch):
    (tmp_path / "scheduler.json").touch()
    monkeypatch.chdir(tmp_path)
    assert [resolved(name) for name in ("2", 2, "tcp://host:8786")] == ["2", "2", "tcp://host:8786"]
    assert resolved("scheduler.json") == str(tmp_path / "scheduler.json")
    for wrong in ("0", "-1", "two", "host:8786", "nowhere.json"):
        with pytest.raises(QartsrError, match="workers '"):
            resolved(wrong)


def test_no_scheduler_at_the_address_is_one_line(monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.5)
    with pytest.raises(QartsrError, match="no Dask scheduler answers there"), connected("tcp://127.0.0.1:9"):
        pass


def test_reader_finds_and_computes_nothing(home):
    log: list = []
    work, _ = one_image(home)
    make = partial(study._evaluator, PROFILE, None, False, "cpu", fake_parts(log=log), RunCache(home / "cache"))
    reader = make(kind=on_workers.Reader)
    assert on_workers._found(reader, work) == ([], {work[0][0]})
    assert log == []
    evaluator = make()
    expected = evaluator.measure(*work[0])
    values, absent = on_workers._found(reader, work)
    assert absent == set()
    assert values == [(*work[0], expected)]


def test_one_task_per_model_whatever_is_absent(home):
    profile = replace(PROFILE, datasets=("samples", "samples-realistic"), max_images=2)
    experiments = grid(profile, ("maxmin",))
    pairs = study.available_data(profile.datasets, None, 2)[0]
    work = [(experiment, pair) for experiment in experiments for pair in pairs[experiment.dataset]]
    make = partial(study._evaluator, profile, None, True, "cpu", fake_parts(), RunCache(home / "cache"))
    reader = make(kind=on_workers.Reader)
    whole = on_workers._tasks(reader, work, set(experiments), 0)
    assert len(whole) == len(profile.timesteps) * (1 + len(profile.bits))
    assert {len(items) for _, items in whole.values()} == {4}, "both data sets' images"
    part = on_workers._tasks(reader, work, {experiments[0]}, 0)
    assert len(part) == 1 and part.items() <= whole.items()
    assert not part.keys() & on_workers._tasks(reader, work, set(experiments), 1).keys()


class FakeClient(SimpleNamespace):
    """As much of a client as the survey asks."""

    def scheduler_info(self, n_workers):
        return {"workers": {"tcp://one": {}}}

    def wait_for_workers(self, count):
        pass

    def run(self, function, device, token):
        return {name: change(function(device, token)) for name, change in self.changes.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found | {"environment": {"threads": 5}}, "differ in environment"),
        (lambda found: found | {"source": "old"}, "differ in source"),
        (lambda found: found | {"sees the cache": False}, "differ in sees the cache"),
    ],
)
def test_workers_must_agree(home, change, message):
    reader = one_image(home)[1](kind=on_workers.Reader)
    same = lambda found: found  # noqa: E731
    client = FakeClient(changes={"tcp://one": same, "tcp://two": same})
    assert on_workers.agreed_environment(client, reader) == provenance.environment("cpu")
    client.changes["tcp://two"] = change
    with pytest.raises(QartsrError, match=f"workers tcp://one and tcp://two {message}"):
        on_workers.agreed_environment(client, reader)
    assert not list((home / "cache").glob(".seen-*"))


def test_workers_elsewhere_or_with_other_code_are_told(home):
    reader = one_image(home)[1](kind=on_workers.Reader)
    for change, message in (({"source": "old"}, "workers have other code"), ({"sees the cache": False}, "is not seen")):
        client = FakeClient(changes={"tcp://one": lambda found, change=change: found | change})
        with pytest.raises(QartsrError, match=message):
            on_workers.agreed_environment(client, reader)


def test_workers_that_lack_the_library_are_told(home):
    def fail(found):
        raise Exception("ModuleNotFoundError(\"No module named 'qartsr_lib'\")")

    reader = one_image(home)[1](kind=on_workers.Reader)
    with pytest.raises(QartsrError, match="workers cannot import the library"):
        on_workers.agreed_environment(FakeClient(changes={"tcp://one": fail}), reader)


def ended(result=None, cancelled=False):
    """A future that gives or raises `result`."""

    def give():
        if isinstance(result, KilledWorker):
            raise result
        return result

    return SimpleNamespace(result=give, cancelled=lambda: cancelled, key="qartsr W4A4 T=1-0123")


def test_how_a_task_ended():
    running, lost = SimpleNamespace(status="running"), SimpleNamespace(status="closed")
    on_workers._examine(ended(), running)
    on_workers._examine(ended(cancelled=True), running)
    with pytest.raises(QartsrError, match="the disk is full"):
        on_workers._examine(ended(QartsrError("the disk is full")), running)
    with pytest.raises(QartsrError, match="connection to the Dask scheduler was lost"):
        on_workers._examine(ended(cancelled=True), lost)
    killed = KilledWorker("key", SimpleNamespace(address="tcp://one"), 3)
    with pytest.raises(QartsrError, match="qartsr W4A4 T=1: 4 workers died while computing it"):
        on_workers._examine(ended(killed), running)


def test_a_worker_with_several_threads_takes_one_experiment_at_a_time(monkeypatch):
    inside, most = [], []

    def measure(experiment, pair):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    monkeypatch.setattr(task, "_unwanted", lambda: False)
    evaluator = SimpleNamespace(measure=measure, model_info=lambda experiment: None)
    monkeypatch.setattr(task, "_fitting", lambda *_: evaluator)
    threads = [threading.Thread(target=task.measure_model, args=(None, {}, [(0, 0)] * 3)) for _ in range(4)]
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
    (tmp_path / "log").write_text("\n".join([*lines, "begin sr a 3", "end sr a 3", "begin scores b 3"]) + "\n")
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
