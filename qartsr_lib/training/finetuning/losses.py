"""Eq. (8) and its relatives: the loss of a phase, its terms, and the image losses by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from qartsr_lib.backbones.features import RememberingDistance, pretrained_distance
from qartsr_lib.backbones.steps import Flow
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.registry import Registry
from qartsr_lib.training.finetuning.flows import Network, Part

#: Image loss: (student's images, full-precision images), both (N, 3, H, W) nominally in [0, 1] -> scalar.
ImageLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: Name -> function(device) -> ImageLoss. The name stands in every row that was trained with it.
IMAGE_LOSSES: Registry[Callable[[torch.device], ImageLoss]] = Registry("image loss")

PERCEPTUAL_WEIGHT, SQUARED_WEIGHT = 2.0, 1.0
"""a1 and a2 of Eq. (8), with images in [-1, 1] as in OSEDiff (arXiv:2406.08177)."""
_SMALLEST = 1e-12
FLAT = 1 / 32  # of the mean variance of calibration images, see `weights_of_flat`


def normalized_mse(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """||M_q(x) - M_fp(x)||^2 of Eq. (8) over the variance of M_fp(x): 1 is no better than a constant."""
    return F.mse_loss(student, target) / target.var().clamp(min=_SMALLEST)


def perceptual_and_squared(distance: ImageLoss) -> ImageLoss:
    """a1 x distance + a2 x MSE of images in [-1, 1] (Eq. 8)."""

    def loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        squared = 4.0 * F.mse_loss(images, targets)  # [0, 1] to [-1, 1] doubles differences
        return PERCEPTUAL_WEIGHT * distance(images, targets) + SQUARED_WEIGHT * squared

    return loss


@IMAGE_LOSSES.register("vae-features+mse")
def vae_features_and_mse(device: torch.device) -> ImageLoss:
    """The default: the embedded backbones' pretrained encoder, which no recipe or T has changed."""
    return perceptual_and_squared(pretrained_distance(device))


@IMAGE_LOSSES.register("lpips+mse")
def lpips_and_mse(device: torch.device) -> ImageLoss:
    """2 x LPIPS (VGG, as OSEDiff trains) + MSE, by the package lpips; its VGG16 weights (0.5 GB) are not shipped."""
    import lpips  # a second, and only needed here

    from qartsr_lib.images.metrics.converted import tensors
    from qartsr_lib.images.metrics.iqa import VGG16
    from qartsr_lib.images.metrics.weights import obtain

    try:
        file = obtain(VGG16, None)
    except QartsrError as error:
        raise QartsrError(f"image loss lpips+mse: {error}; or choose vae-features+mse") from error
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    saved = tensors(file)
    # lpips cuts torchvision's features into slices and keeps their numbers: slice2.5.weight is features.5.weight.
    network.net.load_state_dict({key: saved["features." + key.split(".", 1)[1]] for key in network.net.state_dict()})
    return perceptual_and_squared(RememberingLPIPS(network.to(device).eval().requires_grad_(False)))


class RememberingLPIPS(RememberingDistance):
    """`network`, an lpips.LPIPS, mean over a batch, cut where both images' features meet."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Unit-length features after each of VGG16's slices."""
        import lpips  # a second, and only needed here

        return [*map(lpips.normalize_tensor, self.network.net(self.network.scaling_layer(images * 2.0 - 1.0)))]

    def between(self, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        pairs = zip(self.network.lins, found, wanted, strict=True)
        return torch.stack([layer((a - b).square()).mean() for layer, a, b in pairs]).sum()


def weights_of_flat(batches: Sequence[torch.Tensor]) -> list[float]:
    """For each batch 1, but less where it varies less than FLAT of the mean: what its `normalized_mse` counts for.

    That divides by what hardly varies, too: one crop of sky or paper would have a loss a thousand times the others',
    and Adam's steps would be close to zero for the rest of the training.
    """
    variances = [float(batch.var()) for batch in batches]
    usual = FLAT * sum(variances) / len(variances)
    return [min(1.0, variance / usual) if usual else 1.0 for variance in variances]


def phase_loss(
    student: Network, part: Part, flow: Flow, targets: Mapping[int, Flow], image_loss: ImageLoss, recompute: bool,
    weight: float = 1.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """(The sum of the terms of `part`, the same by quantity), from where the first trained block begins.

    Args:
        student: the quantized network.
        flow: what enters it there.
        targets: the full-precision flows at the terms' positions.
        recompute: keep only what flows between blocks for the backward pass, and compute each block's inside again.
        weight: of all terms but the image loss, see `weights_of_flat`.
    """
    found = {}
    for position in range(part.entry, max(position for _, position in part.terms)):
        step = student.chain[position][1]
        flow = checkpoint(step, flow, use_reentrant=False, preserve_rng_state=False) if recompute else step(flow)
        found[position + 1] = flow
    losses, parts = [], {}
    for term, position in part.terms:
        pair = (flows[position] for flows in (found, targets))
        images = (flow.eps if term.quantity == "noise" else flow.x for flow in pair)
        losses.append(image_loss(*images) if term.quantity == "image" else weight * normalized_mse(*images))
        name = f"{term.quantity}_loss"
        parts[name] = parts.get(name, 0.0) + float(losses[-1].detach())
    return torch.stack(losses).sum(), parts
