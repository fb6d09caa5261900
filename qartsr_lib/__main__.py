"""`python -m qartsr_lib`: upscale and evaluate one's own images."""

import sys

from qartsr_lib.cli import main
from qartsr_lib.deploy.memory import keep_freed_memory

keep_freed_memory()
sys.exit(main())
