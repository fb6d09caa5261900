"""Where an image's time goes: whole, once, and without a trace."""

import itertools

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.deploy.runtimes import RUNTIMES
from qartsr_lib.methods import METHODS
from qartsr_lib.show import figures
from qartsr_lib.show import tables as reports
from qartsr_lib.study.experiments import passes

LQ = lq_images(1)[0]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def test_time_inside_another_call_counts_once(monkeypatch):
    """A clock that goes on by one at each look: a call takes one, what it calls in between takes its own."""
    ticks = itertools.count()
    monkeypatch.setattr(passes.time, "thread_time", lambda: float(next(ticks)))
    clock = passes._Clock()
    inner = clock.timed(lambda: ("block", "inner"), lambda: None)
    clock.timed(lambda: ("block", "outer"), lambda: [inner(), inner()])()
    assert dict(clock.own) == {("block", "inner"): 2.0, ("block", "outer"): 5.0 - 2.0}


def test_every_block_and_pass_of_full_precision(backbone):
    before, wanted = F.conv2d, backbone.upscale(LQ)
    rows = passes.milliseconds(backbone, LQ)
    assert F.conv2d is before and torch.equal(backbone.upscale(LQ), wanted)
    assert list(dict.fromkeys(rows["block"])) == [name for name, _ in backbone.blocks_in_order()] + [passes.REST]
    assert set(rows["pass"]) == {"product", "norm", "activation", "attention", passes.REST}
    assert (rows["ms"] >= 0).all() and not rows.duplicated(["block", "pass"]).any()


def test_integers_encode_and_finish_where_there_are_products(backbone, tmp_path):
    save_packed(METHODS.get("maxmin").build(backbone, "W4A4", lq_images()).backbone, tmp_path / "model.safetensors")
    rows = passes.milliseconds(RUNTIMES.get("int8")(load_packed(tmp_path / "model.safetensors")), LQ)
    blocks = {name: set(part["block"]) for name, part in rows.groupby("pass")}
    assert blocks["encode"] == blocks["finish"] == blocks["product"] and len(blocks["encode"]) > 10


def test_table_and_figure():
    rows = pd.DataFrame(
        [
            ("embedded", 1, "FP", "W32A32", "fp32", "unet.conv_in", "product", 7.0),
            ("embedded", 1, "FP", "W32A32", "fp32", "unet.conv_in", "rest", 2.0),
            ("embedded", 1, "MaxMin", "W4A4", "int8", "unet.conv_in", "product", 3.0),
            ("embedded", 1, "MaxMin", "W4A4", "int8", "unet.conv_in", "encode", 1.4),
        ],
        columns=[*passes.KEY, "block", "pass", "ms"],
    )
    ((_, table),) = reports.pass_sections(rows)
    assert list(table["all"]) == ["9", "4"] and list(table["encode"]) == ["", "1"]
    left, right = figures.time_by_block(rows).axes
    assert left.get_xlim() == right.get_xlim() and left.get_title().endswith("9 ms")
