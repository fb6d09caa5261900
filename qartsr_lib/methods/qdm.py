"""Q-DM (NeurIPS 2023), our port: no code was published.

Quantization-aware training of all weights and of LSQ-like steps, by noise-estimating mimicking (NeM): the quantized
network's noise is fitted to full precision's. With one timestep NeM is plain distillation. The VAE, which Q-DM never
had, is fitted in the same manner at its two ends: z_L and the image. Timestep-aware quantization (TaQ) standardizes
what the quantizers of attention products see, and the shared setting has none.
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
