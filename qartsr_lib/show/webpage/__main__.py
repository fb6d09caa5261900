"""`make report`: write figures/index.html."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.show.webpage.page import write_page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: exit status 0, or 2 with one line that says what to mend."""
    parser = argparse.ArgumentParser(
        prog="qartsr report",
        description="Write figures/index.html and the README's tables from the result files of all profiles.",
    )
    parser.parse_args(arguments)
    try:
        path = write_page()
    except QartsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
