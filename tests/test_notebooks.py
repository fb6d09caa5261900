"""Every notebook: well formed in git, and runs in the smoke profile from any directory."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import papermill
import pytest

from qartsr_lib.runner import KERNEL, START_TIMEOUT, kernel

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
    statements = parsed(tagged[0]).body
    for statement in statements:
        assert isinstance(statement, (ast.Assign, ast.AnnAssign)), ast.unparse(statement)
        ast.literal_eval(statement.value)  # raises for anything but a literal
    names = {target.id for statement in statements for target in getattr(statement, "targets", [])}
    assert "PROFILE" in names


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


@pytest.mark.slow
def test_runs_in_smoke(notebook, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QARTSR_LOG_PROGRESS", "1")
    with kernel():
        papermill.execute_notebook(
            str(notebook),
            str(tmp_path / "out.ipynb"),
            parameters={"PROFILE": "smoke"},
            kernel_name=KERNEL,
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            cwd=str(tmp_path),
        )
