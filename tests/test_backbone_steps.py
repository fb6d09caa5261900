"""The chain of steps is the network, bit by bit, from any point on."""

import pytest
import torch

from qartsr_lib.backbones import load_backbone
from qartsr_lib.backbones.steps import Flow, steps


def run(chain, flow):
    """Pass `flow` through all steps."""
    for _, step in chain:
        flow = step(flow)
    return flow


@pytest.fixture(scope="module", params=[("embedded", 1000), ("embedded-scaled", 1)], ids=lambda cell: cell[0])
def model(request):
    return load_backbone(*request.param)


@pytest.fixture(scope="module")
def upscaled():
    torch.manual_seed(0)
    return torch.rand(2, 3, 64, 48).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_the_chain_is_the_network(model, upscaled):
    assert torch.equal(run(steps(model), Flow(upscaled)).x, model(upscaled))


def test_names_are_those_of_the_blocks(model):
    assert [name for name, _ in steps(model)] == [name for name, _ in model.blocks_in_order()]


@torch.no_grad()
def test_every_point_can_be_entered(model, upscaled):
    chain, expected, flow = steps(model), model(upscaled), Flow(upscaled)
    for position, (name, step) in enumerate(chain):
        copied = Flow(flow.x.clone(), *(t if t is None else t.clone() for t in (flow.z_l, flow.embedding)), flow.skips)
        assert torch.equal(run(chain[position:], copied).x, expected), name
        flow = step(flow)
    assert len(flow.tensors()) == 1  # nothing is dragged along to the end


def test_gradients_stop_where_the_flow_enters(model, upscaled):
    chain = steps(model)
    with torch.no_grad():
        flow = run(chain[:-1], Flow(upscaled))
    last = model.vae.decoder.conv_out
    last.weight.requires_grad_(True)
    try:
        run(chain[-1:], flow).x.sum().backward()
        assert last.weight.grad is not None and float(last.weight.grad.abs().sum()) > 0
    finally:
        last.weight.requires_grad_(False).grad = None
