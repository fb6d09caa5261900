"""Helper library of the QArtSR reproduction study; the notebooks in notebooks/ drive it.

Importing it is cheap: neither pyiqa nor matplotlib is loaded before it is needed.
"""

__version__ = "0.1.0"
