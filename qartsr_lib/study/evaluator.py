"""Measure one image of one experiment, remembering every finished piece in the cache.

Three kinds of entries: "model" (what a quantized model is, how long it took to build, and all of it where it was
trained), "sr" (one upscaled image) and "scores" (its metric values). A model is built only when one of its images is
not in the cache. Training or inference that ends in numbers that are not finite is a result as well: n/a with the
reason. Evaluation is float32, batch 1, channels_last: low-bit networks amplify rounding, so these settings belong to
every key.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from qartsr_lib.base import machine, provenance
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.base.errors import Diverged
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.images.metrics import Score
from qartsr_lib.methods.checkpoint import DESCRIPTION, load_quantized, save_quantized

if TYPE_CHECKING:
    from qartsr_lib.methods import Method
    from qartsr_lib.study.profiles import Profile

FULL_PRECISION = ("fp", "W32A32")
NO_CALIBRATION = ("fp",)
#: How every image is evaluated; part of every key.
EVALUATION = {"dtype": "float32", "batch": 1, "memory_format": "channels_last", "png_bits": 8}
ANSWER = "answer.json"


@dataclass(frozen=True)
class Experiment:
    """What one number is about."""

    backbone: str  # name in `backbones.BACKBONES`
    timestep: int  # label T
    method: str  # name in `methods.METHODS`
    bits: str  # such as "W4A4"; "W32A32" with method "fp"
    dataset: str  # name in `datasets.DATASETS`
    seed: int = 0  # of the method
    options: tuple[tuple[str, object], ...] = ()  # the method's own, (name, value)
    label: str = ""  # name in tables; the method's own when empty. Needed to tell variants apart.


@dataclass(frozen=True)
class Parts:
    """The suppliers of a sweep."""

    load_backbone: Callable[[str, int, str], Any]  # (name, timestep, device) -> OneStepSR
    method: Callable[[str], Method]  # by name
    available: Callable[[Sequence[str]], Mapping[str, str | None]]  # metric names -> {name: None or the reason}
    identity: Callable[[Sequence[str]], Mapping[str, Any]]  # metric names -> {name: what determines it}, JSON-able
    score: Callable[[Path, Path, Sequence[str]], Mapping[str, Score]]  # (SR file, HR file, names) -> {name: score}


def default_parts(profile: Profile) -> Parts:
    """The registered backbones, methods and metrics; metric weights are fetched only if the profile allows."""
    from qartsr_lib.backbones import load_backbone
    from qartsr_lib.images import metrics
    from qartsr_lib.methods import METHODS

    if not profile.downloads and "HF_HUB_OFFLINE" not in os.environ:
        os.environ["HF_HUB_OFFLINE"] = "1"
        metrics.forget()  # an answer about the network may have been remembered
    return Parts(load_backbone, METHODS.get, metrics.available, metrics.identity, metrics.score)


class ScoredImage(NamedTuple):
    """One image of one experiment."""

    png: Path | None  # None where there is none, because numbers were not finite
    scores: dict[str, Score]  # of every metric
    seconds: float  # computing time when it was made, whichever invocation made it


def answered(
    cache: RunCache, kind: str, question: Any, environment: Mapping[str, Any], answer: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The answer to a question, found in the cache or worked out and kept there.

    Args:
        question: all that determines the answer beside the environment and the library's source; JSON-able.
        answer: writes files into the folder that it is given, and returns what else is to be kept, JSON-able.

    Returns:
        The entry's folder, and what `answer` returned with "seconds", its time where it names none itself.
    """

    def fill(folder: Path) -> None:
        started = time.monotonic()
        found = answer(folder)
        found = {"seconds": round(time.monotonic() - started, 3)} | found
        (folder / ANSWER).write_text(json.dumps(found), encoding="utf-8")

    folder = cache.get_or_put(kind, _entry_key(question, environment), fill)
    return folder, json.loads((folder / ANSWER).read_text(encoding="utf-8"))


def _entry_key(question: Any, environment: Mapping[str, Any]) -> str:
    return stable_hash([question, environment, provenance.source_sha256()])


class Evaluator:
    """Builds models as late as possible and each at most once in a row.

    Args:
        metrics: names; those unavailable here get their reason as a note, and no value.
        calibration: given to every method but full precision.
    """

    def __init__(
        self, parts: Parts, cache: RunCache, metrics: Sequence[str], calibration: CalibrationList, device: str
    ) -> None:
        self.parts, self.cache, self.calibration, self.device = parts, cache, calibration, device
        self.metrics = tuple(metrics)
        self.reasons = {name: reason for name, reason in parts.available(metrics).items() if reason}
        self.metric_identity = dict(parts.identity(self.metrics))
        machine.make_exact(machine.checked(device))
        self.environment = provenance.environment(device)
        self._weights: dict[tuple[str, int], str] = {}
        self._backbone: tuple[tuple[str, int], Any] | None = None
        self._model: tuple[str, Any] | None = None

    def measure(self, experiment: Experiment, pair: Pair) -> ScoredImage:
        """Upscale and score one image, or find both in the cache."""
        question = [self.model_key(experiment), remembered_sha256(pair.lq)]
        folder, made = answered(
            self.cache, "sr", question, self.environment, lambda folder: self._upscale(experiment, pair, folder)
        )
        if made["diverged"]:
            return ScoredImage(None, dict.fromkeys(self.metrics, (None, made["diverged"])), made["seconds"])
        png = folder / "sr.png"
        scores, seconds = self.score(png, pair.hr)
        return ScoredImage(png, scores, made["seconds"] + seconds)

    def score(self, png: Path, hr: Path) -> tuple[dict[str, Score], float]:
        """(score of every metric, computing time) of an image."""
        names = [name for name in self.metrics if name not in self.reasons]
        question = [remembered_sha256(png), remembered_sha256(hr), {name: self.metric_identity[name] for name in names}]

        def scored(_: Path) -> dict[str, Any]:
            return {"scores": dict(self.parts.score(png, hr, names)) if names else {}}

        _, found = answered(self.cache, "scores", question, self.environment, scored)
        unavailable = {name: (None, reason) for name, reason in self.reasons.items()}
        scores = {name: unavailable.get(name) or tuple(found["scores"][name]) for name in self.metrics}
        return scores, found["seconds"]

    @property
    def identity(self) -> dict[str, Any]:
        """All that has to be the same for another evaluator to find this one's entries, but for its models."""
        return {
            "source": provenance.source_sha256(),
            "environment": self.environment,
            "metrics": self.metric_identity,
            "metrics that are not available": self.reasons,
            "calibration": {"name": self.calibration.name, "sha256": self.calibration.sha256},
        }

    def about(self, experiment: Experiment) -> dict[str, Any]:
        """`identity`, with the experiment's label, its weights' hash and its model ("info", see `model_info`)."""
        label = experiment.label or self.parts.method(experiment.method).label
        weights = {"weights_sha256": self.weights_sha256(experiment)}
        return self.identity | weights | {"label": label, "info": self.model_info(experiment)}

    def model_info(self, experiment: Experiment) -> dict[str, Any]:
        """{"w_bits_effective", "steps", "seconds", "note", "diverged", "history"} of the experiment's model.

        "diverged" is the reason where there is no model, "" otherwise; w_bits_effective is None then. "history" has
        one record per training step.
        """
        return self._kept_model(experiment)[1]

    def model_key(self, experiment: Experiment) -> dict[str, Any]:
        """All that determines a quantized model, apart from the environment and the library's source."""
        return {
            "backbone": experiment.backbone,
            "weights": self.weights_sha256(experiment),
            "timestep": experiment.timestep,
            "method": experiment.method,
            "options": sorted(experiment.options),
            "bits": experiment.bits,
            "seed": experiment.seed,
            "calibration": None if experiment.method in NO_CALIBRATION else self.calibration.sha256,
            "evaluation": EVALUATION,
        }

    def weights_sha256(self, experiment: Experiment) -> str:
        """The backbone's weight hash; remembered, so that a sweep found in the cache loads no model twice."""
        name = (experiment.backbone, experiment.timestep)
        if name not in self._weights:
            self._weights[name] = self._loaded(experiment).weights_sha256
        return self._weights[name]

    def build(self, experiment: Experiment) -> Any:
        """The experiment's quantized backbone; the last one is kept in memory, a trained one in the cache too.

        Raises:
            Diverged: its training did; remembered, and not tried again.
        """
        key = self._key(experiment)
        if self._model is None or self._model[0] != key:
            self._model = None  # free the old one
            folder, info = self._kept_model(experiment)
            if info["diverged"]:
                raise Diverged(info["diverged"])
            if self._model is None and (folder / DESCRIPTION).exists():
                backbone = self._loaded(experiment)
                self._model = (key, load_quantized(folder, lambda *_: copy.deepcopy(backbone)))
            elif self._model is None:  # one that is made faster than it is read
                self._make(experiment)
        return self._model[1]

    def _loaded(self, experiment: Experiment) -> Any:
        """The full-precision backbone; the last one is kept."""
        name = (experiment.backbone, experiment.timestep)
        if self._backbone is None or self._backbone[0] != name:
            self._backbone = self._model = None  # free the old ones before loading
            self._backbone = (name, self.parts.load_backbone(*name, self.device))
        return self._backbone[1]

    def _kept_model(self, experiment: Experiment) -> tuple[Path, dict[str, Any]]:
        """The entry of the experiment's model, see `model_info`."""
        question = self.model_key(experiment)

        def make(folder: Path) -> dict[str, Any]:
            info = {"w_bits_effective": None, "steps": 0, "note": "", "diverged": "", "history": []}
            self._loaded(experiment)  # takes no part in the time
            started = time.monotonic()
            try:
                result = self._make(experiment)
            except Diverged as error:
                return info | {"diverged": str(error), "seconds": round(time.monotonic() - started, 2)}
            info |= {"w_bits_effective": float(result.w_bits_effective), "steps": int(result.steps)}
            info |= {"note": result.note, "seconds": round(time.monotonic() - started, 2)}
            if result.steps:
                save_quantized(result.backbone, folder)
                info["history"] = list(result.history)
            return info

        found = answered(self.cache, "model", question, self.environment, make)
        self._unfinished(experiment).unlink(missing_ok=True)
        return found

    def _make(self, experiment: Experiment) -> Any:
        """What the method makes; an interrupted training continues after its last finished phase."""
        backbone, self._model = self._loaded(experiment), None
        images = [] if experiment.method in NO_CALIBRATION else self.calibration.images
        images = [image.to(self.device) for image in images]
        method, options = self.parts.method(experiment.method), dict(experiment.options)
        if method.trains:
            options["checkpoint"] = self._unfinished(experiment)
        torch.manual_seed(experiment.seed)
        result = method.build(backbone, experiment.bits, images, seed=experiment.seed, **options)
        self._model = (self._key(experiment), result.backbone)
        return result

    def _key(self, experiment: Experiment) -> str:
        return _entry_key(self.model_key(experiment), self.environment)

    def _unfinished(self, experiment: Experiment) -> Path:
        return self.cache.root / "unfinished" / f"{self._key(experiment)}.pt"

    def _upscale(self, experiment: Experiment, pair: Pair, folder: Path) -> dict[str, Any]:
        started, diverged = time.monotonic(), ""
        try:
            model = self.build(experiment)
            started = time.monotonic()
            lq = read_image(pair.lq).to(self.device)
            with torch.inference_mode():
                sr = model.upscale(lq)
            if not bool(torch.isfinite(sr).all()):
                raise Diverged(f"{pair.id}: {experiment.method} {experiment.bits} gave values that are not finite")
            write_png(folder / "sr.png", sr)
        except Diverged as error:
            diverged = str(error)
        return {"seconds": round(time.monotonic() - started, 3), "diverged": diverged}
