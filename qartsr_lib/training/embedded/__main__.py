"""`python -m qartsr_lib.training.embedded`."""

from __future__ import annotations

import argparse
import sys

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.training.embedded import command


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit status: 0 done, 2 something the user can mend (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m qartsr_lib.training.embedded", description=command.__doc__)
    command.add_options(parser)
    try:
        return command.run(parser.parse_args(arguments))
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
