"""The README's tables are those of the result files."""

from __future__ import annotations

import csv
import re

import pytest

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.show import readme


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    monkeypatch.delenv("QARTSR_HOME", raising=False)


def test_committed_readme_shows_the_committed_results():
    texts = [path.read_text(encoding="utf-8") for path in readme.readme_files()]
    named = re.findall(r"<!-- (?!end)([\w ]+) -->", "".join(texts))
    assert sorted(named) == sorted(readme.BLOCKS), "each block once"
    assert [readme.filled(text) for text in texts] == texts, "make report writes the tables anew"


def test_the_front_page_is_short_enough_to_be_read():
    lines = readme.readme_files()[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "!"))] == []


def test_a_cell_is_the_tables_and_the_best_is_bold():
    with open(paths.results_dir("study") / "table3.csv", newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "PSNR" and row["bits"] == "W4A4"]
    wanted = {
        row["method"]: float(row["value"])
        for row in rows
        if (row["dataset"], row["backbone"], row["timestep"]) == ("Urban100", "embedded", "1000")
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.psnr_table("W4A4").splitlines()]
    assert lines[0][4] == "Urban100: `embedded`, T = 1000"
    found = {line[0].strip("*"): line[4] for line in lines[4:]}
    assert {name: float(cell.strip("*")) for name, cell in found.items() if cell != "-"} == {
        name: pytest.approx(value, abs=0.00501) for name, value in wanted.items()
    }
    bold = [name for name, cell in found.items() if cell.startswith("**")]
    assert bold == [max(wanted, key=wanted.get)]


def test_a_changed_number_is_written_anew_and_an_unknown_table_named():
    block = "text\n<!-- verdicts -->\n{}<!-- end -->\nmore\n"
    assert readme.filled(block.format("| 99 |\n")) == block.format(readme.verdict_counts())
    with pytest.raises(QartsrError, match="no table is called 'table9'"):
        readme.filled("<!-- table9 -->\n<!-- end -->")


def test_a_cell_of_the_outside_systems_is_the_tables():
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.outside_table().splitlines()]
    table = {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}
    assert list(table) == ["RealSR, PSNR-Y", "RealSR, LPIPS", "Urban100, PSNR-Y", "Urban100, LPIPS"]
    with open(paths.results_dir("study") / "table3.csv", newline="", encoding="utf-8") as stream:
        rows = {(row["dataset"], row["method"], row["metric"]): row["value"] for row in csv.DictReader(stream)}
    for system in ("DAT-light", "SPAN", "Real-ESRGAN"):
        assert float(table["RealSR, PSNR-Y"][system]) == pytest.approx(float(rows["RealSR", system, "PSNR"]), abs=0.005)
        found = float(table["Urban100, LPIPS"][system])
        assert found == pytest.approx(float(rows["Urban100", system, "LPIPS"]), abs=5e-5)
    assert "-" not in {cell for row in table.values() for cell in row.values()}, "every system on both data sets"
