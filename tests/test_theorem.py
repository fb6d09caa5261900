"""The three laws: closed forms, identities, and that a fit recovers the law that made the data."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.base import OneStepSR, Stages
from qartsr_lib.backbones.embedded import build_prompt_embedding, build_unet, build_vae
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import header_size
from qartsr_lib.show import tables as reports
from qartsr_lib.study import results
from qartsr_lib.study.experiments import theorem
from qartsr_lib.study.experiments.claims import checks
from qartsr_lib.study.experiments.claims.ledger import NoData
from qartsr_lib.study.profiles import get_profile


def test_the_gains_at_the_papers_timesteps():
    assert theorem.paper_lambda(1000) == pytest.approx(0.99767, abs=1e-5)
    assert theorem.paper_lambda(1) == pytest.approx(0.02915, abs=1e-5)
    assert theorem.noise_gain(1000) == pytest.approx(14.615, abs=1e-3)
    assert theorem.noise_gain(1) == pytest.approx(0.02917, abs=1e-5)
    assert theorem.latent_gain(1000) == pytest.approx(14.649, abs=1e-3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return OneStepSR("test", 1000, build_vae(), build_unet(), build_prompt_embedding()).eval()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("timestep", [1000, 1])
def test_error_of_z_h_is_rho_times_the_required_change(model, scaled, timestep):
    """Law (c) is an identity for one image, in both recipes, by Eq. (6)."""
    model.scaled, model.timestep = scaled, timestep
    generator = torch.Generator().manual_seed(0)
    z_l, eps, error = (torch.randn(1, 16, 4, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    z_h = model.to_z_h(z_l, eps)
    reference = Stages(z_l, eps, z_h, z_h)
    rho = theorem.rms(error) / theorem.rms(eps)
    measured = theorem.rms(model.to_z_h(z_l, eps + error) - z_h)
    assert measured == pytest.approx(rho * theorem.required_change(reference, timestep, scaled), rel=1e-9)


def _errors(law, noise=0.0):
    rng = np.random.default_rng(0)
    rows = []
    for image in range(12):
        size = rng.uniform(0.5, 2)
        for timestep in (1000, 500, 1):
            change = size * {1000: 3.0, 500: 0.7, 1: 0.2}[timestep]
            value = {"a": theorem.paper_lambda(timestep), "b": theorem.noise_gain(timestep), "c": change}[law]
            rows.append((str(image), timestep, 0.1 * value * np.exp(noise * rng.normal()), change))
    return pd.DataFrame(rows, columns=["image", "timestep", "error_z_h", "required_change"])


@pytest.mark.parametrize("law", ["a", "b", "c"])
def test_fit_recovers_the_law(law):
    fits = {fit.law: fit for fit in theorem.fit_laws(_errors(law, noise=0.05), samples=200)}
    assert min(fits.values(), key=lambda fit: fit.log10_residual).law == law
    assert fits[law].constant == pytest.approx(0.1, rel=0.05)
    assert fits[law].low <= fits[law].log10_residual <= fits[law].high or fits[law].log10_residual < 0.02


def test_intervals_are_of_photographs_resampled_together():
    errors = _errors("c", noise=0.3).sample(frac=1, random_state=1)  # in any order
    images, rng = errors["image"].unique(), np.random.default_rng(0)
    ratios = np.log10(errors["error_z_h"]) - np.log10(theorem.LAWS["b"](errors))
    table = errors.assign(ratio=ratios).pivot(index="image", columns="timestep", values="ratio")
    spreads = [table.loc[rng.choice(images, len(images))].mean().std(ddof=0) for _ in range(50)]
    fit = {fit.law: fit for fit in theorem.fit_laws(errors, samples=50)}["b"]
    assert [fit.low, fit.high] == pytest.approx(np.percentile(spreads, [2.5, 97.5]), rel=1e-12)
    assert fit.low < fit.high and fit.log10_residual == pytest.approx(table.mean().std(ddof=0), rel=1e-12)


def test_one_photograph_has_no_interval():
    (fit,) = [fit for fit in theorem.fit_laws(_errors("b").query("image == '3'"), samples=20) if fit.law == "a"]
    assert fit.log10_residual > 0.3 and np.isnan([fit.low, fit.high]).all(), "as everywhere in the study"


def test_exact_law_has_no_residual():
    fits = {fit.law: fit for fit in theorem.fit_laws(_errors("b"), samples=20)}
    assert fits["b"].log10_residual == pytest.approx(0.0, abs=1e-12)
    assert fits["a"].log10_residual > 0.3


def test_one_timestep_decides_nothing(home):
    """Any law fits it: the paper's must not be called the best one, nor the claim be reproduced by it."""
    errors = _errors("b").query("timestep == 1").assign(backbone="embedded", bits="W4A4", error_image=0.1)
    fits = {("embedded", "W4A4"): theorem.fit_laws(errors, samples=20)}
    table = reports.law_table(fits)
    assert table["off_by"].isna().all() and not table["best"].any()
    contributions = pd.DataFrame({"variant": ["full", "no noise", "identity"], "psnr_y": 20.0})
    text = reports.theorem_verdict(errors, fits, contributions.assign(backbone="embedded", timestep=1))
    assert "Only one timestep: any law fits it" in text and "best" not in text and "over error" not in text
    results.write_table("tiny", "theorem_laws", table.assign(dataset="samples"))
    rule = {"table": "theorem_laws", "where": {"law": "a"}, "column": "off_by", "below": 1.5}
    with pytest.raises(NoData, match="theorem_laws.csv has no off_by of a"):
        checks.cell(rule, "tiny")


def test_contribution_of_a_silent_unet_is_nothing(model):
    model.scaled, model.timestep = True, 1
    silent = torch.nn.init.zeros_
    silent(model.unet.conv_out.weight), silent(model.unet.conv_out.bias)
    images = theorem.contribution(model, torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(images["full"], images["identity"], atol=1e-5)
    assert torch.allclose(images["full"], images["no noise"], atol=1e-6)


def test_encoder_error_is_amplified_as_eq_6_says(model):
    model.scaled, model.timestep = False, 1000
    generator = torch.Generator().manual_seed(0)
    z_l, eps = (torch.randn(1, 16, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    moved = model.to_z_h(z_l + 0.01, eps) - model.to_z_h(z_l, eps)
    assert float(moved.mean()) == pytest.approx(0.01 * schedule.alpha(1000) ** -0.5)


def test_any_data_set_is_measured_and_cropped_as_the_profile_says(home):
    profile = get_profile("smoke", datasets=["samples-realistic"], timesteps=[1], max_side=64)
    work = theorem.Measurement(profile, None)
    assert work.dataset == "samples-realistic" and [header_size(pair.hr) for pair in work.pairs] == [(64, 64)]
    both = replace(profile, datasets=("samples-realistic", "samples"))
    assert theorem.Measurement(both, None).dataset == "samples", "of those that are preferred the first"
    with pytest.raises(QartsrError, match="RealSR: DATA_ROOT is not set"):
        theorem.Measurement(replace(profile, datasets=("RealSR",)), None)
