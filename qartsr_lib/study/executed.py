"""What is kept of a notebook's run: the executed copy, which says how the run ended, and its HTML.

papermill marks a cell that raised. It leaves no trace of whatever else ends a run (a kernel that was killed, Ctrl-C,
a broken file), and calls all cells completed, also those that never ran.
"""

from __future__ import annotations

import html
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from papermill.execute import ERROR_MARKER_TAG

from qartsr_lib.base.files import write_text

EXPLAINED = {"DeadKernelError": "the kernel died; it crashed or was killed, perhaps because memory ran out"}


def clear(copy: Path) -> None:
    """Remove what an earlier run left, so that it cannot be taken for this one's."""
    for path in (copy, copy.with_suffix(".html")):
        path.unlink(missing_ok=True)


def keep(copy: Path, error: BaseException | None) -> str | None:
    """Complete the executed copy with how its run ended, and write the HTML beside it; trouble in that is told.

    Args:
        error: what papermill raised, if it did.

    Returns:
        None where every cell ran, or one line that says what went wrong; it is the first line of the copy, too.
    """
    try:
        notebook = nbformat.read(copy, as_version=4)
    except (OSError, ValueError):  # papermill never wrote it, or could not finish
        notebook = new_notebook()
    problem = _problem(notebook, error)
    try:
        if problem:
            write_text(copy, nbformat.writes(notebook))
        write_text(copy.with_suffix(".html"), HTMLExporter().from_notebook_node(notebook)[0])
    except Exception as trouble:  # must not stop the other notebooks
        print(f"no HTML of {copy.name}: {type(trouble).__name__}: {trouble}", flush=True)
    return problem


def _problem(notebook: NotebookNode, error: BaseException | None) -> str | None:
    """What went wrong, put into `notebook`: a line at the top, the cell that failed, the cells that did not run."""
    cells = [cell for cell in notebook.cells if "papermill" in cell.metadata and cell.source.strip()]
    begun = [cell for cell in cells if cell.metadata.papermill.start_time and cell.cell_type == "code"]
    behind = [cell for cell in cells if not cell.metadata.papermill.start_time]
    failed = next((cell for cell in begun if cell.metadata.papermill.exception), None)
    if error is None and failed is None:
        return None
    if failed is None and begun:
        failed = _blamed(begun, error)
        notebook.metadata.papermill.exception = True
    for cell in behind:
        cell.metadata.papermill.status = "pending"
    if failed is None:
        problem = f"failed before the first cell: {_one_line(type(error).__name__, str(error))}"
    else:
        raised = [_one_line(output.ename, output.evalue) for output in failed.outputs if output.output_type == "error"]
        problem = f"failed at In [{failed.execution_count}]: {raised[-1] if raised else error}"
    count = sum(cell.cell_type == "code" for cell in behind)
    unrun = f"<br>cells that were not run: {count}" if count else ""
    line = f'<div style="color: red; font-size: 1.5em">{html.escape(problem)}{unrun}</div>'
    notebook.cells.insert(0, new_markdown_cell(line, metadata={"tags": [ERROR_MARKER_TAG]}))
    return problem


def _blamed(begun: list[NotebookNode], error: BaseException) -> NotebookNode:
    """The cell that ran when `error` came, marked as papermill marks a cell that raised."""
    cell, name = begun[-1], type(error).__name__
    text = EXPLAINED.get(name, str(error))
    cell.execution_count = cell.execution_count or len(begun)
    if not any(output.output_type == "error" for output in cell.outputs):  # Ctrl-C reaches the kernel, too
        cell.outputs.append(new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"]))
    cell.metadata.papermill.update(status="failed", exception=True)
    return cell


def _one_line(name: str, text: str) -> str:
    lines = text.strip().splitlines()
    return f"{name}: {lines[0]}" if lines else name
