"""What an integer layer does before and after its product: element by element, compiled into one loop each.

torch.compile makes them for all sizes at the first call (seconds, kept on disk); without a C++ compiler they run
uncompiled and slower. Compiling whole networks was tried: minutes for every size of image, and not faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch

from qartsr_lib.deploy.geometry import Geometry, side_output

#: Layers differ in a few things that compiled code cannot leave open; torch's own limit is 8.
VARIANTS = 64


def compiled(function: Callable) -> Callable:
    """`function`, compiled at its first call where that is possible."""

    @lru_cache(maxsize=1)
    def made() -> Callable:
        if not compiler_found():
            return function
        torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
        return torch.compile(function, dynamic=True, fullgraph=True)

    @wraps(function)
    def call(*arguments):
        return made()(*arguments)

    return call


@lru_cache(maxsize=1)
def compiler_found() -> bool:
    """Whether torch.compile can work here."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


@compiled
def encode(
    x: torch.Tensor,
    phi: torch.Tensor | None,
    offset: torch.Tensor | None,
    zero_point: torch.Tensor,
    scale: torch.Tensor,
    largest: torch.Tensor,
    half: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Q_A of (x - offset) / phi.

    Args:
        x: (..., c_in).
        phi, offset: (c_in,) or None.
        zero_point, scale, largest: single numbers; codes lie in 0..largest.
        half: which input to return in bfloat16: "input", "scaled" (after phi) or "none".

    Returns:
        Codes, uint8; their sums over the channels, float32 (...); and that input.
    """
    scaled = x if offset is None else x - offset
    scaled = scaled if phi is None else scaled / phi
    codes = torch.sub(scaled, zero_point).div(scale).clamp(torch.zeros_like(largest), largest).round()
    seen = None if half == "none" else (x if half == "input" else scaled).to(torch.bfloat16)
    return codes.to(torch.uint8), codes.sum(-1), seen


@compiled
def finish_(
    y: torch.Tensor,
    sums: torch.Tensor,
    sum_scale: torch.Tensor,
    products: torch.Tensor | None,
    side_out: torch.Tensor | None,
    geometry: Geometry | None,
) -> None:
    """Add to y: sum_scale * (sum of the codes under the kernel) + L1 L2 x.

    Args:
        y: (..., c_out).
        sums: from `encode`.
        sum_scale: (c_out,).
        products, side_out: L2 x from `side_products`, and L1; or None.
        geometry: of a convolution.
    """
    under = sums if geometry is None else geometry.window_sums(sums)
    more = under[..., None] * sum_scale
    y += more if products is None else more + side_output(products, side_out, geometry)
