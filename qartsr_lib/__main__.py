"""`python -m qartsr_lib`: upscale and evaluate one's own images."""

import sys

from qartsr_lib.base.lean_imports import choose_lean_imports
from qartsr_lib.cli import main
from qartsr_lib.deploy.memory import keep_freed_memory

keep_freed_memory()
choose_lean_imports()
sys.exit(main())
