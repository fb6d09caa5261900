"""`make reproduce`: execute the numbered notebooks in order.

Executed copies go to build/<profile>/ and say at their top what failed, pages with pictures go to figures/<profile>/.
A failed notebook does not stop the others, and one whose weights or data are missing is skipped; both are named at the
end. Exit status: 0 all done, 1 a notebook failed, 2 wrong options, 3 all done but for what this machine lacks, 130
interrupted. It may be killed at any time: what was finished lies in the cache, and every file is written atomically.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import papermill
from ipykernel.kernelspec import get_kernel_dict

from qartsr_lib.base import lean_imports, paths
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.base.machine import checked, checked_workers, run_command, usual_workers
from qartsr_lib.study import executed, results
from qartsr_lib.study.profiles import PROFILES, Profile, get_profile, missing_metric_weights, missing_weights

#: Part of no profile, because they take hours and change what others use: run where NOTEBOOKS names them.
ON_DEMAND = (
    "10_learning_rates", "11_longer_training", "12_image_loss", "13_settings", "14_what_turned", "15_ingredients",
)
KERNEL = "qartsr-runner"
START_TIMEOUT = 300  # seconds; a busy machine takes longer than papermill's 60 to start a kernel


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's text for the exit status."""
    # papermill reports what the notebooks print through logging
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="qartsr reproduce", description="Run the notebooks of the study in order.")
    add = parser.add_argument
    add("--profile", default="tiny", help=f"one of {', '.join(PROFILES)} (default: tiny)")
    add("--data-root", help="folder with RealSR, Urban100, ... (default: $DATA_ROOT)")
    add("--notebooks", nargs="+", metavar="NN", help="only those that start so, for example 00 02")
    add("--workers", default="", help="processes of this machine (default: one per core, as memory allows; 1: none "
        "beside the notebook's own), or the address or scheduler file of a Dask cluster")
    add("--device", default="cpu", help="where the models of Tables 1, 3 and 4 run: cpu (default), cuda or cuda:N")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    profile, root, gpu = get_profile(options.profile), paths.data_root(options.data_root), options.device != "cpu"
    parameters = {
        "PROFILE": profile.name,
        "DATA_ROOT": str(root) if root else None,
        "WORKERS": checked_workers(options.workers) if options.workers else "" if gpu else usual_workers(),
        "DEVICE": checked(options.device) if gpu else None,
    }
    notebooks = select(find_notebooks(), options.notebooks)
    return run(profile, notebooks, {name: value for name, value in parameters.items() if value})


def find_notebooks() -> list[Path]:
    """notebooks/NN_*.ipynb of the home, else of the checkout, in numerical order; a QartsrError where there is none."""
    folders = [home / "notebooks" for home in (paths.home(), paths.checkout())]
    for folder in folders:
        if found := sorted(path for path in folder.glob("*.ipynb") if re.match(r"\d\d_", path.name)):
            return found
    searched = " and ".join(map(str, dict.fromkeys(folders)))
    raise QartsrError(f"{searched}: no notebook NN_*.ipynb; run this from a checkout")


def select(notebooks: Sequence[Path], wanted: Sequence[str] | None) -> list[Path]:
    """Those whose name starts with one of `wanted` ("02"), in order; all but ON_DEMAND when `wanted` is empty."""
    for start in wanted or ():
        if not any(path.name.startswith(start) for path in notebooks):
            raise QartsrError(f"no notebook starts with {start!r}; see {paths.home() / 'notebooks'}")
    if not wanted:
        return [path for path in notebooks if path.stem not in ON_DEMAND]
    return [path for path in notebooks if path.name.startswith(tuple(wanted))]


def run(profile: Profile, notebooks: Sequence[Path], parameters: Mapping[str, str]) -> int:
    """Execute `notebooks` under `profile`, each with those `parameters` that it declares; returns the exit status."""
    cache = RunCache.for_profile(profile.name)
    problems = {}
    with cache.lock(), kernel():
        if cache.begin([path.stem for path in notebooks], [path.stem for path in find_notebooks()]):
            print(f"continuing the interrupted run of profile {profile.name}", flush=True)
        for number, notebook in enumerate(notebooks, start=1):
            print(f"[{number}/{len(notebooks)}] {notebook.stem}", flush=True)
            started = time.monotonic()
            problem = execute(notebook, profile.name, parameters)
            ending = "done" if problem is None else f"skipped: {problem.text}" if problem.skipped else problem.text
            print(f"[{number}/{len(notebooks)}] {ending} ({time.monotonic() - started:.0f} s)", flush=True)
            if problem:
                problems[notebook.stem] = problem
            if not problem or problem.skipped:
                cache.finish(notebook.stem)
        if all(problem.skipped for problem in problems.values()):
            results.prune_records(profile.name)
    return _report(profile, problems, len(notebooks))


def execute(notebook: Path, profile: str, parameters: Mapping[str, str]) -> executed.Problem | None:
    """Run one notebook; its executed copy is kept also when it fails. Returns what went wrong, if anything did."""
    target = paths.home() / "build" / profile / notebook.name
    error = None
    try:
        target.unlink(missing_ok=True)  # so that an earlier run's cannot be taken for this one's
        declared = papermill.inspect_notebook(str(notebook))
        target.parent.mkdir(parents=True, exist_ok=True)
        given = {name: value for name, value in parameters.items() if name in declared}
        settings = {"kernel_name": KERNEL, "progress_bar": False, "log_output": True, "start_timeout": START_TIMEOUT}
        papermill.execute_notebook(str(notebook), str(target), parameters=given, cwd=str(paths.home()), **settings)
    except BaseException as caught:  # whatever it is, the copy tells it and the other notebooks run
        error = caught
    problem = executed.keep(target, error, paths.figures_dir(profile))
    if error is not None and not isinstance(error, Exception):
        raise error
    return problem


def _report(profile: Profile, problems: dict[str, executed.Problem], total: int) -> int:
    print(f"{total - len(problems)} of {total} notebooks done; pages are in {paths.figures_dir(profile.name)}")
    for name, problem in sorted(problems.items(), key=lambda item: not item[1].skipped):
        print(f"{'SKIPPED' if problem.skipped else 'FAILED'} {name}: {problem.text}")
    missing = missing_weights(profile) + missing_metric_weights(profile)
    for name, place, blocks in missing:
        print(f"MISSING {name}: expected at {place}; blocks {blocks}")
    sys.stdout.flush()
    if not all(problem.skipped for problem in problems.values()):
        return 1
    return 3 if missing or problems else 0


@contextmanager
def kernel() -> Iterator[None]:
    """A kernel that is surely this interpreter, wherever kernels are registered, and the children's settings."""
    first = f"import {lean_imports.__name__} as lean; lean.choose_lean_imports(); del lean"
    # on Ctrl-C a kernel logs an error of 15 lines, on a socket that is closed already
    settings = {"log_level": "CRITICAL", "exec_lines": first}
    with tempfile.TemporaryDirectory(prefix="qartsr-kernel-") as folder:
        extra = [f"--IPKernelApp.{name}={value}" for name, value in settings.items()]
        specification = get_kernel_dict(extra_arguments=extra)
        write_text(Path(folder, "kernels", KERNEL, "kernel.json"), json.dumps(specification))
        places = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        with mock.patch.dict(os.environ, {"JUPYTER_PATH": places, "QARTSR_LOG_PROGRESS": "1"}):
            yield
