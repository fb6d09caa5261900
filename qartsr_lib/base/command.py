"""How every program of this project begins and ends: options, one line for what a user can mend, exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from qartsr_lib.base.errors import QartsrError


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """`run(options)` with what `parser` makes of `arguments` (default: the process's own).

    Returns:
        The exit status: what `run` returns, or 0; 2 for a QartsrError and 130 for Ctrl-C, told in one line.
    """
    options = parser.parse_args(arguments)
    try:
        return run(options) or 0
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
