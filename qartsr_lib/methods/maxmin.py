"""MaxMin (Jacob et al., arXiv:1712.05877): min/max ranges from calibration, no training."""

from __future__ import annotations

from qartsr_lib.methods.base import METHODS, CalibratedMethod
from qartsr_lib.quant.scheme import QuantScheme, variant


class MaxMin(CalibratedMethod):
    """The shared setting and nothing else: weights by their own min/max, activations by calibration.

    Options turn two of the ablation's knobs (quant.scheme.variant); the other two are every method's (Setting).
    """

    options = ("bias_bits", "attention_bits")

    def scheme(self, **knobs) -> QuantScheme:
        return variant(self.setting, **knobs)


#: Name -> the part's name in tables and the layers it consists of; the control "which part does it".
PARTS = {
    "maxmin-encoder": ("encoder", ("vae.encoder.*", "vae.quant_conv")),
    "maxmin-unet": ("UNet", ("unet.*",)),
    "maxmin-decoder": ("decoder", ("vae.post_quant_conv", "vae.decoder.*")),
}

METHODS.register("maxmin")(MaxMin("maxmin", "MaxMin"))
for _name, (_part, _layers) in PARTS.items():
    METHODS.register(_name)(MaxMin(_name, f"MaxMin [{_part} only]", only=_layers))
