"""Tables 3 and 4: which cells, which options, which rows of which version."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import CHOSEN, chosen_rate
from qartsr_lib.methods.setting import BEST, DEFAULT
from qartsr_lib.show import tables as reports
from qartsr_lib.study import contrasts
from qartsr_lib.study.experiments import grids, rates, setting_grids
from qartsr_lib.study.profiles import PROFILES, SEVEN_METHODS, get_profile

STUDY = get_profile("study", datasets=["samples"])


def test_every_method_runs_on_every_cell_with_one_budget():
    grid = grids.comparison_grid(STUDY)
    for cell in STUDY.finetune_models:
        for bits in STUDY.finetune_bits:
            rows = [e for e in grid if (e.backbone, e.timestep, e.bits) == (*cell, bits)]
            assert {e.method for e in rows} == set(STUDY.methods) >= set(SEVEN_METHODS)
            budgets = {dict(e.options).get("images") for e in rows if METHODS.get(e.method).trains}
            assert budgets == {STUDY.train_images}
            assert all(e.options == () for e in rows if not METHODS.get(e.method).trains)
    assert {(e.backbone, e.timestep) for e in grid if e.method == "fp"} == {*STUDY.finetune_models, ("bicubic", 1)}


def test_table_3_has_bicubic_once_per_data_set():
    profile = get_profile("study", datasets=["samples", "RealSR"])
    rows = [e for e in grids.comparison_grid(profile) if e.backbone == "bicubic"]
    assert [(e.dataset, e.bits, e.label) for e in rows] == [(d, "W32A32", "Bicubic") for d in ("samples", "RealSR")]
    assert set(rows) <= set(grids.full_precision_grid(profile))  # the same cell as notebook 00's
    assert grids.comparison_grid(get_profile("study", finetune_models=[])) == []


def test_without_bit_widths_networks_still_join_table_3():
    """The command of notebooks/README.md; longer trainings and image losses have nothing to train then."""
    bare = get_profile("study", datasets=["samples"], finetune_bits=[])
    assert {e.method for e in grids.comparison_grid(bare)} == {"fp"}
    for grid in (lambda: grids.budget_grid(bare, [8]), lambda: grids.loss_grid(bare)):
        with pytest.raises(QartsrError, match="finetune_bits of profile 'study' is empty"):
            grid()


def test_seeds_only_where_they_decide():
    seeds = {}
    for e in grids.comparison_grid(STUDY):
        seeds.setdefault((e.method, e.timestep, e.bits), set()).add(e.seed)
    assert seeds["qartsr", 1, "W4A4"] == set(STUDY.seeds) and seeds["lsq", 1, "W2A2"] == set(STUDY.seeds)
    assert seeds["qartsr", 1, "W3A3"] == seeds["qartsr", 1000, "W4A4"] == seeds["svdquant", 1, "W4A4"] == {0}


def test_table_4_has_the_papers_rows_and_an_equal_version():
    grid = grids.ablation_grid(STUDY)
    labels = {(e.timestep, e.label) for e in grid if e.backbone == "embedded" and e.label}
    table = pd.DataFrame([{"timestep": t, "method": label, "bits": "W4A4", "steps": 1} for t, label in sorted(labels)])
    rows = grids.with_stages(table)
    paper = rows[rows["version"] == "paper"]
    stages = {tuple(row) for row in paper[["trq", "rpq", "et"]].to_numpy()}
    assert stages == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)}
    equal = rows[rows["version"] == "equal"]
    assert set(equal["order"]) == {"none", "reverse", "inference", "random"}
    assert set(equal["loss"]) == {"none", "both", "image", "module"}


def test_equal_steps_means_the_whole_budget():
    for row in (grids.RPQ, grids.ET, grids.BOTH, *grids.VARIANTS):
        assert row.share == 1.0
    assert grids.RPQ_HALF.share == grids.ET_HALF.share == 0.5 and grids.RPQ_HALF.versions == ("paper",)


def test_the_full_method_of_table_4_is_the_model_of_table_3():
    table3 = {e.options for e in grids.comparison_grid(STUDY) if e.method == "qartsr"}
    table4 = {e.options for e in grids.ablation_grid(STUDY) if e.label == "RPQ*+ET"}
    assert table3 == table4


@pytest.mark.parametrize("profile", list(PROFILES))
def test_every_cell_belongs_to_the_profile(profile):
    found = PROFILES[profile].for_finetuning()
    assert {backbone for backbone, _ in found.finetune_models} <= set(found.backbones)
    assert found.metrics == found.finetune_metrics and found.max_images == found.finetune_images
    assert set(found.finetune_bits) | set(found.ablation_bits) <= set(found.bits)


def test_every_trained_method_had_as_many_tries_and_its_rates_are_their_winners():
    committed = pd.read_csv(Path(__file__).parents[1] / "results" / "study" / "tries.csv")
    shared = committed[committed["setting"] == DEFAULT.label]
    # These have theirs under the best setting alone (DEVIATIONS.md), so that they are in no profile's comparison.
    waiting = {"groupwise", "quantvsr", "qartsr-halves", "lsgquant"}
    assert set(shared["method"]) == set(rates.trained_methods()) - waiting
    assert not any(waiting & set(profile.methods) for profile in PROFILES.values())
    tries = committed.groupby(["setting", "method", "bits"])["factor"].nunique()
    fifth = [(BEST.label, "lsq", "W2A2"), (BEST.label, "q-dm", "W2A2")]  # at their own winners, which lost
    tries.loc[fifth] -= 1
    assert (tries.groupby("setting").nunique() == 1).all()
    assert rates.choose(committed) == json.loads(CHOSEN.read_text(encoding="utf-8"))


def test_all_trained_methods_have_a_chosen_rate_among_the_tries():
    for name in SEVEN_METHODS:
        if METHODS.get(name).trains:
            assert all(chosen_rate(name, bits) > 1 for bits in ("W4A4", "W3A3", "W2A2"))
    assert chosen_rate("maxmin", "W4A4") == 1


def test_the_smallest_error_times_distance_wins_at_each_bit_width_and_a_breakdown_loses():
    nothing = float("nan")
    rows = [("a", "W4A4", 1, 30.0, 0.1), ("a", "W4A4", 1, 30.0, 0.1), ("a", "W4A4", 10, 30.0, 0.2)]
    rows += [("a", "W2A2", 1, 20.0, 0.5), ("a", "W2A2", 10, 40.0, 0.5), ("a", "W2A2", 10, 40.0, 0.5)]
    rows += [("b", "W4A4", 1, 20.0, 0.5), ("b", "W4A4", 10, nothing, nothing)]
    frame = pd.DataFrame(rows, columns=["method", "bits", "factor", "psnr_fp", "feature_distance"])
    wanted = {"a": {"W4A4": 1.0, "W2A2": 10.0, "others": 10.0}, "b": {"W4A4": 1.0, "others": 1.0}}
    assert rates.choose(frame.assign(setting="s")) == {"s": wanted}


def test_the_second_look_goes_around_the_winners_of_the_first_and_others_need_a_factor_tried_everywhere():
    rows = [("a", bits, factor, 30.0, 0.1) for bits in rates.BITS for factor in rates.FIRST_LOOK]
    rows += [("a", "W4A4", 10, 40.0, 0.1), ("a", "W2A2", 100, 40.0, 0.1), ("a", "W2A2", 30, 50.0, 0.1)]
    frame = pd.DataFrame(rows, columns=["method", "bits", "factor", "psnr_fp", "feature_distance"])
    frame["setting"] = label = DEFAULT.label
    around = [("W4A4", 3.0), ("W4A4", 30.0), ("W2A2", 30.0), ("W2A2", 300.0)]
    assert rates.second_look(["a"], frame) == [("a", bits, label, factor) for bits, factor in around]
    assert rates.choose(frame)[label]["a"] == {"W4A4": 10.0, "W2A2": 30.0, "others": 10.0}
    with pytest.raises(QartsrError, match="no first look at b"):
        rates.second_look(["a", "b"], frame)


def test_ranks_know_the_direction_of_a_metric():
    base = {"dataset": "d", "backbone": "b", "timestep": 1, "bits": "W4A4"}
    rows = [base | {"method": m, "metric": k, "value": v} for m, k, v in (("A", "PSNR", 2), ("B", "PSNR", 1))]
    rows += [base | {"method": m, "metric": "GMSD", "value": v} for m, v in (("A", 2), ("B", 1))]
    frame = pd.DataFrame(rows)
    assert reports.ranks(frame).iloc[0].to_dict() == {"A": 1, "B": 2}
    assert reports.ranks(frame, "GMSD").iloc[0].to_dict() == {"A": 2, "B": 1}


def _record(method, dataset, build, images, options=(("images", 8),), seeds=(0,), n=2, backbone="b"):
    parameters = {"backbone": backbone, "timestep": 1, "method": method, "label": method, "options": dict(options)}
    parameters |= {"bits": "W4A4", "seeds": list(seeds)}
    data = {"name": dataset, "images": n}
    return {"parameters": parameters, "data": data, "duration_s": {"build": build, "images": images}}


def test_times_count_a_model_once_and_scale_the_first_cell():
    records = [
        _record("maxmin", "d", 5.0, 1.0, options=()),
        _record("qartsr", "d", 60.0, 8.0, seeds=(0, 1)),  # 30 s a model, 2 s an image
        _record("qartsr", "e", 60.0, 4.0, seeds=(0, 1)),  # the same models on another data set
        _record("lsq", "d", 10.0, 2.0),
        _record("fp", "d", 0.0, 9.0, options=(), backbone="outside"),  # a system that was not run here
    ]
    table = reports.computing_times(records).set_index("quantity")
    training, images = table.loc["training a model"], table.loc["upscaling and scoring an image"]
    assert list(training)[:2] == [30.0, 3] and training["hours, measured"] == round(70 / 3600, 2)
    assert list(images)[:2] == [2.0, 12] and images["hours, estimated"] == round(24 / 3600, 2)
    assert table.loc["together", "hours, estimated"] == pytest.approx((90 + 24) / 3600, abs=0.006)


def test_image_losses_change_the_loss_alone():
    grid = grids.loss_grid(STUDY)
    trained = [e for e in grid if e.method == "qartsr"]
    assert {e.bits for e in trained} == {"W4A4"} and {e.seed for e in trained} == set(STUDY.seeds)
    by_loss = {loss: [e for e in trained if dict(e.options)["image_loss"] == loss] for loss in grids.IMAGE_LOSSES}
    first, second = ([{**dict(e.options), "image_loss": ""} for e in found] for found in by_loss.values())
    assert first == second and len(first) == len(trained) / 2
    assert {e.label for e in by_loss["lpips+mse"]} == {"QArtSR [lpips+mse]"}
    assert any(e.method == "fp" for e in grid), "the distance to full precision needs it"


def test_longer_training_changes_the_budget_alone():
    grid = grids.budget_grid(STUDY, [8])
    assert {(e.backbone, e.timestep) for e in grid} == {("embedded", 1), ("embedded-scaled", 1)}
    assert {e.bits for e in grid if e.method != "fp"} == {"W4A4"} and len(set(grid)) == len(grid)
    plain = {(e.method, e.backbone): dict(e.options) for e in grid if not e.label.endswith("images]")}
    longer = [e for e in grid if e.label.endswith("[8x images]")]
    assert {e.method for e in longer} == {m for m in STUDY.methods if METHODS.get(m).trains}
    for e in longer:
        assert dict(e.options) == plain[e.method, e.backbone] | {"images": 8 * STUDY.train_images}
    table3 = {e.options for e in grids.comparison_grid(STUDY)}
    assert {e.options for e in grid if e.label and e not in longer} <= table3  # the same models, not trained again
    assert not any(e.label.endswith("images]") for e in grids.budget_grid(STUDY, []))
    rows = pd.DataFrame({"backbone": "embedded", "method": ["FP", "LSQ", "LSQ [8x images]"]})
    gains, distances = contrasts.budget_effects(rows, (8,)).values()
    assert ("LSQ [8x images]", "LSQ") in [(a.method, b.method) for a, b in gains]
    assert [(a.method, b.method) for a, b in distances] == [("LSQ", "FP"), ("LSQ [8x images]", "FP")]


def test_the_best_setting_is_trained_longer_by_every_trained_method_alike():
    study = replace(STUDY, train_images=10, budget_curve=(4, 16))
    cells, longest = {}, {}
    for experiment in setting_grids.budget_grid(study):
        if experiment.method == "fp" or "min-max" in experiment.label:
            continue
        images = dict(experiment.options)["images"]
        assert experiment.label.endswith(f", {images // 10}x images]"), "no two budgets share a name in the table"
        cells.setdefault(experiment.label, set()).add((experiment.backbone, experiment.bits))
        longest.setdefault((experiment.method, experiment.bits), set()).add(images)
    trained = {name for name in STUDY.methods if METHODS.get(name).trains}
    curve = {(method, bits): {40, 80, 160} for method, bits in product(trained, ("W4A4", "W2A2"))}
    assert longest == curve | {(method, "W4A4"): {40, 80} for method in trained - {"qartsr"}}
    assert {model for found in cells.values() for model, _ in found} == {"embedded", "embedded-scaled"}
    assert len(set(map(len, (found for label, found in cells.items() if ", 8x" in label)))) == 1, "all alike"


def test_stages_and_order_are_compared_at_equal_images():
    study, rows = replace(STUDY, train_images=10), {}
    for experiment in setting_grids.stage_grid(study):
        if experiment.method != "fp":
            rows.setdefault(experiment.label, dict(experiment.options))
    assert len(rows) == 2 * len(setting_grids.STAGES), "no two rows share a name in the table"
    for label, options in rows.items():
        assert options["images"] == (80 if label.endswith(", 8x images]") else 10), label
        assert (options["eight_bit"], options["ranges"]) == ("identity-path", "least-squares")
        assert options.get("rpq") == {"RPQ*": 1.0, "ET": 0.0}.get(label.split(" ")[0]), label
        assert options.get("order") == ("inference" if "(inference order)" in label else None), label
    name = "{} [identity-path, least-squares, 8x images]"
    qartsr = next(e for e in setting_grids.budget_grid(study) if e.label == name.format("QArtSR"))
    assert rows[name.format("RPQ*+ET")] == dict(qartsr.options), "the same model as QArtSR's row, not trained again"
    paired = {row.method for pairs in contrasts.STAGE_EFFECTS.values() for pair in pairs for row in pair}
    assert paired == set(rows), "every row stands in a difference, under its own name"
