#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.15.0): calling AutoencoderTiny (TAESD's) is not decoding what it encodes. On the way its
# latents are cut to [-3, 3] and rounded to bytes, as if they had been a stored picture; calling AutoencoderKL decodes
# the latents themselves. So the two VAEs of one model differ in more than size: through vae(x) the tiny one's encoder
# gets no gradient at all, though its parameters require one and nothing is raised, and a decoder that is calibrated or
# trained that way sees 256 levels per channel, where a pipeline, which calls encode and decode, gives it others.
# Remedy: vae.decode(vae.encode(x).latents).
#
# Seen (encoder and decoder of a block each, seeded weights, an image of 32x32 pixels):
#   AutoencoderTiny: vae(x) is decode(encode(x)): False, it is decode of the latents as bytes: True
#     parameters with a gradient: encoder 0 of 10, decoder all 10; through decode(encode(x)) all of both
#   AutoencoderKL: vae(x) is decode(encode(x)'s mode): True; all parameters have a gradient
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0
cat >check.py <<'PYTHON'
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

torch.manual_seed(0)
BLOCKS = dict(encoder_block_out_channels=(8,), decoder_block_out_channels=(8,))
tiny = AutoencoderTiny(**BLOCKS, num_encoder_blocks=(1,), num_decoder_blocks=(1,), latent_channels=4)
large = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(8,), norm_num_groups=4,
)
image = torch.rand(1, 3, 32, 32) * 2 - 1


def trained(vae, output):
    """(parameters of the encoder with a gradient, of all), the same of the decoder."""
    vae.zero_grad(set_to_none=True)
    output.square().mean().backward()
    parts = [list(part.parameters()) for part in (vae.encoder, vae.decoder)]
    return [(sum(p.grad is not None for p in part), len(part)) for part in parts]


def through_bytes(latents):
    """Latents from -3 to 3 as 256 levels."""
    return ((latents / 6 + 0.5).clamp(0, 1) * 255).round() / 255 * 6 - 3


with torch.no_grad():
    latents = tiny.encode(image).latents
    called, decoded = tiny(image).sample, tiny.decode(latents).sample
    as_bytes = tiny.decode(through_bytes(latents)).sample
    kl_called, kl_decoded = large(image).sample, large.decode(large.encode(image).latent_dist.mode()).sample
same, rounded = torch.equal(called, decoded), torch.allclose(called, as_bytes, atol=1e-5)
kl_same = torch.allclose(kl_called, kl_decoded, atol=1e-6)
print("AutoencoderTiny: vae(x) is decode(encode(x)):", same, "of the latents as bytes:", rounded)
call, explicit = trained(tiny, tiny(image).sample), trained(tiny, tiny.decode(tiny.encode(image).latents).sample)
kl = trained(large, large(image).sample)
print("  with a gradient, of all (encoder, decoder): vae(x)", call, "decode(encode(x))", explicit)
print("AutoencoderKL: vae(x) is decode(encode(x)):", kl_same, "with a gradient", kl)
assert not same and rounded, "the call of AutoencoderTiny is another now"
assert call[0][0] == 0 and call[1][0] == call[1][1], "gradients pass now"
assert all(n == total for n, total in explicit) and kl_same and all(n == total for n, total in kl)
PYTHON
venv/bin/python -W ignore check.py
