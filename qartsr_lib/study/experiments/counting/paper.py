"""Rule `paper`: how the numbers of the paper's Table 2 arise.

The paper names no rule ("following the methodology adopted in prior quantization studies"). This one is
inferred from its integers and its printed reductions:

    Params(b) = (weights b + (biases + norms) 32 + branch 16) / 32
    Ops(b)    = 2 MACs b / 32

Weights of Conv2d and Linear in b bits; biases and normalizations in 32; the branch L of Eq. (9) at
rank 4 in all layers, in 16 bits. MACs of Conv2d and Linear alone: attention products, the low-rank
branch and everything elementwise are left out. UNet and VAE only. The full-precision row adds the text
tower of 24 layers, and its operations seem to include the image tagger's too.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qartsr_lib.quant.bits import FLOAT_BITS, parse_bits
from qartsr_lib.study.experiments.counting.companions import TAGGER_ENCODER, TEXT_TOWER
from qartsr_lib.study.paper import paper_table

BRANCH_RANK, BRANCH_BITS = 4, 16
FULL = str(parse_bits("W32A32"))


def paper_rows(layers: pd.DataFrame, bits: Sequence[str]) -> pd.DataFrame:
    """Table 2 by the paper's rule.

    Args:
        layers: of `trace`.
        bits: such as "W4A4"; weights and activations share one width.

    Returns:
        The full-precision row, then one row per bit width: method, bits, params_M (32-bit
        equivalents, millions), params_reduction_pct, ops_G, ops_reduction_pct. Reductions are against
        the paper's printed 1,303 M and 4,523 G.
    """
    printed = paper_table(2).set_index("bits").loc[FULL]
    rows = [("OSEDiff", FULL, _full_params(layers), 0.0, _full_operations(layers), 0.0)]
    for width in bits:
        params, operations = params_m(layers, parse_bits(width).w), operations_g(layers, parse_bits(width).a)
        reductions = 100 * (1 - params / printed["params_M"]), 100 * (1 - operations / printed["ops_G"])
        rows.append(("QArtSR", width, params, reductions[0], operations, reductions[1]))
    return pd.DataFrame(
        rows, columns=["method", "bits", "params_M", "params_reduction_pct", "ops_G", "ops_reduction_pct"]
    )


def params_m(layers: pd.DataFrame, width: int) -> float:
    """Millions of 32-bit equivalents of UNet and VAE with weights in `width` bits."""
    kept = int(layers["biases"].sum() + layers["other_parameters"].sum())
    stored = int(layers["weights"].sum()) * width + kept * FLOAT_BITS + branch_parameters(layers) * BRANCH_BITS
    return stored / FLOAT_BITS / 1e6


def operations_g(layers: pd.DataFrame, width: int = FLOAT_BITS) -> float:
    """G operations of Conv2d and Linear, scaled by width / 32."""
    macs = int(layers.loc[layers["kind"].isin(["Conv2d", "Linear"]), "macs"].sum())
    return 2 * macs * width / FLOAT_BITS / 1e9


def branch_parameters(layers: pd.DataFrame, rank: int = BRANCH_RANK) -> int:
    """Parameters of L1 (c_out, r) and L2 (r, c_in k k) in every layer, r at most the full rank."""
    with_weights = layers[layers["weights"] > 0]
    fan_in = with_weights["weights"] // with_weights["out_channels"]
    ranks = pd.concat([fan_in, with_weights["out_channels"]], axis=1).min(axis=1).clip(upper=rank)
    return int((ranks * (fan_in + with_weights["out_channels"])).sum())


def full_precision_residual(layers: pd.DataFrame) -> pd.DataFrame:
    """What the printed full-precision row can be made of: rows what, params_M, ops_G; the last is what is left."""
    printed = paper_table(2).set_index("bits").loc[FULL]
    network = int(layers[["weights", "biases", "other_parameters"]].to_numpy().sum()) / 1e6
    rows = [
        ("UNet and VAE, convolutions and linear layers", network, operations_g(layers)),
        ("text tower, 24 layers", TEXT_TOWER.parameters / 1e6, 2 * TEXT_TOWER.macs / 1e9),
        ("counted", _full_params(layers), _full_operations(layers)),
        ("printed", float(printed["params_M"]), float(printed["ops_G"])),
    ]
    missing = rows[3][1] - rows[2][1], rows[3][2] - rows[2][2]
    tagger = 2 * TAGGER_ENCODER.macs / 1e9
    rows += [
        ("printed - counted", *missing),
        ("image tagger's encoder (Swin-L at 384x384)", 0.0, tagger),
        ("left unexplained", missing[0], missing[1] - tagger),
    ]
    return pd.DataFrame(rows, columns=["what", "params_M", "ops_G"])


def _full_params(layers: pd.DataFrame) -> float:
    network = int(layers[["weights", "biases", "other_parameters"]].to_numpy().sum())
    return (network + TEXT_TOWER.parameters) / 1e6


def _full_operations(layers: pd.DataFrame) -> float:
    return operations_g(layers) + 2 * TEXT_TOWER.macs / 1e9
