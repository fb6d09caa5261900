#!/usr/bin/env bash
# diffusers 0.42.1, transformers 5.23.0 (torch 2.15.0): a pipeline saved in half precision and loaded without a dtype
# comes back in two. transformers keeps the dtype that a checkpoint was saved in, diffusers makes float32 of it, and
# StableDiffusionPipeline.from_pretrained, which loads its parts by both, says nothing: the text encoder is float16, VAE
# and UNet float32. The UNet refuses the text encoder's output, and where a program converts it first, as one-step
# super-resolution does that embeds its prompt once, the picture is made from an embedding computed in half precision.
# Remedy: give torch_dtype to the pipeline, dtype to transformers' from_pretrained.
#
# Seen (a text encoder of one layer, all parts saved in float16):
#   text_encoder torch.float16, vae torch.float32, unet torch.float32; with torch_dtype=torch.float32 all three float32
#   the UNet on the text encoder's output: RuntimeError; on the output converted: it differs from float32's
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0
cat >check.py <<'PYTHON'
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

torch.manual_seed(0)
text = CLIPTextConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=100, eos_token_id=2
)
unet = UNet2DConditionModel(
    block_out_channels=(32, 64), cross_attention_dim=32, layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
absent = {"tokenizer": None, "safety_checker": None, "feature_extractor": None}
parts = {"text_encoder": CLIPTextModel(text), "vae": AutoencoderKL(block_out_channels=(32,)), "unet": unet}
halves = {name: part.half() for name, part in parts.items()}
StableDiffusionPipeline(**halves, scheduler=DDIMScheduler(), **absent).save_pretrained("saved")


def loaded(**options):
    pipeline = StableDiffusionPipeline.from_pretrained("saved", **absent, **options)
    return pipeline, {name: getattr(pipeline, name).dtype for name in parts}


mixed, dtypes = loaded()
whole, asked = loaded(torch_dtype=torch.float32)
print("without a dtype:", dtypes)
print("with torch_dtype=torch.float32:", asked)
assert dtypes == {"text_encoder": torch.float16, "vae": torch.float32, "unet": torch.float32}, "one dtype now"
assert set(asked.values()) == {torch.float32}, "another dtype than what was asked for now"

tokens, latent = torch.arange(3, 11)[None], torch.randn(1, 4, 16, 16)
with torch.no_grad():
    half, full = mixed.text_encoder(tokens)[0], whole.text_encoder(tokens)[0]
    try:
        mixed.unet(latent, 999, half)
        refused = False
    except RuntimeError as error:
        refused = "dtype" in str(error)
    outputs = [whole.unet(latent, 999, embedding).sample for embedding in (half.float(), full)]
difference = float((outputs[0] - outputs[1]).abs().max())
print("refused:", refused, "largest difference of the converted one:", difference)
assert refused and difference > 0, "the parts fit together now"
PYTHON
venv/bin/python -W ignore check.py
