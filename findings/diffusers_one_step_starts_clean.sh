#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.15.0): asked for one step, its schedulers start at three different places. With
# timestep_spacing="linspace", whose steps otherwise run from 999 down to 0, DDPM, DDIM, Euler and Heun begin at t = 0,
# where there is no noise, though with two steps they begin at 999. So a one-step model that starts from noise is told
# that its input is clean. DPM-Solver++, UniPC and DEIS begin at 999 with "linspace", but with "leading" at 500, where
# the first four begin at 0. LCM and TCD begin at 999 whatever the spacing. No scheduler warns.
# Remedy: timestep_spacing="trailing", which is 999 in all nine, or a timestep of one's own given to the network.
#
# Seen (1000 training steps, first timestep of one step and of two):
#   linspace: DDPM, DDIM, Euler, Heun 0 and 999; DPM-Solver++, UniPC, DEIS 999 and 999; LCM, TCD 999 and 999
#   leading:  DDPM, DDIM, Euler, Heun 0 and 500; DPM-Solver++, UniPC, DEIS 500 and 666; LCM, TCD 999 and 999
#   trailing: all 999 and 999
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

SINGLE = ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler")
MULTI = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
CONSISTENT = ("LCMScheduler", "TCDScheduler")
EXPECTED = {
    "linspace": {SINGLE: (0, 999), MULTI: (999, 999), CONSISTENT: (999, 999)},
    "leading": {SINGLE: (0, 500), MULTI: (500, 666), CONSISTENT: (999, 999)},
    "trailing": {SINGLE: (999, 999), MULTI: (999, 999), CONSISTENT: (999, 999)},
}


def first(name, spacing, steps):
    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    return int(scheduler.timesteps[0])


for spacing, groups in EXPECTED.items():
    for names, expected in groups.items():
        seen = {name: (first(name, spacing, 1), first(name, spacing, 2)) for name in names}
        print(f"{spacing}:", seen)
        assert set(seen.values()) == {expected}, "the schedulers behave otherwise now"
PYTHON
venv/bin/python -W ignore check.py
