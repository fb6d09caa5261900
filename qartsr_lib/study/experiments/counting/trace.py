"""One forward pass on the meta device, counted: what every layer multiplies, adds and stores.

One multiply-add is one MAC and two operations. MACs are those of Linear, Conv2d and the two attention products; all
else that computes (normalization, activation functions, softmax, residual and bias additions) is counted in operations
per element, `PER_ELEMENT`. Copies, padding and up-sampling by repetition compute nothing. The arithmetic between
encoder, UNet and decoder (Eq. 6 on the latent, scaling of pixels) is left out: less than 0.01 G at 512x512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from qartsr_lib.backbones import embedded, osediff_configs
from qartsr_lib.backbones.base import OneStepSR, parameter_count
from qartsr_lib.base.errors import QartsrError

OUTPUT_SIZE = 512  # pixels; "Ops are computed with output size 512x512" (the paper's Table 2)
_ANY_TIMESTEP = 1  # counts do not depend on it

#: Part of the network -> beginnings of the full names of its modules.
PARTS = {
    "VAE encoder": ("vae.encoder.", "vae.quant_conv."),
    "UNet": ("unet.",),
    "VAE decoder": ("vae.decoder.", "vae.post_quant_conv."),
}
LAYERS = ("Conv2d", "Linear")
#: Function -> operations per element of its result. A normalization takes one for the mean, three for
#: the variance (subtract, square, add) and three to scale twice and shift; x / (1 + exp(-x)) three;
#: the exact GELU five.
PER_ELEMENT = {"group_norm": 7, "layer_norm": 7, "silu": 3, "gelu": 5} | dict.fromkeys(
    ("add", "__add__", "__iadd__", "__radd__", "sub", "__sub__", "mul", "__mul__", "__rmul__", "div", "__truediv__"), 1
)
#: Of a score: scaling, and the softmax's subtraction, exponential, sum and division.
PER_SCORE = 5
#: Columns of `trace` that hold parameters, and those that add up what its calls compute.
PARAMETERS = ["weights", "biases", "other_parameters"]
_SUMS = ["macs", "inputs", "outputs", "elementwise"]


def _osediff() -> OneStepSR:
    """OSEDiff with merged LoRA: UNet and VAE of Stable Diffusion 2.1-base, a constant prompt embedding."""
    unet, vae = UNet2DConditionModel(**osediff_configs.UNET_CONFIG), AutoencoderKL(**osediff_configs.VAE_CONFIG)
    prompt = torch.empty(1, osediff_configs.PROMPT_TOKENS, unet.config.cross_attention_dim)
    return OneStepSR("OSEDiff", _ANY_TIMESTEP, vae, unet, prompt)


def _embedded() -> OneStepSR:
    prompt = torch.empty(1, embedded.PROMPT_TOKENS, embedded.UNET_CONFIG["cross_attention_dim"])
    return OneStepSR("embedded", _ANY_TIMESTEP, embedded.build_vae(), embedded.build_unet(), prompt)


#: Name in tables -> builder of a network in full size; the embedded backbones share one architecture.
MODELS: dict[str, Callable[[], OneStepSR]] = {"OSEDiff": _osediff, "embedded": _embedded}


@lru_cache(maxsize=len(MODELS))
def counted(name: str) -> tuple[OneStepSR, pd.DataFrame]:
    """A network of MODELS on the meta device, where it takes no memory, and its `trace`; neither is to be changed."""
    if name not in MODELS:
        raise QartsrError(f"unknown network {name!r} to count (known: {', '.join(MODELS)})")
    with torch.device("meta"):
        model = MODELS[name]().eval().requires_grad_(False)
    return model, trace(model, OUTPUT_SIZE)


def trace(model: OneStepSR, size: int) -> pd.DataFrame:
    """Count one pass of `model`, on any device, for an output of `size` x `size` pixels.

    One row per layer and kind in order of computation. Columns: part (of PARTS), block (of `blocks_in_order`), name
    (of the module), kind (of LAYERS, "attention" for its two products, "other"), weights, biases, other_parameters (of
    normalizations), out_channels, macs, inputs and outputs (elements, of LAYERS), elementwise (operations, bias
    additions included).
    """
    modules = dict(model.named_modules())
    with _Tally({module: name for name, module in modules.items()}) as tally:
        _pass(model, size)
    calls = pd.DataFrame(tally.calls, columns=["name", "kind", *_SUMS])
    sums = calls.groupby(["name", "kind"], sort=False, as_index=False).sum()
    stored = [_parameters(modules[name], kind) for name, kind in zip(sums["name"], sums["kind"], strict=True)]
    blocks = {name: f"{name}." for name, _ in model.blocks_in_order()}
    frame = sums[["name", "kind"]].join(pd.DataFrame(stored, columns=[*PARAMETERS, "out_channels"])).join(sums[_SUMS])
    frame.insert(0, "part", [_place(name, PARTS) or "" for name in sums["name"]])
    frame.insert(1, "block", [_place(name, blocks) for name in sums["name"]])
    frame["block"] = frame["block"].bfill()  # a normalization between blocks counts with the one behind it
    found, total = int(frame[PARAMETERS].to_numpy().sum()), parameter_count(model)
    if found != total:  # every parameter stands in exactly one row, or the count would silently be short
        raise ValueError(f"counted {found} of {total} parameters; a module was not called, or called as two kinds")
    return frame


def torch_operations(model: OneStepSR, size: int) -> int:
    """The same pass by torch's own counter, which knows Linear, Conv2d and attention products: 2 x our MACs."""
    with FlopCounterMode(display=False) as counter:
        _pass(model, size)
    return int(counter.get_total_flops())


@torch.no_grad()
def _pass(model: OneStepSR, size: int) -> None:
    model(torch.empty(1, 3, size, size, device=next(model.parameters()).device))


class _Tally(TorchFunctionMode):
    """Lists what the functions called inside a module compute: (full name of the module, kind, *_SUMS) of each call."""

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.names, self.stack = names, [""]  # the modules that are computing, the innermost last
        self.calls: list[tuple] = []

    def __enter__(self) -> _Tally:
        enter = register_module_forward_pre_hook(lambda module, _: self.stack.append(self.names.get(module, "")))
        leave = register_module_forward_hook(lambda *_: self.stack.pop() and None)
        self.hooks = enter, leave
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        sums = _counted(getattr(function, "__name__", ""), arguments, keywords, result)
        if self.stack[-1] and sums:
            self.calls.append((self.stack[-1], *sums))
        return result


def _counted(function: str, arguments: tuple, keywords: dict, result: object) -> tuple | None:
    """(kind, *_SUMS) of one call; None for what computes nothing."""
    if function in ("conv2d", "linear"):
        x, weight, bias = [*arguments, *keywords.values(), None][:3] if len(arguments) < 3 else arguments[:3]
        outputs = result.numel()  # groups: weight[0] is what one of them sees
        return function.capitalize(), outputs * weight[0].numel(), x.numel(), outputs, 0 if bias is None else outputs
    if function == "scaled_dot_product_attention":
        query, key, value = arguments[:3]
        scores = query.numel() // query.shape[-1] * key.shape[-2]
        return "attention", scores * (query.shape[-1] + value.shape[-1]), 0, 0, PER_SCORE * scores
    if function in PER_ELEMENT and isinstance(result, torch.Tensor):
        return "other", 0, 0, 0, PER_ELEMENT[function] * result.numel()
    return None


def _parameters(module: nn.Module, kind: str) -> tuple[int, int, int, int]:
    """(*PARAMETERS, out_channels)"""
    own = {name: parameter.numel() for name, parameter in module.named_parameters(recurse=False)}
    if isinstance(module, nn.Linear | nn.Conv2d):
        return own["weight"], own.get("bias", 0), 0, len(module.weight)
    return 0, 0, 0 if kind == "attention" else sum(own.values()), 0


def _place(name: str, starts: dict[str, str | tuple[str, ...]]) -> str | None:
    return next((place for place, start in starts.items() if f"{name}.".startswith(start)), None)
