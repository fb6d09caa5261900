"""Central crops of large photographs: the same part of LQ and HR, real pixels, smaller ones untouched."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.base import Pair, central_file, central_pairs, check_pair


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QARTSR_HOME", str(tmp_path / "home"))


def pair(tmp_path, height, width):
    """HR whose pixels tell their LQ coordinates."""
    rows, columns = np.mgrid[:height, :width]
    lq = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    hr = lq.repeat(4, axis=0).repeat(4, axis=1)
    found = Pair("a", tmp_path / "lq.png", tmp_path / "hr.png")
    Image.fromarray(lq).save(found.lq)
    Image.fromarray(hr).save(found.hr)
    return found


@pytest.mark.parametrize(("height", "width"), [(30, 41), (25, 20), (20, 33), (7, 50), (21, 21)])
def test_both_files_show_the_same_part(tmp_path, height, width):
    whole = pair(tmp_path, height, width)
    (cropped,) = central_pairs([whole], 80)
    check_pair(cropped)
    lq, hr = (np.asarray(Image.open(path)) for path in (cropped.lq, cropped.hr))
    assert lq.shape[:2] == (min(20, height), min(20, width))
    assert np.array_equal(hr[::4, ::4], lq)
    for axis, size in enumerate((height, width)):
        begin, end = lq[..., axis].min(), lq[..., axis].max()
        assert abs(int(begin) - (size - 1 - int(end))) <= 1, "in the middle"


def test_small_images_stay_the_files_that_they_are(tmp_path):
    whole = pair(tmp_path, 20, 12)
    assert central_pairs([whole], 80) == [whole]
    assert central_pairs([whole], None) == [whole]


def test_a_changed_photograph_gets_a_new_crop(tmp_path):
    whole = pair(tmp_path, 30, 30)
    before = central_file(whole.hr, 80)
    assert central_file(whole.hr, 80) == before
    Image.new("RGB", (120, 120), (9, 9, 9)).save(whole.hr)
    assert central_file(whole.hr, 80) != before


@pytest.mark.parametrize("side", [0, -4, 2, 30])
def test_side_that_is_no_multiple_is_refused(tmp_path, side):
    with pytest.raises(QartsrError, match=f"max_side is {side}"):
        central_pairs([pair(tmp_path, 8, 8)], side)
