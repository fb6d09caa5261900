"""Backbones: one file and one registration each; `load_backbone` is the way in."""

from qartsr_lib.backbones import features  # noqa: F401  registers what VAE-FD is computed with
from qartsr_lib.backbones.base import BACKBONES, OneStepSR, Stages, load_backbone, own_options

__all__ = ["BACKBONES", "OneStepSR", "Stages", "load_backbone", "own_options"]
