"""Quantized attention products."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.quant.attention import PRODUCT_INPUTS, QuantAttnProcessor
from qartsr_lib.quant.quantizers import QuantizerConfig
from qartsr_lib.quant.states import QuantState, calibrate, in_state


def attention(kind, bits=4, processor=None):
    """(quantized module, float twin, its inputs) for self-, cross- and VAE-style attention."""
    shapes = {
        "self": ({"query_dim": 8, "heads": 2, "dim_head": 4}, (2, 9, 8), None),
        "cross": ({"query_dim": 8, "cross_attention_dim": 6, "heads": 2, "dim_head": 4}, (2, 9, 8), (2, 3, 6)),
        "vae": (
            {
                "query_dim": 8,
                "heads": 1,
                "dim_head": 8,
                "norm_num_groups": 4,
                "residual_connection": True,
                "bias": True,
            },
            (2, 8, 3, 3),
            None,
        ),
    }
    options, shape, context = shapes[kind]
    twins = []
    for _ in range(2):
        torch.manual_seed(0)
        twins.append(Attention(**options, processor=processor).eval().requires_grad_(False))
    module, twin = twins
    module.set_processor(QuantAttnProcessor(module.get_processor(), QuantizerConfig(bits), kind))
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=generator)]
    inputs += [] if context is None else [torch.randn(context, generator=generator)]
    return module, twin, inputs


KINDS = pytest.mark.parametrize("kind", ["self", "cross", "vae"])


@KINDS
@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0()])
def test_full_precision_has_the_bits_of_the_replaced_processor(kind, processor):
    module, twin, inputs = attention(kind, processor=processor)
    with in_state(module, QuantState.FULL_PRECISION):
        assert torch.equal(module(*inputs), twin(*inputs))


@KINDS
def test_calibration_computes_what_diffusers_computes(kind):
    module, twin, inputs = attention(kind, processor=AttnProcessor())
    with in_state(module, QuantState.CALIBRATING):
        assert torch.equal(module(*inputs), twin(*inputs))


@KINDS
def test_eight_bits_are_near_and_two_bits_are_far(kind):
    errors = []
    for bits in (8, 2):
        module, twin, inputs = attention(kind, bits)
        calibrate(module, lambda items, run=module: run(*items), [inputs])
        errors.append((module(*inputs) - twin(*inputs)).abs().max().item())
    assert errors[0] < 0.02 < errors[1]


def test_products_are_quantized_as_written():
    """Against the definition, spelled out for one head."""
    torch.manual_seed(0)
    module = Attention(query_dim=6, heads=1, dim_head=6).eval().requires_grad_(False)
    module.set_processor(QuantAttnProcessor(module.get_processor(), QuantizerConfig(3), "attn"))
    x = torch.randn(1, 5, 6)
    calibrate(module, module, [x])
    quantizers = module.processor.quantizers
    q, k, v = (
        quantizers[part](project(x))
        for part, project in (("query", module.to_q), ("key", module.to_k), ("value", module.to_v))
    )
    weights = quantizers["softmax"](torch.softmax(q @ k.transpose(1, 2) / 6**0.5, dim=-1))
    torch.testing.assert_close(module(x), module.to_out[0](weights @ v))
    assert weights.unique().numel() <= 8


def test_uncalibrated_products_name_themselves():
    module, _, inputs = attention("self")
    with pytest.raises(QartsrError, match=r"self \((query|key|value)\): quantizer not calibrated"):
        module(*inputs)


def test_state_dict_carries_the_ranges():
    module, _, inputs = attention("self")
    calibrate(module, module, inputs)
    names = {f"processor.quantizers.{part}.{tensor}" for part in PRODUCT_INPUTS for tensor in ("scale", "zero_point")}
    assert names <= set(module.state_dict())
    other, _, _ = attention("self")
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*inputs), module(*inputs))
