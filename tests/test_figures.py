"""Figures: drawn from small frames, saved the same each time."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from qartsr_lib.backbones.base import Stages
from qartsr_lib.show import figures
from qartsr_lib.show.figures import budget, style
from qartsr_lib.study.experiments import theorem


@pytest.fixture
def errors():
    rng = np.random.default_rng(0)
    rows = [
        (backbone, bits, t, str(image), 0.1 * t**0.3 * rng.uniform(0.8, 1.2), t**0.3)
        for backbone in ("embedded", "embedded-scaled")
        for bits in ("W8A8", "W4A4")
        for t in (1000, 500, 1)
        for image in range(4)
    ]
    return pd.DataFrame(rows, columns=["backbone", "bits", "timestep", "image", "error_z_h", "required_change"])


def test_saved_files_are_equal_byte_for_byte(home):
    first = figures.save(figures.schedule_curves(), "tiny", "fig5").read_bytes()
    assert figures.save(figures.schedule_curves(), "tiny", "fig5").read_bytes() == first
    assert Image.open(home / "figures" / "tiny" / "fig5.png").size[0] > 800


def test_equal_pixels_are_not_written_again_and_large_pictures_are_webp(home, monkeypatch):
    path = figures.save(figures.schedule_curves(), "tiny", "fig5")
    with Image.open(path) as image:
        image.save(path, "PNG", compress_level=1)  # other bytes, the same pixels
    before = path.read_bytes()
    assert figures.save(figures.schedule_curves(), "tiny", "fig5").read_bytes() == before
    path.write_bytes(b"no picture")
    assert Image.open(figures.save(figures.schedule_curves(), "tiny", "fig5")).format == "PNG"
    monkeypatch.setattr(style, "LIMIT", 1000)
    large = figures.save(figures.schedule_curves(), "tiny", "fig5")
    assert large.suffix == ".webp" and not path.exists()
    before = large.stat().st_mtime_ns
    assert figures.save(figures.schedule_curves(), "tiny", "fig5").stat().st_mtime_ns == before


def test_law_panels(errors):
    fits = {key: theorem.fit_laws(group, samples=10) for key, group in errors.groupby(["backbone", "bits"], sort=False)}
    figure = figures.theorem_laws(errors, fits)
    assert len(figure.axes) == 4
    assert all(axis.get_yscale() == "log" and len(axis.lines) >= 3 for axis in figure.axes)
    # An error whose ratio to law (c) has the same distribution at every T lies on that law's line.
    size = errors.groupby(["backbone", "bits", "timestep"])["error_z_h"].rank() ** 2
    exact = errors.assign(error_z_h=size * errors["required_change"])
    fits = {key: theorem.fit_laws(group, samples=10) for key, group in exact.groupby(["backbone", "bits"], sort=False)}
    for axis in figures.theorem_laws(exact, fits).axes:
        law = next(line for line in axis.lines if "constant" in line.get_label())
        points = [line.get_ydata()[0] for line in axis.lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
        assert sorted(points) == pytest.approx(sorted(law.get_ydata()), rel=1e-9)


def test_quality_panels_keep_full_precision_apart():
    rows = [
        ("embedded", t, method, bits, "PSNR", value, value - 1, value + 1)
        for t in (1000, 1)
        for method, bits, value in (("FP", "W32A32", 23.0), ("MaxMin", "W8A8", 22.0), ("MaxMin", "W10A10", 22.5))
    ]
    columns = ["backbone", "timestep", "method", "bits", "metric", "value", "ci_low", "ci_high"]
    figure = figures.quality_against_bits(pd.DataFrame(rows, columns=columns), "PSNR")
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["W8A8", "W10A10", "W32A32"]


def test_full_precision_alone_has_no_curve_over_bits():
    rows = pd.DataFrame([{"metric": "PSNR", "value": 20.0, "method": "FP", "bits": "W32A32", "backbone": "b"}])
    (axis,) = figures.quality_against_bits(rows, "PSNR").axes
    assert axis.texts[0].get_text() == "nothing was quantized"


def test_bits_stand_in_the_order_of_weights_then_activations():
    """Whatever the order of the rows: of one width of weights it was that of a set, another in every process."""
    row = {"metric": "PSNR", "value": 20.0, "ci_low": 19.0, "ci_high": 21.0, "backbone": "b", "timestep": 1}
    widths = ["W2A8", "W4A2", "W4A4", "W4A5", "W4A6", "W4A7", "W4A8", "W32A32"]
    cells = [row | {"method": "FP" if bits == "W32A32" else "MaxMin", "bits": bits} for bits in widths[::-1]]
    figure = figures.quality_against_bits(pd.DataFrame(cells), "PSNR")
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == widths


def test_stage_grid():
    generator = torch.Generator().manual_seed(0)

    def make():
        latents = [torch.randn(1, 16, 8, 8, generator=generator) for _ in range(3)]
        return Stages(*latents, torch.rand(1, 3, 32, 32, generator=generator))

    figure = figures.stage_grid([(1000, make(), make()), (1, make(), make())], "W4A4")
    assert len(figure.axes) == 16


def test_other_figures(errors):
    figures.error_histograms({"embedded": {1000: np.random.default_rng(0).normal(size=500), 1: np.ones(500)}})
    history = pd.DataFrame({"backbone": "embedded", "timestep": [1, 1], "step": [1, 2], "psnr_y_bicubic": [20, 21]})
    figures.learning_curves(history, 20.5)
    variants = [("embedded", t, v, 20.0) for t in (1000, 1) for v in ("full", "no noise", "identity", "bicubic")]
    figures.contribution_bars(pd.DataFrame(variants, columns=["backbone", "timestep", "variant", "psnr_y"]))


def test_no_two_trained_methods_look_alike_in_budget_curves():
    cells = pd.DataFrame({"name": [f"method {index}" for index in range(20)], "steps": 256})
    looks = [tuple(look["style"].values()) for look in budget._looks(cells).values()]
    assert len(set(looks)) == 20


def test_budget_curves_show_the_gap_to_full_precision_over_the_images():
    setting = "identity-path, least-squares"
    cells = [
        ("FP", "W32A32", 30.0, 0),
        (f"QArtSR [{setting}]", "W2A2", 29.5, 256),
        (f"QArtSR [{setting}, 8x images]", "W2A2", 29.75, 2048),
        (f"MaxMin [{setting}]", "W2A2", 25.0, 0),
        ("QArtSR [passionsr, min-max, 8x images]", "W2A2", 1.0, 1024),
        (f"LSQ [{setting}]", "W4A4", 29.9, 128),  # nothing longer at W4A4
    ]
    rows = pd.DataFrame(cells, columns=["method", "bits", "value", "steps"])
    rows = rows.assign(dataset="RealSR", backbone="embedded", metric="PSNR")
    (axis,) = figures.budget_curves(rows, "PSNR", setting).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert axis.get_title() == "embedded, RealSR: W2A2"
    assert drawn["QArtSR"] == ([256, 2048], [-0.5, -0.25]) and drawn["MaxMin"] == ([0, 1], [-5.0, -5.0])
    assert set(drawn) == {"QArtSR", "MaxMin", "_child2"}, "full precision's line has no name"
    more = rows[rows["bits"] == "W4A4"].assign(method=f"LSQ [{setting}, 8x images]", steps=2048, dataset="Urban100")
    whole = pd.concat([rows, more, rows[:1].assign(dataset="Urban100")]).sort_values("bits", ascending=False)
    titles = [axis.get_title() for axis in figures.budget_curves(whole, "PSNR", setting).axes]
    assert titles == [f"embedded, {name}: {bits}" for name in ("RealSR", "Urban100") for bits in ("W4A4", "W2A2")]
    alone = rows[~rows["method"].str.contains("8x")]
    assert "two budgets" in figures.budget_curves(alone, "PSNR", setting).axes[0].texts[0].get_text()
