"""The claims ledger: rules, checks and verdicts, on result files whose answers are known."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from qartsr_lib.base import paths
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.show.figures.claims import COLOURS
from qartsr_lib.study import results
from qartsr_lib.study.experiments import claims
from qartsr_lib.study.experiments.claims import ledger
from qartsr_lib.study.experiments.claims.checks import cell, contrast, duration, margin, share
from qartsr_lib.study.experiments.claims.ledger import CHECK_COLUMNS, COLUMNS, Claim, NoData, Rules, expanded
from qartsr_lib.study.stats import holm

IMAGES = [f"image{index:02d}" for index in range(20)]
NOISE = np.random.default_rng(0).normal(0, 0.1, len(IMAGES))
SHARED = {
    "table": "table3",
    "metric": "PSNR",
    "dataset": "RealSR",
    "backbone": "embedded",
    "timestep": 1,
    "bits": "W4A4",
}


def rows(method, value, metric="PSNR", seed=0, noise=NOISE, bits="W4A4", timestep=1):
    fixed = {"dataset": "RealSR", "backbone": "embedded", "timestep": timestep, "method": method, "bits": bits}
    fixed |= {"seed": seed, "metric": metric, "run_id": f"run-{method}"}
    return [fixed | {"image": image, "value": value + part} for image, part in zip(IMAGES, noise, strict=True)]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes per-image rows as results/study/per_image/table3."""
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))

    def write(*parts, table="table3"):
        frame = pd.DataFrame([row for part in parts for row in part])
        long = frame.groupby(["dataset", "backbone", "timestep", "method", "bits", "metric", "run_id"])
        table_rows = long["value"].mean().reset_index().assign(ci_low=0, ci_high=0, n_images=len(IMAGES), n_seeds=1)
        table_rows = table_rows.assign(steps=0, w_bits_effective=4, note="")
        results.write_table("study", table, table_rows, frame)

    return write


def against(first, second, **settings):
    return SHARED | {"plus": [{"method": first}], "minus": [{"method": second}]} | settings


def test_a_contrast_is_the_paired_mean_with_a_wilcoxon_test(study):
    study(rows("A", 26.0), rows("B", 25.0, noise=-NOISE))
    found = contrast(against("A", "B", above=0), "study")
    differences = 1 + 2 * NOISE
    assert found.n == 20 and found.run_ids == "run-A run-B"
    assert found.effect == pytest.approx(differences.mean(), abs=1e-5)
    assert found.ci_low < found.effect < found.ci_high and found.favours
    assert found.p == pytest.approx(scipy.stats.wilcoxon(differences, alternative="greater").pvalue, rel=1e-3)
    turned = contrast(against("B", "A", above=0), "study")
    assert not turned.favours and turned.p > 0.9


def test_where_less_is_better_the_sign_is_turned(study):
    study(rows("A", 0.1, "GMSD"), rows("B", 0.3, "GMSD"))
    found = contrast(against("A", "B", metric="GMSD", above=0), "study")
    assert found.effect == pytest.approx(0.2) and found.favours


def test_equivalence_needs_both_sides(study):
    study(rows("A", 26.0), rows("B", 25.7, noise=-NOISE))
    assert contrast(against("A", "B", above=-0.5, below=0.5), "study").favours
    apart = contrast(against("A", "B", above=-0.2, below=0.2), "study")
    assert not apart.favours and apart.p > 0.9


def test_a_difference_of_differences(study):
    study(rows("A", 26.0), rows("B", 25.0), rows("A", 20.0, bits="W2A2"), rows("B", 15.0, bits="W2A2"))
    settings = {key: value for key, value in SHARED.items() if key != "bits"}
    plus = [{"method": "A", "bits": "W2A2"}, {"method": "B", "bits": "W4A4"}]
    minus = [{"method": "B", "bits": "W2A2"}, {"method": "A", "bits": "W4A4"}]
    assert contrast(settings | {"plus": plus, "minus": minus, "above": 0}, "study").effect == pytest.approx(4.0)


def test_every_seed_must_agree(study):
    study(rows("A", 27.0, seed=0), rows("A", 26.0, seed=1), rows("A", 24.9, seed=2), rows("B", 25.0))
    found = contrast(against("A", "B", above=0), "study")
    assert found.effect == pytest.approx(29 / 30, abs=1e-4)
    assert not found.favours and "2 of 3 seeds agree" in found.test


@pytest.mark.parametrize("changed", [{"table": "table9"}, {"metric": "LPIPS"}, {"backbone": "osediff"}])
def test_what_is_not_there_is_told(study, changed):
    study(rows("A", 26.0), rows("B", 25.0))
    with pytest.raises(NoData):
        contrast(against("A", "B", above=0, **changed), "study")


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3,4\n1\n", "other,columns\n1,2\n"])
@pytest.mark.parametrize("check", [cell, contrast, duration])
def test_a_damaged_table_is_no_table_that_is_not_there_yet(tmp_path, monkeypatch, check, content):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    settings = against("A", "B", above=0) | {"table": "broken", "where": {"a": 1}, "column": "b", "below": 1}
    settings |= {"method": "A", "against": "B"}
    with pytest.raises(NoData, match="results/study/broken.csv is not there yet"):
        check(settings, "study")
    results_file = tmp_path / "results" / "study" / "broken.csv"
    results_file.parent.mkdir(parents=True)
    results_file.write_text(content)
    with pytest.raises(QartsrError, match="broken.csv: (is not a readable table|has no column)") as told:
        check(settings, "study")
    assert not isinstance(told.value, NoData)


def test_counted_numbers_are_compared_with_the_papers_or_a_bound(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    folder = paths.results_dir("paper")
    folder.mkdir(parents=True)
    (folder / "table2.csv").write_text("rule,bits,ops_reduction_pct,run_id\npaper,W4A4,88.3,r1\npaper,W2A2,94.0,r1\n")
    (folder / "size.json").write_text(json.dumps({"part": 1, "whole": 8}))
    settings = {"table": "table2", "where": {"rule": "paper"}, "bits": "W4A4", "column": "ops_reduction_pct"}
    settings |= {"profile": "paper"}
    assert cell(settings | {"within": 0.05}, "study").favours  # the paper's is 88.26
    assert not cell(settings | {"within": 0.03}, "study").favours
    assert cell(settings | {"above": 88}, "study").run_ids == "r1"
    with pytest.raises(NoData, match="0 rows"):
        cell(settings | {"bits": "W3A3"}, "study")
    assert share({"file": "size.json", "part": "part", "whole": "whole", "below": 0.2}, "paper").effect == 0.125
    with pytest.raises(NoData, match="not there"):
        share({"file": "other.json", "part": "part", "whole": "whole", "below": 0.2}, "paper")


def test_times_are_those_of_the_run_records_per_seed(study):
    study(rows("A", 26.0), rows("B", 25.0))
    for method, seconds, seeds in (("A", 30, [0, 1, 2]), ("B", 5, [0])):
        record = {"duration_s": {"build": seconds}, "parameters": {"seeds": seeds}}
        path = paths.results_dir("study") / "runs" / f"run-{method}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
    times = {"table": "table3", "method": "A", "against": "B", "below": 1.5}
    assert duration(times, "study").margin == pytest.approx(-0.5 / 1.5)
    settings = {"table": "table3", "method": "A", "against": "B"}
    assert duration(settings | {"below": 2.5}, "study").effect == 2.0
    assert not duration(settings | {"below": 1.5}, "study").favours
    with pytest.raises(NoData):
        duration(settings | {"against": "C", "below": 1.5}, "study")


def test_a_model_on_several_data_sets_is_one_pair_of_times(study):
    elsewhere = [[row | {"dataset": "Urban100", "run_id": f"{row['run_id']}-u"} for row in rows(m, 26.0)] for m in "AB"]
    second = [rows(m, 26.0, bits="W2A2") for m in "AB"]
    second = [[row | {"run_id": f"{row['run_id']}-2"} for row in part] for part in second]
    study(rows("A", 26.0), rows("B", 25.0), *elsewhere, *second)
    seconds = {"A": 30, "B": 10, "A-u": 30, "B-u": 10, "A-2": 10, "B-2": 10}
    for name, build in seconds.items():
        path = paths.results_dir("study") / "runs" / f"run-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"duration_s": {"build": build}, "parameters": {"seeds": [0]}}))
    found = duration({"table": "table3", "method": "A", "against": "B", "below": 2.5}, "study")
    assert (found.n, found.effect) == (2, 2.0)  # not three pairs with a median of 3
    assert (found.ci_low, found.ci_high) == (1.0, 3.0)
    assert found.favours


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (3.0, {"below": 1.5}, -1.0),
        (1.2, {"below": 1.5}, 0.2),
        (6.0, {"above": 8.0}, -0.25),
        (0.5, {"above": 0.0}, 0.5),
        (92.0, {"above": 90.0, "below": 100.0}, 2 / 90),
    ],
)
def test_a_margin_is_the_distance_from_the_nearer_bound_as_a_share_of_it(value, bounds, expected):
    assert margin(value, **bounds) == pytest.approx(expected)


def test_the_weakest_counted_check_is_the_farthest_past_its_bound(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path))
    folder = paths.results_dir("study")
    folder.mkdir(parents=True)
    (folder / "laws.csv").write_text("bits,off_by\nW8A8,2\nW4A4,9\nW2A2,1.2\n")
    check = {"test": "cell", "table": "laws", "where": {}, "column": "off_by", "below": 1.5}
    check |= {"bits": ["W8A8", "W4A4", "W2A2"]}
    rules = Rules(0.05, 10, {}, (Claim("x", "x", "x", "x", "", (check,)),), (), ())
    row = claims.make_ledger(rules, "study").claims.iloc[0]
    assert row["effect"] == 9 and "weakest: off_by, W4A4" in row["ours"]
    holding = Claim("x", "x", "x", "x", "", (check | {"below": 10},))
    row = claims.make_ledger(dataclasses.replace(rules, claims=(holding,)), "study").claims.iloc[0]
    assert row["effect"] == 9  # of checks that hold, the one nearest to its bound


def test_checks_that_could_not_hold_decide_nothing():
    """One-sided signed-rank test: scipy's smallest p of n pairs is 2^-n."""
    smallest = scipy.stats.wilcoxon(np.arange(1.0, 11.0), alternative="greater").pvalue
    assert smallest == 0.5**10
    n = [10] * 60 + [12] * 20
    frame = pd.DataFrame({"check": "c", "n": n, "p": [0.5**pairs for pairs in n], "missing": ""})
    found = ledger._with_power(frame, 0.05)
    assert list(found["missing"] == "") == [False] * 60 + [True] * 20, "twelve decide among the other twenty"
    assert found["missing"].iloc[0] == "c: 10 photographs cannot decide among 80 checks"
    assert found["p"].count() == 20 and max(holm(found["p"].dropna())) < 0.05
    fewer = ledger._with_power(frame.iloc[:50], 0.05)
    assert (fewer["missing"] == "").all() and max(holm(fewer["p"])) < 0.05, "ten decide among fifty"


def test_few_photographs_decide_among_many_checks_that_are_clearer():
    clear = pd.DataFrame({"n": 30, "p": 1e-9, "check": "clear", "missing": ""}, index=range(1000))
    few = pd.DataFrame({"n": 10, "p": 2.0**-10, "check": "few", "missing": ""}, index=range(20))
    frame = pd.concat([clear, few], ignore_index=True)
    assert (ledger._with_power(frame, 0.05)["missing"] == "").all() and max(holm(frame["p"])) < 0.05
    more = pd.concat([frame, few.assign(p=0.5), few.assign(p=0.6)], ignore_index=True)
    assert (ledger._with_power(more, 0.05)["missing"] != "").sum() == 60 and min(holm(more["p"])[1000:]) >= 0.05


RULES = """
level = 0.05
min_images = {minimum}
[datasets]
study = ["RealSR"]
[lists]
others = ["C"]
[[claim]]
id = "one"
claim = "A beats B and C"
where = "here"
paper_evidence = "none"
{extra}
[[claim.check]]
test = "contrast"
table = "table3"
dataset = "all"
metric = "PSNR"
backbone = "embedded"
timestep = 1
bits = "W4A4"
rival = ["B", "@others"]
plus = [{{ method = "A" }}]
minus = [{{ method = "@rival" }}]
above = 0
[[claim]]
id = "two"
claim = "beauty"
where = "there"
paper_evidence = "none"
own = true
untestable = "no judge"
[[inconsistency]]
where = "Table 1"
what = "odd"
"""


def ledger_of(tmp_path, minimum=10, extra=""):
    path = tmp_path / "rules.toml"
    path.write_text(RULES.format(minimum=minimum, extra=extra))
    rules = claims.load_rules(path)
    return rules, claims.make_ledger(rules, "study")


@pytest.mark.parametrize(
    ("b", "c", "extra", "verdict"),
    [
        (25.0, 25.5, "", "reproduced"),
        (25.0, 27.0, "", "partly"),
        (27.0, 27.0, "", "not reproduced"),
        (25.0, 27.0, "reproduced_from = 0.5", "reproduced"),
        (25.0, 27.0, "partly_from = 0.6", "not reproduced"),
    ],
)
def test_verdicts_follow_from_the_share_of_checks_that_hold(study, tmp_path, b, c, extra, verdict):
    study(rows("A", 26.0), rows("B", b, noise=-NOISE), rows("C", c, noise=-NOISE))
    _, ledger = ledger_of(tmp_path, extra=extra)
    assert list(ledger.claims["verdict"]) == [verdict, "not testable here"]
    assert list(ledger.checks["holds"]) == [b < 26, c < 26]
    assert ledger.claims.loc[1, "ours"] == "no judge"


def test_few_photographs_and_absent_rows_decide_nothing(study, tmp_path):
    study(rows("A", 26.0), rows("B", 25.0, noise=-NOISE))
    _, ledger = ledger_of(tmp_path)
    assert "1 of 1 checks hold" in ledger.claims.loc[0, "ours"]
    assert "1 more could not be measured" in ledger.claims.loc[0, "ours"]
    _, ledger = ledger_of(tmp_path, minimum=21)
    assert ledger.claims.loc[0, "verdict"] == "not testable here"
    assert "fewer than 21" in ledger.claims.loc[0, "ours"]


def test_the_ledger_is_written_by_its_contract_and_shown(study, tmp_path):
    study(rows("A", 26.0), rows("B", 25.0, noise=-NOISE), rows("C", 27.0, noise=-NOISE))
    rules, ledger = ledger_of(tmp_path)
    ledger.write()
    ledger.write()  # replaced, not appended
    found = pd.read_csv(paths.results_dir("study") / "claims.csv")
    assert list(found.columns) == list(COLUMNS) and len(found) == 2
    assert found.loc[0, "run_ids"] == "run-A run-B run-C"
    assert found.loc[0, "effect"] < 0  # of C, the weakest check
    assert list(pd.read_csv(paths.results_dir("study") / "claims_checks.csv").columns) == list(CHECK_COLUMNS)
    titles = [title for title, _ in reports.verdict_sections(ledger, rules)]
    own = "Our own questions: not testable here (1)"
    assert titles == ["Partly (1)", own, "Where the paper does not fit itself"]
    assert reports.verdict_summary(ledger) == (
        "The paper's claims (1): 1 partly; our own questions (1): 1 not testable here."
    )
    assert list(found["asked_by"]) == ["paper", "study"] and list(found["checks"]) == [2, 0]
    assert list(reports.check_sections(ledger)[0][1]["holds"]) == ["yes", "no"]
    figure = figures.claim_bars(ledger.claims, ledger.checks)
    words = ["The paper's claims", "1 of 2: partly", "Our own questions", "no data", "not testable here"]
    assert [text.get_text() for text in figure.axes[0].texts] == words
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["A beats B and C", "beauty"]
    assert [line.get_color() for line in figure.axes[0].lines] == [COLOURS["partly"], COLOURS["not testable here"]]


def test_a_verdict_tells_everywhere_that_checks_have_no_data(study, tmp_path):
    study(rows("A", 26.0), rows("B", 25.0, noise=-NOISE))
    rules, ledger = ledger_of(tmp_path)
    assert ledger.claims.loc[0, "verdict"] == "reproduced"  # in the file the names stay the four
    told = "reproduced (1 of 2 checks measured)"
    assert list(reports.verdict_sections(ledger, rules)[0][1]["verdict"]) == [told]
    assert "1 reproduced (1 on part of the checks)" in reports.verdict_summary(ledger)
    figure = figures.claim_bars(ledger.claims, ledger.checks)
    assert any(told in text.get_text().replace("\n", " ") for text in figure.axes[0].texts)


def test_a_claim_without_a_check_that_holds_has_its_verdicts_colour(study, tmp_path):
    study(rows("A", 26.0), rows("B", 27.0, noise=-NOISE), rows("C", 27.0, noise=-NOISE))
    _, ledger = ledger_of(tmp_path)
    axis = figures.claim_bars(ledger.claims, ledger.checks).axes[0]
    assert axis.lines[0].get_color() == COLOURS["not reproduced"]
    assert "0 of 2: not reproduced" in [text.get_text() for text in axis.texts]


def test_our_own_questions_are_marked_in_the_projects_rules():
    own = {claim.id for claim in claims.load_rules().claims if claim.own}
    known = {"t1-best-scaled", "ahead-same-model", "both-at-equal-steps", "compression-like-with-like"}
    assert own == known | {"t1-best-unet", "unet-at-t1", "t1-best-other-quantizers"} | {
        "near-fp-other-setting",
        "w2a2-other-setting",
        "ahead-other-setting",
        "both-other-setting",
        "reverse-other-setting",
        "groupwise-ahead",
        "groupwise-untrained-ahead",
        "groupwise-other-model",
        "groupwise-no-more-bits",
    }
    assert {claim.id for claim in claims.load_rules().claims if claim.claim.startswith("Our question")} <= own
    assert claims.load_rules().changes


def test_the_projects_rules_are_whole():
    rules = claims.load_rules()
    assert len(rules.claims) >= 13 and len(rules.inconsistencies) >= 7
    for claim in rules.claims:
        for check in claim.checks:
            for settings in expanded(check, ("RealSR", "Urban100")):
                assert {"above", "below", "within"} & set(settings), claim.id


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('test = "contrast"', 'test = "contrats"', "did you mean 'contrast'"),
        ('id = "two"', 'id = "one"', "occurs twice"),
        ("level = 0.05", "", "level"),
        ('"@others"', '"@other"', "KeyError: 'other'"),
        ('untestable = "no judge"', "", "untestable"),
        ("[[claim]]", "[[claim", "rules.toml"),
    ],
)
def test_broken_rules_are_told_in_one_line(tmp_path, before, after, told):
    path = tmp_path / "rules.toml"
    path.write_text(RULES.format(minimum=10, extra="").replace(before, after, 1))
    with pytest.raises(QartsrError, match=told) as error:
        claims.load_rules(path)
    assert "\n" not in str(error.value)


def test_a_seed_that_diverged_agrees_with_nothing(study):
    gone = rows("A", float("nan"), seed=1)
    study(rows("A", 26.0), gone, rows("A", 26.1, seed=2), rows("B", 25.0, noise=-NOISE))
    found = contrast(against("A", "B", above=0), "study")
    assert found.test.endswith("2 of 3 seeds agree") and not found.favours
    assert found.effect == pytest.approx((1.05 + 2 * NOISE).mean(), abs=1e-5)


@pytest.mark.parametrize("kept", [0, 11])
def test_pictures_that_could_not_be_made_are_no_success(study, kept):
    broken = np.where(np.arange(len(IMAGES)) < kept, NOISE, np.nan)
    study(rows("A", 27.0, noise=broken), rows("B", 25.0))
    found = contrast(against("A", "B", above=0), "study")
    assert not found.favours and found.p == 1 and found.n == 20 and f"{20 - kept} photographs have no" in found.test
    level = contrast(against("B", "A", above=-9, below=9), "study")
    assert not level.favours and level.n == 20, "nothing is level with what is not there"
    if kept:  # where a rival failed counts for nobody
        assert contrast(against("B", "A", below=0), "study").n == kept


def test_our_own_questions_do_not_decide_the_papers_claims(study, tmp_path):
    study(rows("A", 25.06), rows("B", 25.0, noise=-NOISE), rows("C", 24.0, noise=-NOISE))
    _, alone = ledger_of(tmp_path)
    path = tmp_path / "rules.toml"
    more = RULES[RULES.index("[[claim]]") : RULES.index('[[claim]]\nid = "two"')].replace('id = "one"', 'id = "own"')
    path.write_text(path.read_text() + more.format(extra="own = true").replace('["B", ', '["B", "C", "B", '))
    beside = claims.make_ledger(claims.load_rules(path), "study").checks.set_index("id")["p_corrected"]
    assert list(beside["one"]) == list(alone.checks["p_corrected"])
    assert list(beside["own"]) == list(holm(pd.Series([*alone.checks["p"]] * 2)))
