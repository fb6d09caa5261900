"""Measure one image of one experiment, remembering every finished piece in the cache.

Three kinds of entries: "model" (what a quantized model is, how long it took to build, and all of it where it was
trained), "sr" (one upscaled image) and "scores" (its metric values). A model is built only when one of its images is
not in the cache. Training or inference that ends in numbers that are not finite is a result as well: n/a with the
reason. Evaluation is float32, batch 1, channels_last: low-bit networks amplify rounding, so this is in every key.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from qartsr_lib.base import machine, provenance
from qartsr_lib.base.cache import RunCache
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images import metrics
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.methods import METHODS, Method
from qartsr_lib.methods.checkpoint import DESCRIPTION, load_quantized, save_quantized
from qartsr_lib.methods.setting import model_facts
from qartsr_lib.study.measured import answered, entry_key
from qartsr_lib.study.profiles import Profile
from qartsr_lib.training.states import saved_state

FULL_PRECISION = ("fp", "W32A32")
NO_CALIBRATION = ("fp",)
UNCALIBRATED = CalibrationList("none", [], "")  # the list where no method takes one
EVALUATION = {"dtype": "float32", "batch": 1, "memory_format": "channels_last", "png_bits": 8}  # of every image
_OFFLINE = "HF_HUB_OFFLINE"
_kept_offline = False  # whether `default_parts` has set it, and not the user
MARK = "SEEN_BY_WORKERS"  # a file in a cache, by which workers see that they have the same


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
    score: Callable[[Path, Path, Sequence[str]], dict[str, metrics.Score]]  # (SR file, HR file, names) -> {name: score}


def default_parts(profile: Profile) -> Parts:
    """The registered backbones, methods and metrics; metric weights are fetched only if the profile allows.

    It may allow again what another one in this process did not: a kernel, or a cluster's worker, sees several.
    """
    from qartsr_lib.backbones import load_backbone  # imported late: it brings in diffusers

    global _kept_offline
    if not profile.downloads and _OFFLINE not in os.environ:
        os.environ[_OFFLINE], _kept_offline = "1", True
        metrics.forget()  # an answer about the network may have been remembered
    elif profile.downloads and _kept_offline:
        os.environ.pop(_OFFLINE, None)
        _kept_offline = False
        metrics.forget()
    return Parts(load_backbone, METHODS.get, metrics.available, metrics.identity, metrics.score)


class ScoredImage(NamedTuple):
    """One image of one experiment."""

    png: Path | None  # None where there is none, because numbers were not finite
    scores: dict[str, metrics.Score]  # of every metric
    seconds: float  # computing time when it was made, whichever invocation made it


class Evaluator:
    """Builds models as late as possible and each at most once in a row.

    Of `metrics` (names) those unavailable here get a reason and no value; full precision gets no `calibration`.
    """

    def __init__(
        self, parts: Parts, cache: RunCache, metrics: Sequence[str], calibration: CalibrationList, device: str
    ) -> None:
        self.parts, self.cache, self.calibration, self.device = parts, cache, calibration, device
        self.metrics = tuple(metrics)
        self.reasons = {name: reason for name, reason in parts.available(metrics).items() if reason}
        self.metric_identity = dict(parts.identity(self.metrics))
        # Metrics with weights apart: they take longest, and tables that differ in the others share them.
        known = {n: bool(self.metric_identity[n].get("weights")) for n in self.metrics if n not in self.reasons}
        self._together = [[name for name in known if known[name] is learned] for learned in (False, True)]
        machine.make_exact(machine.checked(device))
        self.environment = provenance.environment(device)
        self._weights: dict[tuple[str, int], str] = {}
        self._backbone: tuple[tuple[str, int], Any] | None = None  # the last one, by (name, timestep)
        self._model: tuple[str, Any] | None = None  # the last one, by its key

    @property
    def identity(self) -> dict[str, Any]:
        """All that has to be the same for another evaluator to find this one's entries, but for its models."""
        return {
            "source": provenance.source_sha256(),
            "environment": self.environment,
            "metrics": self.metric_identity,
            "metrics that are not available": self.reasons,
            "calibration": {"name": self.calibration.name, "sha256": self.calibration.sha256},
            "QARTSR_HOME": (self.cache.root / MARK).read_text() if (self.cache.root / MARK).is_file() else "another",
        }

    def require(self, wanted: Mapping[str, Any], address: str) -> None:
        """A QartsrError that names the worker `address` and what of its `identity` is not as `wanted`."""
        wanted, found = (pd.json_normalize(dict(facts)).astype(object).iloc[0] for facts in (wanted, self.identity))
        for name, value in wanted.items():
            if value != found.get(name):
                raise QartsrError(
                    f"worker {address} differs in {name}: {value} and {found.get(name)}; all need the same packages, "
                    "files, device and threads, one QARTSR_HOME, and a start after the last change of the code"
                )

    def about(self, experiment: Experiment) -> dict[str, Any]:
        """`identity`, with the experiment's label, its weights' hash and its model ("info", see `model_info`)."""
        label = experiment.label or self.parts.method(experiment.method).label
        known = {"weights_sha256": self.weights_sha256(experiment), "info": self.model_info(experiment)}
        return self.identity | known | {"label": label}

    def measure(self, experiment: Experiment, pair: Pair) -> ScoredImage:
        """Upscale and score one image, or find both in the cache."""

        def upscale(folder: Path) -> dict[str, Any]:
            started = time.monotonic()
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
                return {"seconds": round(time.monotonic() - started, 3), "diverged": str(error)}
            return {"seconds": round(time.monotonic() - started, 3), "diverged": ""}

        made = self._answered("sr", [self.model_key(experiment), remembered_sha256(pair.lq)], upscale)
        if made["diverged"]:
            return ScoredImage(None, dict.fromkeys(self.metrics, (None, made["diverged"])), made["seconds"])
        png = made["folder"] / "sr.png"
        scores, seconds = self.score(png, pair.hr)
        return ScoredImage(png, scores, made["seconds"] + seconds)

    def score(self, png: Path, hr: Path) -> tuple[dict[str, metrics.Score], float]:
        """(score of every metric, computing time) of an image."""
        scores, seconds = {name: (None, reason) for name, reason in self.reasons.items()}, 0.0
        for names in filter(None, self._together):
            question = [remembered_sha256(png), remembered_sha256(hr), {n: self.metric_identity[n] for n in names}]
            found = self._answered("scores", question, lambda _, n=names: {"scores": self.parts.score(png, hr, n)})
            scores, seconds = scores | found["scores"], seconds + found["seconds"]
        return {name: tuple(scores[name]) for name in self.metrics}, seconds

    def model_info(self, experiment: Experiment) -> dict[str, Any]:
        """Its w_bits_effective, steps, seconds, note, history (a record per step), diverged ("" or why it is none)."""

        def make(folder: Path) -> dict[str, Any]:
            info = {"w_bits_effective": None, "steps": 0, "note": "", "diverged": "", "history": []}
            self._loaded(experiment)  # takes no part in the time
            started = time.monotonic() - self._spent(experiment)
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

        found = self._answered("model", self.model_key(experiment), make)
        self._unfinished(experiment).unlink(missing_ok=True)
        return found

    def model_key(self, experiment: Experiment) -> dict[str, Any]:
        """All that determines a quantized model, apart from the environment and the library's source."""
        named = vars(replace(experiment, dataset="", label="")) | {
            "weights": self.weights_sha256(experiment),
            "options": sorted(experiment.options),
            "calibration": None if experiment.method in NO_CALIBRATION else self.calibration.sha256,
            "evaluation": EVALUATION,
        }
        return named | model_facts(experiment.method, experiment.backbone, experiment.options)

    def weights_sha256(self, experiment: Experiment) -> str:
        """The backbone's weight hash; remembered, so that a sweep found in the cache loads no model twice."""
        name = (experiment.backbone, experiment.timestep)
        if name not in self._weights:
            self._weights[name] = self._loaded(experiment).weights_sha256
        return self._weights[name]

    def build(self, experiment: Experiment) -> Any:
        """The experiment's quantized backbone, kept until the next, a trained one in the cache; Diverged if it did."""
        key = self._key(experiment)
        if self._model is None or self._model[0] != key:
            self._model = None  # free the old one
            info = self.model_info(experiment)
            if info["diverged"]:
                raise Diverged(info["diverged"])
            if self._model is None and (info["folder"] / DESCRIPTION).exists():
                self._model = (key, load_quantized(info["folder"], lambda *_: copy.deepcopy(self._loaded(experiment))))
            elif self._model is None:  # one that is made faster than it is read
                self._make(experiment)
        return self._model[1]

    def _loaded(self, experiment: Experiment) -> Any:
        """The full-precision backbone."""
        name = (experiment.backbone, experiment.timestep)
        if self._backbone is None or self._backbone[0] != name:
            self._backbone = self._model = None  # free the old ones before loading
            self._backbone = (name, self.parts.load_backbone(*name, self.device))
        return self._backbone[1]

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

    def _answered(self, kind: str, question: Any, answer: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        return answered(self.cache, kind, question, self.environment, answer)

    def _key(self, experiment: Experiment) -> str:
        return entry_key(self.model_key(experiment), self.environment)

    def _spent(self, experiment: Experiment) -> float:
        """Seconds of the steps that an interrupted training does not make again, where its method tells them."""
        path = self._unfinished(experiment)
        if path.exists():
            with suppress(QartsrError, KeyError, TypeError), saved_state(path) as state:
                return sum(record["seconds"] for record in state["history"])
        return 0.0

    def _unfinished(self, experiment: Experiment) -> Path:
        return self.cache.root / "unfinished" / f"{self._key(experiment)}.pt"
