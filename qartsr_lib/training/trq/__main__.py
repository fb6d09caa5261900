"""`qartsr train trq`; on several GPUs `accelerate launch -m qartsr_lib.training.trq`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qartsr_lib.base.machine import run_command
from qartsr_lib.training.trq import command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see `run_command` for the exit status."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="qartsr train trq", description=command.__doc__, formatter_class=formatter)
    command.add_options(parser)
    return run_command(parser, command.run, arguments)


if __name__ == "__main__":
    sys.exit(main())
