"""What is kept of a notebook's run: the executed copy, which says how the run ended, and a page that code hosts show.

papermill marks a cell that raised. It leaves no trace of whatever else ends a run (a kernel that was killed, Ctrl-C,
a broken file), and calls all cells completed, also those that never ran.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from papermill.execute import ERROR_MARKER_TAG

from qartsr_lib.base.files import write_atomically, write_text
from qartsr_lib.study.profiles import NotReady

EXPLAINED = {"DeadKernelError": "the kernel died; it crashed or was killed, perhaps because memory ran out"}
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = "cells"  # folder of the page's own pictures, beside it


class Problem(NamedTuple):
    """Why a notebook did not run to its end, in one line; `skipped` where this machine only lacks its input."""

    text: str
    skipped: bool = False


def keep(copy: Path, error: BaseException | None, folder: Path) -> Problem | None:
    """Complete the executed copy with how its run ended (`error`: what papermill raised), or write its page.

    Returns None where every cell ran, or what went wrong, which is the first line of the copy, too.
    """
    try:
        notebook = nbformat.read(copy, as_version=4)
    except (OSError, ValueError):  # papermill never wrote it, or could not finish
        notebook = new_notebook()
    problem = _problem(notebook, error)
    try:
        if problem:
            write_text(copy, nbformat.writes(notebook))
        else:
            write_page(notebook, folder, copy.stem)
    except Exception as trouble:  # must not stop the other notebooks
        print(f"no copy or page of {copy.name}: {type(trouble).__name__}: {trouble}", flush=True)
    return problem


def write_page(notebook: NotebookNode, folder: Path, name: str) -> Path:
    """Write folder/<name>.md: text, code, and what each cell ended with.

    A picture that names its file (metadata "saved") is linked; others go to folder/cells, only where they changed.
    Printed lines, parameters and widgets are left out: they are other ones in every run, or need a kernel.
    """
    page = nbformat.from_dict(notebook)
    page.cells = [cell for cell in page.cells if "parameters" not in "".join(cell.metadata.get("tags", []))]
    for cell in page.cells:
        cell.outputs = [_plain(output) for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})]
        cell.outputs = [output for output in cell.outputs if output.output_type in ("display_data", "execute_result")]
    names = {"unique_key": name, "output_files_dir": PICTURES}
    text, resources = MarkdownExporter().from_notebook_node(page, names)
    for place, content in resources["outputs"].items():
        if not (folder / place).is_file() or (folder / place).read_bytes() != content:
            write_atomically(folder / place, lambda path, content=content: path.write_bytes(content))
    for path in (folder / PICTURES).glob(f"{name}_*"):
        if f"]({PICTURES}/{path.name})" not in text:
            path.unlink()
    # links of a notebook start in notebooks/, those of its page in figures/<profile>/
    text = re.sub(r"\]\(\.\./(?!\.\.)", "](../../", re.sub(r"\n{3,}", "\n\n", text))
    heading, _, rest = text.lstrip().partition("\n")
    made = f"*[The notebook](../../notebooks/{name}.ipynb) as `make reproduce PROFILE={folder.name}` ran it.*"
    return write_text(folder / f"{name}.md", f"{heading}\n\n{made}\n{rest.rstrip()}\n")


def _plain(output: NotebookNode) -> NotebookNode:
    """Saved pictures as links, tables without pandas' style sheets, which code hosts show as text."""
    saved = output.get("metadata", {}).get("image/png", {}).get("saved")
    if saved:
        output.data = {"text/markdown": f"![{saved.partition('.')[0]}]({saved})"}
    if "text/html" in output.get("data", {}):
        output.data["text/html"] = re.sub(r"<style.*?</style>\s*", "", output.data["text/html"], flags=re.DOTALL)
    return output


def _problem(notebook: NotebookNode, error: BaseException | None) -> Problem | None:
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
        problem = Problem(f"failed before the first cell: {_one_line(type(error).__name__, str(error))}")
    else:
        raised = [(output.ename, output.evalue) for output in failed.outputs if output.output_type == "error"]
        skipped = bool(raised) and raised[-1][0] == NotReady.__name__
        why = _one_line(*raised[-1]) if raised else error
        problem = Problem(raised[-1][1] if skipped else f"failed at In [{failed.execution_count}]: {why}", skipped)
    count = sum(cell.cell_type == "code" for cell in behind)
    unrun = f"<br>cells that were not run: {count}" if count else ""
    line = f'<div style="color: red; font-size: 1.5em">{html.escape(problem.text)}{unrun}</div>'
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
