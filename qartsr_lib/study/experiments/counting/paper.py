"""Rule `paper`: how the numbers of the paper's Table 2 arise, inferred from its integers and its printed reductions.

    Params(b) = (weights b + (biases + norms) 32 + branch 16) / 32
    Ops(b)    = 2 MACs b / 32

The paper names no rule ("following the methodology adopted in prior quantization studies"). The branch is L of Eq. (9)
at rank 4 in all layers. MACs are of Conv2d and Linear alone: attention products, the branch and everything elementwise
are left out. UNet and VAE only; the full-precision row adds the text tower, and its operations seem to include the
image tagger's too. With a constant prompt embedding neither is needed, and they count nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib.quant.scheme import FLOAT_BITS, parse_bits
from qartsr_lib.study.experiments.counting.trace import LAYERS, PARAMETERS
from qartsr_lib.study.paper import paper_table

BRANCH_RANK, BRANCH_BITS = 4, 16
FULL = str(parse_bits("W32A32"))
#: OpenCLIP's ViT-H text tower with all 24 layers (diffusers' export leaves the last one out) without its projection,
#: and the linear layers' MACs for one prompt of 77 tokens. tests/test_counting.py counts both with transformers.
TEXT_TOWER_PARAMETERS, TEXT_TOWER_MACS = 352_984_064, 23_253_221_376
#: Swin-L at 384x384, the image encoder of the tagger RAM: patch embedding, linear layers, patch merging, one image.
TAGGER_MACS = 99_968_090_112


def paper_rows(layers: pd.DataFrame, bits: Sequence[str]) -> pd.DataFrame:
    """Table 2 by the paper's rule, of `trace`: the full-precision row, then one row per bit width ("W4A4").

    Columns method, bits, params_M (32-bit equivalents, millions), params_reduction_pct, ops_G, ops_reduction_pct.
    Reductions are against the paper's printed 1,303 M and 4,523 G.
    """
    printed = paper_table(2).set_index("bits").loc[FULL]
    rows = [("OSEDiff", FULL, _full_params(layers), 0.0, _full_operations(layers), 0.0)]
    for width in bits:
        params, operations = _params_m(layers, parse_bits(width).w), _operations_g(layers, parse_bits(width).a)
        reductions = 100 * (1 - params / printed["params_M"]), 100 * (1 - operations / printed["ops_G"])
        rows.append(("QArtSR", width, params, reductions[0], operations, reductions[1]))
    columns = ["method", "bits", "params_M", "params_reduction_pct", "ops_G", "ops_reduction_pct"]
    return pd.DataFrame(rows, columns=columns)


def _params_m(layers: pd.DataFrame, width: int) -> float:
    """Millions of 32-bit equivalents of UNet and VAE with weights in `width` bits."""
    weights, *kept = map(int, layers[PARAMETERS].sum())
    stored = weights * width + sum(kept) * FLOAT_BITS + branch_parameters(layers) * BRANCH_BITS
    return stored / FLOAT_BITS / 1e6


def _operations_g(layers: pd.DataFrame, width: int = FLOAT_BITS) -> float:
    """G operations of Conv2d and Linear, scaled by width / 32."""
    macs = int(layers.loc[layers["kind"].isin(LAYERS), "macs"].sum())
    return 2 * macs * width / FLOAT_BITS / 1e9


def branch_parameters(layers: pd.DataFrame) -> int:
    """Parameters of L1 (c_out, r) and L2 (r, c_in k k) in every layer; r is BRANCH_RANK, at most the full rank."""
    with_weights = layers[layers["weights"] > 0]
    fan_in = with_weights["weights"] // with_weights["out_channels"]
    ranks = pd.concat([fan_in, with_weights["out_channels"]], axis=1).min(axis=1).clip(upper=BRANCH_RANK)
    return int((ranks * (fan_in + with_weights["out_channels"])).sum())


def full_precision_residual(layers: pd.DataFrame) -> pd.DataFrame:
    """What the printed full-precision row can be made of: rows what, params_M, ops_G; the last is what is left."""
    params, operations = paper_table(2).set_index("bits").loc[FULL, ["params_M", "ops_G"]].astype(float)
    missing = params - _full_params(layers), operations - _full_operations(layers)
    tagger = 2 * TAGGER_MACS / 1e9
    rows = [
        ("UNet and VAE, convolutions and linear layers", _network(layers) / 1e6, _operations_g(layers)),
        ("text tower, 24 layers", TEXT_TOWER_PARAMETERS / 1e6, 2 * TEXT_TOWER_MACS / 1e9),
        ("counted", _full_params(layers), _full_operations(layers)),
        ("printed", params, operations),
        ("printed - counted", *missing),
        ("image tagger's encoder (Swin-L at 384x384)", 0.0, tagger),
        ("left unexplained", missing[0], missing[1] - tagger),
    ]
    return pd.DataFrame(rows, columns=["what", "params_M", "ops_G"])


def _network(layers: pd.DataFrame) -> int:
    return int(layers[PARAMETERS].to_numpy().sum())


def _full_params(layers: pd.DataFrame) -> float:
    return (_network(layers) + TEXT_TOWER_PARAMETERS) / 1e6


def _full_operations(layers: pd.DataFrame) -> float:
    return _operations_g(layers) + 2 * TEXT_TOWER_MACS / 1e9
