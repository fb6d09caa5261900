"""Tiles cover, their weights add up to one, and what they blend is the whole where the function is local."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from quant_stand_in import saved_both_ways

from qartsr_lib.cli import main
from qartsr_lib.deploy import around_product
from qartsr_lib.images import tiling
from qartsr_lib.images.image import read_image, write_png
from qartsr_lib.images.tiling import blended, default_tile, starts, windows


@given(st.integers(1, 300), st.integers(2, 100), st.data())
def test_partition_of_unity(size, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    total = torch.zeros(size, dtype=torch.float64)
    for start, weights in windows(size, tile, overlap):
        assert len(weights) == min(tile, size) and float(weights.min()) > 0
        total[start : start + len(weights)] += weights
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_starts_are_the_released_scripts():
    """Stride 64, the last tile shifted to end at the border (OSEDiff's defaults, 96 and 32)."""
    assert starts(96, 96, 32) == [0]
    assert starts(97, 96, 32) == [0, 1]
    assert starts(200, 96, 32) == [0, 64, 104]
    with pytest.raises(ValueError, match="overlap 96"):
        starts(200, 96, 96)


@pytest.mark.parametrize("scale", [Fraction(1), Fraction(8), Fraction(1, 8)])
def test_pointwise_functions_do_not_notice(scale):
    def resized(x):
        return F.interpolate(x, scale_factor=float(scale), mode="nearest") * 3 + 1

    x = torch.rand(2, 3, 200, 168)
    assert torch.allclose(blended(resized, x, 64, 16, scale), resized(x), atol=1e-6)


def test_one_tile_is_the_function_itself():
    calls = []
    x = torch.rand(1, 3, 8, 8)
    assert blended(lambda part: calls.append(part) or part, x, 8, 4) is x and calls[0] is x


def test_sides_that_do_not_fit_the_scale():
    with pytest.raises(ValueError, match="do not fit the scale"):
        blended(lambda x: x, torch.rand(1, 3, 100, 64), 32, 9, Fraction(1, 8))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Options of `upscale` -> one model of each kind; and an image of 70 x 40 pixels, smooth as photographs are."""
    folder = tmp_path_factory.mktemp("models")
    saved_both_ways("W8A8", 16, folder)
    noise = torch.rand(1, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    write_png(folder / "in" / "cat.png", F.interpolate(noise, (40, 70), mode="bicubic").clamp(0, 1))
    packed = ["--checkpoint", str(folder / "model.safetensors")]
    return folder, {
        "full precision": [],
        "quantized folder": ["--checkpoint", str(folder / "q")],
        "packed, simulate": packed,
        "packed, int8": [*packed, "--runtime", "int8"],
    }


@pytest.mark.parametrize("kind", ["full precision", "quantized folder", "packed, simulate", "packed, int8"])
def test_every_model_upscales_in_tiles(models, kind, tmp_path, home, monkeypatch, capsys):
    monkeypatch.setattr(around_product, "library", lambda: None)
    folder, options = models

    def upscaled(*extra):
        words = ["upscale", str(folder / "in"), "--out", str(tmp_path / "out"), *options[kind], *extra]
        assert main(words) == 0
        return read_image(tmp_path / "out" / "cat.png"), capsys.readouterr().err

    whole, told = upscaled()
    assert "tiles" not in told
    one, told = upscaled("--tile", "70")
    assert torch.equal(one, whole) and "tiles" not in told
    tiled, told = upscaled("--tile", "48")
    assert "tiles" not in told  # what was asked for
    assert 0 < float((tiled - whole).abs().max()) < 0.2 and float((tiled - whole).abs().mean()) < 0.03
    seams = tiled.diff(dim=-1).abs().amax((0, 1, 2))[22 * 4 - 1 : 48 * 4]  # all columns of the overlap, and its ends
    assert float(seams.max()) <= 1.5 * float(whole.diff(dim=-1).abs().max())
    for name, size in (("TILE", 48), ("WHOLE", 52)):
        monkeypatch.setattr(tiling, name, size)
    large, told = upscaled()  # 70 x 40 pixels are more than 52 x 52
    assert torch.equal(large, tiled) and "70 x 40 pixels" in told and "in tiles of 48 x 48" in told


def test_what_stays_whole():
    """As many pixels as the largest benchmark image has, in any shape."""
    assert default_tile(512, 512) == 512 and default_tile(100, 2621) == 2621 and default_tile(3, 4) == 32
    assert default_tile(512, 513) == default_tile(1200, 1500) == 256


@pytest.mark.parametrize(
    ("extra", "words"), [(["31"], "choose at least 32"), (["64", "--backbone", "bicubic"], "no such option")]
)
def test_tiles_that_cannot_be(models, tmp_path, capsys, extra, words):
    assert main(["upscale", str(models[0] / "in"), "--out", str(tmp_path / "out"), "--tile", *extra]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
