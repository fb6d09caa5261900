"""Data sets: pairing, checks before a sweep, the split of the sample photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qartsr_lib.datasets import DATASETS
from qartsr_lib.datasets.base import Pair, check_pair, fingerprint, strided
from qartsr_lib.datasets.calibration import calibration_list
from qartsr_lib.datasets.folders import common_stem
from qartsr_lib.datasets.samples import PHOTOGRAPHS, photographs
from qartsr_lib.errors import QartsrError
from qartsr_lib.images import read_image
from qartsr_lib.profiles import get_profile


def save(path, width, height, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def realsr(tmp_path):
    for index, camera in enumerate(("Canon", "Nikon")):
        save(tmp_path / f"RealSR/LR/{camera}_001_LR4.png", 8, 6, index)
        save(tmp_path / f"RealSR/HR/{camera}_001_HR.png", 32, 24, index)
    return tmp_path


def test_pairs_by_stem_without_endings(realsr):
    pairs = DATASETS.get("RealSR").pairs(realsr)
    assert [pair.id for pair in pairs] == ["Canon_001", "Nikon_001"]
    assert [pair.hr.name for pair in pairs] == ["Canon_001_HR.png", "Nikon_001_HR.png"]


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("Canon_001_LR4", "Canon_001"), ("0801x4", "0801"), ("img_001", "img_001"), ("_HR", "_HR"), ("a_HR_HR", "a_HR")],
)
def test_common_stem(stem, expected):
    assert common_stem(stem) == expected


def test_nested_lr_folder(tmp_path):
    save(tmp_path / "DIV2K_val/LR/X4/0801x4.png", 8, 8)
    save(tmp_path / "DIV2K_val/HR/0801.png", 32, 32)
    assert [pair.id for pair in DATASETS.get("DIV2K_val").pairs(tmp_path)] == ["0801"]


def test_absent_data_sets_have_a_reason(tmp_path):
    assert "DATA_ROOT is not set" in DATASETS.get("RealSR").available(None)
    assert "no folder Urban100" in DATASETS.get("Urban100").available(tmp_path)
    (tmp_path / "Urban100/HR").mkdir(parents=True)
    assert "lacks the folder LR" in DATASETS.get("Urban100").available(tmp_path)
    with pytest.raises(QartsrError, match="lacks the folder LR"):
        DATASETS.get("Urban100").pairs(tmp_path)


def remove_partner(root):
    (root / "RealSR/LR/Nikon_001_LR4.png").unlink()


def resize_reference(root):
    save(root / "RealSR/HR/Nikon_001_HR.png", 32, 25)


def damage_header(root):
    (root / "RealSR/HR/Nikon_001_HR.png").write_bytes(b"no image")


def same_stem_twice(root):
    save(root / "RealSR/LR/Nikon_001.png", 8, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_partner, r"Nikon_001_HR\.png: has no partner"),
        (resize_reference, r"Nikon_001_HR\.png: is 32x25, expected 32x24"),
        (damage_header, r"Nikon_001_HR\.png: not a readable image"),
        (same_stem_twice, r"same name as Nikon_001"),
    ],
)
def test_broken_pairs_name_the_file(realsr, change, message):
    change(realsr)
    with pytest.raises(QartsrError, match=message) as caught:
        DATASETS.get("RealSR").pairs(realsr)
    assert "\n" not in str(caught.value)


def test_broken_pair_is_found_although_max_images_would_skip_it(realsr):
    resize_reference(realsr)
    with pytest.raises(QartsrError, match="32x25"):
        DATASETS.get("RealSR").pairs(realsr, max_images=1)


def test_empty_folder(realsr):
    for path in (realsr / "RealSR/LR").iterdir():
        path.unlink()
    with pytest.raises(QartsrError, match="holds no image"):
        DATASETS.get("RealSR").pairs(realsr)


def test_missing_file_is_named(tmp_path):
    pair = Pair("a", save(tmp_path / "a.png", 4, 4), tmp_path / "gone.png")
    with pytest.raises(QartsrError, match=r"gone\.png: no such file"):
        check_pair(pair)


def test_fingerprint_follows_content_not_place(realsr, tmp_path):
    dataset = DATASETS.get("RealSR")
    before = fingerprint(dataset.pairs(realsr))
    assert fingerprint(dataset.pairs(realsr)) == before
    save(realsr / "RealSR/HR/Nikon_001_HR.png", 32, 24, seed=9)
    assert fingerprint(dataset.pairs(realsr)) != before


@pytest.mark.parametrize(("count", "limit", "expected"), [(100, 30, 30), (7, 7, 7), (7, None, 7), (7, 2, 2), (3, 9, 3)])
def test_strided(count, limit, expected):
    chosen = strided(list(range(count)), limit)
    assert len(chosen) == expected
    assert len(set(np.diff(chosen))) <= 1, "the stride is fixed"


def test_strided_rejects_zero():
    with pytest.raises(QartsrError, match="max_images"):
        strided([1, 2], 0)


def test_samples_are_valid_pairs_and_written_again_when_damaged(home):
    dataset = DATASETS.get("samples")
    pairs = dataset.pairs()
    assert dataset.available() is None
    assert len(pairs) >= 6
    for pair in pairs:
        hr, lq = read_image(pair.hr), read_image(pair.lq)
        assert all(side % 16 == 0 and side <= 512 for side in hr.shape[-2:])
        assert tuple(4 * side for side in lq.shape[-2:]) == tuple(hr.shape[-2:])
    before = fingerprint(pairs)
    pairs[0].lq.write_bytes(b"damaged")
    pairs[1].hr.unlink()
    assert fingerprint(dataset.pairs()) == before


def test_sample_crops_are_pixels_of_the_photograph(home):
    pair = next(pair for pair in DATASETS.get("samples").pairs() if pair.id == "chelsea")
    photograph = next(item for item in PHOTOGRAPHS if item.id == "chelsea")
    whole = np.asarray(Image.open(photograph.path).convert("RGB"))
    left, top = photograph.corner
    crop = np.asarray(Image.open(pair.hr))
    assert np.array_equal(crop, whole[top : top + crop.shape[0], left : left + crop.shape[1]])


def test_realistic_samples_share_references_and_differ_in_lq(home):
    bicubic, realistic = (DATASETS.get(name).pairs() for name in ("samples", "samples-realistic"))
    for one, other in zip(bicubic, realistic, strict=True):
        assert one.id == other.id
        assert torch.equal(read_image(one.hr), read_image(other.hr))
        assert not torch.equal(read_image(one.lq), read_image(other.lq))


def thumbnail(photograph):
    """Small grey version with zero mean and unit norm: two views of one scene correlate strongly."""
    image = np.asarray(Image.open(photograph.path).convert("L").resize((16, 16)), dtype=np.float64)
    image -= image.mean()
    return image.ravel() / np.linalg.norm(image)


def test_calibration_and_test_photographs_are_disjoint():
    calibration, test = photographs("calibration"), photographs("test")
    assert 4 <= len(calibration) <= 6 <= len(test) <= 9
    scenes = [{photograph.scene or photograph.id for photograph in split} for split in (calibration, test)]
    assert not scenes[0] & scenes[1]
    # The table could be wrong about what is one photograph; the pixels cannot.
    for one in calibration:
        for other in test:
            assert thumbnail(one) @ thumbnail(other) < 0.8, (one.id, other.id)


def test_stereo_pair_counts_as_one_photograph():
    left, right = (next(item for item in PHOTOGRAPHS if item.id == name) for name in ("motorcycle", "motorcycle_right"))
    assert thumbnail(left) @ thumbnail(right) > 0.8, "the check above would see a stereo pair"
    assert left.scene == right.scene
    used = [item for item in PHOTOGRAPHS if item.split != "excluded"]
    names = [item.scene or item.id for item in used]
    assert len(names) == len(set(names))


def test_every_photograph_is_installed_and_has_a_split():
    for photograph in PHOTOGRAPHS:
        assert photograph.path.is_file()
        assert photograph.split in ("test", "calibration", "excluded")


def test_calibration_list_is_repeatable_and_extends(home):
    few, again = (calibration_list(get_profile("tiny", n_calibration=4)) for _ in range(2))
    more = calibration_list(get_profile("tiny", n_calibration=6))
    assert few.name == "samples-calibration"
    assert few.sha256 == again.sha256 != more.sha256
    assert all(torch.equal(a, b) for a, b in zip(few.images, more.images, strict=False))
    assert all(image.shape == (1, 3, 32, 32) for image in more.images)


def test_tiny_ignores_benchmarks_that_are_present(tmp_path, home):
    save(tmp_path / "BSDS500/train/1.jpg", 320, 320)
    assert calibration_list(get_profile("tiny"), tmp_path).name == "samples-calibration"


def test_study_calibrates_on_bsds(tmp_path):
    save(tmp_path / "BSDS500/train/1.jpg", 481, 321)
    save(tmp_path / "BSDS500/train/2.jpg", 40, 50)
    found = calibration_list(get_profile("study", n_calibration=2), tmp_path)
    assert found.name == "BSDS500/train"
    assert sorted(image.shape[-2:] for image in found.images) == [(12, 8), (32, 32)]


def test_calibration_errors(tmp_path):
    with pytest.raises(QartsrError, match="set DATA_ROOT"):
        calibration_list(get_profile("study"), None)
    with pytest.raises(QartsrError, match="no such folder"):
        calibration_list(get_profile("study"), tmp_path)
    with pytest.raises(QartsrError, match="unknown calibration list"):
        calibration_list(get_profile("tiny", calibration="nonsense"))
    save(tmp_path / "BSDS500/train/1.jpg", 8, 8)
    with pytest.raises(QartsrError, match="smaller than 16 pixels"):
        calibration_list(get_profile("study"), tmp_path)


def test_unknown_data_set_suggests_a_name():
    with pytest.raises(QartsrError, match="did you mean 'Urban100'"):
        DATASETS.get("Urban10")


def test_shared_benchmarks_are_whole(shared):
    assert len(DATASETS.get("RealSR").pairs(shared / "data")) == 100
    assert len(DATASETS.get("Urban100").pairs(shared / "data")) == 50
