"""The runner: order, failures named, exit status, kernel, killed and continued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient.exceptions import CellTimeoutError
from nbformat.v4 import new_code_cell, new_notebook

from qartsr_lib.base import machine, paths
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study import executed, runner
from qartsr_lib.study.profiles import BackboneFile, get_profile

CHECKOUT = Path(__file__).resolve().parent.parent


def add_notebook(home: Path, name: str, *cells: str) -> None:
    parameters = new_code_cell('PROFILE = "tiny"\nDATA_ROOT = None', metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, *(new_code_cell(cell) for cell in cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (home / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, home / "notebooks" / name)


def note(text: str) -> str:
    """Notebook source that adds a line to HOME/log."""
    return f"import os\nprint({text}, file=open(os.path.join(os.environ['QARTSR_HOME'], 'log'), 'a'))"


@pytest.fixture
def no_kernels(tmp_path, monkeypatch):
    """A machine on which no kernel is registered for the user."""
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_runs_in_order_goes_on_after_a_failure_and_names_it(home, no_kernels, capsys, monkeypatch):
    monkeypatch.chdir("/")
    add_notebook(home, "02_last.ipynb", note("'last ' + PROFILE"))
    lean = "from qartsr_lib.base import lean_imports"
    wanted = map(note, ("sys.executable", "os.environ['QARTSR_LOG_PROGRESS']", "lean_imports._chosen"))
    add_notebook(home, "00_first.ipynb", f"import sys\n{lean}", *wanted)
    add_notebook(home, "01_broken.ipynb", "raise ValueError('on purpose')")
    add_notebook(home, "draft.ipynb", note("'never'"))
    assert runner.main(["--profile", "smoke"]) == 1
    assert (home / "log").read_text().splitlines() == [sys.executable, "1", "True", "last smoke"]
    out = capsys.readouterr().out
    assert "[2/3] 01_broken" in out
    assert out.rstrip().splitlines()[-1] == "FAILED 01_broken: failed at In [3]: ValueError: on purpose"
    build = home / "build/smoke"
    assert sorted(path.stem for path in build.iterdir()) == ["00_first", "01_broken", "02_last"]
    assert sorted(path.name for path in (home / "figures/smoke").iterdir()) == ["00_first.md", "02_last.md"]
    assert "QARTSR_LOG_PROGRESS" not in os.environ
    assert RunCache.for_profile("smoke").begin([], []) is True, "a failed run is continued"


def shown(home: Path, name: str) -> tuple[list[tuple[str, str]], str]:
    """([(first word of each code cell that was run or left, papermill's status)], what the copy says at its top)."""
    notebook = nbformat.read(home / "build/smoke" / f"{name}.ipynb", as_version=4)
    states = [(c.source.split()[0], c.metadata.papermill.status) for c in notebook.cells if c.cell_type == "code"]
    top = notebook.cells[0].source if notebook.cells[0].cell_type == "markdown" else ""
    return states, unescape(re.sub("<[^>]*>", " ", top)).strip()


BEGUN = [("PROFILE", "completed"), ("#", "completed")]


def test_however_a_notebook_fails_its_copy_and_one_line_say_so(home, no_kernels, capsys):
    add_notebook(home, "00_dead.ipynb", "before = 1", "import os\nos.kill(os.getpid(), 9)", "behind = 1", "1")
    add_notebook(
        home, "01_told.ipynb", "from qartsr_lib.base.errors import QartsrError\nraise QartsrError('x.png: <bad>')", "1"
    )
    add_notebook(home, "02_left.ipynb", "import sys\nsys.exit()", "behind = 1")
    add_notebook(home, "03_broken.ipynb")
    assert runner.main(["--profile", "smoke", "--notebooks", "03"]) == 0
    assert "failed" not in shown(home, "03_broken")[1]
    (home / "notebooks/03_broken.ipynb").write_text('{"cells": [')
    capsys.readouterr()
    assert runner.main(["--profile", "smoke"]) == 1
    died = (
        "failed at In [4]: DeadKernelError: the kernel died; it crashed or was killed, perhaps because memory ran out"
    )
    expected = {
        "00_dead": (
            died,
            [*BEGUN, ("before", "completed"), ("import", "failed"), ("behind", "pending"), ("1", "pending")],
        ),
        "01_told": ("failed at In [3]: QartsrError: x.png: <bad>", [*BEGUN, ("from", "failed"), ("1", "pending")]),
        "02_left": ("failed at In [3]: SystemExit", [*BEGUN, ("import", "failed"), ("behind", "pending")]),
        "03_broken": ("failed before the first cell: NotJSONError: Notebook does not appear to be JSON: '", []),
    }
    lines = capsys.readouterr().out.splitlines()[-len(expected) :]
    for line, (name, (problem, states)) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"FAILED {name}: {problem}")
        cells, page = shown(home, name)
        unrun = sum(state == "pending" for _, state in states)
        assert cells == states
        assert page == line.partition(": ")[2] + (f" cells that were not run: {unrun}" if unrun else "")
    dead, told = (
        nbformat.read(home / f"build/smoke/{name}.ipynb", as_version=4).cells for name in ("00_dead", "01_told")
    )
    (error,) = [output for cell in dead for output in cell.get("outputs", [])]
    assert error.output_type == "error" and error.ename == "DeadKernelError"
    assert [output.traceback for cell in told for output in cell.get("outputs", [])] == [["QartsrError: x.png: <bad>"]]


def test_after_ctrl_c_the_copy_says_so(home):
    """In a process of its own: papermill leaves an event loop with tasks that complain when they are collected."""
    interrupt = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    add_notebook(home, "00_long.ipynb", interrupt, "behind = 1")
    command = [sys.executable, "-m", "qartsr_lib", "reproduce", "--profile", "smoke"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted; finished files are kept: start the same command again"
    cells, page = shown(home, "00_long")
    assert cells == [*BEGUN, ("import", "failed"), ("behind", "pending")]
    assert page == "failed at In [3]: KeyboardInterrupt cells that were not run: 1"


@pytest.mark.parametrize(
    ("error", "begun", "problem"),
    [
        (
            CellTimeoutError("A cell timed out\nThe message was"),
            2,
            "failed at In [2]: CellTimeoutError: A cell timed out",
        ),
        (OSError(28, "No space left"), 1, "failed at In [1]: OSError: [Errno 28] No space left"),
        (RuntimeError("Kernel didn't respond"), 0, "failed before the first cell: RuntimeError: Kernel didn't respond"),
    ],
)
def test_what_papermill_calls_completed_is_marked(tmp_path, error, begun, problem):
    cells = [new_code_cell(str(number)) for number in range(4)]
    for number, cell in enumerate(cells):
        cell.metadata.papermill = {
            "status": "completed",
            "exception": None,
            "start_time": "x" if number < begun else None,
        }
    copy = tmp_path / "copy.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"papermill": {}}), copy)
    assert executed.keep(copy, error, tmp_path) == executed.Problem(problem)
    top, *cells = nbformat.read(copy, as_version=4).cells
    assert unescape(top.source).startswith(f'<div style="color: red; font-size: 1.5em">{problem}<br>')
    states = [*["completed"] * (begun - 1), *["failed"] * bool(begun), *["pending"] * (4 - begun)]
    assert [cell.metadata.papermill.status for cell in cells] == states
    assert [len(cell.outputs) for cell in cells] == [int(state == "failed") for state in states]


def test_a_copy_that_cannot_be_kept_does_not_stop_the_others(home, monkeypatch, capsys):
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **__: None)
    monkeypatch.setattr(executed, "write_page", lambda *_: (_ for _ in ()).throw(QartsrError("the disk is full")))
    add_notebook(home, "00_first.ipynb")
    add_notebook(home, "01_second.ipynb")
    assert runner.main(["--profile", "smoke"]) == 0
    assert capsys.readouterr().out.count(".ipynb: QartsrError: the disk is full") == 2


def test_success_finishes_the_generation_and_the_next_run_computes(home):
    add_notebook(
        home,
        "00_cached.ipynb",
        "from qartsr_lib.base.cache import RunCache",
        "def fill(folder):\n    (folder / 'x').write_text('x')\n    " + note("'computed'").replace("\n", "\n    "),
        "RunCache.for_profile(PROFILE).get_or_put('sr', 'ab' * 32, fill)",
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for _ in range(2):
        command = [sys.executable, "-m", "qartsr_lib", "reproduce", "--profile", "smoke", "--notebooks", "00"]
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert (home / "log").read_text().splitlines() == ["computed", "computed"]


def test_data_root_reaches_the_notebook(home, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **options: seen.update(options))
    add_notebook(home, "00_first.ipynb")
    assert runner.main(["--profile", "smoke", "--data-root", str(tmp_path)]) == 0
    assert seen["parameters"] == {"PROFILE": "smoke", "DATA_ROOT": str(tmp_path.resolve())}
    assert runner.main(["--profile", "smoke"]) == 0
    assert seen["parameters"] == {"PROFILE": "smoke"}


def test_workers_reach_the_notebooks_that_have_them(home, monkeypatch):
    seen = []
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **options: seen.append(options["parameters"]))
    add_notebook(home, "00_without.ipynb")
    add_notebook(home, "01_with.ipynb")
    notebook = nbformat.read(home / "notebooks/01_with.ipynb", as_version=4)
    notebook.cells[0].source += '\nWORKERS = ""'
    nbformat.write(notebook, home / "notebooks/01_with.ipynb")
    monkeypatch.setattr(runner, "usual_workers", lambda: "3")
    monkeypatch.setattr(runner, "checked", lambda device: device)
    for words in (["--workers", "2"], [], ["--device", "cuda"]):
        assert runner.main(["--profile", "smoke", *words]) == 0
    assert [parameters.get("WORKERS") for parameters in seen] == [None, "2", None, "3", None, None]


@pytest.mark.parametrize(
    ("threads", "cores", "gigabytes", "workers"),
    [(4, 4, 64, "4"), (1, 4, 64, ""), (4, 2, 64, "2"), (8, 8, 7, "2"), (2, 2, 2, "")],
)
def test_a_process_per_core_as_memory_and_threads_allow(monkeypatch, threads, cores, gigabytes, workers):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", gigabytes * 10**9)
    assert machine.usual_workers() == workers


def test_paper_without_weights_ends_with_status_3_and_a_line_per_file(home, monkeypatch, capsys):
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **__: None)
    places = [("osediff.pkl", "osediff/osediff.pkl", "Table 3"), ("unet", "sd/unet", "Table 4")]
    weights = tuple(BackboneFile(*place) for place in places)
    profile = get_profile("paper", weights=weights, metrics=("PSNR",))
    monkeypatch.setattr(runner, "get_profile", lambda name: profile)
    add_notebook(home, "00_first.ipynb")
    assert runner.main(["--profile", "paper"]) == 3
    lines = capsys.readouterr().out.rstrip().splitlines()[-2:]
    assert lines[0] == f"MISSING osediff.pkl: expected at {home}/weights/osediff/osediff.pkl; blocks Table 3"
    assert lines[1].startswith("MISSING unet: ")
    for file in weights:
        place = home / "weights" / file.place
        place.parent.mkdir(parents=True)
        place.touch()
    assert runner.main(["--profile", "paper"]) == 0


def test_a_file_that_is_no_notebook_does_not_stop_the_others(home, monkeypatch, capsys):
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **__: None)
    add_notebook(home, "01_good.ipynb")
    (home / "notebooks/00_bad.ipynb").write_text("{")
    assert runner.main(["--profile", "smoke"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 notebooks done" in out
    assert "FAILED 00_bad" in out.splitlines()[-1]


MISSING = "from qartsr_lib.study.profiles import NotReady\nraise NotReady('this needs BSDS500/val')"


def test_a_notebook_whose_input_is_missing_is_skipped_and_named(home, capsys):
    add_notebook(home, "00_first.ipynb")
    add_notebook(home, "01_without.ipynb", MISSING, "behind = 1")
    assert runner.main(["--profile", "smoke"]) == 3
    out = capsys.readouterr().out
    assert "[2/2] skipped: this needs BSDS500/val" in out and "1 of 2 notebooks done" in out
    assert out.rstrip().splitlines()[-1] == "SKIPPED 01_without: this needs BSDS500/val"
    assert shown(home, "01_without")[1] == "this needs BSDS500/val cells that were not run: 1"
    assert not (home / "figures/smoke/01_without.md").exists()
    assert RunCache.for_profile("smoke").begin([], []) is False, "skipped is done"


def test_notebooks_of_hours_run_only_where_they_are_named(home, monkeypatch):
    for name in ("00_first", *runner.ON_DEMAND):
        add_notebook(home, f"{name}.ipynb")
    found = runner.find_notebooks()
    assert [path.stem for path in runner.select(found, None)] == ["00_first"]
    assert [path.stem for path in runner.select(found, ["10"])] == ["10_learning_rates"]


PICTURES = """
import matplotlib.pyplot as plt
import pandas as pd
from qartsr_lib.show.shown import show_figure, shown_once
print("never on the page")
display(show_figure(PROFILE, "saved", plt.figure(figsize=(1, 1))))
display(shown_once(plt.figure(figsize=(1, 2))), pd.DataFrame({"a": [1]}))
"""


def test_a_page_links_saved_pictures_and_keeps_others_beside_it(home, no_kernels):
    add_notebook(home, "00_first.ipynb", PICTURES)
    assert runner.main(["--profile", "smoke", "--data-root", str(home)]) == 0
    folder = home / "figures/smoke"
    page = (folder / "00_first.md").read_text()
    (own,) = (folder / "cells").iterdir()
    assert "](saved.png)" in page and f"](cells/{own.name})" in page and "<td>1</td>" in page
    assert "never on" not in page.replace('print("never on the page")', "") and "<style" not in page
    assert str(home) not in page, "no path of this machine"
    written = own.stat().st_mtime_ns
    assert runner.main(["--profile", "smoke"]) == 0
    assert own.stat().st_mtime_ns == written, "written only when it changed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "unknown profile 'huge'"),
        (["--profile", "smoke", "--data-root", "/nowhere/at/all"], "no such folder; check DATA_ROOT"),
        (["--profile", "smoke", "--notebooks", "77"], "no notebook starts with '77'"),
        (["--profile", "smoke", "--workers", "many"], "workers 'many': give a number of processes"),
    ],
)
def test_wrong_options_give_one_line(home, capsys, arguments, message):
    add_notebook(home, "00_first.ipynb")
    assert runner.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_without_notebooks_of_its_own_a_home_takes_the_checkouts(home, monkeypatch, tmp_path):
    assert [path.parent for path in runner.find_notebooks()[:1]] == [paths.checkout() / "notebooks"]
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path / "installed")
    with pytest.raises(QartsrError, match=r"notebooks and .*installed.notebooks: no notebook NN_"):
        runner.find_notebooks()


def test_second_runner_is_refused(home, capsys):
    add_notebook(home, "00_first.ipynb")
    with RunCache.for_profile("smoke").lock():
        assert runner.main(["--profile", "smoke"]) == 2
    assert "another `make reproduce PROFILE=smoke`" in capsys.readouterr().err


def test_interruption_says_how_to_continue(home, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.papermill, "execute_notebook", interrupt)
    add_notebook(home, "00_first.ipynb")
    assert runner.main(["--profile", "smoke"]) == 130
    assert "start the same command again" in capsys.readouterr().err
    assert RunCache.for_profile("smoke").begin([], []) is True


SWEEP = """
from pathlib import Path
from qartsr_lib.base import provenance
provenance.source_sha256 = lambda: "fixed"
from study_fakes import sweep
run = sweep(log_file=Path(os.environ["QARTSR_HOME"], "images"), seconds=float(os.environ["SECONDS_PER_IMAGE"]))
run.write("table1")
"""


@pytest.mark.slow
def test_killed_runner_continues_with_the_same_csv(tmp_path):
    """Signal 9 to the runner in the middle of a notebook's sweep."""
    homes = tmp_path / "killed", tmp_path / "undisturbed"
    for home in homes:
        home.mkdir()
        add_notebook(home, "00_sweep.ipynb", "import os", SWEEP)

    def start(home: Path, seconds: float) -> subprocess.Popen:
        environment = {
            **os.environ,
            "QARTSR_HOME": str(home),
            "SECONDS_PER_IMAGE": str(seconds),
            "OMP_NUM_THREADS": "1",
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
        command = [sys.executable, "-m", "qartsr_lib", "reproduce", "--profile", "smoke"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    images = homes[0] / "images"
    process = start(homes[0], 1.0)
    deadline = time.monotonic() + 120
    while not images.exists() or len(images.read_text().splitlines()) < 2:
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (homes[0] / "results").exists()
    resumed = start(homes[0], 0.0)
    out = resumed.communicate()[0].decode()
    assert resumed.returncode == 0, out
    assert "continuing the interrupted run" in out
    assert start(homes[1], 0.0).wait() == 0
    tables = [(home / "results/smoke/table1.csv").read_bytes() for home in homes]
    assert tables[0] == tables[1]
    # The kernel notices within a second that its runner is gone; until then it may finish images.
    computed = len(images.read_text().splitlines())
    assert computed <= len((homes[1] / "images").read_text().splitlines()) + 2


def test_notebook_kernel_file_is_removed(monkeypatch):
    with runner.kernel():
        folder = Path(os.environ["JUPYTER_PATH"].split(os.pathsep)[0])
        specification = json.loads((folder / "kernels" / runner.KERNEL / "kernel.json").read_text())
        assert specification["argv"][0] == sys.executable
    assert not folder.exists()


def test_some_notebooks_leave_an_interrupted_run_of_all_to_be_continued(home, monkeypatch, capsys):
    def interrupt(path, *_, **__):
        if "01_" in path:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.papermill, "execute_notebook", interrupt)
    add_notebook(home, "00_first.ipynb")
    add_notebook(home, "01_long.ipynb")
    assert runner.main(["--profile", "smoke"]) == 130
    cache = RunCache.for_profile("smoke")
    entry = cache.put("sr", "ab" * 32, lambda folder: (folder / "x").write_text("hours"))
    assert runner.main(["--profile", "smoke", "--notebooks", "00"]) == 0
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **__: None)
    capsys.readouterr()
    assert runner.main(["--profile", "smoke"]) == 0
    assert "continuing the interrupted run" in capsys.readouterr().out and entry.is_dir()
    assert runner.main(["--profile", "smoke", "--notebooks", "00"]) == 0
    assert "continuing" not in capsys.readouterr().out and not entry.exists()


def test_a_failure_is_told_before_missing_weights(home, monkeypatch, capsys):
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *_, **__: None)
    profile = get_profile("paper", weights=(BackboneFile("unet", "sd/unet", "Table 4"),), metrics=("PSNR",))
    monkeypatch.setattr(runner, "get_profile", lambda name: profile)
    add_notebook(home, "01_good.ipynb")
    (home / "notebooks/00_bad.ipynb").write_text("{")
    assert runner.main(["--profile", "paper"]) == 1
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-2].startswith("FAILED 00_bad") and lines[-1].startswith("MISSING unet")
