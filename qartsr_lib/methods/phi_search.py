"""SVDQuant's grid search for the factors phi, for any layer that divides its input by them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from qartsr_lib.methods.channel_layers import ChannelScaledLayer

GRID = 20
SAMPLES = 4
"""Calibration images whose layer inputs are kept for the output errors."""


class SearchedLayer(ChannelScaledLayer):
    """A ChannelScaledLayer that keeps some inputs while calibrating, to choose phi by its output's error."""

    def _add_quantizers(self, config, name: str) -> None:
        super()._add_quantizers(config, name)
        self._inputs: list[torch.Tensor] = []
        self._wanted: list[torch.Tensor] = []

    def observe(self, x: torch.Tensor) -> None:
        super().observe(x)
        if len(self._inputs) < SAMPLES:
            self._inputs.append(x.clone())

    def forget(self) -> None:
        super().forget()
        self._inputs, self._wanted = [], []

    def set_phi(self, log_phi: torch.Tensor) -> None:
        """Take these factors, and the ranges (and whatever else of the layer) that belong to them."""
        self.log_phi.copy_(log_phi)
        self.set_ranges()

    @torch.no_grad()
    def search_phi(self) -> float:
        """Set the phi of the smallest output error on the kept inputs; return that error.

        Candidates are deepcompressor's: phi = max|x|^a / max|W|^b for (a, b) = (0, 0), (a, 0) and
        (a, 1 - a), a = 1/20 .. 19/20.

        Raises:
            QartsrError: nothing was observed.
        """
        self._wanted = [self._operate(x, self.weight, self.bias) for x in self._inputs]
        candidates = list(self._candidates())
        errors = []
        for log_phi in candidates:
            self.set_phi(log_phi)
            errors.append(self.output_error())
        best = min(range(len(errors)), key=errors.__getitem__)
        self.set_phi(candidates[best])
        return errors[best]

    def output_error(self) -> float:
        """Sum over kept inputs of the output's mean squared distance to the float layer's (after `search_phi`)."""
        weight, bias = self._quantize_parameters()
        error = 0.0
        for x, wanted in zip(self._inputs, self._wanted, strict=True):
            scaled = self.scaled_input(x)
            quantized = scaled if self.input_quantizer is None else self.input_quantizer(scaled)
            error += float(F.mse_loss(self._operate(quantized, weight, bias) + self.correction(x), wanted))
        return error

    def _candidates(self) -> Iterator[torch.Tensor]:
        inputs, weight = (values.log() for values in self.largest())
        yield torch.zeros_like(inputs)
        for step in range(1, GRID):
            alpha = step / GRID
            yield alpha * inputs
            yield alpha * inputs - (1 - alpha) * weight
