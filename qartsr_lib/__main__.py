"""`python -m qartsr_lib`: upscale and evaluate one's own images."""

import sys

from qartsr_lib.cli import main

sys.exit(main())
