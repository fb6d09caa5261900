"""QArtSR: reversed per-module quantization (RPQ) and end-to-end training (ET) of the layers of Eq. (9).

TRQ, the third stage, is the choice of a backbone (its timestep) and no part of this file.
"""

from __future__ import annotations

from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods import qartsr_layers  # noqa: F401  registers the layer kind
from qartsr_lib.methods.base import METHODS
from qartsr_lib.methods.trained import TrainedMethod
from qartsr_lib.training.finetuning.phases import Phase, Term, block_groups, in_order, split

#: Option `loss` -> the quantities of Eq. (8) that RPQ uses.
LOSSES = {"both": ("features", "image"), "module": ("features",), "image": ("image",)}


class QArtSR(TrainedMethod):
    """QArtSR's second and third stage (sections 3.3 and 3.4).

    Options:
        rpq: share of the images that RPQ gets, in equal parts per module; ET gets the rest.
        order: in which RPQ takes the modules up, "reverse" (the paper's), "inference" or "random".
        loss: of RPQ, "both" (Eq. 8), "module" or "image".
    """

    layer_kind = "finetune"
    rates = (("side", 1e-5), ("merged", 1e-5), ("phi", 1e-5), ("bounds", 1e-5))
    own_options = {"rpq": 0.5, "order": "reverse", "loss": "both"}

    def phases(self, backbone: nn.Module, images: int, seed: int, *, rpq: float, order: str, loss: str) -> list[Phase]:
        if loss not in LOSSES:
            raise QartsrError(f"option loss={loss!r}: choose one of {', '.join(LOSSES)}")
        if not 0 <= rpq <= 1:
            raise QartsrError(f"option rpq={rpq!r}: is a share, choose 0 to 1")
        groups = in_order(block_groups(backbone), order, seed)
        everything = tuple(name for group in groups for name in group)
        for_rpq = round(images * rpq)
        plan = []
        if for_rpq:
            shares = split(for_rpq, len(groups))
            plan = [Phase(group, share, _terms(group, loss)) for group, share in zip(groups, shares, strict=True)]
        if images > for_rpq:
            plan.append(Phase(() if for_rpq else everything, images - for_rpq, (Term("image"),)))
        return plan


def _terms(group: tuple[str, ...], loss: str) -> tuple[Term, ...]:
    return tuple(Term(quantity, group[-1] if quantity == "features" else "") for quantity in LOSSES[loss])


#: r' is EfficientDM's, r fits Table 2's constant term; both made for 320 to 1,280 channels.
PUBLISHED_RANKS = {"merged_rank": 32, "side_rank": 4}

METHODS.register("qartsr")(QArtSR("qartsr", "QArtSR"))
METHODS.register("qartsr-ranks")(QArtSR("qartsr-ranks", "QArtSR [published ranks]", **PUBLISHED_RANKS))
