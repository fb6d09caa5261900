"""Table 2 by both rules, and where the cost sits, as measurements with run records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pandas as pd

from qartsr_lib.methods import METHODS
from qartsr_lib.study.experiments.counting.honest import components, honest_rows
from qartsr_lib.study.experiments.counting.paper import paper_rows
from qartsr_lib.study.experiments.counting.trace import LAYERS, MODELS, OUTPUT_SIZE, PARAMETERS, counted
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.paper import paper_table

COUNTED = "OSEDiff"


def measure_table2(profile: str, methods: Sequence[str], bits: Sequence[str]) -> Measured:
    """Table 2 of the full-size network by both rules.

    Columns rule, those of `paper_rows`, and params_residual_M and ops_residual_G: ours minus the integer that the
    paper prints for that method and bit width; empty where it prints none.
    """

    def measure(_: str) -> pd.DataFrame:
        paper, honest = paper_rows(counted(COUNTED)[1], bits), honest_rows(_components(tuple(methods), tuple(bits)))
        frame = pd.concat([paper, honest], ignore_index=True)
        frame.insert(0, "rule", ["paper"] * len(paper) + ["honest"] * len(honest))
        return _with_residuals(frame)

    question = _question("Table 2", network=COUNTED, methods=list(methods), bits=list(bits))
    return measure_questions(profile, {COUNTED: question}, measure)


def _with_residuals(frame: pd.DataFrame) -> pd.DataFrame:
    names = frame["method"].str.split(" [", regex=False).str[0]  # "QArtSR [published ranks]" is the paper's QArtSR too
    printed = paper_table(2).set_index(["method", "bits"]).reindex(pd.MultiIndex.from_arrays([names, frame["bits"]]))
    for ours, residual in (("params_M", "params_residual_M"), ("ops_G", "ops_residual_G")):
        frame[residual] = frame[ours] - printed[ours].to_numpy()
    return frame


def measure_components(profile: str, methods: Sequence[str], bits: Sequence[str]) -> Measured:
    """What the honest rule's rows consist of: method, bits, component, params_M, ops_G."""
    question = _question("components of Table 2", network=COUNTED, methods=list(methods), bits=list(bits))
    return measure_questions(profile, {COUNTED: question}, lambda _: _components(tuple(methods), tuple(bits)))


@lru_cache(maxsize=4)
def _components(methods: tuple[str, ...], bits: tuple[str, ...]) -> pd.DataFrame:
    return components(*counted(COUNTED), methods, bits)


def measure_parts(profile: str) -> Measured:
    """Where weights and operations sit, per block, of every network of MODELS.

    Columns model, part, block, layers (Conv2d and Linear), weights_M, params_M (all parameters),
    layer_ops_G (2 per MAC of Conv2d and Linear), attention_ops_G, elementwise_ops_G.
    """

    def measure(name: str) -> pd.DataFrame:
        frame = by_block(counted(name)[1])
        frame.insert(0, "model", name)
        return frame

    return measure_questions(profile, {name: _question("parts", network=name) for name in MODELS}, measure)


def by_block(layers: pd.DataFrame) -> pd.DataFrame:
    """Sums of `trace` per part and block, in order of inference; see `measure_parts`."""
    is_layer, is_attention = layers["kind"].isin(LAYERS), layers["kind"] == "attention"
    columns = {
        "layers": is_layer.astype(int),
        "weights_M": layers["weights"] / 1e6,
        "params_M": layers[PARAMETERS].sum(axis=1) / 1e6,
        "layer_ops_G": 2 * layers["macs"].where(is_layer, 0) / 1e9,
        "attention_ops_G": 2 * layers["macs"].where(is_attention, 0) / 1e9,
        "elementwise_ops_G": layers["elementwise"] / 1e9,
    }
    frame = layers[["part", "block"]].assign(**columns)
    return frame.groupby(["part", "block"], sort=False, as_index=False).sum()


def _question(measurement: str, **parameters: object) -> dict:
    labels = {name: METHODS.get(name).label for name in parameters.get("methods", ())}
    return {"parameters": {"measurement": measurement, "size": OUTPUT_SIZE, **parameters, "labels": labels}}
