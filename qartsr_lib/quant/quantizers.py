"""The quantizer module: a configuration, its calibrated scale and zero-point, and fake quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.granularity import Granularity, PerTensor, granularity_from_dict
from qartsr_lib.quant.observers import OBSERVERS, Limits, MinMaxObserver
from qartsr_lib.quant.primitives import affine_qparams, fake_quantize, integer_range, symmetric_qparams

QPARAM_BITS = 16
"""Bits in which one scale or one zero-point (and any number of a side branch) is counted as stored."""


@dataclass(frozen=True)
class QuantizerConfig:
    """How one tensor is quantized; `asdict` is JSON-ready.

    Attributes:
        bits: 2 to 8.
        granularity: which elements share a scale.
        symmetric: signed codes without zero-point instead of unsigned ones with.
        zero_point: "real" or "integer" (asymmetric only), see primitives.affine_qparams.
        narrow_range: of symmetric codes, see primitives.integer_range.
        ranges: name of a range rule in observers.OBSERVERS.
    """

    bits: int
    granularity: Granularity = PerTensor()
    symmetric: bool = False
    zero_point: str = "real"
    narrow_range: bool = False
    ranges: str = "min-max"

    @classmethod
    def from_dict(cls, described: Mapping) -> QuantizerConfig:
        """Inverse of `asdict`; KeyError or TypeError when `described` is not one."""
        granularity = granularity_from_dict(described["granularity"])
        return cls(**described | {"granularity": granularity})

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return integer_range(self.bits, self.symmetric, self.narrow_range)


class Quantizer(nn.Module):
    """Fake-quantizes a tensor with a static scale and zero-point held in buffers.

    A new quantizer has scale NaN, which means un-calibrated; `set_range` or calibration fixes it. Methods that learn
    their parameters override `qparams` (and `set_range`, to initialize them).

    Args:
        config: bits, granularity and variant.
        shape: shape of the tensors to come; of an activation only the channel axis matters.
        name: the owner's name, for messages.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None
    is_static = True  # has a range that calibration sets
    reach = 0.0  # of gradients beyond the range, see primitives.fake_quantize

    def __init__(self, config: QuantizerConfig, shape: tuple[int, ...], name: str, device=None) -> None:
        super().__init__()
        self.config, self.name, self.code_range = config, name, config.code_range
        parameter_shape = config.granularity.parameter_shape(tuple(shape))
        self.register_buffer("scale", torch.full(parameter_shape, torch.nan, device=device))
        offset = None if config.symmetric else torch.zeros(parameter_shape, device=device)
        self.register_buffer("zero_point", offset)
        self.calibrated = False
        self._observer: MinMaxObserver | None = None

    @property
    def stored_parameter_bits(self) -> int:
        """Bits that the scales and zero-points occupy in a file."""
        return QPARAM_BITS * self.scale.numel() * (1 if self.zero_point is None else 2)

    def qparams(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and zero-point for `x`; QartsrError when the quantizer has no range yet."""
        if not self.calibrated:
            raise QartsrError(f"{self.name}: quantizer not calibrated; run calibrate() over some images first")
        return self.scale, self.zero_point

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x_hat of Eq. 3, same shape as x; raises as `qparams`."""
        scale, zero_point = self.qparams(x)
        grouped = self.config.granularity.view(x)
        return fake_quantize(grouped, scale, zero_point, *self.code_range, self.reach).reshape(x.shape)

    @torch.no_grad()
    def set_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Fix scale and zero-point from a range in the granularity's parameter shape; raises as `check_range`."""
        self.check_range(lower, upper)
        if self.zero_point is None:
            scale = symmetric_qparams(lower, upper, *self.code_range)
        else:
            scale, zero_point = affine_qparams(lower, upper, self.config.bits, self.config.zero_point)
            self.zero_point.copy_(zero_point)
        self.scale.copy_(scale)
        self.calibrated = True

    def set_range_from(self, x: torch.Tensor) -> None:
        """`set_range` with the min/max of `x` (weights and biases need no calibration data)."""
        if x.is_meta:  # a network without values, which is only counted: any range will do
            self.calibrated = True
        else:
            self.set_range(*self.config.granularity.limits(x.detach()))

    def check_range(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Raise QartsrError when a range is not finite (NaN or infinity reached this layer)."""
        check_seen(self.name, lower, upper)

    def start_observing(self) -> None:
        """Forget what an earlier calibration saw; the present scale stays until the end."""
        self._observer = OBSERVERS.get(self.config.ranges)(self.config.granularity, self.config.bits)

    def observe(self, x: torch.Tensor) -> None:
        """Let the range rule see `x` (nothing happens outside a calibration)."""
        if self._observer is not None:
            self._observer.update(x)

    def stop_observing(self) -> Limits | None:
        """End the calibration and return the range seen, None when nothing was."""
        observer, self._observer = self._observer, None
        return None if observer is None else observer.limits()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.calibrated = bool(torch.isfinite(self.scale).all())

    def extra_repr(self) -> str:
        return f"{self.config}, calibrated={self.calibrated}"


def check_seen(name: str, *tensors: torch.Tensor) -> None:
    """Raise QartsrError where weights of the layer `name`, or what calibration saw of it, are not finite."""
    if not all(tensor.is_meta or tensor.isfinite().all() for tensor in tensors):
        raise QartsrError(f"{name}: NaN or infinite values; check the weights and the calibration images")
