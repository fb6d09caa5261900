"""What the generator is trained on: OSEDiff's losses, or the cheaper distillation of a trained OSEDiff.

Both have `decodes` (the generator has to decode), `regularizer` (a second network that learns along, or None) and
`loss`, the generator's, with its terms for the record. Sources: OSEDiff (arXiv:2406.08177), L_data and L_reg, and its
released train_osediff.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from qartsr_lib.backbones.schedule import NUM_STEPS, add_noise, clean
from qartsr_lib.training.finetuning.losses import ImageLoss
from qartsr_lib.training.trq.config import REGULARIZERS
from qartsr_lib.training.trq.networks import Regularizer

GUIDANCE = 7.5
VSD_INDICES = (20, 980)  # drawn from this range, end excluded
_SMALLEST_WEIGHT = 1e-4  # the released code divides by zero where z_H meets the frozen model's estimate

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = tuple[torch.Tensor, dict[str, float]]


class Draw:
    """Random numbers of one step, determined by all parts of `seed` and the same on every device."""

    def __init__(self, *seed: int) -> None:
        mixed = 0
        for part in seed:
            mixed = (mixed * 1_000_003 + part + 1) % (2**63)
        self._generator = torch.Generator().manual_seed(mixed)

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal, of the shape and device of `like`."""
        return torch.randn(like.shape, generator=self._generator).to(like)

    def indices(self, count: int, low: int, high: int, device: torch.device) -> torch.Tensor:
        """`count` indices of the schedule, low <= t < high."""
        return torch.randint(low, high, (count,), generator=self._generator).to(device)


class OSEDiffLosses:
    """L = MSE + 2 LPIPS (the image loss) + VSD: what OSEDiff is trained on.

    Args:
        frozen: the base UNet.
        prompt, negative: text embeddings (1, tokens, dim); `frozen` is guided away from the second.
    """

    decodes = True

    def __init__(
        self,
        image_loss: ImageLoss,
        frozen: nn.Module,
        prompt: torch.Tensor,
        negative: torch.Tensor,
        seed: int = 0,
        regularizer: str = REGULARIZERS[0],
    ) -> None:
        self.image_loss, self.frozen, self.prompt, self.negative = image_loss, frozen, prompt, negative
        self.regularizer: nn.Module = Regularizer(frozen, seed, regularizer)

    def loss(self, batch: Batch, z_h: torch.Tensor, image: torch.Tensor, draw: Draw) -> Loss:
        data, vsd = self.image_loss(image, batch[0]), self.vsd(z_h, draw)
        return data + vsd, {"image": data.item(), "vsd": vsd.item()}

    def vsd(self, z_h: torch.Tensor, draw: Draw) -> torch.Tensor:
        """A term whose gradient by z_H is 2 g / numel, g = (x0 of the regularizer - x0 of the frozen model) / w.

        w is the mean distance of z_H to the latter, per image. All of it is in the space of latents.
        """
        with torch.no_grad():
            z = z_h.detach()
            index = draw.indices(len(z), *VSD_INDICES, z.device)
            noisy = add_noise(z, draw.noise(z), index)
            learned = clean(noisy, self.regularizer(noisy, index, self.prompt), index)
            guided = clean(noisy, self._guided(noisy, index), index)
            weight = (z - guided).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=_SMALLEST_WEIGHT)
            target = z - (learned - guided) / weight
        return F.mse_loss(z_h, target)

    def _guided(self, noisy: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance of the frozen UNet; one pass after the other, to need less memory."""
        wanted, unwanted = (
            self.frozen(noisy, index, text.expand(len(noisy), -1, -1)).sample.float()
            for text in (self.prompt, self.negative)
        )
        return unwanted + GUIDANCE * (wanted - unwanted)

    def regularizer_loss(self, network: nn.Module, z_h: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The diffusion loss by which the regularizer follows the generator; `network` is it, as prepared."""
        z = z_h.detach()
        index = draw.indices(len(z), 0, NUM_STEPS, z.device)
        eps = draw.noise(z)
        return F.mse_loss(network(add_noise(z, eps, index), index, self.prompt), eps)


class Distillation:
    """MSE of z_H to that of `teacher` (upscaled image -> z_H, frozen): no decoder, no LPIPS, no second UNet.

    This is *not* OSEDiff's training: the student can become as good as its teacher, and no better.
    """

    decodes = False
    regularizer = None

    def __init__(self, teacher: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.teacher = teacher

    def loss(self, batch: Batch, z_h: torch.Tensor, image: None, draw: Draw) -> Loss:
        with torch.no_grad():
            target = self.teacher(batch[1]).float()
        loss = F.mse_loss(z_h, target)
        return loss, {"latent": loss.item()}


Objective = OSEDiffLosses | Distillation
