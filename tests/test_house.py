"""The rooms of the library, and the one direction in which they import."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import house


def test_imports_run_down_only():
    assert house.backward(house.imports(house.CHECKOUT)) == []


def test_no_modules_import_each_other():
    assert house.circles(house.imports(house.CHECKOUT)) == []


def test_every_module_has_a_room_and_no_package_is_crowded():
    top = {path.name.removesuffix(".py") for path in (house.CHECKOUT / house.LIBRARY).iterdir()}
    assert top - {"__init__", "__pycache__", "py.typed"} == set(house.ROOMS)
    assert house.largest_package(house.CHECKOUT)[0] <= 25


@pytest.fixture
def library(tmp_path):
    """A function that writes modules of a small library and gives its imports."""

    def write(**texts: str) -> dict[str, set[str]]:
        for name, text in texts.items():
            path = Path(tmp_path, house.LIBRARY, *name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            (path.parent / "__init__.py").touch()
        return house.imports(tmp_path)

    return write


@pytest.mark.parametrize(
    "text",
    [
        "from qartsr_lib.show import page",
        "import qartsr_lib.show.page as p",
        "def late():\n    from qartsr_lib.show.page import draw",
        "PACKAGE = 'qartsr_lib.show.page'",
    ],
)
def test_an_import_that_runs_back_is_found(library, text):
    graph = library(base__paths=text, show__page="import os")
    assert house.backward(graph) == ["qartsr_lib.base.paths -> qartsr_lib.show.page"]


def test_a_circle_is_found(library):
    graph = library(base__a="from qartsr_lib.base import b", base__b="from qartsr_lib.base.a import x")
    assert house.circles(graph) == [["qartsr_lib.base.a", "qartsr_lib.base.b"]]


def test_floors_are_the_longest_way_down(library):
    graph = library(show__a="import qartsr_lib.quant.b", quant__b="import qartsr_lib.base.c", base__c="")
    assert house.floors(house.between_rooms(graph)) == 3
