#!/usr/bin/env bash
# scipy 1.17.1 (numpy 2.4.6): the BCa bootstrap interval of a mean over few images depends on the unit of the values. The
# same four scores times 3, with the same resamples, have other ends, by far more than rounding explains; those of
# the percentile interval are the same. BCa counts how many resampled means lie below and how many up to the observed one. With
# four values 9 % of all resamples (4! of 4^4) hold each value once: their means are the observed mean, summed in another
# order, so rounding decides on which side they fall. Any change in the last bit of a score (another processor, another
# number of threads) can move an end of the interval from one of the few possible means to the next.
#
# Seen (scores 0.81, 0.86, 0.84, 0.79):
#   BCa        [0.8000, 0.8500], of three times the scores, over three [0.7950, 0.8475]
#   percentile [0.8000, 0.8500], of three times the scores, over three [0.8000, 0.8500]
#   means of the same four scores in each of the 24 orders: below, equal to, above the mean:
#   {'as they are': [0, 22, 2], 'times three': [0, 4, 20]}
#
# Exit status of this script: 0 as described, 1 it behaves otherwise now.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet scipy==1.17.1 numpy==2.4.6
cat >check.py <<'PYTHON'
import itertools
import sys

import numpy as np
from scipy.stats import bootstrap

SCORES = np.array([0.81, 0.86, 0.84, 0.79])


def interval(scores, method):
    found = bootstrap((scores,), np.mean, n_resamples=5000, method=method, rng=np.random.default_rng(0))
    return np.array(found.confidence_interval)


ends = {}
for method in ("BCa", "percentile"):
    plain, tripled = interval(SCORES, method), interval(3 * SCORES, method) / 3
    ends[method] = np.abs(plain - tripled).max()
    low, high = plain, tripled
    print(f"{method:10s} [{low[0]:.4f}, {low[1]:.4f}], of three times the scores, over three [{high[0]:.4f}, {high[1]:.4f}]")
sides = {}
for name, scores in (("as they are", SCORES), ("times three", 3 * SCORES)):
    means = np.array([np.mean(order) for order in itertools.permutations(scores)])
    sides[name] = [int(compare(means, scores.mean()).sum()) for compare in (np.less, np.equal, np.greater)]
print("means of the same four scores in each of the 24 orders: below, equal to, above the mean:", sides)
sys.exit(not (ends["BCa"] > 1e-3 and ends["percentile"] < 1e-12 and sides["as they are"] != sides["times three"]))
PYTHON
venv/bin/python check.py
