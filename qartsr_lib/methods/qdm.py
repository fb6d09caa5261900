"""Q-DM (NeurIPS 2023), our port: no code was published.

Quantization-aware training of all weights and of LSQ-like steps by noise-estimating mimicking (NeM): the noise is
fitted to full precision's, as are the VAE's two ends, z_L and the image. What is left out: DEVIATIONS.md.
"""

from __future__ import annotations

from qartsr_lib.methods.base import METHODS
from qartsr_lib.methods.lsq import LSQ
from qartsr_lib.training.finetuning.phases import LATENT, NOISE, PIXELS


class QDM(LSQ):
    """LSQ's layers with trained weights; NeM's squared errors instead of an image loss."""

    rates = (("steps", 1e-5), ("weights", 1e-5))
    terms = (LATENT, NOISE, PIXELS)


METHODS.register("q-dm")(QDM("q-dm", "Q-DM", train_weights=True))
