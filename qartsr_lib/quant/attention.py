"""Quantized attention products: softmax(Q_A(q) Q_A(k)^T) and Q_A(softmax) Q_A(v), an ablation's option."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.scheme import QuantScheme, matches
from qartsr_lib.quant.states import QuantModule, QuantState

PRODUCT_INPUTS = ("query", "key", "softmax", "value")


def quantize_products_(model: nn.Module, scheme: QuantScheme, only: Sequence[str]) -> None:
    """Give the attention modules that `scheme` and `only` name quantizers for their products."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention) and matches(name, only) and matches(name, scheme.attention_modules):
            device, config = module.to_q.weight.device, scheme.attention_config()
            module.set_processor(QuantAttnProcessor(module.get_processor(), config, name, device=device))


class QuantAttnProcessor(QuantModule):
    """Attention processor with one per-tensor quantizer each for q, k, the softmax and v.

    In full precision it hands over to the processor it replaced (`replaced`), so that the bits are the same; else to
    diffusers' AttnProcessor, as the fused kernel of AttnProcessor2_0 never shows its softmax. `config` is of all four
    quantizers; `name`, of the attention module, is for messages.
    """

    def __init__(self, replaced, config: QuantizerConfig, name: str, device=None) -> None:
        super().__init__()
        self.replaced = replaced
        self.quantizers = nn.ModuleDict(
            {part: Quantizer(config, (1, 1, 1), f"{name} ({part})", device=device) for part in PRODUCT_INPUTS}
        )

    def activation_quantizers(self) -> list[Quantizer]:
        return list(self.quantizers.values())

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        # In place of nn.Module's __call__: diffusers reads this signature to know what it may pass.
        inputs = (hidden_states, encoder_hidden_states, attention_mask, temb)
        if self.state is QuantState.FULL_PRECISION:
            return self.replaced(attn, *inputs)
        return AttnProcessor()(_QuantizedProducts(attn, self._quantize), *inputs)

    def _quantize(self, part: str, x: torch.Tensor) -> torch.Tensor:
        quantizer = self.quantizers[part]
        if self.state is QuantState.CALIBRATING:
            quantizer.observe(x)
            return x
        return quantizer(x)


class _QuantizedProducts:
    """An attention module as AttnProcessor sees it, but for the inputs of its two products."""

    def __init__(self, attn: Attention, quantize) -> None:
        self._attn, self._quantize = attn, quantize

    def __getattr__(self, name: str):
        return getattr(self._attn, name)

    def to_v(self, x: torch.Tensor) -> torch.Tensor:
        return self._quantize("value", self._attn.to_v(x))

    def get_attention_scores(self, query, key, mask=None) -> torch.Tensor:
        query, key = self._quantize("query", query), self._quantize("key", key)
        return self._quantize("softmax", self._attn.get_attention_scores(query, key, mask))
