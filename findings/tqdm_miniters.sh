#!/usr/bin/env bash
# tqdm 4.70.1: an explicit `miniters` is dropped for good after one slow moment. A bar with miniters=total/10 should show
# about ten states, which bounds a log. But a bar that was not shown for `maxinterval` (10 s) is reset to miniters=1 by
# tqdm's monitor thread, and from then on it shows a state at every step. The documentation says of maxinterval
# that it adjusts miniters, "only works if dynamic_miniters or monitor thread is enabled", where a given miniters turns
# dynamic_miniters off; that the given number never comes back stands nowhere (reported upstream as issues 1381, 1429).
# maxinterval=inf keeps miniters. Here both intervals are 1 s, to be quick.
#
# Seen (1000 steps of 1 ms, miniters=100, the 10th step takes 3 s):
#   maxinterval=inf: 12 states, miniters 100
#   maxinterval=1.0: 994 states, miniters 1
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet tqdm==4.70.1
cat >check.py <<'PYTHON'
import io
import time

from tqdm import tqdm

tqdm.monitor_interval = 1


def seen(maxinterval):
    log = io.StringIO()
    bar = tqdm(range(1000), file=log, mininterval=0, miniters=100, maxinterval=maxinterval)
    for step in bar:
        time.sleep(3 if step == 9 else 0.001)
    states = log.getvalue().count("\r")
    print(f"maxinterval={maxinterval}: {states} states, miniters {bar.miniters}")
    return states, bar.miniters


assert seen(float("inf")) == (12, 100)
states, miniters = seen(1.0)
assert states > 900 and miniters == 1, "tqdm keeps miniters now"
PYTHON
venv/bin/python check.py
