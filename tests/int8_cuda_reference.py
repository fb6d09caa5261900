"""What the GPU's kernels compute, in plain PyTorch on any device; and, run as a script, the kernels against it.

The script wants TRITON_INTERPRET=1 and then needs no GPU: Triton's interpreter runs the kernels in NumPy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qartsr_lib.deploy.geometry import Geometry, side_output, side_products

#: (images, height, width, c_in, c_out, rank, kernel, stride, padding, dilation); kernel None for a linear layer.
CASES = (
    (1, 1, 37, 40, 130, 3, None, 1, 0, 1),
    (1, 1, 5, 70, 33, 0, None, 1, 0, 1),
    (1, 9, 7, 33, 20, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    (2, 9, 7, 5, 18, 2, (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 11, 6, 100, 35, 17, (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 9, 8, 33, 70, 4, (3, 3), (2, 2), (1, 1), (1, 1)),
    (1, 9, 9, 3, 4, 1, (3, 3), (2, 2), (0, 0), (1, 1)),
    (1, 8, 7, 6, 5, 2, (2, 3), (1, 2), (1, 2), (2, 1)),
)


#: (images, positions, channels, groups); from 8192 positions on tiles are larger.
NORM_CASES = ((1, 70, 24, 4), (2, 33, 130, 13), (1, 64, 320, 32), (1, 8200, 8, 2))


def reference_normalize(x, groups, weight, bias, eps, silu):
    """See triton_kernels.group_norm.group_norm."""
    exact = torch.promote_types(x.dtype, torch.float32)
    y = F.group_norm(x.transpose(1, 2).to(exact), groups, weight.to(exact), bias.to(exact), eps).transpose(1, 2)
    return (F.silu(y) if silu else y).to(x.dtype).contiguous()


def reference_encode(x, phi, offset, zero_point, scale, largest, lowest, padded, half):
    """See triton_kernels.encode.encode."""
    value = x.float()
    scaled = value if offset is None else value - offset
    scaled = scaled if phi is None else scaled / phi
    codes = torch.sub(scaled, zero_point).div(scale).clamp(0, largest).round() + lowest
    seen = None if half == 0 else (value, scaled)[half - 1].bfloat16()
    return F.pad(codes, (0, padded - x.shape[-1])).to(torch.int8), codes.sum(-1).int(), seen


def reference_multiply(
    codes, sums, weight, scale, sum_scale, border, products, side_out, geometry, dtype, exact=torch.float64
):
    """See triton_kernels.product.multiply; integer sums are exact, the rest is in `exact`."""
    if geometry is None:
        total = codes.to(exact) @ weight[:, 0].to(exact).t()
        under = sums.to(exact)
    else:
        image = codes.permute(0, 3, 1, 2).to(exact)
        kernel = weight.to(exact).movedim(1, 2).unflatten(2, geometry.kernel)
        shape = (geometry.stride, geometry.padding, geometry.dilation)
        total = F.conv2d(image, kernel, None, *shape).permute(0, 2, 3, 1)
        ones = torch.ones(1, 1, *geometry.kernel, dtype=exact, device=codes.device)
        under = F.conv2d(sums[:, None].to(exact), ones, None, *shape)[:, 0]
    constant = border.table[0, 0]
    if border.table.shape[:2] != (1, 1):
        constant = border.table[border.row_class.long()][:, border.column_class.long()]
    y = total * scale + under[..., None] * sum_scale + constant
    if products is not None:
        side_out = side_out.to(exact)
        y = y + (side_output(products, side_out, geometry) if geometry else products.to(exact) @ side_out.t())
    return y.to(dtype)


def case(images, height, width, c_in, c_out, rank, kernel, stride, padding, dilation, device="cpu", seed=0):
    """(arguments of encode, of multiply beyond codes and sums) for random numbers of these sizes."""
    from tests.benchmarks.gpu.triton_kernels.product import Border

    torch.manual_seed(seed)
    geometry = None if kernel is None else Geometry(kernel, stride, padding, dilation)
    padded = -(-c_in // 32) * 32
    x = torch.randn(images, height * width, c_in) * 3
    quantizer = (torch.rand(c_in) + 0.5, None, torch.tensor(-4.3), torch.tensor(0.6))
    taps = 1 if geometry is None else kernel[0] * kernel[1]
    weight = torch.zeros(c_out, taps, padded, dtype=torch.int8)
    weight[..., :c_in] = torch.randint(-128, 128, (c_out, taps, c_in))
    one = torch.zeros(1, dtype=torch.int32)
    border = (torch.randn(1, 1, c_out), one, one)
    if geometry is not None:
        size = geometry.outputs(height, 0), geometry.outputs(width, 1)
        border = (torch.randn(3, 2, c_out), torch.randint(3, size[:1]).int(), torch.randint(2, size[1:]).int())
    products = side_out = None
    if rank:
        half, rows = x.bfloat16().unflatten(1, (height, width)), torch.randn(taps * rank, c_in).bfloat16()
        products = side_products(half, rows, geometry or Geometry()).to(device)
        products = products if geometry else products[0, :, 0].movedim(0, -1).contiguous()
        side_out = torch.randn(c_out, rank).to(device)
    of_encode = [None if part is None else part.to(device) for part in (x, *quantizer)]
    of_multiply = [weight.to(device), torch.rand(c_out, device=device) * 1e-2, torch.randn(c_out, device=device) * 1e-2]
    of_multiply += [Border(*(part.to(device) for part in border)), products, side_out, geometry]
    return (of_encode, padded), of_multiply


def check(sizes, device="cpu"):
    """The kernels against the reference for one of CASES; codes and sums are equal, outputs to 1e-5."""
    from tests.benchmarks.gpu.triton_kernels.encode import encode
    from tests.benchmarks.gpu.triton_kernels.product import multiply
    from tests.benchmarks.gpu.triton_kernels.tiles import Tiles

    (of_encode, padded), of_multiply = case(*sizes, device=device)
    x, *quantizer = of_encode
    offset = torch.randn(x.shape[-1]).to(device)
    for largest, lowest, half, shift in ((15, 0, 1, None), (255, -128, 2, offset)):
        quantizer[1] = shift
        for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2), x.bfloat16()):
            found = encode(given, *quantizer, largest, lowest, padded, half)
            wanted = reference_encode(given, *quantizer, largest, lowest, padded, half)
            assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1]), (sizes, largest)
            # The interpreter cuts off where a GPU rounds to bfloat16.
            assert torch.allclose(found[2].float(), wanted[2].float(), rtol=0 if x.is_cuda else 2**-7), (sizes, half)
        codes, sums = (part.unflatten(1, sizes[1:3]) for part in wanted[:2])
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3)):
            found = multiply(codes, sums, *of_multiply, dtype)
            wanted_y = reference_multiply(codes, sums, *of_multiply, torch.float64)
            apart = float((found.double() - wanted_y).abs().max() / wanted_y.abs().max())
            assert found.dtype == dtype and found.shape == wanted_y.shape and apart <= tolerance, (sizes, dtype, apart)
            for splits in (1, 3):  # more than one of a few steps has none
                again = multiply(codes, sums, *of_multiply, dtype, Tiles(64, 64, 32, 4, splits))
                assert torch.allclose(again, found, atol=tolerance * float(wanted_y.abs().max())), (sizes, splits)


def check_norm(images, positions, channels, groups, device="cpu"):
    """GroupNorm's kernels against PyTorch, for channels first and last."""
    from tests.benchmarks.gpu.triton_kernels.group_norm import group_norm

    torch.manual_seed(0)
    x = torch.randn(images, positions, channels) * (torch.rand(channels) + 0.5) + 10 * torch.randn(channels)
    x = x.to(device)
    weight, bias = torch.randn(2, channels, device=device)
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2), x.bfloat16()):
        # The interpreter cuts off where a GPU rounds to bfloat16.
        tolerance = 2e-6 if given.dtype == torch.float32 else 2**-8 if x.is_cuda else 2**-7
        for silu in (False, True):
            wanted = reference_normalize(given, groups, weight, bias, 1e-5, silu)
            found = group_norm(given, groups, weight, bias, 1e-5, silu)
            assert found.dtype == wanted.dtype and found.is_contiguous()
            apart = float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())
            assert apart <= tolerance, (x.shape, given.dtype, silu, apart)
            assert torch.equal(found, group_norm(given, groups, weight, bias, 1e-5, silu))


if __name__ == "__main__":
    for sizes in CASES:
        check(sizes)
        print("equal:", sizes, flush=True)
    for sizes in NORM_CASES:
        check_norm(*sizes)
        print("equal:", sizes, flush=True)
