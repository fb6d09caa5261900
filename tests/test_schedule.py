"""The noise schedule and Eq. (6) against diffusers' scheduler and published constants."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from qartsr_lib.backbones import schedule
from qartsr_lib.base.errors import QartsrError


def test_alphas_equal_stable_diffusions_scheduler():
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    assert torch.allclose(schedule.alphas_cumprod(), scheduler.alphas_cumprod.double(), rtol=1e-4)


def test_alphas_equal_the_definition_in_float64():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert np.allclose(schedule.alphas_cumprod().numpy(), np.cumprod(1 - betas), rtol=1e-12)


@pytest.mark.parametrize(
    ("timestep", "index", "alpha"), [(1000, 999, 0.004660), (500, 499, 0.277670), (1, 0, 0.999150)]
)
def test_the_papers_timesteps(timestep, index, alpha):
    assert schedule.timestep_index(timestep) == index
    assert schedule.alpha(timestep) == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize("timestep", [0, 1001, -5])
def test_timestep_outside_the_schedule(timestep):
    with pytest.raises(QartsrError, match=f"timestep {timestep}"):
        schedule.timestep_index(timestep)


@pytest.mark.parametrize("timestep", [1000, 500, 1])
def test_estimate_inverts_the_forward_process(timestep):
    generator = torch.Generator().manual_seed(0)
    z_h, eps = (torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    alpha = schedule.alpha(timestep)
    noisy = alpha**0.5 * z_h + (1 - alpha) ** 0.5 * eps
    assert torch.allclose(schedule.estimate_z_h(noisy, eps, timestep), z_h, atol=1e-12)


def test_estimate_equals_the_schedulers_predicted_original():
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
    )
    generator = torch.Generator().manual_seed(0)
    z_l, eps = (torch.randn(1, 4, 2, 2, generator=generator) for _ in range(2))
    expected = scheduler.step(eps, 999, z_l).pred_original_sample
    assert torch.allclose(schedule.estimate_z_h(z_l, eps, 1000), expected, rtol=1e-4, atol=1e-4)
