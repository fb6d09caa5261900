"""`make test-processors`: what bears on numbers, under the instructions and threads that other machines have.

Every pair of values of two columns occurs in SETTINGS; the first column caps oneDNN, the second PyTorch's own loops.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
#: (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY, OMP_NUM_THREADS); "" leaves a variable unset.
SETTINGS = [
    ("", "", 1),
    ("AVX2", "", 4),
    ("AVX2", "default", 2),
    ("AVX2", "avx2", 1),
    ("AVX512_CORE", "", 2),
    ("AVX512_CORE", "default", 1),
    ("AVX512_CORE", "avx2", 4),
    ("AVX512_CORE_VNNI", "", 1),
    ("AVX512_CORE_VNNI", "default", 4),
    ("AVX512_CORE_VNNI", "avx2", 2),
    ("", "default", 2),
    ("", "avx2", 4),
]
NAMES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS")
KINDS = ("quant_*", "finetuning", "int8", "around_product", "loops", "packed_file", "*method_layers", "qartsr_layers")
NOTEBOOK = "test_notebooks.py::test_runs_in_smoke[03_anatomy_of_the_quantizer]"
#: For CI: the processors that are furthest from those with VNNI.
SHORT_SETTINGS, SHORT_KINDS = [("AVX2", "avx2", 2), ("AVX512_CORE", "", 1)], ("quant_layers", "finetuning", "int8")
SHORT_EXPRESSION = "not cache_changes_nothing and not interrupted and not whatever_onednn_may_use"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the part that CI runs")
    short = parser.parse_args().short
    kinds = SHORT_KINDS if short else KINDS
    files = [str(file) for kind in kinds for file in sorted(TESTS.glob(f"test_{kind}.py"))]
    words = [*files, "-k", SHORT_EXPRESSION] if short else [*files, str(TESTS / NOTEBOOK)]
    failed = 0
    for setting in SHORT_SETTINGS if short else SETTINGS:
        started = time.monotonic()
        done = _run(setting, words)
        lines = done.stdout.strip().splitlines()
        named = ", ".join(f"{name}={value}" for name, value in zip(NAMES, setting, strict=True) if value)
        print(
            f"{named}: {lines[-1].strip('= ') if lines else done.stderr} [{time.monotonic() - started:.0f} s]",
            flush=True,
        )
        if done.returncode:
            failed += 1
            print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))), flush=True)
    return bool(failed)


def _run(setting: tuple[str, str, int], words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {name: str(value) for name, value in zip(NAMES, setting, strict=True) if value}
    environment["OMP_WAIT_POLICY"] = "passive"  # more threads than cores would wait for each other by spinning
    processes = "2" if setting[2] == 1 else "0"
    command = [sys.executable, "-m", "pytest", "-q", "-n", processes, "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
