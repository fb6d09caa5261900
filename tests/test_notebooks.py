"""Every notebook: well formed in git, and runs in the smoke profile from any directory."""

from __future__ import annotations

import ast
import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from qartsr_lib.study.profiles import NotReady
from qartsr_lib.study.runner import KERNEL, START_TIMEOUT, kernel

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
pytestmark = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Path) -> list:
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def parsed(cell) -> ast.Module:
    """The cell's code without IPython lines."""
    return ast.parse("\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))))


def test_lint_parameters_are_literals(notebook):
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged parameters"
    assert len(tagged[0].source.splitlines()) <= 6, "settings of the profile go into OVERRIDES"
    statements = parsed(tagged[0]).body
    for statement in statements:
        assert isinstance(statement, (ast.Assign, ast.AnnAssign)), ast.unparse(statement)
        ast.literal_eval(statement.value)  # raises for anything but a literal
    names = {target.id for statement in statements for target in getattr(statement, "targets", [])}
    assert "PROFILE" in names


def test_lint_parameters_are_checked_before_anything_is_done(notebook):
    first, second = code_cells(notebook)[:2]
    assert "parameters" in first.metadata.get("tags", [])
    done = [line for line in parsed(second).body if not isinstance(line, (ast.Import, ast.ImportFrom))]
    assert "check_parameters(globals())" in ast.unparse(done[0])


def test_lint_cells_are_flat(notebook):
    """What decides or repeats belongs in the library: a page has no room for what was not shown."""
    for cell in code_cells(notebook):
        statements = [type(line) for line in parsed(cell).body]
        assert not {ast.If, ast.For, ast.While, ast.Try, ast.With} & set(statements), cell.source[:60]


def test_lint_cells_have_ids_of_their_own(notebook):
    """nbformat renames doubles in memory, so that every save would change the file."""
    ids = [cell["id"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    assert len(set(ids)) == len(ids)


def test_lint_no_outputs(notebook):
    for cell in code_cells(notebook):
        assert not cell.outputs, cell.source[:60]
        assert cell.execution_count is None


def test_lint_functions_are_short(notebook):
    """What is longer than ten lines, or tested, belongs in the library."""
    for cell in code_cells(notebook):
        for node in ast.walk(parsed(cell)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno + 1 <= 10, node.name


def test_lint_no_shell_and_a_title(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert not any(line.lstrip().startswith("!") for cell in code_cells(notebook) for line in cell.source.splitlines())


#: Function -> (position of the file's name among its arguments, suffix).
WRITERS = {"write": (0, ".csv"), "write_table": (1, ".csv"), "write_choice": (1, ".csv")}
WRITERS |= {"show_table": (1, ".md"), "show_text": (1, ".md"), "show_figure": (1, ".png")}
WRITERS |= {"show_figures": (1, "_*.png"), "show_photographs": (0, "_*.png")}


#: Functions that write a table of their own.
OWN = {"run_look": "tries", "run_spread": "spread"}


def written(notebook: Path) -> set[str]:
    """Files that the code names; what is filled in stands as *."""
    found = set()
    calls = [node for cell in code_cells(notebook) for node in ast.walk(parsed(cell)) if isinstance(node, ast.Call)]
    for call in calls:
        if ast.unparse(call) == "ledger.write()":
            found |= {"claims.csv", "claims_checks.csv"}
        found |= {f"{table}.csv" for run, table in OWN.items() if run in ast.unparse(call.func)}
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        place, suffix = WRITERS.get(name, (0, ""))
        if suffix and len(call.args) > place:
            found.add(ast.unparse(call.args[place]).strip("'\"") + suffix)
    return found


def test_lint_the_first_cell_names_what_is_written(notebook):
    text = nbformat.read(notebook, as_version=4).cells[0].source
    listed = text[text.index("*Writes:*") : text.index("*Time on")]
    names = {name.split("/")[-1] for name in re.findall(r"`([^`]+\.(?:csv|md|png))`", listed)}
    files = written(notebook)
    absent = [file for file in files if not any(fnmatchcase(file, name) or fnmatchcase(name, file) for name in names)]
    extra = [name for name in names if not any(fnmatchcase(file, name) or fnmatchcase(name, file) for file in files)]
    assert (absent, extra) == ([], [])


def test_lint_settings_of_the_profile_can_be_overridden(notebook):
    if notebook.stem[:2] in ("06", "08", "10", "13", "15"):
        pytest.skip("the same in every profile")
    (cell,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert "OVERRIDES = {}" in cell.source


#: Tiny's images, eight times the budget of five methods, and QArtSR under six settings would take minutes.
SHORTER = {
    "00": {"IMAGES": 2},
    "02": {"OVERRIDES": {"max_side": 192}},  # and pictures beside their originals when both are cropped
    "04": {"OVERRIDES": {"finetune_side": 96}},
    "05": {"OVERRIDES": {"finetune_side": 192}},
    "11": {"OVERRIDES": {"methods": ["lsq"]}},
    "14": {"OVERRIDES": {"methods": ["maxmin"], "train_images": 1, "finetune_side": 96}},
}


@pytest.fixture(scope="session")
def one_home(tmp_path_factory) -> Path:
    """A home that all notebooks share, as `make reproduce` has it: what one made, another finds in the cache."""
    run = tmp_path_factory.getbasetemp()
    folder = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "one_home"  # of all processes of a run
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
def test_runs_in_smoke(notebook, one_home, tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(one_home))
    monkeypatch.delenv("DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QARTSR_LOG_PROGRESS", "1")
    with kernel():
        try:
            papermill.execute_notebook(
                str(notebook),
                str(tmp_path / "out.ipynb"),
                parameters={"PROFILE": "smoke"} | SHORTER.get(notebook.stem[:2], {}),
                kernel_name=KERNEL,
                progress_bar=False,
                start_timeout=START_TIMEOUT,
                cwd=str(tmp_path),
            )
        except PapermillExecutionError as error:
            if error.ename != NotReady.__name__:
                raise
            pytest.skip(error.evalue)
