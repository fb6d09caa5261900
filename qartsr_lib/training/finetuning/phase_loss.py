"""The loss of one phase on one batch, from where the first trained block begins to the last term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from qartsr_lib.training.finetuning.flows import Flows, FlowStore, Network
from qartsr_lib.training.finetuning.losses import ImageLoss, normalized_mse
from qartsr_lib.training.finetuning.phases import Phase


class PhaseLoss:
    """Loss of one phase.

    Args:
        student: the quantized network, its blocks in the states of this phase.
        quantized, trained: names of the blocks that are quantized and trained in this phase.
        targets: full-precision flows at every term's position and at every phase's entry.
        image_loss: for the image term.
        store: for what enters the phase where quantized blocks lie upstream.
        cache: False runs all of the student at every call, as a loop without a cache does.
        recompute: keep only what flows between blocks for the backward pass, and compute each block's inside again.
    """

    def __init__(
        self,
        student: Network,
        phase: Phase,
        quantized: Sequence[str],
        trained: Sequence[str],
        targets: Flows,
        image_loss: ImageLoss,
        store: FlowStore,
        cache: bool,
        recompute: bool,
    ) -> None:
        self.student, self.targets, self.image_loss, self.recompute = student, targets, image_loss, recompute
        self.entry = student.entry(trained)
        self.terms = [(term, student.position(term)) for term in phase.terms]
        # Blocks that are quantized and no longer trained change what enters, but only once per phase.
        changed_upstream = any(student.names.index(name) < self.entry for name in quantized)
        self.entering = Flows(student, [self.entry], store) if changed_upstream or not cache else targets

    def __call__(self, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """(loss: the sum of all terms, its part by quantity) on batch number `batch`."""
        wanted, found = {position for _, position in self.terms}, {}
        if self.entering is self.targets:
            wanted.add(self.entry)
        targets = self.targets.at(batch, wanted)
        entering = targets if self.entering is self.targets else self.entering.at(batch, [self.entry])
        flow = entering[self.entry]
        for position in range(self.entry, max(position for _, position in self.terms)):
            step = self.student.chain[position][1]
            if self.recompute:
                flow = checkpoint(step, flow, use_reentrant=False, preserve_rng_state=False)
            else:
                flow = step(flow)
            found[position + 1] = flow
        losses, parts = [], dict.fromkeys((f"{term.quantity}_loss" for term, _ in self.terms), 0.0)
        for term, position in self.terms:
            student, target = found[position], targets[position]
            if term.quantity == "image":
                losses.append(self.image_loss(student.x, target.x))
            elif term.quantity == "noise":
                losses.append(normalized_mse(student.eps, target.eps))
            else:
                losses.append(normalized_mse(student.x, target.x))
            parts[f"{term.quantity}_loss"] += float(losses[-1].detach())
        return torch.stack(losses).sum(), parts

    def close(self) -> None:
        """Let go of what entered this phase alone."""
        if self.entering is not self.targets:
            self.entering.narrow(())
