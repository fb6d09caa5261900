"""`python -m qartsr_lib.study.experiments.worker`: one contestant in a process of its own, timed on demand.

It prints one line when it is ready, {"peak_mb": ...}, then for every line on its input the seconds of one image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from qartsr_lib.deploy.runtimes import keep_freed_memory, peak_bytes_of
from qartsr_lib.study.experiments.contestants import CONTESTANTS, tensor_bytes

SMALL = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=list(CONTESTANTS))
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--timestep", required=True, type=int)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--image", required=True, type=Path, help="a tensor, saved")
    parser.add_argument("--threads", required=True, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contestant = CONTESTANTS[options.contestant]
    if contestant.keeps_memory:
        keep_freed_memory()
    model = contestant.model(options.backbone, options.timestep, options.file)
    upscale, lq = contestant.upscaler(model), torch.load(options.image, weights_only=True)
    peak = None
    if contestant.compiled:  # for one size of image
        upscale(lq)
    else:
        upscale(lq[..., :SMALL, :SMALL])  # code is loaded, and compiled where a runtime does
        peak = peak_bytes_of(lambda: upscale(lq))
    upscale(lq)
    mebibytes = None if peak is None else (peak + tensor_bytes(model)) / 2**20
    print(json.dumps({"peak_mb": mebibytes}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        upscale(lq)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
