"""What registries know of who filled them."""

import subprocess
import sys

import pytest

from qartsr_lib.base.registry import Registry, outside

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


def test_names_are_unique():
    registry = Registry("method")
    registry.register("a")(print)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("a")(print)
