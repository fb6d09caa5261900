"""The one training loop of all finetuned methods: phases over blocks, what is constant upstream computed once."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from qartsr_lib.backbones.base import OneStepSR, parameter_count
from qartsr_lib.backbones.steps import in_bfloat16, steps
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.progress import progress
from qartsr_lib.quant.states import QuantModule, QuantState, quant_modules
from qartsr_lib.training.finetuning.flows import Flows, FlowStore, Network
from qartsr_lib.training.finetuning.losses import ImageLoss
from qartsr_lib.training.finetuning.phase_loss import PhaseLoss
from qartsr_lib.training.finetuning.phases import Phase
from qartsr_lib.training.states import save_state, saved_state

Record = dict[str, float]
LARGE = 10**8
"""Parameters from which on a network is trained with little memory: `recompute`, and frozen weights held once."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How a run is optimized; the plan itself is a list of phases.

    Attributes:
        rates: kind of parameter -> Adam's learning rate, as (kind, rate) pairs.
        decay: share of all images over which the rates fall linearly to zero, at the end.
        seed: of the order of the batches.
        cache: compute what does not change once; False is the plain loop, for comparison.
        recompute: spare memory, see PhaseLoss; None where the network has more than LARGE parameters. Same bits.
        teacher: "bfloat16" runs the teacher under autocast; what it gives stays float32.
        image_loss: name of the image loss, so that another one's checkpoint is not continued.
    """

    rates: tuple[tuple[str, float], ...]
    decay: float = 0.25
    seed: int = 0
    cache: bool = True
    recompute: bool | None = None
    teacher: str = "float32"
    image_loss: str = ""


class Finetuner:
    """Trains the tuned parameters of `student`, a calibrated, quantized copy of `teacher`, in place.

    Args:
        batches: LQ images, (N, 3, h, w) each; all batches are used in turn, in shuffled order.
        image_loss: for "image" terms.
        label: of the progress bar.
        checkpoint: file that keeps the state after every phase; a run of the same plan continues there.

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
        self.teacher_network, self.network = Network(imitated, upscaled), Network(steps(student), upscaled)
        self.blocks = dict(student.blocks_in_order())
        self.parameters = by_kind(quant_modules(student))
        rates = dict(config.rates)
        unknown = sorted(set(self.parameters) - set(rates))
        if unknown:
            raise QartsrError(f"{label}: no learning rate for parameters of kind {unknown[0]!r}; add it to the rates")
        groups = [{"params": tuned, "lr": rates[kind], "peak": rates[kind]} for kind, tuned in self.parameters.items()]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.store = FlowStore() if config.cache else FlowStore(0, 0)
        self.recompute = is_large(student) if config.recompute is None else config.recompute

    def run(self, phases: Sequence[Phase]) -> list[Record]:
        """Carry out `phases`; afterwards every quantized module of the student is in state QUANTIZED.

        Returns:
            One dict per step: phase, images (passed so far), loss, one entry per term, seconds.

        Raises:
            QartsrError: a block that does not exist, or a checkpoint of another run.
            Diverged: a loss that is not finite.
        """
        self._check(phases)
        done, history = self._resume(phases)
        left = sum(len(order) for order in self.schedule(phases)[done:])
        try:
            for record in progress(self.steps(phases, done, history), self.label, left):
                history.append(record)
        finally:
            for module in quant_modules(self.student):
                module.set_state(QuantState.QUANTIZED)
                for tuned in module.tuned_parameters().values():
                    for parameter in tuned:
                        parameter.requires_grad_(True)
        return history

    def schedule(self, phases: Sequence[Phase]) -> list[list[int]]:
        """Numbers of the batches of every phase: all of them shuffled, again and again.

        A phase ends as soon as all images planned up to its end have passed: never more than a part of a batch late.
        """
        schedule, planned, passed = [], 0, 0
        sizes = [len(batch) for batch in self.network.upscaled]
        for number, phase in enumerate(phases):
            generator, order, waiting = random.Random(f"{self.config.seed}-{number}"), [], []
            planned += phase.images
            while passed < planned:
                waiting = waiting or generator.sample(range(len(sizes)), len(sizes))
                order.append(waiting.pop())
                passed += sizes[order[-1]]
            schedule.append(order)
        return schedule

    def steps(self, phases: Sequence[Phase], done: int = 0, history: Sequence[Record] = ()) -> Iterator[Record]:
        """Carry out `phases` from number `done` on, a step whenever the next record is asked for.

        `history` has the records of the phases before; the caller appends what this yields.
        """
        schedule = self.schedule(phases)
        targets = Flows(self.teacher_network, self._wanted(phases, done), self.store)
        sizes = [len(batch) for batch in self.network.upscaled]
        total = sum(sizes[batch] for order in schedule for batch in order)
        passed = int(history[-1]["images"]) if history else 0
        for number in range(done, len(phases)):
            targets.narrow(self._wanted(phases, number))
            phase_loss = self._phase_loss(phases, number, targets)
            for batch in schedule[number]:
                started = time.monotonic()
                loss, parts = self._step(phase_loss, batch, passed / total)
                passed += sizes[batch]
                if not math.isfinite(loss):
                    raise Diverged(f"{self.label}: loss is not finite after {passed} images; use smaller rates")
                seconds = round(time.monotonic() - started, 4)
                yield {"phase": number, "images": passed, "loss": loss, **parts, "seconds": seconds}
            phase_loss.close()
            if self.checkpoint is not None:
                state = {"plan": self._plan(phases), "done": number + 1, "history": list(history)}
                state |= {"tuned": [tensor.detach() for tensor in self._tuned()]}
                save_state(self.checkpoint, state | {"optimizer": self.optimizer.state_dict()})

    def _step(self, phase_loss: PhaseLoss, batch: int, share: float) -> tuple[float, dict[str, float]]:
        left = min(1.0, (1.0 - share) / self.config.decay) if self.config.decay else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * left
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = phase_loss(batch)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), parts

    def _phase_loss(self, phases: Sequence[Phase], number: int, targets: Flows) -> PhaseLoss:
        """Switch blocks and gradients to what phase `number` needs."""
        phase, quantized, trained = phases[number], _quantized(phases, number), _trained(phases, number)
        for module in quant_modules(self.student):
            module.set_state(QuantState.FULL_PRECISION)
        for name in quantized:
            for module in quant_modules(self.blocks[name]):
                module.set_state(QuantState.QUANTIZED)
        for parameter in self._tuned():
            parameter.requires_grad_(False)
        for name in trained:
            for kind, tuned in by_kind(quant_modules(self.blocks[name])).items():
                for parameter in tuned:
                    parameter.requires_grad_(phase.kinds is None or kind in phase.kinds)
        means = self.store, self.config.cache, self.recompute
        return PhaseLoss(self.network, phase, quantized, trained, targets, self.image_loss, *means)

    def _wanted(self, phases: Sequence[Phase], number: int) -> set[int]:
        """Positions at which phase `number` or a later one enters or compares."""
        compared = {self.network.position(term) for phase in phases[number:] for term in phase.terms}
        return compared | {self.network.entry(_trained(phases, later)) for later in range(number, len(phases))}

    def _tuned(self) -> list[torch.nn.Parameter]:
        return [parameter for tuned in self.parameters.values() for parameter in tuned]

    @cached_property
    def _images_sha256(self) -> str:
        """Of all batches; read once, although every phase writes a checkpoint."""
        digest = hashlib.sha256()
        for batch in self.network.upscaled:
            digest.update(repr(tuple(batch.shape)).encode() + batch.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _plan(self, phases: Sequence[Phase]) -> str:
        """All that determines a run, apart from the library's source."""
        model = (self.student.name, self.student.timestep, getattr(self.student, "weights_sha256", ""))
        quantization = getattr(self.student, "quantization", None)
        config = replace(self.config, cache=True, recompute=None)  # which change no bit
        return repr((model, quantization, self._images_sha256, tuple(phases), config))

    @torch.no_grad()
    def _resume(self, phases: Sequence[Phase]) -> tuple[int, list[Record]]:
        """Take up an earlier run of `phases`, wherever its tensors lay; (finished phases, their history)."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0, []
        tuned = self._tuned()
        with saved_state(self.checkpoint) as state:
            same_shapes = [tensor.shape for tensor in state["tuned"]] == [tensor.shape for tensor in tuned]
            if state["plan"] != self._plan(phases) or not same_shapes:
                raise QartsrError(f"{self.checkpoint}: belongs to another run; delete it or choose another folder")
            for tensor, value in zip(tuned, state["tuned"], strict=True):
                tensor.copy_(value)
            self.optimizer.load_state_dict(state["optimizer"])
            return state["done"], state["history"]

    def _check(self, phases: Sequence[Phase]) -> None:
        if not phases:
            raise QartsrError(f"{self.label}: no phase to train")
        named = {name for phase in phases for name in (*phase.blocks, *(phase.trained or ()))}
        named |= {term.after for phase in phases for term in phase.terms if term.after}
        unknown = sorted(named - set(self.network.names))
        if unknown:
            raise QartsrError(f"{self.label}: the backbone has no block {unknown[0]!r}")


def by_kind(modules: Sequence[QuantModule]) -> dict[str, list[torch.nn.Parameter]]:
    """Tuned parameters of `modules`, by kind."""
    kinds: dict[str, list[torch.nn.Parameter]] = {}
    for module in modules:
        for kind, parameters in module.tuned_parameters().items():
            kinds.setdefault(kind, []).extend(parameters)
    return kinds


def is_large(network: torch.nn.Module) -> bool:
    """Whether `network` has more than LARGE parameters."""
    return parameter_count(network) > LARGE


def _quantized(phases: Sequence[Phase], number: int) -> list[str]:
    return [name for phase in phases[: number + 1] for name in phase.blocks]


def _trained(phases: Sequence[Phase], number: int) -> Sequence[str]:
    trained = phases[number].trained
    return _quantized(phases, number) if trained is None else trained
