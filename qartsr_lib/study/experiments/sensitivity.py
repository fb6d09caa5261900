"""Notebook 13: what one quantized layer does to the image, everything else in full precision; and lists from that.

Weights alone and inputs alone, at 4 and 2 bits, on photographs of BSDS500/val that no other choice sees
(`trials.LAYERS`). The list "sensitive" of methods.setting is a greedy choice by these errors.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.backbones.steps import Flow, steps
from qartsr_lib.base.files import remembered_sha256, write_text
from qartsr_lib.base.progress import progress
from qartsr_lib.base.registry import outside
from qartsr_lib.images.datasets.calibration import calibration_list
from qartsr_lib.methods import setting
from qartsr_lib.methods.setting import EIGHT_BIT_LISTS
from qartsr_lib.quant.apply import quantize_
from qartsr_lib.quant.layers import QuantLayer
from qartsr_lib.quant.scheme import EXCEPTION_BITS, SHARED_SETTING, matches, variant
from qartsr_lib.quant.states import QuantState, calibrate_once, in_state
from qartsr_lib.study.experiments.counting.trace import trace
from qartsr_lib.study.experiments.trials import LAYERS, VALIDATION, validation_files, validation_pairs
from qartsr_lib.study.measured import Measured, measure_questions
from qartsr_lib.study.profiles import get_profile

WIDTHS = ("W4A4", "W2A2")
#: What is quantized of a layer, and by which range rule: "W" has always its own smallest and largest value.
CASES = (("W", "min-max"), ("A", "min-max"), ("A", "least-squares"))
#: The list that bounds what "sensitive" may store.
REFERENCE = "identity-path"
KEY = ("backbone", "timestep")


def measure_sensitivity(cells: Sequence[tuple[str, int]], data_root: Path, profile: str = "study") -> Measured:
    """Rows dataset, KEY, position, layer, weights, macs (for 512x512), on_lists, quantized ("W4", "A2", ...),
    ranges, error: the image's mean squared error to full precision's, in [0, 1]^2, mean over photographs.

    `cells`: (backbone, T) pairs; `profile`: whose calibration images give the ranges. `on_lists`: names in
    EIGHT_BIT_LISTS, "sensitive" apart, that have the layer.
    """
    calibration = calibration_list(get_profile(profile), data_root)
    files = validation_files(data_root, LAYERS)
    lqs = [lq for lq, _ in validation_pairs(data_root, LAYERS).values()]
    backbones = {cell: load_backbone(*cell) for cell in cells}
    questions = {
        cell: {
            "parameters": {"measurement": "sensitivity", "backbone": cell[0], "timestep": cell[1], "bits": WIDTHS},
            "weights_sha256": backbone.weights_sha256,
            "calibration": {"name": calibration.name, "sha256": calibration.sha256},
            "data": {"name": VALIDATION, "sha256": [remembered_sha256(path) for path in files]},
            **outside(cell[0]),
        }
        for cell, backbone in backbones.items()
    }

    def measure(cell: tuple[str, int]) -> pd.DataFrame:
        backbone, frames = backbones[cell], []
        for width, ranges in product(WIDTHS, ("min-max", "least-squares")):
            quantized = copy.deepcopy(backbone)
            quantize_(quantized, variant(SHARED_SETTING, ranges=ranges).at(width))
            calibrate_once(backbone, quantized, calibration.images, f"{width} {ranges}")
            upscaled = [backbone.prepare(lq) for lq in lqs]
            cases = [part for part, rule in CASES if rule == ranges]
            rows = [
                (layer, f"{part}{width[1]}", ranges, error)
                for layer, part, error in single_errors(quantized, upscaled, cases, f"{cell[0]} {width} {ranges}")
            ]
            frames.append(pd.DataFrame(rows, columns=["layer", "quantized", "ranges", "error"]))
        facts = layer_facts(backbone)
        frame = facts.merge(pd.concat(frames), on="layer")
        frame = frame.assign(dataset=VALIDATION, backbone=cell[0], timestep=cell[1])
        return frame[["dataset", *KEY, *frame.columns.drop(["dataset", *KEY])]]

    return measure_questions(profile, questions, measure)


@torch.no_grad()
def single_errors(
    quantized: OneStepSR, upscaled: Sequence[torch.Tensor], parts: Sequence[str], label: str
) -> Iterator[tuple[str, str, float]]:
    """(layer, part, error) with one layer's weight ("W") or input ("A") quantized at a time.

    Args:
        quantized: calibrated, every layer quantized.
        upscaled: (1, 3, H, W) each.
    """
    chain, blocks = steps(quantized), dict(quantized.blocks_in_order())
    with in_state(quantized, QuantState.FULL_PRECISION):
        flows = [Flow(image) for image in upscaled]
        wanted = [run(chain, flow) for flow in flows]
        for number, (name, step) in enumerate(progress(chain, label)):
            for layer in [module for module in blocks[name].modules() if isinstance(module, QuantLayer)]:
                for part in parts:
                    with in_state(layer, QuantState.QUANTIZED), _only(layer, part):
                        found = [run(chain[number:], flow) for flow in flows]
                    pairs = zip(found, wanted, strict=True)
                    yield layer.name, part, sum(float((x - y).square().mean()) for x, y in pairs) / len(wanted)
            flows = [step(flow) for flow in flows]


def run(chain: Sequence, flow: Flow) -> torch.Tensor:
    """The image behind the steps of `chain`."""
    for _, step in chain:
        flow = step(flow)
    return flow.x


class _only:
    """Within, `layer` quantizes nothing but its weight ("W") or its input ("A"); biases stay float."""

    def __init__(self, layer: QuantLayer, part: str) -> None:
        off = ("bias_quantizer", "input_quantizer" if part == "W" else "weight_quantizer")
        self.layer, self.kept = layer, {name: getattr(layer, name) for name in off}

    def __enter__(self) -> None:
        for name in self.kept:
            setattr(self.layer, name, None)
        self.layer.drop_cache()

    def __exit__(self, *error: object) -> None:
        for name, quantizer in self.kept.items():
            setattr(self.layer, name, quantizer)
        self.layer.drop_cache()


def layer_facts(backbone: OneStepSR) -> pd.DataFrame:
    """Columns position (of inference), layer, weights, macs (for 512x512), on_lists, of every quantizable layer."""
    counted = trace(backbone, 512)
    layers = counted[counted["kind"].isin(["Conv2d", "Linear"])].reset_index(drop=True)
    lists = {name: EIGHT_BIT_LISTS.get(name)(backbone) for name in EIGHT_BIT_LISTS if name != "sensitive"}
    on = [" ".join(name for name, found in lists.items() if matches(layer, found)) for layer in layers["name"]]
    facts = layers[["name", "weights", "macs"]].rename(columns={"name": "layer"}).assign(on_lists=on)
    facts.insert(0, "position", range(len(facts)))
    return facts


def choose_layers(rows: pd.DataFrame) -> list[str]:
    """The list "sensitive" from one backbone's rows of `measure_sensitivity`.

    A layer's score is its share in the sum of all single errors, weights and inputs (under fitted ranges), mean over 4
    and 2 bits: what a list that has it takes away. Layers are taken in order of score per weight, as long as the whole
    stores no more than REFERENCE does.
    """
    chosen = rows[rows["quantized"].str.startswith("W") | (rows["ranges"] == "least-squares")]
    errors = chosen.assign(bits=chosen["quantized"].str[1:]).pivot_table("error", "layer", "bits", "sum", sort=False)
    score = (errors / errors.sum()).mean(axis=1)
    facts = rows.drop_duplicates("layer").set_index("layer")
    room = facts.loc[facts["on_lists"].str.split().map(lambda names: REFERENCE in names), "weights"].sum()
    taken = []
    for layer in (score / facts["weights"]).sort_values(ascending=False).index:
        if facts.loc[layer, "weights"] <= room:
            room -= facts.loc[layer, "weights"]
            taken.append(layer)
    return [layer for layer in facts.index if layer in taken]


def write_lists(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Backbone -> its sensitive layers, from rows of `measure_sensitivity`; methods/sensitive.json gets them too."""
    chosen = {name: choose_layers(part) for name, part in rows.groupby("backbone", sort=True)}
    known = json.loads(setting.SENSITIVE.read_text(encoding="utf-8")) if setting.SENSITIVE.exists() else {}
    write_text(setting.SENSITIVE, json.dumps(known | chosen, indent=1, sort_keys=True) + "\n")
    return chosen


def list_costs(backbones: Sequence[OneStepSR], bits: Sequence[str]) -> pd.DataFrame:
    """What a list costs: rows backbone, list, bits, layers (at 8 bits), weight_bits (codes alone, per weight), and
    bit_operations, multiply-adds times the bits of weight and input, over the same without any list."""
    rows = []
    for backbone, name, width in product(backbones, EIGHT_BIT_LISTS, bits):
        found = EIGHT_BIT_LISTS.get(name)(backbone)
        facts, low = layer_facts(backbone), int(width[1])
        at_eight = pd.Series([matches(layer, found) for layer in facts["layer"]])
        widths = at_eight.map({True: EXCEPTION_BITS, False: low})
        stored = (facts["weights"] * widths).sum() / facts["weights"].sum()
        work = (facts["macs"] * widths**2).sum() / (facts["macs"].sum() * low**2)
        rows.append((backbone.name, name, width, int(at_eight.sum()), stored, work))
    return pd.DataFrame(rows, columns=["backbone", "list", "bits", "layers", "weight_bits", "bit_operations"])
