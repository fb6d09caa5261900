"""The loss of one phase on one batch, from where the first trained block begins to the last term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from qartsr_lib.backbones.steps import Flow, Step
from qartsr_lib.training.finetuning.flow_store import FlowStore
from qartsr_lib.training.finetuning.flows import Flows
from qartsr_lib.training.finetuning.losses import ImageLoss, normalized_mse
from qartsr_lib.training.finetuning.phases import Phase, Term

NOISE_BLOCK = "unet.conv_out"


@dataclass(frozen=True)
class Network:
    """A chain of steps and the batches that pass through it.

    Attributes:
        chain: (block name, step) in inference order.
        upscaled: network inputs, (N, 3, H, W) each.
    """

    chain: Sequence[tuple[str, Step]]
    upscaled: Sequence[torch.Tensor]

    @property
    def names(self) -> list[str]:
        """Names of the blocks in inference order."""
        return [name for name, _ in self.chain]

    def entry(self, blocks: Sequence[str]) -> int:
        """Index of the first of `blocks` in the chain."""
        return min(self.names.index(name) for name in blocks)

    def position(self, term: Term) -> int:
        """Index of the step before which the quantity of `term` is there; len(chain) for the image."""
        if term.quantity == "image":
            return len(self.chain)
        return self.names.index(NOISE_BLOCK if term.quantity == "noise" else term.after) + 1


class Objective:
    """Loss of one phase.

    Args:
        student: the quantized network, its blocks in the states of this phase.
        phase: its terms.
        quantized, trained: names of the blocks that are quantized and trained in this phase.
        targets: full-precision flows at every term's position and at every phase's entry.
        image_loss: for the image term.
        store: for what enters a phase; None runs all of the student at every call, as a loop without a cache does.
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
        store: FlowStore | None,
        recompute: bool = False,
    ) -> None:
        self.student, self.phase, self.targets, self.image_loss = student, phase, targets, image_loss
        self.recompute = recompute
        self.entry = student.entry(trained)
        self.end = max(student.position(term) for term in phase.terms)
        # Blocks that are quantized and no longer trained change what enters, but only once per phase.
        changed_upstream = any(student.names.index(name) < self.entry for name in quantized)
        own = Flows(student.chain, student.upscaled, [self.entry], store)
        self.entering = own if changed_upstream or store is None else targets

    def __call__(self, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """(loss: the sum of all terms, its part by quantity) on batch number `batch`."""
        wanted, found = {self.student.position(term) for term in self.phase.terms}, {}
        if self.entering is self.targets:
            wanted.add(self.entry)
        targets = self.targets.at(batch, wanted)
        entering = targets if self.entering is self.targets else self.entering.at(batch, [self.entry])
        flow = entering[self.entry]
        for position in range(self.entry, self.end):
            flow = self._run(self.student.chain[position][1], flow)
            found[position + 1] = flow
        losses, parts = [], dict.fromkeys((f"{term.quantity}_loss" for term in self.phase.terms), 0.0)
        for term in self.phase.terms:
            position = self.student.position(term)
            losses.append(self._term(term, found[position], targets[position]))
            parts[f"{term.quantity}_loss"] += float(losses[-1].detach())
        return torch.stack(losses).sum(), parts

    def close(self) -> None:
        """Let go of what entered this phase alone."""
        if self.entering is not self.targets:
            self.entering.narrow(())

    def _run(self, step: Step, flow: Flow) -> Flow:
        if self.recompute:
            return checkpoint(step, flow, use_reentrant=False, preserve_rng_state=False)
        return step(flow)

    def _term(self, term: Term, student: Flow, target: Flow) -> torch.Tensor:
        if term.quantity == "image":
            return self.image_loss(student.x, target.x)
        if term.quantity == "noise":
            return normalized_mse(student.eps, target.eps)
        return normalized_mse(student.x, target.x)
