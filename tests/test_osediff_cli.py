"""`upscale --backbone osediff` on the synthetic pipeline: the documented command line."""

import numpy as np
import pytest
import torch
from osediff_stand_in import write_weights
from PIL import Image

from qartsr_lib.backbones import load_backbone
from qartsr_lib.cli import main
from qartsr_lib.images.colour_fix import adain, wavelet
from qartsr_lib.images.image import read_image, to_uint8, upscale_bicubic, write_png


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_weights(tmp_path_factory.mktemp("weights"))
    return ["--base", str(folder / "stable-diffusion-2-1-base"), "--osediff", str(folder / "osediff" / "osediff.pkl")]


@pytest.fixture
def photograph(tmp_path, home):
    return write_png(tmp_path / "in" / "cat.png", torch.rand(1, 3, 30, 41, generator=torch.Generator().manual_seed(0)))


def upscale(photograph, out, *words):
    return main(["upscale", str(photograph), "--out", str(out), "--backbone", "osediff", *words])


def test_the_documented_command(photograph, files, tmp_path):
    results = {}
    for fix, words in {
        "default": [],
        "adain": ["--colour-fix", "adain"],
        "wavelet": ["--colour-fix", "wavelet"],
        "none": ["--colour-fix", "none"],
        "prompt": ["--colour-fix", "none", "--prompt", "cat, grass"],
        "tiled": ["--colour-fix", "none", "--tile", "48"],
    }.items():
        assert upscale(photograph, tmp_path / fix, *files, *words) == 0
        assert Image.open(tmp_path / fix / "cat.png").size == (164, 120)
        results[fix] = read_image(tmp_path / fix / "cat.png")
    assert torch.equal(results["default"], results["adain"])  # as released
    assert not torch.equal(results["none"], results["prompt"]) and not torch.equal(results["none"], results["tiled"])
    lq = read_image(photograph)
    plain = load_backbone("osediff", 1000, base=files[1], osediff=files[3]).upscale(lq)
    source = upscale_bicubic(lq)
    for name, expected in (("adain", adain(plain, source)), ("wavelet", wavelet(plain, source)), ("none", plain)):
        assert np.array_equal(to_uint8(results[name]), to_uint8(expected)), name


def test_default_places(photograph, files, tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_WEIGHTS", str(tmp_path))
    assert upscale(photograph, tmp_path / "out") == 2
    monkeypatch.setenv("QARTSR_WEIGHTS", files[1].rsplit("/", 1)[0])
    assert upscale(photograph, tmp_path / "out", "--timestep", "1000") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timestep", "1"], "osediff.pkl: was trained at T = 1000, not at T = 1"),
        (["--colour-fix", "adian"], "unknown colour fix 'adian'"),
        (["--tile", "4"], "--tile 4: choose at least 8"),
        (["--osediff", "absent.pkl"], "absent.pkl: no such file; name OSEDiff's weights with --osediff"),
        (["--base", "./absent"], "absent: no such folder; put Stable Diffusion 2.1-base"),
        (["--backbone", "embedded"], "--base: backbone 'embedded' has no such option (its own: none)"),
    ],
)
def test_wrong_options_are_one_line(photograph, files, tmp_path, capsys, words, message):
    assert upscale(photograph, tmp_path / "out", *files, *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_colour_fix_of_other_backbones_is_off_unless_asked_for(photograph, tmp_path):
    for name, words in (("a", []), ("b", ["--colour-fix", "none"]), ("c", ["--colour-fix", "adain"])):
        assert main(["upscale", str(photograph), "--out", str(tmp_path / name), *words]) == 0
    a, b, c = (read_image(tmp_path / name / "cat.png") for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
