"""Paired differences: rows by method, bits and T, intervals over images, a verdict in plain words."""

import math

import pandas as pd
import pytest

from qartsr_lib.study import contrasts
from qartsr_lib.study.contrasts import Row
from qartsr_lib.study.experiments import grids
from qartsr_lib.study.paper import BICUBIC, NO_TIMESTEP, OUTSIDE
from qartsr_lib.study.profiles import get_profile


def per_image(cells, metric="PSNR", backbone="embedded"):
    """cells: (method, bits, T) -> values of images, or of (image, seed)."""
    rows = []
    for (method, bits, timestep), values in cells.items():
        seeds = values if isinstance(values, dict) else {(str(i), 0): value for i, value in enumerate(values)}
        known = {"dataset": "d", "backbone": OUTSIDE if timestep == NO_TIMESTEP else backbone, "bits": bits}
        known |= {"timestep": timestep, "method": method, "metric": metric}
        rows += [known | {"image": image, "seed": seed, "value": value} for (image, seed), value in seeds.items()]
    return pd.DataFrame(rows)


def test_seeds_are_averaged_first():
    cells = {("A", "W4A4", 1): {("x", 0): 30.0, ("x", 1): 32.0, ("y", 0): 20.0, ("y", 1): 20.0}}
    cells |= {("B", "W4A4", 1): {("x", 0): 30.0, ("y", 0): 19.0}}
    pairs = [(Row("A"), Row("B")), (Row("A"), Row("C"))]
    (row,) = contrasts.paired_differences(per_image(cells), pairs).to_dict("records")
    assert row["difference"] == "A - B" and row["PSNR"] == 1.0 and row["n_images"] == 2


def test_full_precision_is_met_at_every_bit_width_of_the_same_model():
    cells = {("A", "W4A4", 1): [20, 21], ("A", "W2A2", 1): [10, 11], ("A", "W4A4", 1000): [5, 6]}
    cells |= {("FP", "W32A32", 1): [25, 26], ("FP", "W32A32", 1000): [45, 46]}
    table = contrasts.paired_differences(per_image(cells), [(Row("A"), Row("FP"))])
    found = {(row.bits, row.T): row.PSNR for row in table.itertuples()}
    assert found == {("W4A4 - W32A32", "1"): -5, ("W2A2 - W32A32", "1"): -15, ("W4A4 - W32A32", "1000"): -40}


def test_differences_across_timesteps_come_once():
    cells = {("A", "W4A4", 1): [20, 21], ("A", "W4A4", 1000): [15, 16], ("A", "W2A2", 1): [10, 11]}
    pairs = [(Row("A", timestep=1), Row("A", timestep=1000))]
    table = contrasts.paired_differences(per_image(cells), pairs)
    assert table[["bits", "T", "PSNR"]].to_numpy().tolist() == [["W4A4", "1 - 1000", 5]]


def test_a_model_is_never_paired_with_one_of_another_backbone():
    frame = pd.concat(
        [per_image({("A", "W4A4", 1): [1, 2]}), per_image({("B", "W4A4", 1): [1, 2]}, backbone="embedded-scaled")]
    )
    assert contrasts.paired_differences(frame, [(Row("A"), Row("B"))]).empty


def test_outside_systems_are_met_by_every_backbone():
    cells = {("A", "W4A4", 1): [20, 21], ("DiffBIR", "W32A32", NO_TIMESTEP): [18, 19]}
    (row,) = contrasts.paired_differences(per_image(cells), [(Row("A"), Row("DiffBIR"))]).to_dict("records")
    assert (row["backbone"], row["bits"], row["T"], row["PSNR"]) == ("embedded", "W4A4", "1", 2)


def test_bicubic_is_met_by_every_model_and_bit_width():
    cells = {("QArtSR", "W4A4", 1): [20, 21], ("QArtSR", "W2A2", 1000): [10, 11]}
    frame = pd.concat([per_image(cells), per_image({("Bicubic", "W32A32", 1): [18, 19]}, backbone=BICUBIC)])
    table = contrasts.paired_differences(frame, contrasts.table3_effects(frame)["The same model"])
    found = table[["backbone", "bits", "T", "difference", "PSNR"]].to_numpy().tolist()
    name = "QArtSR - Bicubic"
    assert found == [["embedded", "W4A4", "1", name, 2], ["embedded", "W2A2", "1000", name, -8]]


@pytest.mark.parametrize(
    "metric, first, verdict",
    [
        ("PSNR", [2, 3, 4], "helps"),
        ("NIQE", [2, 3, 4], "hurts"),
        ("PSNR", [-2, -3, -4], "hurts"),
        ("NIQE", [-2, -3, -4], "helps"),
        ("PSNR", [-3, 0, 3], "undecided"),
        ("PSNR", [0, 0, 0], "undecided"),
        ("PSNR", [5], "undecided"),
        ("PSNR", [math.nan, math.inf], "no value"),
    ],
)
def test_verdicts(metric, first, verdict):
    frame = per_image({("A", "W4A4", 1): first, ("B", "W4A4", 1): [0.0] * len(first)}, metric)
    (row,) = contrasts.paired_differences(frame, [(Row("A"), Row("B"))], metric).to_dict("records")
    assert row["verdict"] == verdict
    assert row["n_images"] == sum(map(math.isfinite, first))


def test_few_images_are_marked():
    def note(n):
        frame = per_image({("A", "W4A4", 1): range(n), ("B", "W4A4", 1): [0.0] * n})
        return contrasts.paired_differences(frame, [(Row("A"), Row("B"))])["note"].item()

    assert "fewer than ten" in note(9) and note(10) == ""


def test_table_4_effects_name_rows_that_the_table_has():
    profile = get_profile("study", datasets=["samples"])
    labels = {(e.label or "FP", e.timestep) for e in grids.ablation_grid(profile) if e.backbone == "embedded"}
    pairs = [pair for effect in contrasts.TABLE4_EFFECTS.values() for pair in effect]
    for row in [row for pair in pairs for row in pair]:
        assert any(row.method == label and row.timestep in (None, timestep) for label, timestep in labels), row
    text = {f"{a.method} {a.timestep} - {b.method} {b.timestep}" for a, b in pairs}
    assert {"MaxMin 1 - MaxMin 1000", "RPQ* 1 - RPQ* 1000"} <= text
    assert "RPQ*+ET None - RPQ* [half the budget] None" in text, "the paper's gain of ET"


def test_table_3_effects_hold_full_precision_the_papers_setting_and_every_row():
    """Those of a part that was made alone, too: with KEEP, rows are the whole table's."""
    cells = {("FP", "W32A32", 1): [9, 9], ("MaxMin", "W4A4", 1): [1, 2], ("QArtSR", "W4A4", 1): [3, 4]}
    frame = per_image(cells | {("DiffBIR", "W32A32", NO_TIMESTEP): [5, 6]})
    effects = contrasts.table3_effects(frame)
    same, paper = effects.values()
    assert [second.method for _, second in same] == ["FP", "Bicubic", "MaxMin", "DiffBIR"]
    assert (Row("QArtSR", timestep=1), Row("MaxMin", timestep=1000)) in paper
    assert [title for title, _ in contrasts.difference_sections(frame, effects)] == ["The same model"]
