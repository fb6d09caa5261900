"""Weights of LPIPS, DISTS and NIQE out of ordinary packages: published values, and nothing executed."""

from __future__ import annotations

import collections
import functools
import hashlib
import inspect
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from qartsr_lib.base.files import installed_file
from qartsr_lib.images import metrics
from qartsr_lib.images.metrics import converted, iqa

NAMES = ["LPIPS", "DISTS", "NIQE"]
#: github.com/richzhang/PerceptualSimilarity, imgs/, with its licence.
EXAMPLE = Path(__file__).parent / "lpips_example"


pytestmark = pytest.mark.usefixtures("home", "metrics_forgotten")


@pytest.fixture
def packages():
    if missing := [s.place for s in converted.SOURCES.values() if installed_file(s.place) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    if installed_file(iqa.DISTS_WEIGHTS.packaged) is None:
        pytest.skip("dists-pytorch is not installed")


# --- published values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("image", "published"), [("ex_p0", 0.722), ("ex_p1", 0.138)])
def test_lpips_alex_of_the_authors_example(packages, image, published):
    """README of PerceptualSimilarity: "Distance: 0.722" and "0.138"."""
    value, note = metrics.score(EXAMPLE / f"{image}.png", EXAMPLE / "ex_ref.png", ["LPIPS"])["LPIPS"]
    assert note == "" and value == pytest.approx(published, abs=5e-4)


def test_the_published_values_see_swapped_channels_and_a_missing_head(packages, tmp_path):
    for name in ("ex_p0", "ex_ref"):
        image = Image.open(EXAMPLE / f"{name}.png").convert("RGB")
        Image.merge("RGB", image.split()[::-1]).save(tmp_path / f"{name}.png")
    swapped, _ = metrics.score(tmp_path / "ex_p0.png", tmp_path / "ex_ref.png", ["LPIPS"])["LPIPS"]
    compute, _ = metrics._load("LPIPS", None)
    heads = inspect.getclosurevars(compute.__wrapped__).nonlocals["metric"].net.lins
    assert len(heads) == 5
    torch.nn.init.zeros_(heads[1].model[-1].weight)
    lacking, _ = metrics.score(EXAMPLE / "ex_p0.png", EXAMPLE / "ex_ref.png", ["LPIPS"])["LPIPS"]
    assert abs(swapped - 0.722) > 5e-3 and abs(lacking - 0.722) > 5e-3


def test_lpips_vgg_of_torchmetrics_documented_example(packages):
    """torchmetrics 1.0, docstring of LearnedPerceptualImagePatchSimilarity: seed 123, the network, images: 0.3493."""
    import lpips
    import torchvision

    make = functools.partial(torchvision.models.vgg16, weights=None, init_weights=False)
    torch.manual_seed(123)
    with mock.patch.object(torchvision.models, "vgg16", lambda **_: make()):
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    images, targets = (torch.rand(10, 3, 100, 100) * 2 - 1 for _ in range(2))
    saved = load_file(converted.converted(iqa.VGG16.name))
    network.net.load_state_dict({key: saved[f"features.{key.split('.', 1)[1]}"] for key in network.net.state_dict()})
    with torch.no_grad():
        assert float(network(images, targets).mean()) == pytest.approx(0.3493, abs=5e-5)
        assert float(network(images.flip(1), targets.flip(1)).mean()) != pytest.approx(0.3493, abs=2e-3)


def test_dists_of_torchmetrics_documented_example(packages):
    """torchmetrics 1.5, docstring of deep_image_structure_and_texture_similarity (its doctests start from seed 42)."""
    compute, note = metrics._load("DISTS", None)
    torch.manual_seed(42)
    images, targets = torch.rand(5, 3, 256, 256), torch.rand(5, 3, 256, 256)
    found = [compute(images[i : i + 1], targets[i : i + 1]) for i in range(5)]
    np.testing.assert_allclose(found, [0.1285, 0.1344, 0.1356, 0.1277, 0.1276], rtol=0, atol=5e-5)


def test_official_osediff_values(packages, shared):
    """What OSEDiff's authors measured on their own outputs; their NIQE is of another implementation, 1 % at most."""
    real = shared / "data/RealSR"
    table = pd.read_csv(real / "osediff_reference_metrics.csv", index_col="image")
    for image, row in table.iloc[:2].iterrows():
        scores = metrics.score(real / "OSEDiff" / image, real / "HR" / image, NAMES)
        assert scores["LPIPS"][0] == pytest.approx(row["LPIPS"], abs=1e-4)
        assert scores["DISTS"][0] == pytest.approx(row["DISTS"], abs=1e-4)
        assert scores["NIQE"][0] == pytest.approx(row["NIQE"], rel=0.01)


def test_niqe_parameters_are_the_published_ones(packages, shared):
    import scipy.io

    published = scipy.io.loadmat(shared / "weights/niqe_modelparameters.mat")
    for key, value in load_file(converted.converted(iqa.NIQE_PARAMETERS.name)).items():
        np.testing.assert_array_equal(value.numpy(), published[key])


def test_all_three_are_available_offline(packages, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert metrics.available(NAMES) == dict.fromkeys(NAMES)


# --- the layout, without the packages -----------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that holds an AlexNet of random kernels under the real one's layout; (its file, its layers)."""
    rng = np.random.default_rng(0)
    shapes = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]
    layers = {
        f"Conv_{n}": {
            "kernel": rng.standard_normal(shape, dtype=np.float32),
            "bias": rng.standard_normal(shape[3], dtype=np.float32),
        }
        for n, shape in enumerate(shapes)
    }
    file = tmp_path / "stand_in_package" / "alexnet.ckpt"
    file.parent.mkdir()
    (file.parent / "__init__.py").write_text("raise AssertionError('imported')")
    _pickle(file, {"AlexNet_0": layers})
    monkeypatch.syspath_prepend(tmp_path)
    _accept(monkeypatch, file)
    return file, layers


def _pickle(file: Path, content) -> None:
    """As numpy 1 wrote it."""
    file.write_bytes(pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def _accept(monkeypatch, file: Path) -> None:
    known = converted.SOURCES[iqa.ALEXNET.name]
    changed = converted.Source(
        f"{file.parent.name}/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest(), known.read
    )
    monkeypatch.setitem(converted.SOURCES, iqa.ALEXNET.name, changed)


def test_kernels_are_turned_to_torchs_order(package, tmp_path):
    _, layers = package
    target = tmp_path / iqa.ALEXNET.name
    converted.write_as_published(converted.converted(iqa.ALEXNET.name), target)
    import torchvision

    network = torchvision.models.alexnet()
    network.load_state_dict(torch.load(target, weights_only=True))  # strict: every key is there
    assert target.stat().st_size < 12e6  # the classifier of 59 million zeros takes no room
    kernel, bias = layers["Conv_0"]["kernel"], layers["Conv_0"]["bias"]
    x = torch.rand(1, 3, 11, 11)
    wanted = np.einsum("hwi,hwio->o", x[0].permute(1, 2, 0).double().numpy(), kernel.astype(np.float64)) + bias
    found = F.conv2d(x, network.features[0].weight, network.features[0].bias)
    np.testing.assert_allclose(found.detach().flatten().numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_another_file_in_the_package_is_not_taken(package):
    file, layers = package
    _pickle(file, {"AlexNet_0": layers, "more": 1})
    assert converted.converted(iqa.ALEXNET.name) is None


def test_a_pickle_that_names_more_than_arrays_is_refused(package, monkeypatch):
    file, _ = package
    file.write_bytes(pickle.dumps({"AlexNet_0": collections.OrderedDict()}))
    _accept(monkeypatch, file)
    with pytest.raises(pickle.UnpicklingError, match=r"names collections\.OrderedDict, which is no array"):
        converted.converted(iqa.ALEXNET.name)


def test_without_the_packages_there_is_a_reason(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(converted, "installed_file", lambda place: None)
    assert "alexnet-owt-7be5be79.pth" in metrics.available(["LPIPS"])["LPIPS"]
