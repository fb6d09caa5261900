"""Quantized attention products: softmax(Q_A(q) Q_A(k)^T) and Q_A(softmax) Q_A(v), an ablation's option."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from qartsr_lib.quant.quantizers import Quantizer, QuantizerConfig
from qartsr_lib.quant.states import QuantModule, QuantState

PRODUCT_INPUTS = ("query", "key", "softmax", "value")


class QuantAttnProcessor(QuantModule):
    """Attention processor with one per-tensor quantizer each for q, k, the softmax and v.

    In full precision it hands over to the processor it replaced, so that the bits are the same.
    The computation follows diffusers' AttnProcessor; the fused kernel of AttnProcessor2_0 never
    shows its softmax. Projections are ordinary layers and not this class's business.

    Args:
        replaced: the processor used so far.
        config: quantizer of all four tensors.
        name: full name of the attention module, for messages.
    """

    def __init__(self, replaced, config: QuantizerConfig, name: str, device=None) -> None:
        super().__init__()
        self.replaced = replaced
        self.quantizers = nn.ModuleDict(
            {part: Quantizer(config, (1, 1, 1), f"{name} ({part})", device=device) for part in PRODUCT_INPUTS}
        )

    def activation_quantizers(self) -> list[Quantizer]:
        return list(self.quantizers.values())

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # In place of nn.Module's __call__: diffusers reads this signature to know what it may pass.
        inputs = (hidden_states, encoder_hidden_states, attention_mask, temb)
        if self.state is QuantState.FULL_PRECISION:
            return self.replaced(attn, *inputs)
        return self._attend(attn, *inputs)

    def _attend(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        temb: torch.Tensor | None,
    ) -> torch.Tensor:
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if residual.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])

        query = self._quantize("query", attn.head_to_batch_dim(attn.to_q(hidden_states)))
        key = self._quantize("key", attn.head_to_batch_dim(attn.to_k(context)))
        value = self._quantize("value", attn.head_to_batch_dim(attn.to_v(context)))
        weights = self._quantize("softmax", attn.get_attention_scores(query, key, mask))
        output = attn.batch_to_head_dim(torch.bmm(weights, value))

        output = attn.to_out[1](attn.to_out[0](output))
        if residual.ndim == 4:
            output = output.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            output = output + residual
        return output / attn.rescale_output_factor

    def _quantize(self, part: str, x: torch.Tensor) -> torch.Tensor:
        quantizer = self.quantizers[part]
        if self.state is QuantState.CALIBRATING:
            quantizer.observe(x)
            return x
        return quantizer(x)
