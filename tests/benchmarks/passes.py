"""`python -m tests.benchmarks.passes MODEL.safetensors`: where the integer runtime's time goes, by pass and part.

Processor time of one thread, which other programs disturb little: medians over images of one photograph.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F

from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.machine import run_command
from qartsr_lib.deploy import blocks, int8
from qartsr_lib.deploy.packed_file import load_packed
from qartsr_lib.deploy.runtimes import RUNTIMES, keep_freed_memory
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.study.profiles import get_profile

#: Pass -> where its function is looked up: GroupNorm's sums and constants; GroupNorm, SiLU, codes and L2 x in one loop;
#: the int8 product; sums of codes, L1, constants and residual in another; attention.
PASSES = {
    "norm": (blocks.Norm, "of"),
    "encode": (int8, "encode"),
    "product": (int8.IntegerProduct, "forward"),
    "finish": (int8, "finish_"),
    "attention": (F, "scaled_dot_product_attention"),
}
PARTS = ("vae.encoder", "unet", "vae.decoder")
REST = "rest"


def milliseconds(model: OneStepSR, lq: torch.Tensor) -> pd.DataFrame:
    """Of one image by an integer form, a row for each of PASSES and a column for each of PARTS, REST in both."""
    found: Counter[tuple[str, str]] = Counter()
    part = REST

    def timed(name: str, function):
        def call(*arguments, **options):
            started = time.thread_time()
            result = function(*arguments, **options)
            found[name, part] += time.thread_time() - started
            return result

        return call

    def timed_part(name: str, forward):
        def call(*arguments, **options):
            nonlocal part
            part, started, before = name, time.thread_time(), sum(found.values())
            result = forward(*arguments, **options)
            found[REST, name] += time.thread_time() - started - (sum(found.values()) - before)
            part = REST
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name, (where, attribute) in PASSES.items():
            stack.enter_context(mock.patch.object(where, attribute, timed(name, getattr(where, attribute))))
        for name in PARTS:
            module = model.get_submodule(name)
            stack.enter_context(mock.patch.object(module, "forward", timed_part(name, module.forward)))
        started = time.thread_time()
        model.upscale(lq)
        found[REST, REST] = time.thread_time() - started - sum(found.values())
    rows = [{"pass": name, "part": where, "ms": 1000 * seconds} for (name, where), seconds in found.items()]
    table = pd.DataFrame(rows).pivot(index="pass", columns="part", values="ms")
    return table.reindex(index=[*PASSES, REST], columns=[*PARTS, REST]).fillna(0.0)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.passes", description=__doc__.split("\n\n")[1])
    parser.add_argument("model", type=Path, help="a packed file, from export")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    keep_freed_memory()
    torch.set_num_threads(1)
    model = RUNTIMES.get("int8")(load_packed(options.model))
    lq = calibration_list(get_profile("tiny", n_calibration=1, calibration_size=128)).images[0]
    model.upscale(lq)
    tables = [milliseconds(model, lq) for _ in range(options.rounds)]
    middle = pd.concat(tables).groupby(level=0, sort=False).median()
    middle["all"] = middle.sum(axis=1)
    middle.loc["all"] = middle.sum()
    print(middle.round(1).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
