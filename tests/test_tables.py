"""Rendered tables: our numbers and the paper's side by side, best in bold, missing as n/a."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.metrics import METRICS, MetricSpec, lower_is_better
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.show.tables import render as tables
from qartsr_lib.study import paper as papers
from qartsr_lib.study import profiles
from qartsr_lib.study import results as study_results


def _row(timestep, metric, value, bits="W4A4", dataset="samples"):
    return {
        "dataset": dataset,
        "backbone": "embedded",
        "timestep": timestep,
        "method": "MaxMin",
        "bits": bits,
        "metric": metric,
        "value": value,
        "ci_low": value - 1 if value else None,
        "ci_high": value + 1 if value else None,
    }


@pytest.fixture
def results():
    rows = [_row(1000, "PSNR", 17.5), _row(1, "PSNR", 20.9), _row(1000, "NIQE", 6.0), _row(1, "NIQE", 7.0)]
    rows += [_row(1000, "MUSIQ", None), _row(1, "MUSIQ", None)]
    return pd.DataFrame(rows)


def test_the_timestep_effect_counts_the_images_that_both_timesteps_have():
    """At T = 1000 the method diverged on one of three."""
    values = {1: (20.0, 21.0, 22.0), 1000: (17.0, 18.5, None)}
    rows = [_row(t, "PSNR", x) | {"image": n} for t, those in values.items() for n, x in enumerate(those)]
    (effect,) = reports.timestep_effect(pd.DataFrame(rows)).to_dict("records")
    assert (effect["PSNR gain"], effect["n_images"]) == (2.75, 2)


def test_wide_marks_the_best_and_what_is_missing(results):
    table = tables.wide(results, ["PSNR", "NIQE", "MUSIQ"]).set_index("timestep")
    assert table.loc[1, "PSNR"] == "**20.90 [19.90, 21.90]**"
    assert table.loc[1000, "PSNR"] == "17.50 [16.50, 18.50]"
    assert table.loc[1000, "NIQE"].startswith("**6.000")  # lower is better
    assert table.loc[1, "MUSIQ"] == "n/a"


def test_paper_values_come_from_the_transcribed_table(results):
    table = tables.add_paper(tables.wide(results, ["PSNR"]), 1, ["PSNR"]).set_index("timestep")
    assert (table.loc[1000, "PSNR (paper)"], table.loc[1, "PSNR (paper)"]) == ("16.01", "26.31")


def test_reference_tables_are_the_papers(shared):
    for number in (1, 2, 3, 4):
        original = pd.read_csv(shared / "paper" / f"table{number}.csv")
        pd.testing.assert_frame_equal(papers.paper_table(number), original)


def test_saved_as_markdown_and_shown_as_html(results, home):
    table = tables.wide(results.assign(run_id=["a", "b"] * 3), ["PSNR"])
    path = tables.save_table("tiny", "t", [("a <b>", table)], "caption")
    text = path.read_text()
    assert text.startswith("caption\n\n### a <b>\n\n| dataset |") and "run" not in text
    assert not path.with_suffix(".html").exists()
    page = tables.to_html(table, lambda run: f"{run}.json" if run == "b" else "")
    assert "<th>method<th>dataset" in page and "<td><b>20.90<i>19.90 to 21.90</i></b>" in page
    assert page.count("<a href=") == 1 and 'href="b.json"' in page
    assert "&lt;i&gt;" in tables.to_html(table.assign(method="<i>"))


def test_a_table_names_what_stands_in(results, home):
    table = tables.add_paper(tables.wide(results, ["PSNR"]), 1, ["PSNR"])
    path = tables.save_table("tiny", "t", [("samples, embedded", table)], "caption", "note")
    head, _, rest = path.read_text().partition("\n\n### samples, embedded\n\n")
    assert head.split("\n\n") == ["caption", f"{tables.STAND_INS['embedded']} {tables.STAND_INS['(paper)']}"]
    assert rest.endswith("\n\nnote\n")


def test_words_of_tables_and_figures_are_one_list():
    assert tables.words("fig2_RealSR_embedded-scaled_T1")[0] == "Fig. 2, RealSR, embedded-scaled_T1"
    assert tables.words("something_new") == ("something new", "")
    assert tables.place("theorem_laws") < tables.place("learning_curves") < tables.place("something_new")
    assert tables.words("table1")[0] == "Table 1: MaxMin at three timesteps"


def test_unknown_paper_table():
    with pytest.raises(QartsrError, match="table 9"):
        papers.paper_table(9)


@pytest.fixture
def dullness(monkeypatch):
    """A metric that nothing but its registration knows, less is better."""
    spec = MetricSpec("dullness", "NR", False, "greyness", build=lambda _: lambda sr, hr: 0.0)
    METRICS.names()
    monkeypatch.setitem(METRICS._entries, spec.name, spec)
    return spec.name


def test_a_new_metric_is_read_by_its_registration(dullness):
    rows = pd.DataFrame([_row(1000, dullness, 3.0), _row(1, dullness, 4.0)])
    table = tables.wide(rows, [dullness]).set_index("timestep")
    assert table.loc[1000, dullness].startswith("**3.0") and not table.loc[1, dullness].startswith("**")
    assert reports.ranks(rows.assign(timestep=1, method=["A", "B"]), dullness).iloc[0].to_dict() == {"A": 1, "B": 2}
    assert not lower_is_better("what is no metric") and not lower_is_better("PSNR")


def test_asking_for_a_metrics_direction_loads_no_network_package():
    code = "import sys, qartsr_lib.show.page as p, qartsr_lib.show.tables.render as t; "
    code += "t.lower_is_better('PSNR'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(tables.__file__).parents[3]).returncode == 0


def comparison():
    """Two methods and full precision on two models, and bicubic interpolation, which is better than all."""
    methods = [("FP", "W32A32"), ("LSQ", "W4A4"), ("QArtSR", "W4A4")]
    cells = [("embedded", timestep, *method) for timestep in (1000, 1) for method in methods]
    more = {"steps": 0, "w_bits_effective": 4.5}
    return pd.DataFrame(
        [
            _row(timestep, "PSNR", 30.0 if backbone == papers.BICUBIC else 20.0 + len(method), bits)
            | {"backbone": backbone, "method": method}
            | more
            for backbone, timestep, method, bits in [*cells, (papers.BICUBIC, 1, "Bicubic", "W32A32")]
        ]
    )


def test_metrics_without_a_value_have_no_column_and_one_line():
    results = pd.concat([comparison(), comparison().assign(metric="MUSIQ", value=np.nan, note="weights not found")])
    for _, table in reports.table3_sections(results, ["PSNR", "MUSIQ"]):
        assert "PSNR" in table and not any("MUSIQ" in column for column in table)
    assert reports.absent_note(results).startswith("No values here for MUSIQ (1 of 2 metrics;")
    assert reports.absent_note(comparison()) == ""
    once = results.assign(value=results["value"].where(results["method"] != "FP", 1.0))
    assert any("MUSIQ" in column for _, table in reports.table3_sections(once, ["MUSIQ"]) for column in table)


def test_a_method_that_failed_on_some_images_is_not_the_best():
    fixed = {"dataset": "a", "backbone": "embedded", "timestep": 1, "bits": "W4A4", "metric": "PSNR"}
    values = [("A", 25.0, 20), ("B", 27.0, 11), ("C", 24.0, 20)]
    frame = pd.DataFrame([fixed | {"method": m, "value": v, "n_images": n} for m, v, n in values])
    frame = frame.assign(ci_low=float("nan"), ci_high=float("nan"))
    assert list(tables.wide(frame, ["PSNR"], compare="method")["PSNR"]) == ["**25.00**", "27.00 (11 images)", "24.00"]
    assert dict(reports.ranks(frame).iloc[0]) == {"A": 1, "C": 2}


def test_bicubic_stands_in_every_section_of_table_3_without_rank_or_bold():
    results = comparison()
    sections = reports.table3_sections(results, ["PSNR"])
    assert [title for title, _ in sections] == [
        "samples, embedded, the paper's setting",
        "samples, embedded, T = 1000",
        "samples, embedded, T = 1",
    ]
    for _, table in sections:
        row = table.set_index("method").loc["Bicubic"]
        assert (row["T"], row["PSNR"], row["bits/weight"]) == ("", "30.00 [29.00, 31.00]", "n/a")
        assert table.set_index("method").loc["QArtSR", "PSNR"].startswith("**")
        assert list(table["method"])[:2] == ["FP", "Bicubic"]
    assert set(reports.ranks(results).columns) == {"LSQ", "QArtSR"}
    without = results[results["backbone"] != papers.BICUBIC]
    for (_, table), (_, known) in zip(sections, reports.table3_sections(without, ["PSNR"]), strict=True):
        pd.testing.assert_frame_equal(table[table["method"] != "Bicubic"].reset_index(drop=True), known)


def test_bicubic_is_a_second_line_of_fig_2():
    results = comparison()
    setting = reports.settings([("embedded", 1)], ["LSQ", "QArtSR"])[0]
    for rows, lines in ((results, ["full precision", "bicubic"]), (results.iloc[:-1], ["full precision"])):
        figure = figures.metric_panels(setting.rows(rows), ["PSNR"], "W4A4")
        axis = figure.axes[0]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == lines
        assert [label.get_text() for label in axis.get_yticklabels()] == ["QArtSR", "LSQ"]
    assert axis.get_xlim()[1] < 30


def _measured(make):
    return lambda name: make(study_results.read_measurement("study", name))


def _table(make):
    metrics = profiles.get_profile("study").for_finetuning().metrics
    return lambda name: make(study_results.read_table("study", name), metrics)


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("settings", _measured(reports.setting_sections)),
        ("tries", _measured(reports.rate_sections)),
        ("spread", _measured(reports.spread_sections)),
        ("ingredients", _measured(reports.ingredient_sections)),
        ("table3", _table(reports.table3_sections)),
        ("table3_loss", _table(reports.table3_sections)),
        ("table3_settings", _table(reports.table3_sections)),
        ("table4", _table(reports.table4_sections)),
        ("table4_settings", _table(reports.table3_sections)),
    ],
)
def test_committed_tables_show_the_committed_results(name, sections, monkeypatch):
    monkeypatch.delenv("QARTSR_HOME", raising=False)
    shown = (paths.checkout() / f"figures/study/{name}.md").read_text(encoding="utf-8")
    parts = {title: f"### {title}\n\n{tables.to_markdown(table)}" for title, table in sections(name)}
    assert [title for title, part in parts.items() if part not in shown] == []
