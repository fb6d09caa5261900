"""Figs. 1, 2, 3 and 6 and Tables 3 and 4, from small runs: settings, boxes, diverged methods, outside systems."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.image import write_png
from qartsr_lib.methods import METHODS
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.show.figures.pictures import Block, Box, Panel
from qartsr_lib.show.tables import render as tables
from qartsr_lib.study import paper as papers
from qartsr_lib.study.evaluator import Experiment
from qartsr_lib.study.measured import Measured
from qartsr_lib.study.paper import OUTSIDE

METHOD_NAMES = ("maxmin", "lsq", "qartsr")
LABELS = ["MaxMin", "LSQ", "QArtSR"]
CELLS = [("embedded", 1000), ("embedded", 1), ("embedded-scaled", 1)]
BITS = ("W4A4", "W2A2")


@pytest.fixture
def pairs(tmp_path):
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in ("cat", "dog"):
        pair = Pair(name, tmp_path / f"{name}_lq.png", tmp_path / f"{name}.png")
        write_png(pair.hr, torch.rand(1, 3, 64, 48, generator=generator))
        write_png(pair.lq, torch.rand(1, 3, 16, 12, generator=generator))
        found.append(pair)
    return found


@pytest.fixture
def run(pairs, tmp_path):
    """Full precision, three methods, an outside system; LSQ diverged at W2A2 and has no image there."""
    cells = [Experiment(*cell, "fp", "W32A32", "samples") for cell in CELLS]
    cells += [Experiment(*cell, m, bits, "samples") for cell in CELLS for bits in BITS for m in METHOD_NAMES]
    cells.append(Experiment("outside", 0, "fp", "W32A32", "samples", label="DiffBIR"))
    rows, images = [], {}
    for number, cell in enumerate(cells):
        label = cell.label or METHODS.get(cell.method).label
        diverged = (cell.method, cell.bits) == ("lsq", "W2A2")
        known = {"dataset": "samples", "backbone": cell.backbone, "timestep": cell.timestep, "method": label}
        known |= {"bits": cell.bits, "n_images": 2, "n_seeds": 1, "steps": 8, "run_id": "r"}
        known |= {"w_bits_effective": np.nan if cell.label or diverged else 4.5, "note": "diverged" * diverged}
        value = np.nan if diverged else 20.0 + number
        for metric in ("PSNR", "NIQE", "MUSIQ"):
            shown = np.nan if metric == "MUSIQ" else value
            rows.append(known | {"metric": metric, "value": shown, "ci_low": shown - 1, "ci_high": shown + 1})
        for pair in [] if diverged else pairs:
            path = tmp_path / f"{number}_{pair.id}.png"
            write_png(path, torch.full((1, 3, 64, 48), number / 40))
            images[cell, pair.id] = path
    return Measured("tiny", pd.DataFrame(rows), [], images=images)


def setting(name):
    return next(item for item in reports.settings(CELLS, LABELS) if item.name == name)


def labels(block):
    return [[panel and panel.label.split("\n")[0] for panel in line] for line in block.lines]


def level(panel):
    return round(float(panel.image.mean()) * 40)


def test_settings_are_the_papers_and_one_per_model():
    names = {item.name: item for item in reports.settings(CELLS, LABELS)}
    assert list(names) == ["embedded_paper", "embedded_T1000", "embedded_T1", "embedded-scaled_T1"]
    assert names["embedded_paper"].timesteps == {"FP": 1000, "MaxMin": 1000, "LSQ": 1000, "QArtSR": 1}
    assert [name for name, item in names.items() if not item.pictured] == ["embedded_T1000"]
    assert reports.settings([("embedded", 1000)], LABELS)[0].pictured
    both = [("embedded-scaled", 1000), ("embedded-scaled", 1)]
    assert all("paper" not in item.name for item in reports.settings(both, LABELS))


def test_parts_of_a_table_are_its_own_settings_whatever_the_last_run_had():
    lines = [("RealSR", *cell, method) for cell in CELLS for method in ("FP", "LSQ", "QArtSR")]
    lines += [("Urban100", "embedded-scaled", 1, "LSQ")]
    lines += [(name, papers.BICUBIC, 1, "Bicubic") for name in ("RealSR", "Urban100")]
    results = pd.DataFrame(lines, columns=["dataset", "backbone", "timestep", "method"])
    parts = {(dataset, item.name): rows for dataset, item, rows in reports.table_parts(results)}
    assert list(parts) == [
        ("RealSR", "embedded_paper"),
        ("RealSR", "embedded_T1000"),
        ("RealSR", "embedded_T1"),
        ("RealSR", "embedded-scaled_T1"),
        ("Urban100", "embedded-scaled_T1"),  # bicubic alone makes no part
    ]
    paper = parts["RealSR", "embedded_paper"].set_index("method")["timestep"]
    assert paper.to_dict() == {"FP": 1000, "Bicubic": 1, "LSQ": 1000, "QArtSR": 1}


def test_rows_of_a_setting(run):
    rows = setting("embedded_paper").rows(run.table).drop_duplicates(["method", "timestep", "backbone"])
    expected = [("FP", 1000), ("DiffBIR", 0), ("MaxMin", 1000), ("LSQ", 1000), ("QArtSR", 1)]
    assert list(zip(rows["method"], rows["timestep"], strict=True)) == expected


def test_figure_1_has_references_above_and_our_bit_widths_below(run, pairs):
    boxes = {"absent": [0, 0, 8], "dog": [4, 6, 8], "cat": [0, 0, 8]}
    (block,) = reports.figure1_blocks(run, pairs, boxes, setting("embedded_T1"), ["W4A4", "W3A3", "W2A2"])
    assert block.title.startswith("dog") and block.box == Box(4, 6, 8)
    assert labels(block) == [["original", "bicubic", "FP W32A32", "DiffBIR"], ["QArtSR W4A4", "QArtSR W2A2"]]
    assert "4.50 bits/weight, " in block.lines[1][0].label and block.lines[1][0].label.endswith(" dB")
    assert "bits/weight" not in block.lines[0][3].label


def test_figure_3_shows_a_diverged_method_as_missing(run, pairs):
    (block,) = reports.figure3_blocks(run, pairs, {"cat": [0, 0, 8]}, setting("embedded_T1"), ["W4A4", "W2A2", "W1A1"])
    panels = [panel for line in block.lines for panel in line]
    assert [panel.label.split(" ")[0] for panel in panels][-3:] == LABELS
    assert panels[-1].label.startswith("QArtSR W2A2")
    assert [panel.image is None for panel in panels[-3:]] == [False, True, False]
    assert reports.figure3_blocks(run, pairs, {}, setting("embedded_T1"), ["W3A3"]) == []


def test_figure_6_takes_each_method_from_the_settings_model(run, pairs):
    blocks = reports.figure6_blocks(run, pairs, {"dog": [0, 0, 8], "cat": [1, 1, 8]}, setting("embedded_paper"), BITS)
    assert [block.title.split(":")[0] for block in blocks] == ["dog", "cat"]
    first, second = labels(blocks[0])
    assert first == ["original", "DiffBIR", "MaxMin W4A4", "LSQ W4A4", "QArtSR W4A4"]
    assert second == ["FP W32A32", None, "MaxMin W2A2", "LSQ W2A2", "QArtSR W2A2"]
    order = list(dict.fromkeys(cell for cell, _ in run.images))
    numbers = {(cell.method, cell.timestep, cell.backbone, cell.bits): i for i, cell in enumerate(order)}
    assert level(blocks[0].lines[0][2]) == numbers["maxmin", 1000, "embedded", "W4A4"]
    assert "T = 1, " in blocks[0].lines[0][4].label and "T = 1000, " in blocks[0].lines[0][2].label


def test_without_a_named_photograph_the_middle_of_the_first_is_shown(run, pairs):
    (block,) = reports.figure6_blocks(run, pairs, {"absent": [0, 0, 8]}, setting("embedded_T1"), BITS)
    assert block.title.startswith("cat") and block.box == Box(25, 17, 14)


@pytest.mark.parametrize("box", [[60, 0, 8], [0, 44, 8]])
def test_of_a_photograph_too_small_for_its_box_the_middle_is_shown_and_told(run, pairs, box, caplog):
    (block,) = reports.figure1_blocks(run, pairs, {"cat": box}, setting("embedded_T1"), BITS)
    assert block.box == Box(25, 17, 14) and "outside of the 48x64 photograph: its middle is shown" in caplog.text


@pytest.mark.parametrize("box", [[-1, 0, 8], [0, 0, 0], [0, 0]])
def test_a_box_that_is_none_is_named(run, pairs, box):
    with pytest.raises(QartsrError, match=r"CROPS\['cat'\]"):
        reports.figure1_blocks(run, pairs, {"cat": box}, setting("embedded_T1"), BITS)


def test_no_picture_where_the_run_has_no_photographs(run, pairs):
    run.table["dataset"] = "RealSR"
    run.images.clear()
    for build in (reports.figure1_blocks, reports.figure3_blocks, reports.figure6_blocks):
        assert build(run, pairs, {}, setting("embedded_T1"), BITS) == []


def test_blocks_are_drawn_side_by_side(run, pairs):
    blocks = reports.figure6_blocks(run, pairs, {"dog": [0, 0, 8]}, setting("embedded_T1"), BITS)
    figure = figures.photograph_blocks(blocks)
    photograph, crops = figure.axes[0], figure.axes[1:]
    assert len(crops) == 9 and len(photograph.patches) == 1
    assert crops[0].images[0].get_array().shape == (8, 8, 3)
    assert [axis.texts[0].get_text() for axis in crops if not axis.images] == ["n/a"]
    places = [axis.get_position() for axis in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])
    assert all(place.x0 >= 0 and place.x1 <= 1 and place.y0 >= 0 and place.y1 <= 1 for place in places)


def test_a_long_name_is_set_smaller():
    image = torch.rand(1, 3, 20, 20)
    line = (Panel(image, "QArtSR W4A4\n27.00 dB"), Panel(image, "A method [with a long remark] W4A4\n27.00 dB"))
    short, long = figures.photograph_blocks([Block("t", image, Box(0, 0, 4), (line,))], 1.2).axes[1:]
    assert short.xaxis.label.get_size() == 7 > long.xaxis.label.get_size()


def test_one_line_and_unequal_blocks_are_drawn():
    image = torch.rand(1, 3, 20, 40)
    one = Block("wide", image, Box(0, 0, 4), ((Panel(image, "a\nb"),),))
    three = Block("three", image, Box(0, 0, 4), ((Panel(None, "n"),), (None,), (Panel(image, "a"), Panel(image, "b"))))
    assert len(figures.photograph_blocks([one, three]).axes) == 2 + 1 + 3
    with pytest.raises(ValueError, match="no photograph"):
        figures.photograph_blocks([])


def test_figure_2_survives_missing_and_infinite_values(run):
    rows = setting("embedded_T1").rows(run.table)
    rows.loc[(rows["method"] == "MaxMin") & (rows["metric"] == "NIQE"), ["value", "ci_high"]] = np.inf
    figure = figures.metric_panels(rows, ["PSNR", "NIQE", "MUSIQ", "LPIPS"], "W2A2")
    assert [axis.get_title().split(" ")[0] for axis in figure.axes if axis.axison] == ["PSNR", "NIQE"]
    assert [len([text for text in axis.texts if text.get_text() == "n/a"]) for axis in figure.axes[:2]] == [1, 2]
    assert len(figure.axes[0].patches) == 4, "three methods and the outside system"
    (outside,) = rows.loc[(rows["backbone"] == OUTSIDE) & (rows["metric"] == "PSNR"), "method"]
    few = rows[(rows["metric"] == "PSNR") | (rows["method"] == outside)]
    panel = figures.metric_panels(few, ["PSNR", "NIQE"], "W2A2").axes[1]
    assert len([text for text in panel.texts if text.get_text() == "n/a"]) == 3, "of the three methods"
    (line,) = [line for line in panel.lines if np.isfinite(line.get_xdata()).all() and line.get_linestyle() == "-"]
    (bar,) = [bar for bar in panel.patches if bar.get_width()]
    assert line.get_ydata()[0] == pytest.approx(bar.get_y() + bar.get_height() / 2), "the interval beside its bar"
    nothing = figures.metric_panels(rows[rows["backbone"] != OUTSIDE], ["PSNR"], "W8A8")
    assert [text.get_text() for text in nothing.axes[0].texts] == ["no values at W8A8"]


def test_figures_without_any_value(run, home):
    nothing = run.table.assign(value=np.nan, ci_low=np.nan, ci_high=np.nan)
    for rows in (nothing, nothing.iloc[:0]):
        figure = figures.metric_panels(rows, ["PSNR"], "W4A4")
        figures.save(figure, "tiny", "empty")
    bad = [{"images": 1, "image_loss": float("nan")}, {"images": 2, "image_loss": float("inf")}, {"images": 3}]
    for histories in ({}, {"A": []}, {"A": bad}):
        figures.save(figures.loss_curves(histories), "tiny", "empty")
    axis = figures.loss_curves({"A": bad, "B": [{"images": 1, "image_loss": 0.5}, *bad]}, title="W4A4").axes[0]
    assert axis.lines[0].get_ydata().tolist() == [0.5]
    assert axis.get_title() == "W4A4"


def test_loss_histories_are_of_one_model_and_of_the_first_seed():
    def trained(backbone, timestep, bits, label, seed=0):
        return Experiment(backbone, timestep, "qartsr", bits, "samples", seed, label=label)

    histories = {
        trained("embedded", 1000, "W4A4", "RPQ*"): [{"image_loss": 1.0}],  # alone: nothing to compare
        trained("embedded", 1, "W4A4", "RPQ*"): [{"image_loss": 2.0}],
        trained("embedded", 1, "W4A4", "ET"): [{"image_loss": 3.0}],
        trained("embedded", 1, "W4A4", "ET", seed=1): [{"image_loss": 4.0}],
        trained("embedded", 1, "W4A4", "not asked for"): [{"image_loss": 5.0}],
        trained("embedded", 1, "W2A2", "ET"): [{"image_loss": 6.0}],
    }
    run = Measured("tiny", pd.DataFrame(), [], histories=histories)
    ((name, title, found),) = reports.loss_histories(run, ["ET", "RPQ*", "RPQ*+ET"])
    assert (name, title) == ("W4A4_embedded_T1", "embedded, T = 1, W4A4")
    assert list(found.items()) == [("ET", [{"image_loss": 3.0}]), ("RPQ*", [{"image_loss": 2.0}])]


def test_columns_of_models_beside_each_photograph(run, pairs):
    blocks = reports.full_precision_crops(run, pairs, {"dog": [0, 0, 8], "cat": [1, 1, 8]}, [("bicubic", 1), *CELLS])
    assert [block.title for block in blocks] == ["cat", "dog"], "in the order of the pairs"
    assert labels(blocks[0]) == [["original", "bicubic", *(f"{name}, T = {t}" for name, t in CELLS)]]
    assert blocks[0].lines[0][1].image is None and level(blocks[0].lines[0][3]) == 1
    (block,) = reports.quantized_crops(run, pairs, {"dog": [0, 0, 8]}, "embedded", [1000, 1], "W4A4")
    assert labels(block) == [["original", "FP, T = 1000", "W4A4, T = 1000", "FP, T = 1", "W4A4, T = 1"]]
    assert all(panel.label.endswith(" dB") for panel in block.lines[0][1:])


def test_a_run_without_sample_photographs_draws_none_of_their_crops(run, pairs):
    """Else figures of an earlier run would give way to grey places."""
    cells = {(dataclasses.replace(cell, dataset="RealSR"), name): path for (cell, name), path in run.images.items()}
    real = dataclasses.replace(run, images=cells)
    assert reports.full_precision_crops(real, pairs, {}, CELLS) == []
    assert reports.quantized_crops(real, pairs, {}, "embedded", [1000, 1], "W4A4") == []



def test_table_3_has_the_papers_setting_with_its_full_precision(run):
    sections = dict(reports.table3_sections(run.table, ["PSNR", "NIQE", "MUSIQ"]))
    assert list(sections)[0] == "samples, embedded, the paper's setting"
    paper = sections["samples, embedded, the paper's setting"].set_index(["bits", "method"])
    assert paper.loc[("W32A32", "FP"), "PSNR (paper)"] == "25.27", "the paper calls this row OSEDiff"
    assert paper.loc[("W4A4", "QArtSR"), "PSNR (paper)"] == "24.50"
    assert paper.loc[("W4A4", "QArtSR"), ["T", "paper's setting"]].tolist() == ["1", "yes"]
    assert paper.loc[("W4A4", "MaxMin"), ["T", "paper's setting"]].tolist() == ["1000", "yes"]
    best = paper.loc["W4A4", "PSNR"].str.startswith("**")
    assert best[best].index.tolist() == ["QArtSR"], "compared across T"
    same = sections["samples, embedded, T = 1"].set_index(["bits", "method"])
    assert same.loc[("W32A32", "FP"), ["paper's setting", "PSNR (paper)"]].tolist() == ["", ""]
    assert same.loc[("W4A4", "MaxMin"), "paper's setting"] == ""
    scaled = sections["samples, embedded-scaled, T = 1"]
    assert "PSNR (paper)" not in scaled and set(scaled["paper's setting"]) == {""}


def test_only_models_by_osediffs_recipe_stand_beside_the_paper(run):
    own = run.table.assign(backbone=run.table["backbone"].replace("embedded", "mine"))
    for title, table in reports.table3_sections(own, ["PSNR"]):
        assert "paper" not in title and "PSNR (paper)" not in table and set(table["paper's setting"]) == {""}


def test_table_3_shows_what_is_missing(run, home):
    sections = reports.table3_sections(run.table, ["PSNR", "MUSIQ"])
    for _, table in sections:
        rows = table.set_index(["bits", "method"])
        assert rows.loc[("W2A2", "LSQ"), ["PSNR", "bits/weight"]].tolist() == ["n/a", "n/a"]
        assert rows.loc[("W32A32", "DiffBIR"), ["T", "bits/weight"]].tolist() == ["", "n/a"]
        assert "MUSIQ" not in rows, "no value in any row: told in a line"
    assert "DiffBIR" in tables.save_table("tiny", "table3", sections, "caption").read_text()
    ranks = reports.ranks(run.table)
    assert set(ranks.columns) == set(LABELS) and np.isnan(ranks.loc[("samples", "embedded", 1, "W2A2"), "LSQ"])


def test_infinite_values_are_never_best():
    row = {"dataset": "d", "bits": "W4A4", "timestep": 1, "metric": "PSNR", "ci_low": np.nan, "ci_high": np.nan}
    frame = pd.DataFrame([row | {"method": m, "value": v} for m, v in (("A", np.inf), ("B", 2.0), ("C", 1.0))])
    shown = tables.wide(frame, ["PSNR"], compare="method").set_index("method")["PSNR"]
    assert shown.to_dict() == {"A": "n/a", "B": "**2.00**", "C": "1.00"}


def test_table_4_warns_where_the_papers_rows_are_shown(home):
    row = {"dataset": "RealSR", "timestep": 1, "method": "ET", "bits": "W4A4", "metric": "PSNR", "value": 24.5}
    row |= {"ci_low": np.nan, "ci_high": np.nan, "steps": 8, "trq": 1, "rpq": 0, "et": 1, "order": "none"}
    frame = pd.DataFrame([row | {"backbone": "embedded", "loss": "image", "version": "paper"}])
    sections = reports.table4_sections(frame, ["PSNR"])
    assert sections[0][1]["PSNR"].tolist() == ["24.50"] and sections[0][1]["PSNR (paper)"].tolist() == ["25.17"]
    note = reports.table4_note(sections)
    text = tables.save_table("tiny", "table4", sections, "caption", note).read_text()
    assert "swapped" in note and text.rstrip().endswith(note)
    assert reports.table4_note(reports.table4_sections(frame.assign(version="equal"), ["PSNR"])) == ""
