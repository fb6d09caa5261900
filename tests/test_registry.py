"""What registries know of who filled them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry, from_cells, outside

CELL = """
from qartsr_lib.base.registry import Registry, outside
Registry("method").register("mine")(print)
print(outside("mine", "qartsr"))
"""


def test_entries_of_this_package_need_nothing_more():
    from qartsr_lib.methods import METHODS

    assert METHODS.names() and outside("qartsr", 1.5, None) == {}


def test_an_entry_from_a_file_is_known_by_its_text(tmp_path):
    found = []
    for text in (CELL, CELL, CELL + "# edited\n"):
        (tmp_path / "plugin.py").write_text(text)
        words = [sys.executable, str(tmp_path / "plugin.py")]
        found.append(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1] != found[2] and "'mine'" in found[0]


def test_an_entry_from_a_cell_is_known_by_its_process():
    words = [sys.executable, "-c", CELL]
    first, second = (subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first != second and "'mine'" in first


def test_a_file_is_known_by_the_modules_beside_it_too(tmp_path):
    (tmp_path / "plugin.py").write_text("import layers\n" + CELL)
    found = []
    for bits in (4, 4, 2):
        (tmp_path / "layers.py").write_text(f"BITS = {bits}\n")
        words = [sys.executable, "-B", str(tmp_path / "plugin.py")]
        found.append(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1] != found[2]


def run_cells(monkeypatch, *cells):
    """What `outside("mine")` says after each cell of a notebook."""
    shell = SimpleNamespace(user_ns={"In": [""]})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    space, found = {"__name__": "__main__", "registry": Registry("method")}, []
    for cell in cells:
        shell.user_ns["In"].append(cell)
        exec(compile(cell, "<cell>", "exec"), space)
        found.append(str(outside("mine")))
    return found


def test_an_entry_from_a_cell_changes_with_every_cell_that_it_may_use(monkeypatch):
    register, measure = "registry.register('mine')(width)", "print"
    cells = ["def width(): return 8", register, measure, measure, "def width(): return 2", measure]
    found = run_cells(monkeypatch, *cells, cells[0], measure)
    assert found[2] == found[3] != found[5] != found[7]
    assert len({found[3], found[5], found[7]}) == 3 and from_cells("mine", "qartsr") == ["mine"]


def test_a_cell_can_run_again_but_not_take_a_name_of_the_package(monkeypatch):
    from qartsr_lib.methods import METHODS

    cells = ["registry.register('mine')(min)", "registry.register('mine')(max)"]
    run_cells(monkeypatch, *cells, "assert registry.get('mine') is max")
    with pytest.raises(QartsrError, match="'qartsr' cannot be registered: there is one already; choose"):
        METHODS.register("qartsr")(METHODS.get("qartsr"))
