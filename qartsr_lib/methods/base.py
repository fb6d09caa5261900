"""The method seam: one file and one registration per quantization method."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.base.registry import Registry
from qartsr_lib.methods.setting import DEFAULT, SETTING_OPTIONS, Setting, split_options
from qartsr_lib.quant.apply import EVERYTHING, quantize_, report, w_bits_effective
from qartsr_lib.quant.layers import LAYER_KINDS, QuantConv2d, QuantLayer, QuantLinear
from qartsr_lib.quant.scheme import SHARED_SETTING, Bits, QuantScheme
from qartsr_lib.quant.states import calibrate, calibrate_once, quant_modules


@dataclass(frozen=True)
class MethodResult:
    """What a method returns."""

    backbone: nn.Module  # quantized, with the interface of the backbone given (upscale, stages, ...)
    steps: int = 0  # images passed forward and backward; 0 without training
    history: Sequence[Mapping[str, float]] = ()  # one record per training step, see finetuning.engine.Finetuner.run
    note: str = ""  # what every row of this model must say beside its numbers, such as the loss it was trained by

    @cached_property
    def report(self) -> pd.DataFrame:
        """One row per layer of the whole network (quant.apply.report)."""
        return report(self.backbone)

    @property
    def w_bits_effective(self) -> float:
        """Stored bits per weight over the whole network."""
        return w_bits_effective(self.report)


class Method(ABC):
    """A way to quantize a backbone."""

    name: str  # key of the registry and the command line, e.g. "maxmin"
    label: str  # name in tables, e.g. "MaxMin"
    options: tuple[str, ...] = ()  # names of the keyword options that `build` accepts beside those of Setting
    trains: bool = False  # `build` takes long enough to keep its result, and accepts `checkpoint=FILE` to continue
    only: tuple[str, ...] = EVERYTHING  # fnmatch patterns of the layers that are quantized
    calibration_adds_bits: bool = False  # what calibration sees decides how much more is stored than `scheme` says

    @abstractmethod
    def build(
        self, backbone: nn.Module, bits: str | Bits, calibration_images: list[torch.Tensor], *, seed: int = 0, **options
    ) -> MethodResult:
        """Quantize a deep copy of a full-precision `backbone` (backbones.OneStepSR), which is not changed.

        Args:
            bits: e.g. "W4A4".
            options: those of `self.options` and of methods.setting.Setting.
            calibration_images: LQ images (1, 3, h, w), RGB float32 in [0, 1].
            seed: of whatever the method draws; the same seed gives the same bits on one machine.

        Raises:
            QartsrError: unknown options, bits or unusable images.
        """

    def scheme(self) -> QuantScheme:
        """What `build` quantizes by before Setting.scheme; counting needs it. A QartsrError if the method has none."""
        raise QartsrError(f"method {self.name!r} has no scheme(); give it one to have it counted")

    def check_options(self, options: Mapping[str, object]) -> None:
        """Raise QartsrError for an option that this method does not have."""
        unknown = sorted(set(options) - {*self.options, *SETTING_OPTIONS})
        if unknown:
            known = ", ".join(dict.fromkeys((*self.options, *SETTING_OPTIONS)))
            raise QartsrError(f"method {self.name!r} has no option {unknown[0]!r} (known: {known})")


class CalibratedMethod(Method):
    """A method without training: layers are converted by `setting`, calibrated and started.

    What layers draw for a training (Groupwise's F2) has no effect here, but files hold it.
    """

    def __init__(
        self, name: str, label: str, setting: QuantScheme = SHARED_SETTING, only: tuple[str, ...] = EVERYTHING
    ) -> None:
        self.name, self.label, self.setting, self.only = name, label, setting, only

    def scheme(self, **options) -> QuantScheme:
        return self.setting

    def build(
        self, backbone: nn.Module, bits: str | Bits, calibration_images: list[torch.Tensor], *, seed: int = 0, **options
    ) -> MethodResult:
        self.check_options(options)
        setting, own = split_options(options)
        scheme = setting.scheme(self.scheme(**own), backbone, bits)
        if not scheme.bits.is_full_precision:
            check_calibration_images(calibration_images)
        quantized = copy.deepcopy(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            quantize_(quantized, scheme, self.only)
        if not scheme.bits.is_full_precision:
            start_(backbone, quantized, calibration_images, f"{self.label} {scheme.bits}")
            quantized.requires_grad_(False)  # of layers that could be trained
            quantized.quantization = replace(quantized.quantization, method=self.name)
        return MethodResult(quantized)


def stored_bits(method: Method, backbone: nn.Module, bits: str | Bits, setting: Setting = DEFAULT) -> float:
    """MethodResult.w_bits_effective of what `method` would build, without calibrating anything.

    The least that it can be where calibration adds bits."""
    layers = copy.deepcopy(backbone)
    quantize_(layers, setting.scheme(method.scheme(), backbone, bits), method.only)
    return w_bits_effective(report(layers))


def register_layers(name: str) -> Callable[[type[QuantLayer]], type[QuantLayer]]:
    """Decorator that registers a layer kind by what its classes for nn.Linear and nn.Conv2d have in common."""

    def register(common: type[QuantLayer]) -> type[QuantLayer]:
        pairs = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}
        kinds = {kind: type(common.__name__ + kind.__name__, (common, plain), {}) for kind, plain in pairs.items()}
        LAYER_KINDS.register(name)(kinds)
        return common

    return register


def start_(backbone: nn.Module, quantized: nn.Module, images: list[torch.Tensor], label: str) -> None:
    """Calibrate the converted copy, every layer fed by full precision; layers that need more have `start`."""
    starting = [module for module in quant_modules(quantized) if hasattr(module, "start")]
    if not starting:
        calibrate_once(backbone, quantized, images, f"calibrate {label}")
        return
    calibrate(quantized, quantized.upscale, progress(images, f"calibrate {label}"))
    for module in progress(starting, f"{label} layers"):
        module.start()


def check_calibration_images(images: list[torch.Tensor]) -> None:
    """Raise QartsrError unless there is at least one image, all of (1, 3, h, w), float32 in [0, 1]."""
    if not images:
        raise QartsrError("calibration images: none given; name a folder or list with at least one")
    for index, image in enumerate(images):
        if image.ndim != 4 or image.shape[:2] != (1, 3) or not image.numel():
            raise QartsrError(f"calibration image {index}: shape {tuple(image.shape)}, but (1, 3, h, w) is needed")
        if image.dtype != torch.float32 or image.min() < -0.01 or image.max() > 1.01:
            seen = f"{image.dtype}, {image.min():g} to {image.max():g}"
            raise QartsrError(f"calibration image {index}: {seen}, but float32 from 0 to 1 is needed")


def _wrong(_: str, method: Method, others: Mapping[str, Method]) -> str:
    same = [other for other, known in others.items() if known.label == method.label]
    return f"its label {method.label!r} is that of {same[0]!r}, and tables tell methods apart by it" if same else ""


METHODS: Registry[Method] = Registry("method", __package__, _wrong)
