"""Layers whose input is divided by one factor per channel before quantization, the weight multiplied by it.

    y = Q_W(phi W) Q_A((x - o) / phi) + Q_B(B) + correction

QArtSR (Eq. 9), PassionSR (learnable equivalent transformation) and SVDQuant (smoothing) differ in how phi is found
and in the correction that is added in 16 bits.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant import few_passes
from qartsr_lib.quant.granularity import broadcast_along
from qartsr_lib.quant.layers import InferenceParts, LayerConfig, QuantLayer
from qartsr_lib.quant.observers import OBSERVERS, FirstBatchObserver, Sample, least_squares_range
from qartsr_lib.quant.quantizers import Quantizer, check_seen
from qartsr_lib.quant.states import QuantState

_SMALLEST = 1e-6  # of the maxima that phi comes from


class ChannelScaledLayer(QuantLayer):
    """Base of the three: calibration records the range of every input channel, `start` then sets phi and all ranges.

    `log_phi` is (c_in,); phi = exp(log_phi) stays positive.
    """

    def _add_quantizers(self, config: LayerConfig, name: str) -> None:
        if getattr(self, "groups", 1) != 1:
            raise QartsrError(f"{name}: a grouped convolution has no factor per channel; exclude it with `only`")
        self.requires_grad_(False)
        super()._add_quantizers(config, name)
        quantizer = self.input_quantizer
        if quantizer is not None and quantizer.is_static and quantizer.scale.numel() > 1:
            raise QartsrError(f"{name}: its channels have factors, and one range; choose PerTensor for activations")
        self.log_phi = nn.Parameter(self.weight.new_zeros(self.weight.shape[1]))
        self.forget()

    def folded_weight(self) -> torch.Tensor:
        """phi W: what Q_W sees."""
        return self.times_phi(self.weight)

    def times_phi(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight`, like W, with each input channel multiplied by its phi."""
        return broadcast_along(self.log_phi.exp(), 1, self.weight.ndim) * weight

    def shifted_input(self, x: torch.Tensor) -> torch.Tensor:
        """x - o; x where there is no o, as here."""
        return x

    def scaled_input(self, x: torch.Tensor) -> torch.Tensor:
        """What Q_A sees: (x - o) / phi."""
        phi = broadcast_along(self.log_phi.exp(), self.input_axis, x.ndim)
        shifted = self.shifted_input(x)
        return _Quotient.apply(shifted, phi) if torch.is_grad_enabled() else shifted / phi

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the quantized product, from the layer's input."""
        raise NotImplementedError

    def inference_parts(self) -> InferenceParts:
        return InferenceParts(phi=self.log_phi.exp())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state is QuantState.CALIBRATING:
            self.observe(x.detach())
        if self.state is not QuantState.QUANTIZED:
            return super().forward(x)
        if torch.is_grad_enabled() and few_passes.fits(self, x):
            return self._in_few_passes(x)
        quantized = self.quantized_input(self.scaled_input(x))
        return self._corrected(self._operate(quantized, *self.quantized_parameters()), x)

    def _corrected(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The quantized product y and what is added to it, in place."""
        return y.add_(self.correction(x))

    def _in_few_passes(self, x: torch.Tensor) -> torch.Tensor:
        """`forward` in training, where `few_passes.fits`."""
        quantized, _ = few_passes.enter(self, self.shifted_input(x), None)
        return self._corrected(self._operate(quantized, *few_passes.parameters(self)), x)

    def low_rank_factors(self) -> tuple[torch.Tensor, ...]:
        """F1, F2, L1 and L2 where Q_W sees phi (W + F1 F2 - L1 L2); none where it sees phi W, as here."""
        return ()

    def activation_quantizers(self) -> list[Quantizer]:
        return []  # `start` sets the input's range, which depends on phi

    def observe(self, x: torch.Tensor) -> None:
        """Widen the range of every input channel by `x`; keep some of its positions where ranges are fitted."""
        channels = x.movedim(self.input_axis, 0).flatten(1)
        if self._fits_values:
            self._sample = self._sample or Sample()
            self._sample.add(channels.t())
        lowest, highest = channels.amin(dim=1), channels.amax(dim=1)
        self._first = self._first or (lowest, highest)
        self._lowest = lowest if self._lowest is None else torch.minimum(self._lowest, lowest)
        self._highest = highest if self._highest is None else torch.maximum(self._highest, highest)

    def largest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Largest magnitude per input channel, (c_in,) each, of input and weight; never 0.

        1 and 1, which make a factor of 1, for a channel that was always zero: it may live in another image. Not where
        the whole input never changed, as that of the timestep's embedding: there it stays zero.
        """
        if self._lowest is None:
            raise QartsrError(f"{self.name}: nothing observed; run calibrate() over some images before start()")
        check_seen(self.name, self._lowest, self._highest)
        weight = self.weight.abs().movedim(1, 0).flatten(1).amax(dim=1)
        inputs = torch.maximum(self._lowest.abs(), self._highest.abs())
        if not torch.equal(self._lowest, self._highest):
            dead = torch.minimum(inputs, weight) < _SMALLEST
            inputs, weight = inputs.masked_fill(dead, 1.0), weight.masked_fill(dead, 1.0)
        return inputs.clamp(min=_SMALLEST), weight.clamp(min=_SMALLEST)

    @torch.no_grad()
    def start(self, exponent: float = 0.3) -> None:
        """Set phi = (max|x| / max|W|)^exponent per input channel, then all ranges.

        0.3 is PassionSR's released configuration; 0 gives phi = 1. A QartsrError where nothing was observed, or not
        finite values.
        """
        inputs, weight = self.largest()
        self.log_phi.copy_(exponent * (inputs / weight).log())
        self.set_ranges()
        self.forget()

    def set_ranges(self) -> None:
        """Ranges of input and weight quantizer for the present phi."""
        if self.input_quantizer is not None:
            phi, shape = self.log_phi.exp(), self.input_quantizer.scale.shape
            first = OBSERVERS.get(self.input_quantizer.config.ranges) is FirstBatchObserver
            lowest, highest = self._first if first else (self._lowest, self._highest)
            lower, upper = (lowest / phi).min(), (highest / phi).max()
            if self._fits_values:
                values = (self._sample.values() / phi).flatten()
                lower, upper = least_squares_range(values, lower, upper, self.input_quantizer.config.bits)
            self.input_quantizer.set_range(lower.expand(shape), upper.expand(shape))
        if self.weight_quantizer is not None:
            self.weight_quantizer.set_range_from(self.folded_weight())

    def forget(self) -> None:
        """Drop what calibration recorded."""
        self._lowest = self._highest = self._first = self._sample = None

    @property
    def _fits_values(self) -> bool:
        quantizer = self.input_quantizer
        wanted = quantizer is not None and quantizer.is_static
        return wanted and OBSERVERS.get(quantizer.config.ranges).fits_values


class ShiftedLayer(ChannelScaledLayer):
    """One with an offset o per input channel, undone behind the layer: y = ... Q_A((x - o) / phi) + W o.

    Attributes:
        offset: o, (c_in,), a buffer or property of the subclass.
    """

    def shifted_input(self, x: torch.Tensor) -> torch.Tensor:
        return x - broadcast_along(self.offset, self.input_axis, x.ndim)

    def inference_parts(self) -> InferenceParts:
        return replace(super().inference_parts(), offset=self.offset, behind=self.behind())

    def behind(self) -> torch.Tensor:
        """W o: (c_out,), or a convolution's per kernel position, (c_out, 1, k, k), which its borders need."""
        weight = self.shifted_weight()
        if isinstance(self, nn.Linear):
            return F.linear(self.offset, weight)
        return (weight * broadcast_along(self.offset, 1, weight.ndim)).sum(1, keepdim=True)

    def shifted_weight(self) -> torch.Tensor:
        """W of W o, like W."""
        return self.weight

    def correction(self, x: torch.Tensor) -> torch.Tensor:
        """W o behind the layer; a convolution of o, padded with zeros like x - o, so that borders are right too."""
        if isinstance(self, nn.Linear):
            return self.behind()
        return self._conv_forward(x.new_ones(1, 1, *x.shape[-2:]), self.behind(), None)


class _Quotient(torch.autograd.Function):
    """x / phi with half the passes over x that torch's own gradient makes: d phi is -(dx) (x / phi)."""

    @staticmethod
    def forward(ctx, x, phi):
        quotient = x / phi
        ctx.save_for_backward(quotient, phi)
        return quotient

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        quotient, phi = ctx.saved_tensors
        grad_x = gradient / phi
        grad_phi = (grad_x * quotient).sum_to_size(phi.shape).neg_() if ctx.needs_input_grad[1] else None
        return grad_x, grad_phi
