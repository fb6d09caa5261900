"""The one training loop of all finetuned methods: phases over blocks, what is constant upstream computed once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from qartsr_lib.backbones.base import OneStepSR, parameter_count
from qartsr_lib.backbones.steps import in_bfloat16, steps
from qartsr_lib.base.errors import Diverged, QartsrError, check_finite
from qartsr_lib.base.progress import progress
from qartsr_lib.quant.states import QuantModule, QuantState, images_sha256, quant_modules
from qartsr_lib.training.finetuning.flows import Flows, Network, Part, Room, wanted_by
from qartsr_lib.training.finetuning.losses import ImageLoss, phase_loss, weights_of_flat
from qartsr_lib.training.finetuning.phases import Phase, batch_orders
from qartsr_lib.training.states import save_state, saved_state

Record = dict[str, float]
LARGE = 10**8
"""Parameters from which on a network is trained with little memory: `recompute`, and frozen weights held once."""
DECAY = 0.25
"""Share of all images over which the learning rates fall linearly to zero, at the end."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How a run is optimized; the plan itself is a list of phases."""

    rates: tuple[tuple[str, float], ...]  # (kind of parameter, Adam's learning rate) pairs
    seed: int = 0  # of the order of the batches
    teacher: str = "float32"  # "bfloat16" runs it under autocast; what it gives stays float32
    image_loss: str = ""  # its name, so that another one's checkpoint is not continued


class Finetuner:
    """Trains the tuned parameters of `student`, a calibrated, quantized copy of `teacher`, in place.

    Args:
        batches: LQ images, (N, 3, h, w) each.
        image_loss: for "image" terms.
        label: of the progress bar.
        checkpoint: file that keeps the state after every phase; a run of the same plan continues there.

    Attributes:
        room, recompute: where flows are kept, and whether memory is spared (see `phase_loss`); both change no bit.

    Raises:
        QartsrError: a kind of parameter without a learning rate.
    """

    def __init__(
        self,
        teacher: OneStepSR,
        student: OneStepSR,
        batches: Sequence[torch.Tensor],
        image_loss: ImageLoss,
        config: FinetuneConfig,
        label: str,
        checkpoint: Path | None = None,
    ) -> None:
        self.student, self.image_loss, self.config = student, image_loss, config
        self.label, self.checkpoint = label, checkpoint
        upscaled = [teacher.prepare(batch) for batch in batches]
        imitated = steps(teacher)
        if config.teacher == "bfloat16":
            imitated = [(name, in_bfloat16(step)) for name, step in imitated]
        self.sizes, self.weights = [len(batch) for batch in batches], weights_of_flat(batches)
        self.teacher_network, self.network = Network(imitated, upscaled), Network(steps(student), upscaled)
        self.blocks = dict(student.blocks_in_order())
        self.parameters, rates = by_kind(quant_modules(student)), dict(config.rates)
        unknown = sorted(set(self.parameters) - set(rates))
        if unknown:
            raise QartsrError(f"{label}: no learning rate for parameters of kind {unknown[0]!r}; add it to the rates")
        groups = [{"params": tuned, "lr": rates[kind], "peak": rates[kind]} for kind, tuned in self.parameters.items()]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.room, self.recompute = Room(), is_large(student)

    def run(self, phases: Sequence[Phase]) -> list[Record]:
        """Carry out `phases`; afterwards every quantized module of the student is in state QUANTIZED.

        Returns:
            One dict per step: phase, images (passed so far), loss, one entry per term, seconds.

        Raises:
            QartsrError: a block that does not exist, or a checkpoint of another run.
            Diverged: a loss that is not finite.
        """
        if not phases:
            raise QartsrError(f"{self.label}: no phase to train")
        named = {name for phase in phases for name in (*phase.blocks, *(phase.trained or ()))}
        named |= {term.after for phase in phases for term in phase.terms if term.after}
        for name in sorted(named - set(self.network.names)):
            raise QartsrError(f"{self.label}: the backbone has no block {name!r}")
        done, history = self._resume(phases)
        left = sum(len(order) for order in batch_orders(phases, self.sizes, self.config.seed)[done:])
        try:
            for record in progress(self.steps(phases, done, history), self.label, left):
                history.append(record)
        finally:
            for module in quant_modules(self.student):
                module.set_state(QuantState.QUANTIZED)
            for parameter in self._tuned:
                parameter.requires_grad_(True)
        return history

    def steps(self, phases: Sequence[Phase], done: int = 0, history: Sequence[Record] = ()) -> Iterator[Record]:
        """Carry out `phases` from number `done` on, a step whenever the next record is asked for.

        The caller appends what this yields to `history`, the records of the phases before.
        """
        orders = batch_orders(phases, self.sizes, self.config.seed)
        total = sum(self.sizes[batch] for order in orders for batch in order)
        parts, plan = self.network.parts(phases), self._plan(phases) if self.checkpoint else ""
        targets = Flows(self.teacher_network, wanted_by(parts[done:]), self.room)
        passed = int(history[-1]["images"]) if history else 0
        for number in range(done, len(phases)):
            targets.narrow(wanted_by(parts[number:]))
            self._begin(parts[number])
            entering = self.entering(parts[number], targets)
            for batch in orders[number]:
                started = time.monotonic()
                for group in self.optimizer.param_groups:
                    group["lr"] = group["peak"] * min(1.0, (1.0 - passed / total) / DECAY)
                loss, by_quantity = self._step(parts[number], targets, entering, batch)
                passed += self.sizes[batch]
                if not math.isfinite(loss):
                    raise Diverged(f"{self.label}: loss is not finite after {passed} images; use smaller rates")
                seconds = round(time.monotonic() - started, 4)
                yield {"phase": number, "images": passed, "loss": loss, **by_quantity, "seconds": seconds}
            if entering is not targets:
                entering.narrow(())
            tuned = ((kind, tensor) for kind, tensors in self.parameters.items() for tensor in tensors)
            check_finite(tuned, f"{self.label} after {passed} images", "use smaller rates")  # the last step's, too
            if self.checkpoint is not None and orders[number]:  # a phase without a step changes nothing
                state = {"plan": plan, "done": number + 1, "history": list(history)}
                state |= {"tuned": [tensor.detach() for tensor in self._tuned], "drawn": torch.get_rng_state()}
                state |= {"buffers": dict(self.student.named_buffers())}
                save_state(self.checkpoint, state | {"optimizer": self.optimizer.state_dict()})

    def entering(self, part: Part, targets: Flows) -> Flows:
        """What enters a phase: the teacher's flows, unless blocks upstream are quantized and no longer trained."""
        changed = any(self.network.names.index(name) < part.entry for name in part.quantized)
        return Flows(self.network, [part.entry], self.room) if changed else targets

    def _step(self, part: Part, targets: Flows, entering: Flows, batch: int) -> tuple[float, dict[str, float]]:
        self.optimizer.zero_grad(set_to_none=True)
        wanted, own = wanted_by([part]), entering is not targets
        found = targets.at(batch, wanted - {part.entry} if own else wanted)
        flow = (entering.at(batch, [part.entry]) if own else found)[part.entry]
        weight = self.weights[batch]
        loss, by_quantity = phase_loss(self.network, part, flow, found, self.image_loss, self.recompute, weight)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), by_quantity

    def _begin(self, part: Part) -> None:
        """Switch blocks and gradients to what a phase needs."""
        for module in quant_modules(self.student):
            module.set_state(QuantState.FULL_PRECISION)
        for name in part.quantized:
            for module in quant_modules(self.blocks[name]):
                module.set_state(QuantState.QUANTIZED)
        for parameter in self._tuned:
            parameter.requires_grad_(False)
        for name in part.trained:
            for kind, tuned in by_kind(quant_modules(self.blocks[name])).items():
                for parameter in tuned:
                    parameter.requires_grad_(part.phase.kinds is None or kind in part.phase.kinds)

    @cached_property
    def _tuned(self) -> list[torch.nn.Parameter]:
        return [parameter for tuned in self.parameters.values() for parameter in tuned]

    def _plan(self, phases: Sequence[Phase]) -> str:
        """All that determines a run, apart from the library's source."""
        model = (self.student.name, self.student.timestep, getattr(self.student, "weights_sha256", ""))
        quantization = getattr(self.student, "quantization", None)
        return repr((model, quantization, images_sha256(self.network.upscaled), tuple(phases), self.config))

    @torch.no_grad()
    def _resume(self, phases: Sequence[Phase]) -> tuple[int, list[Record]]:
        """Take up an earlier run of `phases`: (finished phases, their history)."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0, []
        with saved_state(self.checkpoint) as state:
            same_shapes = [tensor.shape for tensor in state["tuned"]] == [tensor.shape for tensor in self._tuned]
            if state["plan"] != self._plan(phases) or not same_shapes:
                raise QartsrError(f"{self.checkpoint}: belongs to another run; delete it or choose another folder")
            for tensor, value in zip(self._tuned, state["tuned"], strict=True):
                tensor.copy_(value)
            for name, buffer in self.student.named_buffers() if "buffers" in state else ():
                buffer.copy_(state["buffers"][name])
            if "drawn" in state:
                torch.set_rng_state(state["drawn"])
            self.optimizer.load_state_dict(state["optimizer"])
            return state["done"], state["history"]


def by_kind(modules: Sequence[QuantModule]) -> dict[str, list[torch.nn.Parameter]]:
    """Tuned parameters of `modules`, by kind."""
    kinds: dict[str, list[torch.nn.Parameter]] = {}
    for module in modules:
        for kind, parameters in module.tuned_parameters().items():
            kinds.setdefault(kind, []).extend(parameters)
    return kinds


def is_large(network: torch.nn.Module) -> bool:
    """Whether `network` is trained with little memory."""
    return parameter_count(network) > LARGE
