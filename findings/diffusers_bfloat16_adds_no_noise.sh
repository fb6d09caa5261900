#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.15.0): add_noise and get_velocity of its schedulers turn alphas_cumprod into the dtype of the
# latents before they take sqrt(1 - alpha). Just below 1 bfloat16 has steps of 1/256, so with Stable Diffusion's schedule
# the noise at T = 0 and 1 is exactly 0: the latents come back as they went in, and the velocity is the noise alone.
# Further on its size is a root of k/256, from 24 % too much at T = 2 to 13 % too little at T = 5. In float16 it is 7 %
# off at T = 0 and 1. Nobody is warned. A one-step model of T = 1 that is trained or tested this way sees no noise.
# Remedy: add the noise in float32, then convert.
#
# Seen (DDPM, DDIM, PNDM and LCM alike: size of noise 1 added to zeros; scaled_linear, 0.00085 to 0.012):
#   T = 0:   float32 0.0292, float16 0.0312, bfloat16 0.0000
#   T = 1:   float32 0.0413, float16 0.0383, bfloat16 0.0000
#   T = 2:   float32 0.0506, float16 0.0494, bfloat16 0.0625
#   T = 5:   float32 0.0718, float16 0.0733, bfloat16 0.0625
#   T = 999: float32 0.9977, float16 0.9976, bfloat16 0.9961
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.15.0 numpy==2.4.6 scipy==1.17.1 diffusers==0.42.1 transformers==5.23.0
cat >check.py <<'PYTHON'
import diffusers
import torch

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EXPECTED = {
    0: ["0.0292", "0.0312", "0.0000"],
    1: ["0.0413", "0.0383", "0.0000"],
    2: ["0.0506", "0.0494", "0.0625"],
    5: ["0.0718", "0.0733", "0.0625"],
    999: ["0.9977", "0.9976", "0.9961"],
}


def sizes(scheduler, timestep):
    """Size of the noise in latents that were zero, in each dtype."""
    at, zeros = torch.tensor([timestep]), [torch.zeros(1, 4, 8, 8, dtype=dtype) for dtype in DTYPES]
    return [f"{scheduler.add_noise(zero, torch.ones_like(zero), at).float().mean():.4f}" for zero in zeros]


for name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler"):
    scheduler = getattr(diffusers, name)(**SCHEDULE)
    seen = {timestep: sizes(scheduler, timestep) for timestep in EXPECTED}
    print(name, seen)
    assert seen == EXPECTED, f"{name} behaves otherwise now"

latents = torch.full((1, 4, 8, 8), 0.5, dtype=torch.bfloat16)
scheduler, at = diffusers.DDPMScheduler(**SCHEDULE), torch.tensor([1])
assert torch.equal(scheduler.add_noise(latents, torch.ones_like(latents), at), latents)
assert torch.equal(scheduler.get_velocity(latents, torch.ones_like(latents), at), torch.ones_like(latents))
PYTHON
venv/bin/python -W ignore check.py
