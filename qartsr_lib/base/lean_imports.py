"""What commands and headless notebooks leave out of their imports: half of a start, and nothing to compute with."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

#: Found by diffusers where installed, and imported for its pipelines, its own quantization and its other models.
UNUSED = ("bitsandbytes", "peft", "scipy", "torchvision", "transformers", "trio")
_COMPILER = "torch._dynamo"
_chosen = False


def choose_lean_imports() -> None:
    """Let `import_networks` leave something out: this process uses nothing of diffusers but its networks."""
    global _chosen
    _chosen = True


def import_networks() -> None:
    """In processes that chose it, import diffusers' networks, with `UNUSED` counted as not installed meanwhile.

    None in sys.modules is Python's own way of saying so. Marks for torch.compile have no effect. Afterwards all can be
    imported as ever, but diffusers' pipelines go on without them.
    """
    if not _chosen or "diffusers" in sys.modules:
        return
    import torch  # noqa: F401 - before its compiler is hidden

    compiler = ModuleType(_COMPILER)
    compiler.allow_in_graph = compiler.disable = _unmarked
    hidden = {_COMPILER: compiler, **dict.fromkeys(UNUSED)}
    hidden = {name: stand_in for name, stand_in in hidden.items() if name not in sys.modules}
    sys.modules.update(hidden)
    gc.disable()  # a fifth of the time would go into searching modules for garbage
    try:
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


def lean_process() -> None:
    """Choose and import at once: the first thing that a new process does."""
    choose_lean_imports()
    import_networks()


def _unmarked(function=None, *_, **__):
    """A decorator, with or without arguments, that does nothing."""
    return (lambda given: given) if function is None else function
