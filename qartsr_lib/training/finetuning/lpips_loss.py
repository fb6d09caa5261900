"""Eq. (8)'s image loss with LPIPS itself; its VGG16 weights (0.5 GB) are not shipped."""

from __future__ import annotations

import torch

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.metrics.iqa import VGG16
from qartsr_lib.images.metrics.weights import obtain
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES, ImageLoss, perceptual_and_squared


@IMAGE_LOSSES.register("lpips+mse")
def lpips_and_mse(device: torch.device) -> ImageLoss:
    """2 x LPIPS (VGG, as OSEDiff trains, arXiv:2406.08177) + MSE, by the package lpips.

    Raises:
        QartsrError: VGG16's weights are neither here nor to be fetched.
    """
    import lpips  # a second, and only needed here

    try:
        file = obtain(VGG16, None)
    except QartsrError as error:
        raise QartsrError(f"image loss lpips+mse: {error}; or choose vae-features+mse") from error
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    saved = torch.load(file, weights_only=True)
    # lpips cuts torchvision's features into slices and keeps their numbers: slice2.5.weight is features.5.weight.
    network.net.load_state_dict({key: saved["features." + key.split(".", 1)[1]] for key in network.net.state_dict()})
    network = network.to(device).eval().requires_grad_(False)
    return perceptual_and_squared(lambda images, targets: network(images * 2.0 - 1.0, targets * 2.0 - 1.0).mean())
