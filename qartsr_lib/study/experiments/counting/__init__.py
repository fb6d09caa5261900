"""Notebook 06. Parameters and operations of a network without its weights (Table 2), by the paper's rule and `honest`.

Rule `paper` is how the numbers of the paper's Table 2 arise, inferred from its integers and its printed reductions:

    Params(b) = (weights b + (biases + norms) 32 + branch 16) / 32
    Ops(b)    = 2 MACs b / 32

The paper names no rule ("following the methodology adopted in prior quantization studies"). The branch is L of Eq. (9)
at rank 4 in all layers. MACs are of Conv2d and Linear alone: attention products, the branch and everything elementwise
are left out. UNet and VAE only; the full-precision row adds the text tower, and its operations seem to include the
image tagger's too. With a constant prompt embedding neither is needed, and they count nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pandas as pd

from qartsr_lib.quant.scheme import FLOAT_BITS, parse_bits
from qartsr_lib.study.experiments.counting.honest import components, label_of
from qartsr_lib.study.experiments.counting.trace import LAYERS, MODELS, OUTPUT_SIZE, PARAMETERS, counted
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.paper import paper_table

COUNTED, FULL = "OSEDiff", str(parse_bits("W32A32"))
BRANCH_RANK, BRANCH_BITS = 4, 16
#: OpenCLIP's ViT-H text tower with all 24 layers (diffusers' export leaves the last one out) without its projection,
#: and the linear layers' MACs for one prompt of 77 tokens. tests/test_counting.py counts both with transformers.
TEXT_TOWER_PARAMETERS, TEXT_TOWER_MACS = 352_984_064, 23_253_221_376
#: Swin-L at 384x384, the image encoder of the tagger RAM: patch embedding, linear layers, patch merging, one image.
TAGGER_MACS = 99_968_090_112


def measure_table2(profile: str, methods: Sequence[str], bits: Sequence[str]) -> Measured:
    """Table 2 of the full-size network by both rules.

    Columns rule, those of `paper_rows`, and params_residual_M and ops_residual_G: ours minus the integer that the
    paper prints for that method and bit width; empty where it prints none.
    """

    def measure(_: str) -> pd.DataFrame:
        paper, honest = paper_rows(counted(COUNTED)[1], bits), honest_rows(_components(tuple(methods), tuple(bits)))
        frame = pd.concat([paper.assign(rule="paper"), honest.assign(rule="honest")], ignore_index=True)
        names = frame["method"].str.split(" [", regex=False).str[0]  # "QArtSR [published ranks]" is the paper's too
        printed = paper_table(2).set_index(["method", "bits"])
        printed = printed.reindex(pd.MultiIndex.from_arrays([names, frame["bits"]]))
        for ours, residual in (("params_M", "params_residual_M"), ("ops_G", "ops_residual_G")):
            frame[residual] = frame[ours] - printed[ours].to_numpy()
        return frame[["rule", *frame.columns.drop("rule")]]

    question = _question("Table 2", network=COUNTED, methods=list(methods), bits=list(bits))
    return measure_questions(profile, {COUNTED: question}, measure)


def measure_components(profile: str, methods: Sequence[str], bits: Sequence[str]) -> Measured:
    """What the honest rule's rows consist of: `components` of the full-size network."""
    question = _question("components of Table 2", network=COUNTED, methods=list(methods), bits=list(bits))
    return measure_questions(profile, {COUNTED: question}, lambda _: _components(tuple(methods), tuple(bits)))


@lru_cache(maxsize=4)
def _components(methods: tuple[str, ...], bits: tuple[str, ...]) -> pd.DataFrame:
    return components(*counted(COUNTED), methods, bits)


def measure_parts(profile: str) -> Measured:
    """`by_block` of every network of MODELS."""
    return measure_questions(profile, {name: _question("parts", network=name) for name in MODELS}, by_block)


def _question(measurement: str, **parameters: object) -> dict:
    labels = {name: label_of(name) for name in parameters.get("methods", ())}
    return {"parameters": {"measurement": measurement, "size": OUTPUT_SIZE, **parameters, "labels": labels}}


def by_block(network: str) -> pd.DataFrame:
    """Where weights and operations of a network of MODELS sit: sums of its `trace`, in order of inference.

    Columns model, part, block, layers (Conv2d and Linear), weights_M, params_M (all parameters), layer_ops_G (2 per
    MAC of Conv2d and Linear), attention_ops_G, elementwise_ops_G.
    """
    layers = counted(network)[1].assign(model=network)
    is_layer, is_attention = layers["kind"].isin(LAYERS), layers["kind"] == "attention"
    columns = {
        "layers": is_layer.astype(int),
        "weights_M": layers["weights"] / 1e6,
        "params_M": layers[PARAMETERS].sum(axis=1) / 1e6,
        "layer_ops_G": 2 * layers["macs"].where(is_layer, 0) / 1e9,
        "attention_ops_G": 2 * layers["macs"].where(is_attention, 0) / 1e9,
        "elementwise_ops_G": layers["elementwise"] / 1e9,
    }
    place = ["model", "part", "block"]
    return layers[place].assign(**columns).groupby(place, sort=False, as_index=False).sum()


def paper_rows(layers: pd.DataFrame, bits: Sequence[str]) -> pd.DataFrame:
    """Table 2 by the paper's rule, of `trace`: the full-precision row, then one row per bit width ("W4A4").

    Columns method, bits, params_M (32-bit equivalents, millions), params_reduction_pct, ops_G, ops_reduction_pct.
    Reductions are against the paper's printed 1,303 M and 4,523 G.
    """
    weights, *kept = map(int, layers[PARAMETERS].sum())
    fixed = sum(kept) * FLOAT_BITS + branch_parameters(layers) * BRANCH_BITS
    rows = [("OSEDiff", FULL, *_full_cost(layers)[1])]
    for width in map(parse_bits, bits):
        params = (weights * width.w + fixed) / FLOAT_BITS / 1e6
        rows.append(("QArtSR", str(width), params, _operations_g(layers, width.a)))
    frame = _with_reductions(pd.DataFrame(rows, columns=["method", "bits", "params_M", "ops_G"]), _printed())
    frame.loc[0, ["params_reduction_pct", "ops_reduction_pct"]] = 0.0
    return frame


def _with_reductions(rows: pd.DataFrame, full: pd.Series) -> pd.DataFrame:
    rows.insert(3, "params_reduction_pct", 100 * (1 - rows["params_M"] / full["params_M"]))
    return rows.assign(ops_reduction_pct=100 * (1 - rows["ops_G"] / full["ops_G"]))


def _printed() -> pd.Series:
    """The paper's full-precision row."""
    return paper_table(2).set_index("bits").loc[FULL, ["params_M", "ops_G"]].astype(float)


def _operations_g(layers: pd.DataFrame, width: int = FLOAT_BITS) -> float:
    """G operations of Conv2d and Linear, scaled by width / 32."""
    macs = int(layers.loc[layers["kind"].isin(LAYERS), "macs"].sum())
    return 2 * macs * width / FLOAT_BITS / 1e9


def _full_cost(layers: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]]:
    """(params in M, operations in G) of UNet and VAE in full precision; and with the text tower."""
    parameters, operations = int(layers[PARAMETERS].to_numpy().sum()), _operations_g(layers)
    counted_too = (parameters + TEXT_TOWER_PARAMETERS) / 1e6, operations + 2 * TEXT_TOWER_MACS / 1e9
    return (parameters / 1e6, operations), counted_too


def branch_parameters(layers: pd.DataFrame) -> int:
    """Parameters of L1 (c_out, r) and L2 (r, c_in k k) in every layer; r is BRANCH_RANK, at most the full rank."""
    with_weights = layers[layers["weights"] > 0]
    fan_in = with_weights["weights"] // with_weights["out_channels"]
    ranks = pd.concat([fan_in, with_weights["out_channels"]], axis=1).min(axis=1).clip(upper=BRANCH_RANK)
    return int((ranks * (fan_in + with_weights["out_channels"])).sum())


def full_precision_residual(layers: pd.DataFrame) -> pd.DataFrame:
    """What the printed full-precision row can be made of: rows what, params_M, ops_G; the last is what is left."""
    (network, with_tower), printed, tagger = _full_cost(layers), tuple(_printed()), 2 * TAGGER_MACS / 1e9
    missing = printed[0] - with_tower[0], printed[1] - with_tower[1]
    rows = [
        ("UNet and VAE, convolutions and linear layers", *network),
        ("text tower, 24 layers", TEXT_TOWER_PARAMETERS / 1e6, 2 * TEXT_TOWER_MACS / 1e9),
        ("counted", *with_tower),
        ("printed", *printed),
        ("printed - counted", *missing),
        ("image tagger's encoder (Swin-L at 384x384)", 0.0, tagger),
        ("left unexplained", missing[0], missing[1] - tagger),
    ]
    return pd.DataFrame(rows, columns=["what", "params_M", "ops_G"])


def honest_rows(parts: pd.DataFrame) -> pd.DataFrame:
    """Table 2 by the honest rule, of `components`: the full-precision row, then one per bit width and method.

    Columns as `paper_rows`; reductions are against the first row.
    """
    rows = parts.groupby(["method", "bits"], sort=False, as_index=False)[["params_M", "ops_G"]].sum()
    return _with_reductions(rows, rows.iloc[0])
