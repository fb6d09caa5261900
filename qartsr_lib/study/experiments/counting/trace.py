"""One forward pass on the meta device, counted: what every layer multiplies, adds and stores.

Conventions. One multiply-add is one MAC and two operations. MACs are those of Linear, Conv2d and the
two attention products; everything else that computes (normalization, activation functions, softmax,
residual and bias additions) is counted in operations per element, `PER_ELEMENT`. Copies, padding and
up-sampling by repetition compute nothing. The arithmetic between encoder, UNet and decoder (Eq. 6 on
the latent, scaling of pixels) is left out: less than 0.01 G at 512x512.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from qartsr_lib.backbones.base import OneStepSR, parameter_count

#: Part of the network -> beginnings of the full names of its modules.
PARTS = {
    "VAE encoder": ("vae.encoder.", "vae.quant_conv."),
    "UNet": ("unet.",),
    "VAE decoder": ("vae.decoder.", "vae.post_quant_conv."),
}

#: Function -> operations per element of its result. A normalization takes one for the mean, three for
#: the variance (subtract, square, add) and three to scale twice and shift; x / (1 + exp(-x)) three;
#: the exact GELU five.
PER_ELEMENT = {
    "group_norm": 7,
    "layer_norm": 7,
    "silu": 3,
    "gelu": 5,
    "add": 1,
    "__add__": 1,
    "__iadd__": 1,
    "__radd__": 1,
    "sub": 1,
    "__sub__": 1,
    "mul": 1,
    "__mul__": 1,
    "__rmul__": 1,
    "div": 1,
    "__truediv__": 1,
}
#: Of a score: scaling, and the softmax's subtraction, exponential, sum and division.
PER_SCORE = 5

COLUMNS = (
    "part",
    "block",
    "name",
    "kind",
    "weights",
    "biases",
    "other_parameters",
    "out_channels",
    "macs",
    "inputs",
    "outputs",
    "elementwise",
)
_SUMS = ("macs", "inputs", "outputs", "elementwise")


@torch.no_grad()
def trace(model: OneStepSR, size: int) -> pd.DataFrame:
    """Count one pass of `model`, on any device, for an output of `size` x `size` pixels.

    Returns:
        One row per layer and kind in order of computation. Columns: part (of PARTS), block (of
        `model.blocks_in_order`), name (full name of the module), kind ("Linear", "Conv2d",
        "attention" for the two products of attention, "other"), weights, biases, other_parameters
        (of normalizations), out_channels, macs, inputs and outputs (elements of a Linear or
        Conv2d), elementwise (operations, bias additions included).
    """
    tally = _Tally()
    device = next(model.parameters()).device
    with _names(model, tally.stack), tally:
        model(torch.empty(1, 3, size, size, device=device))
    blocks = [name for name, _ in model.blocks_in_order()]
    modules = dict(model.named_modules())
    rows = []
    for (name, kind), sums in tally.rows.items():
        module = modules[name]
        rows.append({"part": _part(name), "block": _block(name, blocks), "name": name, "kind": kind} | sums)
        rows[-1] |= _parameters(module) if kind != "attention" else dict.fromkeys(_parameters(None), 0)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["block"] = frame["block"].bfill()  # a normalization between blocks counts with the one behind it
    _check_parameters(frame, model)
    return frame


@torch.no_grad()
def torch_operations(model: OneStepSR, size: int) -> int:
    """The same pass by torch's own counter, which knows Linear, Conv2d and attention products: 2 x our MACs."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device=device))
    return int(counter.get_total_flops())


class _Tally(TorchFunctionMode):
    """Adds up what the functions called inside a module compute, per (module, kind)."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.rows: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(_SUMS, 0))

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        if self.stack:
            self._count(getattr(function, "__name__", ""), arguments, keywords, result)
        return result

    def _count(self, function: str, arguments: tuple, keywords: dict, result: object) -> None:
        if function in _LAYERS:
            x, weight, bias = [*arguments, *keywords.values(), None][:3] if len(arguments) < 3 else arguments[:3]
            self._add(
                _LAYERS[function],
                # groups: weight[0] is what one output element sees
                macs=result.numel() * weight[0].numel(),
                inputs=x.numel(),
                outputs=result.numel(),
                elementwise=0 if bias is None else result.numel(),
            )
        elif function == "scaled_dot_product_attention":
            query, key, value = arguments[:3]
            scores = query.numel() // query.shape[-1] * key.shape[-2]
            macs = scores * (query.shape[-1] + value.shape[-1])
            self._add("attention", macs=macs, elementwise=PER_SCORE * scores)
        elif function in PER_ELEMENT and isinstance(result, torch.Tensor):
            self._add("other", elementwise=PER_ELEMENT[function] * result.numel())

    def _add(self, kind: str, **sums: int) -> None:
        row = self.rows[self.stack[-1], kind]
        for column, value in sums.items():
            row[column] += value


_LAYERS = {"conv2d": "Conv2d", "linear": "Linear"}


@contextmanager
def _names(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the full names of the modules that are computing on `stack`, the innermost last."""
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
            handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parameters(module: nn.Module | None) -> dict[str, int]:
    own = {} if module is None else dict(module.named_parameters(recurse=False))
    sizes = {name: parameter.numel() for name, parameter in own.items()}
    if isinstance(module, nn.Linear | nn.Conv2d):
        counts = (sizes["weight"], sizes.get("bias", 0), 0, len(own["weight"]))
    else:
        counts = (0, 0, sum(sizes.values()), 0)
    return dict(zip(("weights", "biases", "other_parameters", "out_channels"), counts, strict=True))


def _part(name: str) -> str:
    return next((part for part, starts in PARTS.items() if f"{name}.".startswith(starts)), "")


def _block(name: str, blocks: list[str]) -> str | None:
    return next((block for block in blocks if f"{name}.".startswith(f"{block}.")), None)


def _check_parameters(frame: pd.DataFrame, model: nn.Module) -> None:
    """Every parameter stands in exactly one row, or the count would silently be short."""
    counted = int(frame[["weights", "biases", "other_parameters"]].to_numpy().sum())
    total = parameter_count(model)
    if counted != total:
        raise ValueError(f"counted {counted} of {total} parameters; a module was not called, or called as two kinds")
