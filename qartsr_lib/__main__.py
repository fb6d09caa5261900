"""`python -m qartsr_lib`: the command line `qartsr`."""

import sys

from qartsr_lib.cli import main

sys.exit(main())
