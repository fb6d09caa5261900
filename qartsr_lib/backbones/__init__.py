"""Backbones: one file and one registration each; `load_backbone` is the way in."""

from qartsr_lib.base.lean_imports import import_networks

import_networks()  # before the modules below import diffusers, and with it all that it finds
from qartsr_lib.backbones import features  # noqa: E402, F401  registers what VAE-FD is computed with
from qartsr_lib.backbones.base import BACKBONES, OneStepSR, Stages, load_backbone, own_options  # noqa: E402

__all__ = ["BACKBONES", "OneStepSR", "Stages", "load_backbone", "own_options"]
