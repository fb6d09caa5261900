"""NaN and infinity are told behind the stage of a network where they appear."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import Diverged

#: Methods of OneStepSR, in order -> what they give.
STAGES = {
    "encode": "the encoder's latent (z_l)",
    "predict_noise": "the UNet's noise (eps)",
    "to_z_h": "the estimated latent (z_h)",
    "decode": "the decoded image",
}


def watch_(model: OneStepSR, weights: object) -> None:
    """Let `model`, loaded from `weights`, raise Diverged, in place, as soon as a stage's output is not finite.

    Codes know no NaN, and infinity is cut off with all that is out of range: at the end neither need be seen any more.
    """

    def watched(compute: Callable[..., torch.Tensor], what: str) -> Callable[..., torch.Tensor]:
        def checked(*inputs: torch.Tensor) -> torch.Tensor:
            output = compute(*inputs)
            if not torch.isfinite(output).all():
                raise Diverged(
                    f"{what} is not finite (NaN or infinity); weights {weights}: use sound ones or more bits"
                )
            return output

        return checked

    for stage, what in STAGES.items():
        setattr(model, stage, watched(getattr(model, stage), what))
