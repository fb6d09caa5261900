"""Notebook 15: what each ingredient of Groupwise brings, on BSDS500/val; no test set is looked at.

Nothing of it is drawn at random, so there are no seeds; intervals are over photographs.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from qartsr_lib.methods.rates import Options
from qartsr_lib.methods.setting import BEST
from qartsr_lib.study.experiments.trials import BACKBONE, Trial, run_trials
from qartsr_lib.study.measured import Measured

_OURS = "groupwise-untrained"
#: Name in the table -> method and options, from where Groupwise starts to the whole of it.
VARIANTS: dict[str, tuple[str, Options]] = {
    "SVDQuant [as released]": ("svdquant-released", ()),
    "with all 2^b codes": (_OURS, (("fit", False), ("feedback", False))),
    "and rounding that feeds errors on": (_OURS, (("fit", False),)),
    "or the fit to quantized inputs": (_OURS, (("feedback", False),)),
    "both, 4 windows of an image": (_OURS, (("windows", 4),)),
    "both, a scale per 32 channels": (_OURS, (("group", 32),)),
    "both, a scale per 128 channels": (_OURS, (("group", 128),)),
    "both, a scale per output channel": ("groupwise-per-channel", ()),
    "both: Groupwise [untrained]": (_OURS, ()),
}
BACKBONES = (BACKBONE, "embedded")  # where the method was made, and where it was not
BITS = ("W4A4", "W3A3", "W2A2")
KEY = ("backbone", "bits", "variant")


def run_ingredients(data_root: Path) -> Measured:
    """Rows dataset, KEY, image and what `trials.run_trials` measures, of every variant under setting BEST."""
    tried = {}
    for backbone, width, (name, (method, own)) in product(BACKBONES, BITS, VARIANTS.items()):
        tried[backbone, width, name] = Trial(method, width, (*BEST.options, *own), backbone)
    return run_trials(tried, KEY, data_root, "ingredients")
