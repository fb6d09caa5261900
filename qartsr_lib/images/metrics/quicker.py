"""Slow parts of pyiqa's metrics in forms that give the same numbers in half of the time.

What is worked out of a reference alone is remembered, because many models are compared with the same photographs; that
changes no bit. The other forms are equal up to rounding: values differ by less than 1e-6 of themselves.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Tensors of at most so many values are remembered, and how many: two of each sample photograph in tiny.
KEPT_VALUES, KEPT = 3 * 320**2, 24
#: Convolutions of at most so many values go by Winograd: VGG16's 64 channels of the same photographs.
QUICK_VALUES = 64 * 320**2


class Remembering:
    """`function`(tensor, ...) that keeps its last results by the values in the tensor; nobody may write into these."""

    def __init__(self, function: Callable[..., Any], kept: int = KEPT) -> None:
        self.function, self.kept = function, kept
        self.results: OrderedDict[tuple, Any] = OrderedDict()

    def __call__(self, tensor: torch.Tensor, *more: Any, **options: Any) -> Any:
        """What `function` returns; large tensors are not remembered."""
        if tensor.numel() > KEPT_VALUES:
            return self.function(tensor, *more, **options)
        layout = tensor.shape, tensor.stride()  # by which kernels are chosen, and so the last bits
        key = (tensor.numpy().tobytes(), layout, more, tuple(sorted(options.items())))
        if key not in self.results:
            self.results[key] = self.function(tensor, *more, **options)
            if len(self.results) > self.kept:
                self.results.popitem(last=False)
        self.results.move_to_end(key)
        return self.results[key]


def quicken_modules(ssim: ModuleType, fsim: ModuleType, vif: ModuleType) -> None:
    """Put the faster forms into pyiqa's modules of these metrics, for all that are made afterwards."""
    ssim.filter2 = by_fft(ssim.filter2)
    fsim._construct_filters = by_size(fsim._construct_filters)
    fsim._phase_congruency = Remembering(fsim._phase_congruency)
    vif.SteerablePyramidSpace = Remembering(vif.SteerablePyramidSpace)
    vif.VIF.corrDn_win = window_sums


def quicken(name: str, network: torch.nn.Module) -> None:
    """Put them into the network of pyiqa's metric `name`, where it has one."""
    if name == "lpips":
        network.net.forward = Remembering(network.net.forward)
    if name == "dists":
        quick_convolutions(network)
        remember_references(network)


def by_fft(direct: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The valid cross-correlation that SSIM needs, by FFT.

    In float64 torch's direct convolution takes twenty times as long; about 1e-13 of the image's range lies between.
    """
    import torch
    from scipy.signal import fftconvolve  # half a second, and only needed for scoring

    def filter2(image: torch.Tensor, window: torch.Tensor, shape: str = "same") -> torch.Tensor:
        single = image.shape[1] == 1 and window.shape[:2] == (1, 1)
        if shape != "valid" or not single or image.requires_grad or image.device.type != "cpu":
            return direct(image, window, shape)
        kernel = window.flip(-2, -1).numpy()
        return torch.from_numpy(fftconvolve(image.numpy(), kernel, mode="valid", axes=(-2, -1)))

    return filter2


def by_size(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """FSIM's filters, which depend on the size of an image alone, made once for each of the last sizes."""
    import torch

    @functools.lru_cache(4)
    def made(shape: torch.Size, dtype: torch.dtype, *settings: float) -> torch.Tensor:
        return make(torch.empty(shape, dtype=dtype), *settings)

    return lambda image, *settings: made(image.shape, image.dtype, *settings)


def window_sums(
    _, image: torch.Tensor, window: Any, step: int = 1, channels: int = 1, start=(0, 0), end=(0, 0)
) -> torch.Tensor:
    """VIF's sums over windows, of which it uses every third a side: no others are worked out."""
    import torch
    import torch.nn.functional as F

    kernel = torch.from_numpy(window).float()[None, None].repeat(channels, 1, 1, 1)
    around = (kernel.shape[2] - 1) // 2
    padded = F.pad(image, (around,) * 4, "reflect")
    (top, left), (bottom, right) = start, (side + 2 * around for side in end)
    return F.conv2d(padded[:, :, top:bottom, left:right], kernel, stride=step, groups=channels)


def quick_convolutions(network: torch.nn.Module) -> None:
    """Winograd's convolutions (NNPACK's, inside torch) in place of direct ones, 3x3 and of stride 1; on a CPU.

    They need a fifth of the products and take less than half of the time of VGG16's, but for large images a gigabyte.
    """
    import torch

    if not torch._nnpack_available():  # of another processor
        return
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d) and (layer.kernel_size, layer.stride) == ((3, 3), (1, 1)):
            layer.forward = functools.partial(_quick_convolution, layer, layer.forward)


def _quick_convolution(
    layer: torch.nn.Conv2d, direct: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor
) -> torch.Tensor:
    import torch

    if image.numel() > QUICK_VALUES:
        return direct(image)
    return torch._nnpack_spatial_convolution(image, layer.weight, layer.bias, layer.padding)


def remember_references(network: torch.nn.Module) -> None:
    """Let DISTS keep the features of references alone: 50 MB each."""
    forward, once = network.forward, network.forward_once
    kept = Remembering(once, KEPT // 2)

    def remembering(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        network.forward_once = lambda x: kept(x) if x is reference else once(x)
        return forward(image, reference)

    network.forward = remembering
