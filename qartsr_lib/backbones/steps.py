"""A backbone as a chain of steps, one per block of `blocks_in_order`, so that it can be entered in the middle.

Per-module finetuning in reverse order keeps everything upstream of a block in full precision: what
flows into the block is then a constant that is computed once. A `Flow` holds all of it, the skip
connections and z_L of Eq. (6) included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from qartsr_lib.backbones.base import OneStepSR


@dataclass(frozen=True)
class Flow:
    """What flows between two steps.

    Attributes:
        x: the hidden feature map; before the first step the upscaled image, after the last the SR image, in [0, 1].
        z_l: from the encoder's end until Eq. (6) has used it.
        eps: the predicted noise, right after the UNet's last block.
        embedding: of the timestep, from `unet.time_embedding` to the UNet's end.
        skips: the UNet's skip connections that are still to be used, first made first.
    """

    x: torch.Tensor
    z_l: torch.Tensor | None = None
    embedding: torch.Tensor | None = None
    skips: tuple[torch.Tensor, ...] = ()
    eps: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor]:
        """All that is in it."""
        return [tensor for tensor in (self.x, self.z_l, self.embedding, *self.skips, self.eps) if tensor is not None]

    def to(self, target: torch.device | torch.dtype | str) -> Flow:
        """The same on a device or in a dtype; the tensors that are so already are the same ones."""
        named = {name: getattr(self, name) for name in ("x", "z_l", "embedding", "eps")}
        moved = {name: None if tensor is None else tensor.to(target) for name, tensor in named.items()}
        return Flow(**moved, skips=tuple(skip.to(target) for skip in self.skips))


Step = Callable[[Flow], Flow]


def steps(model: OneStepSR) -> list[tuple[str, Step]]:
    """(block name, step) in inference order; names and order are those of `model.blocks_in_order()`.

    Running all of them on Flow(upscaled) gives `model(upscaled)` bit by bit.
    """
    return [*_encoder(model), *_unet(model), *_decoder(model)]


def run(chain: list[tuple[str, Step]], flow: Flow) -> Flow:
    """Pass `flow` through the steps of `chain`."""
    for _, step in chain:
        flow = step(flow)
    return flow


def in_bfloat16(step: Step) -> Step:
    """`step` under autocast; what flows between steps stays float32."""

    def run_in_bfloat16(flow: Flow) -> Flow:
        with torch.autocast(flow.x.device.type, torch.bfloat16):
            return step(flow).to(torch.float32)

    return run_in_bfloat16


def _encoder(model: OneStepSR) -> Iterator[tuple[str, Step]]:
    encoder, name = model.vae.encoder, "vae.encoder."

    def quant_conv(flow: Flow) -> Flow:
        mode = model.vae.quant_conv(flow.x).chunk(2, dim=1)[0]
        z_l = mode * model.vae.config.scaling_factor
        return Flow(z_l, z_l)

    yield name + "conv_in", lambda flow: Flow(encoder.conv_in(flow.x * 2.0 - 1.0))
    for index, block in enumerate(encoder.down_blocks):
        yield f"{name}down_blocks.{index}", partial(_plain, block)
    yield name + "mid_block", partial(_plain, encoder.mid_block)
    yield name + "conv_out", partial(_end, encoder)
    yield "vae.quant_conv", quant_conv


def _unet(model: OneStepSR) -> Iterator[tuple[str, Step]]:
    unet, name = model.unet, "unet."

    def time_embedding(flow: Flow) -> Flow:
        features = unet.get_time_embed(sample=flow.z_l, timestep=model.index)
        return Flow(flow.x, flow.z_l, unet.time_embedding(features))

    def conv_in(flow: Flow) -> Flow:
        x = unet.conv_in(model.unet_input(flow.z_l))
        return replace(flow, x=x, skips=(x,))

    def down(block: nn.Module, flow: Flow) -> Flow:
        x, skips = block(flow.x, temb=flow.embedding, **_prompt(block, model, flow))
        return replace(flow, x=x, skips=(*flow.skips, *skips))

    def middle(flow: Flow) -> Flow:
        return replace(flow, x=unet.mid_block(flow.x, flow.embedding, **_prompt(unet.mid_block, model, flow)))

    def up(block: nn.Module, flow: Flow) -> Flow:
        kept, used = flow.skips[: -len(block.resnets)], flow.skips[-len(block.resnets) :]
        options = _prompt(block, model, flow)
        if kept and kept[-1].shape[-2:] != (2 * flow.x.shape[-2], 2 * flow.x.shape[-1]):
            options["upsample_size"] = kept[-1].shape[-2:]  # odd sizes, which OSEDiff's latents may have
        x = block(flow.x, temb=flow.embedding, res_hidden_states_tuple=used, **options)
        return replace(flow, x=x, skips=kept)

    def conv_out(flow: Flow) -> Flow:
        eps = _end(unet, flow).x
        return Flow(model.to_z_h(flow.z_l, eps) / model.vae.config.scaling_factor, eps=eps)

    yield name + "time_embedding", time_embedding
    yield name + "conv_in", conv_in
    for index, block in enumerate(unet.down_blocks):
        yield f"{name}down_blocks.{index}", partial(down, block)
    yield name + "mid_block", middle
    for index, block in enumerate(unet.up_blocks):
        yield f"{name}up_blocks.{index}", partial(up, block)
    yield name + "conv_out", conv_out


def _decoder(model: OneStepSR) -> Iterator[tuple[str, Step]]:
    decoder, name = model.vae.decoder, "vae.decoder."
    yield "vae.post_quant_conv", lambda flow: Flow(model.vae.post_quant_conv(flow.x))
    yield name + "conv_in", partial(_plain, decoder.conv_in)
    yield name + "mid_block", partial(_plain, decoder.mid_block)
    for index, block in enumerate(decoder.up_blocks):
        yield f"{name}up_blocks.{index}", partial(_plain, block)
    yield name + "conv_out", lambda flow: Flow(_end(decoder, flow).x * 0.5 + 0.5)


def _plain(block: nn.Module, flow: Flow) -> Flow:
    return replace(flow, x=block(flow.x))


def _end(part: nn.Module, flow: Flow) -> Flow:
    """The normalization, activation and last convolution of encoder, UNet or decoder."""
    return replace(flow, x=part.conv_out(part.conv_act(part.conv_norm_out(flow.x))))


def _prompt(block: nn.Module, model: OneStepSR, flow: Flow) -> dict[str, torch.Tensor]:
    """The prompt embedding, for blocks with cross-attention."""
    if not getattr(block, "has_cross_attention", False):
        return {}
    return {"encoder_hidden_states": model.prompt_embedding.expand(len(flow.x), -1, -1)}
