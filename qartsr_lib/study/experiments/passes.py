"""Notebook 07. Where an image's time goes, by block of the network and by pass: in float32, and as 8-bit integers.

Processor time of one thread, which other programs disturb little; medians over images of one photograph.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base import provenance
from qartsr_lib.base.lean_imports import lean_process
from qartsr_lib.deploy import blocks, int8
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES, keep_freed_memory
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.rates import training_options
from qartsr_lib.methods.setting import model_facts
from qartsr_lib.study import sweep as study
from qartsr_lib.study.evaluator import FULL_PRECISION, Experiment
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import Profile

#: Pass -> (where its function is looked up, name), of float networks and integer ones. GroupNorm's sums and constants
#: come before "encode", which normalizes, takes SiLU, and makes codes and L2 x in one loop; "finish" adds to a product
#: the codes' sums, L1, constants and the residual in another.
PASSES: dict[str, tuple[tuple[object, str], ...]] = {
    "product": ((F, "conv2d"), (F, "linear"), (int8.IntegerProduct, "forward")),
    "norm": ((F, "group_norm"), (F, "layer_norm"), (blocks.Norm, "of")),
    "activation": ((F, "silu"), (F, "gelu")),
    "encode": ((int8, "encode"),),
    "finish": ((int8, "finish_"),),
    "attention": ((F, "scaled_dot_product_attention"),),
}
REST = "rest"
"""Inside a block the time of none of PASSES; as a block, of what lies outside of all."""
KEY = ("backbone", "timestep", "method", "bits", "runtime")


def measure_passes(
    profile: Profile,
    cell: tuple[str, int],
    models: Sequence[tuple[str, str]],
    lq: torch.Tensor,
    rounds: int,
    data_root: Path | None = None,
) -> Measured:
    """Rows of KEY, block, pass, ms: of full precision in float32, then of every quantized model as integers.

    Args:
        cell: (backbone, T).
        models: (name in METHODS, bits), whose layers have integer products.
        lq: (1, 3, h, w), the photograph that is timed.
        rounds: images that a median is taken of.
    """
    backbone = load_backbone(*cell)
    shared = {"measurement": "passes", "rounds": rounds, "deploy_sha256": provenance.folder_sha256("deploy")}
    shared |= {"backbone": cell[0], "timestep": cell[1], "low_quality": list(lq.shape[-2:])}
    options = {model: training_options(*model, profile) for model in models}
    questions, spawned = {}, multiprocessing.get_context("spawn")
    calibration = calibration_list(profile, data_root)
    for model in (FULL_PRECISION, *models):
        named = {"method": METHODS.get(model[0]).label, "bits": model[1]}
        named |= {"options": [list(pair) for pair in options.get(model, ())], "seed": profile.seeds[0]}
        named |= {"calibration_sha256": calibration.sha256} | model_facts(model[0], cell[0], options.get(model, ()))
        questions[model] = {"parameters": shared | named, "weights_sha256": backbone.weights_sha256}

    def measure(model: tuple[str, str]) -> pd.DataFrame:
        runtime = "fp32, memory kept" if model == FULL_PRECISION else "int8"
        pool = ProcessPoolExecutor(1, spawned, initializer=lean_process)
        with tempfile.TemporaryDirectory() as folder, pool as process:
            file = None
            if model != FULL_PRECISION:
                experiment = Experiment(*cell, *model, "", profile.seeds[0], options[model])
                file = Path(folder) / "model.safetensors"
                save_packed(study.build_model(experiment, profile, data_root=data_root), file)
            rows = process.submit(_medians, *cell, file, lq, rounds).result()
        fixed = dict(zip(KEY, (*cell, METHODS.get(model[0]).label, model[1], runtime), strict=True))
        return rows.assign(**fixed)[[*KEY, *rows.columns]]

    return measure_questions(profile.name, questions, measure)


def _medians(backbone: str, timestep: int, file: Path | None, lq: torch.Tensor, rounds: int) -> pd.DataFrame:
    torch.set_num_threads(1)
    keep_freed_memory()
    model = load_backbone(backbone, timestep) if file is None else RUNTIMES.get("int8")(load_packed(file))
    model.upscale(lq)
    found = pd.concat([milliseconds(model, lq) for _ in range(rounds)])
    return found.groupby(["block", "pass"], sort=False)["ms"].median().reset_index()


def milliseconds(model: OneStepSR, lq: torch.Tensor) -> pd.DataFrame:
    """Rows block, pass, ms of one image: for each of `blocks_in_order` and REST, those of PASSES it has and REST."""
    clock, place = _Clock(), [REST]

    def placed(name: str, forward: Callable) -> Callable:
        def call(*arguments, **options):
            place.append(name)
            try:
                return clock.timed(lambda: (name, REST), forward)(*arguments, **options)
            finally:
                place.pop()

        return call

    with contextlib.ExitStack() as stack:
        for name, functions in PASSES.items():
            for where, attribute in functions:
                timed = clock.timed(lambda name=name: (place[-1], name), getattr(where, attribute))
                stack.enter_context(mock.patch.object(where, attribute, timed))
        for name, block in model.blocks_in_order():
            stack.enter_context(mock.patch.object(block, "forward", placed(name, block.forward)))
        clock.timed(lambda: (REST, REST), model.upscale)(lq)
    rows = [(*where, 1000 * seconds) for where, seconds in clock.own.items()]
    order = [name for name, _ in model.blocks_in_order()] + [REST]
    return pd.DataFrame(rows, columns=["block", "pass", "ms"]).sort_values(
        "block", key=lambda names: names.map(order.index), kind="stable"
    )


class _Clock:
    """Each call's processor time without that of the timed calls inside it."""

    def __init__(self) -> None:
        self.own: Counter[tuple[str, str]] = Counter()
        self._inside = [0.0]  # of the calls under way: the time of timed calls inside

    def timed(self, key: Callable[[], tuple[str, str]], function: Callable) -> Callable:
        def call(*arguments, **options):
            self._inside.append(0.0)
            started = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent = time.thread_time() - started
                self.own[key()] += spent - self._inside.pop()
                self._inside[-1] += spent

        return call
