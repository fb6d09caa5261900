"""Fake quantization against torch's operators, float64 closed forms and its own laws."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from qartsr_lib.quant import loops
from qartsr_lib.quant.primitives import (
    SCALE_FLOOR,
    affine_qparams,
    dequantize,
    fake_quantize,
    integer_range,
    quantize,
    round_ste,
    symmetric_qparams,
)

BITS = st.integers(2, 8)
FLOATS = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-1e6, 1e6, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30),
)


def affine(x, bits, zero_point="real"):
    """Fake quantization of a tensor over its own min/max."""
    scale, offset = affine_qparams(x.min(), x.max(), bits, zero_point)
    return fake_quantize(x, scale, offset, *integer_range(bits)), scale, offset


def half_way(steps):
    """Elements so near a tie that two ways of dividing may round them differently."""
    return (steps - steps.floor() - 0.5).abs() < 1e-4


# ---- oracles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_zero_point_has_the_bits_of_torch_on_exact_scales(bits):
    x = torch.arange(-800, 800) / 64  # with scale 1/16 this hits every tie
    # torch rounds x / s before it adds the code of zero, Eq. 3 after: an even code keeps ties to even equal.
    scale, code_of_zero = torch.tensor(1 / 16), 2 ** (bits - 1)
    ours = fake_quantize(x, scale, -code_of_zero * scale, *integer_range(bits))
    theirs = torch.fake_quantize_per_tensor_affine(x, 1 / 16, code_of_zero, 0, 2**bits - 1)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_zero_point_agrees_with_torch_per_tensor(bits):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(bits)) * 3 + 1
    ours, scale, offset = affine(x, bits, "integer")
    code_of_zero = round(-offset.item() / scale.item())
    theirs = torch.fake_quantize_per_tensor_affine(x, scale.item(), code_of_zero, 0, 2**bits - 1)
    clear = ~half_way(x / scale)
    assert clear.float().mean() > 0.99
    torch.testing.assert_close(ours[clear], theirs[clear], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_agrees_with_torch_per_channel(bits):
    x = torch.randn(6, 400, generator=torch.Generator().manual_seed(bits))
    scale = symmetric_qparams(x.amin(1, keepdim=True), x.amax(1, keepdim=True), *integer_range(bits, True))
    qmin, qmax = integer_range(bits, symmetric=True)
    ours = fake_quantize(x, scale, None, qmin, qmax)
    zeros = torch.zeros(6, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(x, scale.flatten(), zeros, 0, qmin, qmax)
    clear = ~half_way(x / scale)
    torch.testing.assert_close(ours[clear], theirs[clear], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", range(2, 9))
def test_real_zero_point_is_equation_3_in_float64(bits):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(bits)) * 2 + 5
    ours, _, _ = affine(x, bits)
    exact = x.numpy().astype(np.float64)
    low, levels = exact.min(), 2**bits - 1
    step = (exact.max() - low) / levels
    codes = np.clip(np.rint((exact - low) / step), 0, levels)
    clear = ~half_way(torch.from_numpy((exact - low) / step)).numpy()
    np.testing.assert_allclose(ours.numpy()[clear], (codes * step + low)[clear], rtol=0, atol=1e-5)


def test_two_bits_on_minus_one_to_one():
    """The worked example of PassionSR's rounded zero-point: it clips the maximum, Eq. 3 does not."""
    x = torch.tensor([-1.0, -0.3, 0.3, 1.0])
    real, _, _ = affine(x, 2)
    torch.testing.assert_close(real, torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    scale, offset = affine_qparams(x.min(), x.max(), 2, "integer")
    torch.testing.assert_close(offset / scale, torch.tensor(-2.0))
    rounded = fake_quantize(torch.tensor([-1.1, -0.9, 0.3, 1.0]), scale, offset, 0, 3)
    torch.testing.assert_close(rounded, torch.tensor([-4 / 3, -2 / 3, 0, 2 / 3]))


@pytest.mark.parametrize(("symmetric", "expected"), [(False, (0, 3)), (True, (-2, 1))])
def test_code_ranges_at_two_bits(symmetric, expected):
    assert integer_range(2, symmetric) == expected


@pytest.mark.parametrize(
    ("lower", "upper", "expected"), [(-2.0, 1.0, 1.0), (-1.0, 3.0, 3.0), (0.5, 1.0, 1.0), (-4.0, -1.0, 2.0)]
)
def test_symmetric_scale_is_the_smallest_that_covers(lower, upper, expected):
    """At 2 bits: codes -2 .. 1."""
    assert symmetric_qparams(torch.tensor(lower), torch.tensor(upper), *integer_range(2, True)).item() == expected


# ---- laws --------------------------------------------------------------------------------------


@given(FLOATS, BITS)
@settings(deadline=None)
def test_idempotent(values, bits):
    x = torch.from_numpy(values)
    once, scale, offset = affine(x, bits)
    assert torch.equal(fake_quantize(once, scale, offset, *integer_range(bits)), once)


@given(FLOATS, BITS)
@settings(deadline=None)
def test_monotonic_with_at_most_2_to_the_b_values(values, bits):
    quantized, _, _ = affine(torch.from_numpy(np.sort(values)), bits)
    assert (quantized.diff() >= 0).all()
    assert quantized.unique().numel() <= 2**bits


@given(FLOATS, BITS)
@settings(deadline=None)
def test_error_is_at_most_half_a_step_inside_the_range(values, bits):
    x = torch.from_numpy(values)
    quantized, scale, _ = affine(x, bits)
    rounding = 4e-7 * x.abs().max().item()
    assert (quantized - x).abs().max().item() <= scale.item() / 2 + rounding


@given(FLOATS, BITS)
@settings(deadline=None)
def test_symmetric_covers_the_range_and_keeps_zero(values, bits):
    x = torch.cat([torch.from_numpy(values), torch.zeros(1)])
    scale = symmetric_qparams(x.min(), x.max(), *integer_range(bits, True))
    quantized = fake_quantize(x, scale, None, *integer_range(bits, True))
    assert (quantized - x).abs().max().item() <= scale.item() / 2 + 4e-7 * x.abs().max().item()
    assert quantized[-1] == 0


@given(FLOATS, BITS)
@settings(deadline=None)
def test_integer_zero_point_keeps_zero_exact(values, bits):
    x = torch.cat([torch.from_numpy(values), torch.zeros(1)])
    quantized, scale, offset = affine(x, bits, "integer")
    assert quantized[-1] == 0
    code = (-offset / scale).item()
    assert abs(code - round(code)) < 1e-4 and 0 <= round(code) <= 2**bits - 1


@given(st.floats(-(2.0**100), 2.0**100, width=32), BITS, st.sampled_from(["real", "integer"]))
@settings(deadline=None)
def test_constant_tensor_is_reproduced(value, bits, zero_point):
    x = torch.full((3,), value)
    quantized, scale, _ = affine(x, bits, zero_point)
    assert scale >= SCALE_FLOOR
    if zero_point == "real" or value == 0:
        assert torch.equal(quantized, x)
    torch.testing.assert_close(quantized, x, rtol=1e-6, atol=1e-11)


@given(st.floats(-(2.0**100), 2.0**100, width=32), BITS, st.booleans())
@settings(deadline=None)
def test_constant_tensor_is_reproduced_symmetric(value, bits, narrow):
    x = torch.full((3,), value)
    scale = symmetric_qparams(x.min(), x.max(), *integer_range(bits, True))
    quantized = fake_quantize(x, scale, None, *integer_range(bits, True))
    torch.testing.assert_close(quantized, x, rtol=1e-6, atol=1e-11)


def test_nan_passes_and_infinity_is_clipped():
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.5])
    quantized = fake_quantize(x, torch.tensor(0.5), torch.tensor(-1.0), 0, 3)
    assert quantized[0].isnan()
    assert quantized[1:].tolist() == [0.5, -1.0, 0.5]


# ---- one formula -------------------------------------------------------------------------------


@given(FLOATS, BITS, st.booleans())
@settings(deadline=None)
def test_gradient_path_and_codes_give_the_same_bits(values, bits, symmetric):
    x = torch.from_numpy(values)
    code_range = integer_range(bits, symmetric)
    scale, offset = affine_qparams(x.min(), x.max(), bits)
    if symmetric:
        scale, offset = symmetric_qparams(x.min(), x.max(), *integer_range(bits, True)), None
    plain = fake_quantize(x, scale, offset, *code_range)
    for learn_x, learn_scale in ((True, False), (False, True), (True, True)):
        with_gradient = fake_quantize(
            x.clone().requires_grad_(learn_x), scale.clone().requires_grad_(learn_scale), offset, *code_range
        )
        assert with_gradient.requires_grad
        assert torch.equal(with_gradient, plain)
    codes = quantize(x, scale, offset, *code_range)
    assert torch.equal(codes, codes.round()) and codes.min() >= code_range[0] and codes.max() <= code_range[1]
    assert torch.equal(dequantize(codes, scale, offset), plain)


def test_input_is_left_alone_and_memory_format_kept():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    scale, offset = torch.full((3, 1, 1), 0.1), torch.zeros(3, 1, 1)
    quantized = fake_quantize(x, scale, offset, 0, 15)
    assert torch.equal(x, before)
    assert quantized.is_contiguous(memory_format=torch.channels_last)
    codes = quantize(x, scale, offset, 0, 15)
    kept = codes.clone()
    dequantize(codes, scale, offset)
    assert torch.equal(codes, kept)


# ---- gradients ---------------------------------------------------------------------------------


def gradients(x, scale, offset, code_range, weights):
    """Gradients of sum(weights x_hat) in x, scale and offset."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, scale, offset) if tensor is not None]
    offset = inputs[2] if len(inputs) == 3 else None
    (fake_quantize(inputs[0], inputs[1], offset, *code_range) * weights).sum().backward()
    return [tensor.grad for tensor in inputs]


def reference_gradients(x, scale, offset, code_range, weights):
    """The same by autograd in float64 through clamp and a straight-through round."""
    x, scale, offset = (tensor.double().requires_grad_() for tensor in (x, scale, offset))
    steps = ((x - offset) / scale).clamp(*code_range)
    codes = steps + (steps.round() - steps).detach()
    ((codes * scale + offset) * weights.double()).sum().backward()
    return x.grad, scale.grad, offset.grad


@given(arrays(np.float32, (3, 12), elements=st.floats(-4, 4, width=32)), BITS, st.integers(0, 2**31))
@settings(deadline=None)
def test_gradients_match_autograd_in_float64(values, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(values)
    scale = torch.rand(3, 1, generator=generator) * 0.2 + 0.01
    offset = torch.randn(3, 1, generator=generator)
    weights = torch.randn(3, 12, generator=generator)
    code_range = integer_range(bits)
    steps = (x.double() - offset) / scale
    for edge in code_range:  # at the borders of the range and at ties float32 and float64 may choose differently
        x = torch.where((steps - edge).abs() < 1e-3, x + 0.2 * scale, x)
    x = torch.where(half_way((x.double() - offset) / scale), x + 0.1 * scale, x)
    ours = gradients(x, scale, offset, code_range, weights)
    for mine, reference in zip(ours, reference_gradients(x, scale, offset, code_range, weights), strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-3, atol=1e-2 * 2**bits / 256 + 1e-4)


def test_gradient_of_equation_4():
    """1 inside [lower, upper], 0 outside, also where the nearest code would still be the last one."""
    x = torch.tensor([-1.2, -1.05, -0.9, 0.0, 0.9, 1.05, 1.2], requires_grad=True)
    scale, offset = affine_qparams(torch.tensor(-1.0), torch.tensor(1.0), 4)
    fake_quantize(x, scale, offset, 0, 15).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("x", "expected"), [(0.7, 1.0), (0.3, 0.4), (-0.3, -0.4), (-1.7, -2.0)])
def test_lsq_gradient_of_the_scale(x, expected):
    """LSQ: round(v) - v inside, the last code outside (2-bit signed codes -2 .. 1, scale 0.5)."""
    _, grad_scale = gradients(torch.tensor([x]), torch.tensor(0.5), None, (-2, 1), torch.ones(1))
    assert grad_scale.item() == pytest.approx(expected, abs=1e-6)


def test_clipped_above_as_in_efficientdm():
    """x_hat = (n - zp) delta: d/dx = 0, d/dzp = -delta, d/ddelta = n - zp."""
    x = torch.tensor([9.0], requires_grad=True)
    delta, zp = torch.tensor(0.5, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    fake_quantize(x, delta, -zp * delta, 0, 15).sum().backward()
    assert (x.grad.item(), zp.grad.item(), delta.grad.item()) == (0, -0.5, 12)


@pytest.mark.parametrize("reach", [0.0, 0.5])
def test_rounding_before_clipping_passes_gradients_half_a_step_further(reach, monkeypatch):
    """At v steps: (d/dx, d/ds, d/dz) is (1, round(v) - v, 0) inside and (0, last code, 1) outside; codes 0 .. 15."""
    beyond = {-0.4: (1, 0.4, 0), 15.4: (1, -0.4, 0)} if reach else {-0.4: (0, 0, 1), 15.4: (0, 15, 1)}
    cases = {-0.6: (0, 0, 1), 0.3: (1, -0.3, 0), 14.8: (1, 0.2, 0), 15.6: (0, 15, 1)} | beyond
    for compiled in (True, False):
        for steps, expected in cases.items():
            x, scale, offset = (torch.tensor([value], requires_grad=True) for value in (0.5 * steps - 1, 0.5, -1.0))
            found = fake_quantize(x, scale, offset, 0, 15, reach)
            gradients = torch.autograd.grad(found.sum(), (x, scale, offset))
            assert [float(gradient) for gradient in gradients] == pytest.approx(expected, abs=1e-5), (compiled, steps)
            (alone,) = torch.autograd.grad(fake_quantize(x, scale.detach(), offset.detach(), 0, 15, reach).sum(), x)
            assert float(alone) == expected[0]
            assert torch.equal(found, fake_quantize(x.detach(), scale.detach(), offset.detach(), 0, 15))
        monkeypatch.setattr(loops, "library", lambda: None)


@pytest.mark.parametrize("zero_point", ["real", "integer"])
def test_learned_bounds_gradient(zero_point):
    """LBQ: above the range d/du = 1, below d/dl = 1, inside (round(v) - v) shared out over the bounds."""
    lower, upper = torch.tensor(-1.5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    levels = 15
    for value in (5.0, -5.0, 0.2):
        lower.grad = upper.grad = None
        scale, offset = affine_qparams(lower, upper, 4, zero_point)
        fake_quantize(torch.tensor([value]), scale, offset, 0, levels).sum().backward()
        if zero_point == "real":
            steps = (value + 1.5) / (2.5 / levels)
            inside = (round(steps) - steps) / levels
            # x_hat = l + (u - l) code / n, so with a straight-through code: d/du = (code - v) / n = -d/dl
            expected = {5.0: (0, 1), -5.0: (1, 0), 0.2: (-inside, inside)}[value]
        else:
            # z = round(l / delta) = -9: x_hat = z delta below, (n + z) delta above; d(z delta)/dl = 1 by STE,
            # d(z delta)/d delta = z - l / delta = 0 here, as -1.5 / (2.5 / 15) is the whole number -9.
            steps = value / (2.5 / levels)
            inside = (round(steps) - steps) / levels
            expected = {5.0: (0, 1), -5.0: (1, 0), 0.2: (-inside, inside)}[value]
        assert lower.grad.item() == pytest.approx(expected[0], abs=1e-5)
        assert upper.grad.item() == pytest.approx(expected[1], abs=1e-5)


def test_crossed_bounds_stay_finite():
    lower, upper = torch.tensor(1.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    scale, offset = affine_qparams(lower, upper, 4)
    fake_quantize(torch.tensor([0.3]), scale, offset, 0, 15).sum().backward()
    assert scale > 0 and lower.grad.isfinite() and upper.grad.isfinite()


def test_round_ste_rounds_with_the_gradient_of_the_identity():
    x = torch.tensor([0.4, 0.5, 1.5, -2.6], requires_grad=True)
    rounded = round_ste(x)
    rounded.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert rounded.tolist() == [0, 0, 2, -3]
    assert x.grad.tolist() == [1, 2, 3, 4]


def test_unknown_zero_point_is_refused():
    with pytest.raises(ValueError, match="zero_point"):
        affine_qparams(torch.tensor(0.0), torch.tensor(1.0), 4, "rounded")
