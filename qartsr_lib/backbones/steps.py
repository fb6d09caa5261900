"""A backbone as a chain of steps, one per block of `blocks_in_order`, so that it can be entered in the middle.

Per-module finetuning in reverse order keeps everything upstream of a block in full precision: what flows into the
block is then a constant that is computed once. A `Flow` holds all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from qartsr_lib.backbones.base import OneStepSR


class Flow(NamedTuple):
    """What flows between two steps."""

    x: torch.Tensor  # hidden feature map; before the first step the upscaled image, after the last the SR image
    z_l: torch.Tensor | None = None  # from the encoder's end until Eq. (6) has used it
    embedding: torch.Tensor | None = None  # of the timestep, from `unet.time_embedding` to the UNet's end
    skips: tuple[torch.Tensor, ...] = ()  # the UNet's that are still to be used, first made first
    eps: torch.Tensor | None = None  # the predicted noise, right after the UNet's last block

    def tensors(self) -> list[torch.Tensor]:
        """All that is in it."""
        return [tensor for tensor in tree_leaves(self) if tensor is not None]

    def to(self, target: torch.device | torch.dtype | str) -> Flow:
        """The same on a device or in a dtype; the tensors that are so already are the same ones."""
        return tree_map(lambda tensor: None if tensor is None else tensor.to(target), self)


Step = Callable[[Flow], Flow]


def in_bfloat16(step: Step) -> Step:
    """`step` under autocast; what flows between steps stays float32."""

    def run_in_bfloat16(flow: Flow) -> Flow:
        with torch.autocast(flow.x.device.type, torch.bfloat16):
            return step(flow).to(torch.float32)

    return run_in_bfloat16


def steps(model: OneStepSR) -> list[tuple[str, Step]]:
    """(block name, step) in inference order; names and order are those of `model.blocks_in_order()`.

    Running all of them on Flow(upscaled) gives `model(upscaled)` bit by bit.
    """
    vae, unet, factor = model.vae, model.unet, model.vae.config.scaling_factor

    def quant_conv(flow: Flow) -> Flow:
        z_l = vae.quant_conv(flow.x).chunk(2, dim=1)[0] * factor  # the posterior's mode
        return Flow(z_l, z_l)

    def time_embedding(flow: Flow) -> Flow:
        features = unet.get_time_embed(sample=flow.z_l, timestep=model.index)
        return Flow(flow.x, flow.z_l, unet.time_embedding(features))

    def conv_in(flow: Flow) -> Flow:
        x = unet.conv_in(model.unet_input(flow.z_l))
        return flow._replace(x=x, skips=(x,))

    def prompt(block: nn.Module, flow: Flow) -> dict[str, torch.Tensor]:
        if not getattr(block, "has_cross_attention", False):
            return {}
        return {"encoder_hidden_states": model.prompt_embedding.expand(len(flow.x), -1, -1)}

    def down(block: nn.Module, flow: Flow) -> Flow:
        x, skips = block(flow.x, temb=flow.embedding, **prompt(block, flow))
        return flow._replace(x=x, skips=(*flow.skips, *skips))

    def middle(block: nn.Module, flow: Flow) -> Flow:
        return flow._replace(x=block(flow.x, flow.embedding, **prompt(block, flow)))

    def up(block: nn.Module, flow: Flow) -> Flow:
        kept, used = flow.skips[: -len(block.resnets)], flow.skips[-len(block.resnets) :]
        options = prompt(block, flow)
        if kept and kept[-1].shape[-2:] != (2 * flow.x.shape[-2], 2 * flow.x.shape[-1]):
            options["upsample_size"] = kept[-1].shape[-2:]  # odd sizes, which OSEDiff's latents may have
        return flow._replace(x=block(flow.x, temb=flow.embedding, res_hidden_states_tuple=used, **options), skips=kept)

    def conv_out(flow: Flow) -> Flow:
        eps = _end(unet, flow).x
        return Flow(model.to_z_h(flow.z_l, eps) / factor, eps=eps)

    own = {
        "vae.encoder.conv_in": lambda flow: Flow(vae.encoder.conv_in(flow.x * 2.0 - 1.0)),
        "vae.encoder.conv_out": partial(_end, vae.encoder),
        "vae.quant_conv": quant_conv,
        "unet.time_embedding": time_embedding,
        "unet.conv_in": conv_in,
        "unet.conv_out": conv_out,
        "vae.post_quant_conv": lambda flow: Flow(vae.post_quant_conv(flow.x)),
        "vae.decoder.conv_out": lambda flow: Flow(_end(vae.decoder, flow).x * 0.5 + 0.5),
    }
    of_kind = {"unet.down_blocks": down, "unet.mid_block": middle, "unet.up_blocks": up}
    return [
        (name, own.get(name) or partial(of_kind.get(name.rstrip(".0123456789"), _plain), block))
        for name, block in model.blocks_in_order()
    ]


def _plain(block: nn.Module, flow: Flow) -> Flow:
    return flow._replace(x=block(flow.x))


def _end(part: nn.Module, flow: Flow) -> Flow:
    """The normalization, activation and last convolution of encoder, UNet or decoder."""
    return flow._replace(x=part.conv_out(part.conv_act(part.conv_norm_out(flow.x))))
