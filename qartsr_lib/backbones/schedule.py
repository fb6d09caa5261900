"""Stable Diffusion's noise schedule and the closed-form one-step estimate, Eq. (6) of QArtSR.

Source: scheduler configuration of Stable Diffusion 2.1-base (scaled_linear, 0.00085 -> 0.012, 1000 steps).
"""

from __future__ import annotations

from functools import cache

import torch

from qartsr_lib.base.errors import QartsrError

BETA_START, BETA_END, NUM_STEPS = 0.00085, 0.012, 1000

#: The three timesteps of the paper, by the paper's label; see `timestep_index`.
PAPER_TIMESTEPS = (1000, 500, 1)


def timestep_index(timestep: int) -> int:
    """Index into the schedule of a timestep label: T = 1000, 500, 1 are 999, 499, 0; QartsrError outside 1..1000."""
    if not 1 <= timestep <= NUM_STEPS:
        raise QartsrError(f"timestep {timestep}: outside 1..{NUM_STEPS}; choose a label such as 1000, 500 or 1")
    return timestep - 1


@cache
def alphas_cumprod() -> torch.Tensor:
    """Cumulative products alpha_t for the indices 0..999: (1000,) float64, falling from 0.99915 to 0.00466."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def alpha(timestep: int) -> float:
    """alpha_T for a timestep label 1..1000."""
    return _ALPHAS[timestep_index(timestep)]


#: Plain numbers, made when nothing is traced: torch.export cannot read a tensor's value inside a network.
_ALPHAS: tuple[float, ...] = tuple(alphas_cumprod().tolist())


def estimate_z_h(z_l: torch.Tensor, eps: torch.Tensor, timestep: int) -> torch.Tensor:
    """z_H = (z_L - sqrt(1 - alpha_T) eps) / sqrt(alpha_T): QArtSR Eq. (6), shapes (N, C, h, w), label T 1..1000."""
    a = alpha(timestep)
    return (z_l - (1.0 - a) ** 0.5 * eps) / a**0.5


def _alphas(index: torch.Tensor) -> torch.Tensor:
    return alphas_cumprod()[index.cpu()].float().view(-1, 1, 1, 1).to(index.device)


def add_noise(z: torch.Tensor, eps: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """sqrt(alpha_t) z + sqrt(1 - alpha_t) eps at the schedule's indices (N,)."""
    a = _alphas(index)
    return a.sqrt() * z + (1 - a).sqrt() * eps


def clean(noisy: torch.Tensor, eps: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The clean latent that `noisy` is made of if its noise is `eps`."""
    a = _alphas(index)
    return (noisy - (1 - a).sqrt() * eps) / a.sqrt()
