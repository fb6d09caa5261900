"""The packed file read by NumPy and JSON alone: what its format is, and that it needs nothing of this library."""

import json

import numpy as np
import pytest
from quant_stand_in import lq_images, tiny_backbone

from qartsr_lib.deploy.layer import InferenceLayer
from qartsr_lib.deploy.packed_file import load_packed, save_packed
from qartsr_lib.methods import METHODS

SLOW = pytest.param("svdquant-skipping", "W4A4", marks=pytest.mark.slow)  # groups, floats between; searches phi
KINDS = {"F16": np.float16, "U8": np.uint8}


def read(path):
    """(description, kind -> array) of a packed file: the safetensors format, by hand."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    described = json.loads(header.pop("__metadata__")["qartsr"])
    arrays = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[first:last], KINDS[entry["dtype"]])
    return described, arrays


def scales(how, shape):
    """Shape of the scale of a weight or an input of `shape`, by its granularity."""
    granularity, kind = how["granularity"], how["granularity"]["type"]
    if kind == "PerTensor":
        return ()
    size = granularity.get("size", 1)
    groups = shape[1] // size if shape[1] % size == 0 else 1
    if kind == "PerChannel":
        return (shape[0], *[1] * (len(shape) - 1))
    kernel = shape[2:] if granularity["per_position"] else [1] * len(shape[2:])
    return (shape[0], groups, 1, *kernel)


def layers(described, arrays, shapes):
    """Codes, scale and zero-point of every quantized layer's weight, and those of its input where they are stored.

    `shapes` has the shapes of all layers' weights, in the order of the network.
    """
    used = dict.fromkeys(arrays, 0)

    def take(kind, shape, bits=None):
        count = int(np.prod(shape))
        length = count if bits is None else (count * bits + 7) // 8
        part = arrays[kind][used[kind] : used[kind] + length]
        used[kind] += length
        if bits is not None:
            each = np.unpackbits(part, count=count * bits, bitorder="little").reshape(count, bits)
            part = each @ (1 << np.arange(bits))
        return part.reshape(shape)

    for number, shape in zip(described["layers"], shapes, strict=True):
        if number >= 0:
            form = described["forms"][number]
            weight, entering, bits = form["weight"], form["input"], form["weight"]["bits"]
            found = {"codes": take(f"codes{bits}", shape, bits), "scale": take("scale", scales(weight, shape))}
            if not weight["symmetric"]:
                found["zero_point"] = take("zero_point", scales(weight, shape))
            if entering and not form["dynamic"]:
                found["input_scale"] = take("input_scale", ())
                found["input_zero_point"] = take("input_zero_point", ())
            yield found
    assert all(
        used[kind] == len(arrays[kind]) for kind in arrays if kind.startswith(("codes", "scale", "zero", "input"))
    )


@pytest.mark.parametrize(("method", "bits"), [("maxmin", "W3A4"), ("maxmin", "W2A2"), SLOW])
def test_a_reader_without_this_library_finds_the_same(tmp_path, method, bits):
    path = tmp_path / "model.safetensors"
    save_packed(METHODS.get(method).build(tiny_backbone(), bits, lq_images()).backbone, path)
    described, arrays = read(path)
    assert (described["_type"], described["_version"], described["bits"]) == ("qartsr-packed-model", 1, bits)
    model = load_packed(path)
    candidates = [
        m for m in model.modules() if isinstance(m, InferenceLayer) or type(m).__name__ in ("Linear", "Conv2d")
    ]
    shapes = [tuple((m.codes if isinstance(m, InferenceLayer) else m.weight).shape) for m in candidates]
    quantized = [m for m in candidates if isinstance(m, InferenceLayer)]
    found = list(layers(described, arrays, shapes))
    assert len(found) == len(quantized) > 50
    for mine, layer in zip(found, quantized, strict=True):
        for name, array in mine.items():
            assert np.array_equal(array.astype(np.float32), getattr(layer, name).float().numpy()), name
