"""CIEDE2000 against the published pairs, closed forms, and what PSNR-Y cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, lab2rgb

from qartsr_lib.images.image import psnr_y, write_png
from qartsr_lib.images.metrics import METRICS, score

# Sharma, Wu and Dalal (2005), Table 1: pairs 1, 4, 7, 10, 14, 17, 19, 24, 25, 28, 31 and 34.
PUBLISHED = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0010), 7.1792),
    ((50.0, -0.001, 2.49), (50.0, 0.0011, -2.49), 4.7461),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (50.0, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def compute(sr, hr):
    return METRICS.get("CIEDE2000").build({})(sr, hr)


def flat(rgb):
    return torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4)


@pytest.mark.parametrize(("one", "other", "difference"), PUBLISHED)
def test_the_published_pairs(one, other, difference):
    assert deltaE_ciede2000(np.array(one), np.array(other)) == pytest.approx(difference, abs=5e-5)
    with np.errstate(all="ignore"):
        rgb = [lab2rgb(np.array(lab)) for lab in (one, other)]
    inside = all(0.001 < value < 0.999 for image in rgb for value in image)
    turn = abs(math.atan2(*one[:0:-1]) - math.atan2(*other[:0:-1]))
    if inside and abs(turn - math.pi) > 0.01:  # between opposite hues it jumps (7.18 or 7.22), and rounding decides
        assert compute(flat(rgb[1]), flat(rgb[0])) == pytest.approx(difference, abs=2e-3)


def test_some_published_pairs_lie_inside_srgb():
    colours = [[lab2rgb(np.array(lab)) for lab in pair[:2]] for pair in PUBLISHED]
    assert sum(all(0.001 < v < 0.999 for rgb in pair for v in rgb) for pair in colours) >= 6


def test_greys_in_closed_form():
    """Neutral colours differ in lightness alone: Delta L' over S_L = 1 + 0.015 (L - 50)^2 / sqrt(20 + (L - 50)^2)."""

    def lightness(grey):
        linear = ((grey + 0.055) / 1.055) ** 2.4
        return 116 * linear ** (1 / 3) - 16

    low, high = lightness(0.4), lightness(0.6)
    apart = ((low + high) / 2 - 50) ** 2
    wanted = (high - low) / (1 + 0.015 * apart / math.sqrt(20 + apart))
    assert compute(flat([0.4] * 3), flat([0.6] * 3)) == pytest.approx(wanted, rel=1e-3)


def test_a_grey_picture_with_the_right_luminance_is_found_out(tmp_path):
    hr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    grey = (hr * weights).sum(1, keepdim=True).div(weights.sum()).expand_as(hr)
    assert psnr_y(grey, hr) > 100
    assert compute(grey, hr) > 10 and compute(hr, hr) == 0
    for name, image in (("sr", grey), ("hr", hr)):
        write_png(tmp_path / f"{name}.png", image)
    (value, note) = score(tmp_path / "sr.png", tmp_path / "hr.png", ["CIEDE2000"])["CIEDE2000"]
    assert value == pytest.approx(compute(grey, hr), rel=0.01) and note == ""
