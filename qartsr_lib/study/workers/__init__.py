"""A sweep on several workers: local processes, or a Dask cluster that shares this machine's file system.

Workers only fill the cache: one task is one quantized model with all its images, measured by an
ordinary `Evaluator` on the worker. Tables are then made in this process from what is found in the
cache; what is absent or damaged goes back to the workers. Results are kept and recorded under the
workers' environment, so all of them must have the same one.

A worker that dies is Dask's business: its task starts again elsewhere and finds in the cache what
had finished. Tasks outlive a client that is killed; the same sweep, started again, joins them.
"""

from qartsr_lib.study.workers.connection import connected, local, resolved
from qartsr_lib.study.workers.sweep import measure

__all__ = ["connected", "local", "measure", "resolved"]
