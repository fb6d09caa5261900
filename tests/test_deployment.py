"""Timing processes and what notebook 07 makes of them."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.runtimes import peak_bytes_of
from qartsr_lib.images.datasets.base import available_data
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.study.evaluator import FULL_PRECISION
from qartsr_lib.study.experiments import deployment as measurement
from qartsr_lib.study.experiments.deployment import latencies, race
from qartsr_lib.study.profiles import get_profile


def test_ratio_is_of_the_same_round():
    seconds = pd.DataFrame({"fp32": [2.0, 30.0, 2.0], "bf16": 1.0, "int8": [1.0, 10.0, 2.0]})
    row = latencies(seconds, pd.Series({"fp32": 9.0, "bf16": 8.0, "int8": float("nan")})).loc["int8"]
    assert list(row)[:5] == [2000.0, 2.0, 0.5, 1.0, 3.0]


def test_a_process_that_ends_early_is_told():
    with pytest.raises(QartsrError, match="timing of fp32 ended early: .*unknown backbone 'none'"):
        race(["fp32"], "none", 1, None, torch.rand(1, 3, 16, 16), 1)


def test_peak_memory_sees_what_is_freed_again():
    peak = peak_bytes_of(lambda: torch.ones(64, 2**20).sum())
    assert peak is None or 200 * 2**20 <= peak < 400 * 2**20  # some of it may have been held before


def rows():
    full = {"dataset": "samples", "backbone": "embedded", "timestep": 1, "method": "FP", "bits": "W32A32"}
    low = full | {"method": "MaxMin", "bits": "W4A4", "file_MB": 1.7, "file_ratio": 0.13}
    timed = dict.fromkeys(measurement.LATENCY_COLUMNS, 2.0)
    quality = {"max_grey_diff": 0.0, "mean_grey_diff": 0.0, "psnr_y": 24.0, "n_images": 1}
    return pd.DataFrame(
        [
            full | {"runtime": "fp32", "file_MB": 13.3, "file_ratio": 1.0} | timed | quality,
            low | {"runtime": "simulate"} | timed | quality,
            low | {"runtime": "int8"} | timed | quality | {"psnr_y": 23.5, "max_grey_diff": 7.0},
            low | {"runtime": measurement.EXACT} | quality,
        ]
    )


def test_rendered_tables():
    counted = pd.DataFrame([{"method": "MaxMin", "bits": "W4A4", "params_ratio": 0.14, "ops_ratio": 0.15}])
    (_, speed), (_, sizes), (_, agreement) = reports.deployment_sections(rows(), counted)
    assert list(speed["runtime"]) == ["fp32", "simulate", "int8"]
    assert sizes.iloc[0]["of the float32 file"] == "13.0 %" and sizes.iloc[0]["counted parameters"] == "14.0 %"
    assert list(agreement["PSNR-Y, difference in dB"]) == ["-0.500", "+0.000"]


def test_floating_point_alone_needs_no_quantized_model():
    counted, full = reports.counted_ratios("embedded", []), rows()
    found = dict(reports.deployment_sections(full[full["method"] == "FP"], counted))
    assert len(found["Speed and memory of one image"]) and not len(found["Size on disk, and what counting says"])


def test_figure():
    assert len(figures.deployment_scatter(rows()).axes) == 2


def test_no_label_hides_another():
    """Six models that take almost the same."""
    same = [rows().iloc[2].to_dict() | {"method": f"M{n}", "latency_ms": 2 + n / 40, "psnr_y": 23.5} for n in range(5)]
    figure = figures.deployment_scatter(pd.concat([rows(), pd.DataFrame(same)]))
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert len(boxes) == 6
        assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


@pytest.mark.parametrize("floats", [["fp32"], ["fp32", "bf16", "fp16"]])
def test_floats_that_cannot_be_compared_are_told(floats):
    with pytest.raises(QartsrError, match=r"timed_floats is \['fp32'.*'fp32' and 'bf16' have to be there"):
        measurement.measure_deployment(None, ("embedded", 1), [], "samples", [], None, 1, floats=floats)


@pytest.mark.parametrize("change", [{"n_calibration": 3}, {"seeds": (7,)}, {"finetune_side": 64}])
def test_another_calibration_seed_or_crop_is_another_question(home, monkeypatch, change):
    """What is asked, without an answer: `measure_questions` is not called further than that."""
    asked = []
    monkeypatch.setattr(measurement, "measure_questions", lambda _, questions, measure: asked.append(questions))
    plain = get_profile("tiny", n_calibration=2)
    for profile in (plain, replace(plain, **change)):
        shown = profile.for_finetuning()
        pairs = available_data(["samples"], None, 1, shown.max_side)[0]["samples"]
        models = [("maxmin", "W4A4")]
        measurement.measure_deployment(profile, ("embedded", 1), models, "samples", pairs, torch.rand(1, 3, 8, 8), 1)
    first, second = (questions["maxmin", "W4A4"] for questions in asked)
    assert first != second
    assert (asked[0][FULL_PRECISION] != asked[1][FULL_PRECISION]) == ("finetune_side" in change)
