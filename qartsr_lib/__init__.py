"""Helper library of the QArtSR reproduction study; the notebooks in notebooks/ drive it.

Importing it is cheap: neither pyiqa nor matplotlib is loaded before it is needed.
"""

import logging

__version__ = "0.1.0"

# Comes with pyiqa and is imported by diffusers; warns of a kernel that nothing here uses, in every process.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
