"""What all finetuned methods share: one setting, one budget, one engine. A method adds layers, phases and rates."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.methods.base import Method, MethodResult, check_calibration_images, start_
from qartsr_lib.methods.setting import DEFAULT, Setting, split_options
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.scheme import SHARED_SETTING, Bits, QuantScheme, parse_bits
from qartsr_lib.quant.states import quant_modules
from qartsr_lib.training.finetuning.engine import FinetuneConfig, Finetuner, is_large
from qartsr_lib.training.finetuning.losses import IMAGE_LOSSES
from qartsr_lib.training.finetuning.phases import Phase, Term, batches_of, everything, losses_of

TEACHERS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Budget:
    """What a trained method may spend; the same for every method of a comparison."""

    images: int = 256  # passed forward and backward, repetitions counted
    batch: int = 1  # images per step
    rate: float = 1.0  # factor on all of the method's own learning rates
    image_loss: str = "vae-features+mse"  # in finetuning.losses.IMAGE_LOSSES, for methods whose paper fixes none
    teacher: str = TEACHERS[0]  # precision in which full precision is imitated

    def __post_init__(self) -> None:
        for name in ("images", "batch"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise QartsrError(f"option {name}={value!r}: choose a whole number of at least 1")
        number = isinstance(self.rate, (int, float)) and not isinstance(self.rate, bool)
        if not number or not 0 < self.rate < math.inf:
            raise QartsrError(f"option rate={self.rate!r}: choose a finite number above 0")
        IMAGE_LOSSES.get(self.image_loss)
        if self.teacher not in TEACHERS:
            raise QartsrError(f"option teacher={self.teacher!r}: choose one of {', '.join(TEACHERS)}")


class TrainedMethod(Method):
    """Base of the finetuned methods, in the shared quantization setting; `layer_options` are of the layer kind."""

    layer_kind: ClassVar[str]  # in quant.layers.LAYER_KINDS
    rates: ClassVar[tuple[tuple[str, float], ...]]  # (kind of parameter, the published learning rate) pairs
    terms: ClassVar[tuple[Term, ...]]  # of the loss, in the plan that trains everything at once
    own_options: ClassVar[dict[str, object]] = {}  # options beside those of Budget, with their defaults
    trains = True

    def __init__(self, name: str, label: str, **layer_options) -> None:
        self.name, self.label, self.layer_options = name, label, tuple(layer_options.items())

    @property
    def options(self) -> tuple[str, ...]:
        return (*(field.name for field in fields(Budget)), *self.own_options)

    def scheme(self) -> QuantScheme:
        return replace(SHARED_SETTING, layer_kind=self.layer_kind, layer_options=self.layer_options)

    def phases(self, backbone: nn.Module, images: int, seed: int, **own) -> list[Phase]:
        """The plan that spends `images` on `backbone`."""
        return [Phase(everything(backbone), images, self.terms)]

    @torch.random.fork_rng(devices=[])  # the caller's random numbers go on as they were
    def build(
        self, backbone: nn.Module, bits: str | Bits, calibration_images: list[torch.Tensor], *, seed: int = 0, **options
    ) -> MethodResult:
        """See Method.build; option `checkpoint` is a file with which an interrupted training continues."""
        checkpoint: Path | None = options.pop("checkpoint", None)
        self.check_options(options)
        setting, options = split_options(options)
        own = {name: options.pop(name, default) for name, default in self.own_options.items()}
        budget, bits = Budget(**options), parse_bits(bits)
        check_calibration_images(calibration_images)
        plan = self.phases(backbone, budget.images, seed, **own)
        student = self.untrained(backbone, bits, calibration_images, seed, setting)
        if bits.is_full_precision:
            return MethodResult(student)
        loss = IMAGE_LOSSES.get(budget.image_loss)(next(backbone.parameters()).device)
        rates = tuple((kind, budget.rate * rate) for kind, rate in self.rates)
        config = FinetuneConfig(rates, seed, budget.teacher, budget.image_loss)
        label = f"{self.label} {bits} {backbone.name} T={backbone.timestep}"
        batches = batches_of(calibration_images, budget.batch)
        history = Finetuner(backbone, student, batches, loss, config, label, checkpoint).run(plan)
        student.requires_grad_(False)
        student.quantization = replace(student.quantization, method=self.name)
        targets = "" if budget.teacher == TEACHERS[0] else f", teacher in {budget.teacher}"
        note = f"trained by {losses_of(plan, budget.image_loss)}{targets}"
        return MethodResult(student, int(history[-1]["images"]), history, note)

    def untrained(
        self,
        backbone: nn.Module,
        bits: str | Bits,
        calibration_images: list[torch.Tensor],
        seed: int = 0,
        setting: Setting = DEFAULT,
    ) -> nn.Module:
        """The quantized, calibrated copy of `backbone` that training starts from.

        A large one shares the parameters that its training does not change.
        """
        bits = parse_bits(bits)
        torch.manual_seed(seed)
        shared = {id(p): p for p in backbone.parameters()} if is_large(backbone) else {}
        learning = [parameter.requires_grad for parameter in shared.values()]
        student = copy.deepcopy(backbone, dict(shared))
        quantize_(student, setting.scheme(self.scheme(), backbone, bits))
        for module in quant_modules(student):
            tuned = {id(parameter) for parameters in module.tuned_parameters().values() for parameter in parameters}
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in tuned and id(parameter) in shared:
                    setattr(module, name, nn.Parameter(parameter.detach().clone()))
        for parameter, before in zip(shared.values(), learning, strict=True):
            parameter.requires_grad_(before)  # which layers that train weights have set
        if not bits.is_full_precision:
            start_(backbone, student, calibration_images, self.label)
        return student
