"""`python -m qartsr_lib`: the command line `qartsr`."""

import sys

from qartsr_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
