"""`python -m qartsr_lib.training.trq`; `accelerate launch -m qartsr_lib.training.trq` for several GPUs."""

from __future__ import annotations

import argparse
import sys

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.training.trq import command


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit status: 0 done, 2 something the user can mend (one line on stderr), 130 interrupted."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    name = "python -m qartsr_lib.training.trq"
    parser = argparse.ArgumentParser(prog=name, description=command.__doc__, formatter_class=formatter)
    command.add_options(parser)
    try:
        return command.run(parser.parse_args(arguments))
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
