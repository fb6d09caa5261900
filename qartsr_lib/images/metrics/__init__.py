"""Image quality metrics, computed from saved 8-bit PNGs; importing this imports neither pyiqa nor torch.

A metric is one `MetricSpec` row in a module of this package (see `iqa.py`); weight files are looked
for in the folder that QARTSR_METRIC_WEIGHTS names, then in the usual download caches.
"""

from qartsr_lib.images.metrics.base import METRICS, Compute, MetricSpec, WeightFile, lower_is_better  # noqa: F401
from qartsr_lib.images.metrics.scoring import available, forget, identity, require_equal_size, score  # noqa: F401
