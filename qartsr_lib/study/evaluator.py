"""Measure one image of one experiment, remembering every finished piece in the cache.

Three kinds of entries: "model" (what a quantized model is, how long it took to build, and all of it
where it was trained), "sr" (one upscaled image) and "scores" (its metric values). A model is built
only when one of its images is not in the cache. Training or inference that ends in numbers that are
not finite is a result as well: n/a with the reason.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qartsr_lib.base import machine, provenance
from qartsr_lib.base.cache import RunCache, stable_hash
from qartsr_lib.base.errors import Diverged
from qartsr_lib.base.files import remembered_sha256
from qartsr_lib.images.datasets.base import Pair
from qartsr_lib.images.datasets.calibration import CalibrationList
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.methods.checkpoint import DESCRIPTION, load_quantized, save_quantized
from qartsr_lib.study.experiment import Experiment

if TYPE_CHECKING:
    from qartsr_lib.methods import Method
    from qartsr_lib.study.profiles import Profile

#: How every image is evaluated; part of every key.
EVALUATION = {"dtype": "float32", "batch": 1, "memory_format": "channels_last", "png_bits": 8}
NO_CALIBRATION = ("fp",)


@dataclass(frozen=True)
class Parts:
    """The suppliers of a sweep.

    Attributes:
        load_backbone: (name, timestep, device) -> OneStepSR.
        method: name -> Method.
        available: metric names -> {name: None or the reason}.
        identity: metric names -> {name: all that determines its values}, JSON-able.
        score: (SR file, HR file, names) -> {name: (value or None, note)}.
    """

    load_backbone: Callable[[str, int, str], Any]
    method: Callable[[str], Method]
    available: Callable[[Sequence[str]], Mapping[str, str | None]]
    identity: Callable[[Sequence[str]], Mapping[str, Any]]
    score: Callable[[Path, Path, Sequence[str]], Mapping[str, tuple[float | None, str]]]


def default_parts(profile: Profile) -> Parts:
    """The registered backbones, methods and metrics; metric weights are fetched only if the profile allows."""
    from qartsr_lib.backbones import load_backbone
    from qartsr_lib.images import metrics
    from qartsr_lib.methods import METHODS

    if not profile.downloads and "HF_HUB_OFFLINE" not in os.environ:
        os.environ["HF_HUB_OFFLINE"] = "1"
        metrics.forget()  # an answer about the network may have been remembered
    return Parts(load_backbone, METHODS.get, metrics.available, metrics.identity, metrics.score)


@dataclass(frozen=True)
class ScoredImage:
    """One image of one experiment.

    Attributes:
        png: the upscaled image; None where there is none, because numbers were not finite.
        scores: metric -> (value or None, note).
        seconds: computing time when it was made, whichever invocation made it.
    """

    png: Path | None
    scores: dict[str, tuple[float | None, str]]
    seconds: float


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
        self.identity = dict(parts.identity(self.metrics))
        machine.make_exact(machine.checked(device))
        self.environment = provenance.environment(device)
        self._weights: dict[tuple[str, int], str] = {}
        self._backbone: tuple[tuple[str, int], Any] | None = None
        self._model: tuple[str, Any] | None = None

    def measure(self, experiment: Experiment, pair: Pair) -> ScoredImage:
        """Upscale and score one image, or find both in the cache."""
        sr_key = self._key("sr", self.model_key(experiment), remembered_sha256(pair.lq))
        sr = self.cache.get_or_put("sr", sr_key, lambda folder: self._upscale(experiment, pair, folder))
        made = _read_json(sr / "made.json")
        if made.get("diverged"):
            return ScoredImage(None, dict.fromkeys(self.metrics, (None, made["diverged"])), made["seconds"])
        names = [name for name in self.metrics if name not in self.reasons]
        identity = {name: self.identity[name] for name in names}
        score_key = self._key("scores", remembered_sha256(sr / "sr.png"), remembered_sha256(pair.hr), identity)
        scored = self.cache.get_or_put(
            "scores", score_key, lambda folder: self._score(sr / "sr.png", pair, names, folder)
        )
        found = _read_json(scored / "scores.json")
        scores = {
            name: (None, self.reasons[name]) if name in self.reasons else tuple(found["scores"][name])
            for name in self.metrics
        }
        return ScoredImage(sr / "sr.png", scores, made["seconds"] + found["seconds"])

    def model_info(self, experiment: Experiment) -> dict[str, Any]:
        """{"w_bits_effective", "steps", "seconds", "note", "diverged"} of the experiment's model.

        "diverged" is the reason where there is no model, "" otherwise; w_bits_effective is None then.
        """
        return _read_json(self._model_folder(experiment) / "model.json")

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
            self._weights[name] = self.backbone(experiment).weights_sha256
        return self._weights[name]

    def backbone(self, experiment: Experiment) -> Any:
        """The full-precision backbone; the last one is kept."""
        name = (experiment.backbone, experiment.timestep)
        if self._backbone is None or self._backbone[0] != name:
            self._backbone = self._model = None  # free the old ones before loading
            self._backbone = (name, self.parts.load_backbone(*name, self.device))
        return self._backbone[1]

    def build(self, experiment: Experiment) -> Any:
        """The experiment's quantized backbone; the last one is kept in memory, a trained one in the cache too.

        Raises:
            Diverged: its training did; remembered, and not tried again.
        """
        key = self._key("model", self.model_key(experiment))
        if self._model is not None and self._model[0] == key:
            return self._model[1]
        self._model = None
        backbone = self.backbone(experiment)
        kept = self.cache.get("model", key)
        reason = "" if kept is None else _read_json(kept / "model.json")["diverged"]
        if reason:
            raise Diverged(reason)
        if kept is not None and (kept / DESCRIPTION).exists():
            model = load_quantized(kept, lambda *_: copy.deepcopy(backbone))
        else:
            model = self._make(experiment, backbone, key)
        self._model = (key, model)
        return model

    def history(self, experiment: Experiment) -> list[dict[str, float]]:
        """One record per training step of the experiment's model; empty without training."""
        path = self._model_folder(experiment) / "history.json"
        return _read_json(path) if path.exists() else []

    def _model_folder(self, experiment: Experiment) -> Path:
        key = self._key("model", self.model_key(experiment))
        if self.cache.get("model", key) is None:
            self._model = None  # one in memory would not be written again
            with suppress(Diverged):  # remembered in the folder
                self.build(experiment)
        return self.cache.get("model", key)

    def _make(self, experiment: Experiment, backbone: Any, key: str) -> Any:
        """Run the method and keep what it made; an interrupted training continues after its last finished phase."""
        images = [] if experiment.method in NO_CALIBRATION else self.calibration.images
        method = self.parts.method(experiment.method)
        options = dict(experiment.options)
        unfinished = self.cache.root / "unfinished" / f"{key}.pt"
        if getattr(method, "trains", False):
            options["checkpoint"] = unfinished
        torch.manual_seed(experiment.seed)
        started = time.monotonic()
        images = [image.to(self.device) for image in images]
        info = {"w_bits_effective": None, "steps": 0, "note": "", "diverged": ""}
        try:
            result = method.build(backbone, experiment.bits, images, seed=experiment.seed, **options)
        except Diverged as error:
            info |= {"diverged": str(error), "seconds": round(time.monotonic() - started, 2)}
            self.cache.get_or_put("model", key, lambda folder: _write_json(folder / "model.json", info))
            unfinished.unlink(missing_ok=True)
            raise
        info |= {"w_bits_effective": float(result.w_bits_effective), "steps": int(result.steps), "note": result.note}
        info |= {"seconds": round(time.monotonic() - started, 2)}

        def keep(folder: Path) -> None:
            _write_json(folder / "model.json", info)
            if result.steps:
                save_quantized(result.backbone, folder)
                _write_json(folder / "history.json", list(result.history))

        self.cache.get_or_put("model", key, keep)
        unfinished.unlink(missing_ok=True)
        return result.backbone

    def _key(self, *determining: object) -> str:
        return stable_hash([*determining, self.environment, provenance.source_sha256()])

    def _upscale(self, experiment: Experiment, pair: Pair, folder: Path) -> None:
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
        _write_json(folder / "made.json", {"seconds": round(time.monotonic() - started, 3), "diverged": diverged})

    def _score(self, png: Path, pair: Pair, names: Sequence[str], folder: Path) -> None:
        started = time.monotonic()
        scores = self.parts.score(png, pair.hr, names) if names else {}
        content = {"scores": {name: list(scores[name]) for name in names}}
        _write_json(folder / "scores.json", {**content, "seconds": round(time.monotonic() - started, 3)})


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
