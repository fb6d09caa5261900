"""Data sets: pairing, checks before a sweep, the split of the sample photographs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.base.files import installed_file
from qartsr_lib.images.datasets import DATASETS, samples
from qartsr_lib.images.datasets.base import Pair, check_pair, fingerprint, strided
from qartsr_lib.images.datasets.calibration import calibration_list, low_quality_crops
from qartsr_lib.images.datasets.samples import PHOTOGRAPHS, photographs
from qartsr_lib.images.image import read_image
from qartsr_lib.study.profiles import get_profile


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


STABLESR = "StableSR_testsets/RealSRVal_crop128"
#: As the archives unpack: data set, folder, LR file, HR file, id in tables; # is a number.
PUBLISHED = [
    ("DIV2K_val", "DIV2K_val", "LR/X4/080#x4.png", "HR/080#.png", "080#"),
    ("DIV2K_val", "", "DIV2K_valid_LR_bicubic/X4/080#x4.png", "DIV2K_valid_HR/080#.png", "080#"),
    ("DIV2K_val", "DIV2K", "DIV2K_valid_LR_bicubic/X4/080#x4.png", "DIV2K_valid_HR/080#.png", "080#"),
    ("DIV2K_val", "DIV2K_V2_val", "lq/080#_pch_00001.png", "gt/080#_pch_00001.png", "080#_pch_00001"),
    ("RealSR", "RealSR", "LR/Canon_00#_LR4.png", "HR/Canon_00#_HR.png", "Canon_00#"),
    ("RealSR", "realsr", "lr/Canon_00#_LR4.PNG", "hr/Canon_00#_HR.PNG", "Canon_00#"),
    ("RealSR", "RealSR/RealSR", "LR/Canon_00#_LR4.png", "HR/Canon_00#_HR.png", "Canon_00#"),
    ("RealSR", "RealSRVal_crop128", "test_LR/Canon_00#_LR4.png", "test_HR/Canon_00#_HR.png", "Canon_00#"),
    ("RealSR", STABLESR, "test_LR/Canon_00#_LR4.png", "test_HR/Canon_00#_HR.png", "Canon_00#"),
    ("Urban100", "benchmark/Urban100", "LR_bicubic/X4/img_00#x4.png", "HR/img_00#.png", "img_00#"),
    ("RealSR", "[old] {a}/RealSR", "LR/Canon_00#_LR4.png", "HR/Canon_00#_HR.png", "Canon_00#"),
    ("RealSR", "RealSR/Canon/Test/4", "Canon_00#_LR4.png", "Canon_00#_HR.png", "Canon_00#"),
    ("RealSR", "RealSR(V3)/Nikon/Test/4", "Nikon_00#_LR4.png", "Nikon_00#_HR.png", "Nikon_00#"),
    ("DRealSR", "DrealSRVal_crop128", "test_LR/DSC_12#_x4.png", "test_HR/DSC_12#_x1.png", "DSC_12#"),
    ("DRealSR", "DRealSR/Test_x4", "test_LR/DSC_12#_x4.png", "test_HR/DSC_12#_x1.png", "DSC_12#"),
    ("Urban100", "Urban100/image_SRF_4", "img_00#_SRF_4_LR.png", "img_00#_SRF_4_HR.png", "img_00#"),
    ("Urban100", "Urban100", "LR/img_00#_SRF_4_LR.png", "HR/img_00#_SRF_4_HR.png", "img_00#"),
    ("Urban100", "Urban100_SR/image_SRF_4", "img_00#_SRF_4_LR.png", "img_00#_SRF_4_HR.png", "img_00#"),
    ("Urban100", "Urban100", "LRbicx4/img_00#.png", "GTmod12/img_00#.png", "img_00#"),
    ("Urban100", "Urban100", "LR_bicubic/X4/img_00#x4.png", "HR/img_00#.png", "img_00#"),
    ("Urban100", "Urban100", "LR/img_00#.png", "HR/img_00#.jpg", "img_00#"),
]


@pytest.mark.parametrize(("name", "folder", "lq", "hr", "key"), PUBLISHED)
def test_published_layouts_are_used_as_they_unpack(tmp_path, name, folder, lq, hr, key):
    lq, hr = (f"{folder}/{file}".removeprefix("/") for file in (lq, hr))
    for number in ("1", "2"):
        save(tmp_path / lq.replace("#", number), 8, 6)
        save(tmp_path / hr.replace("#", number), 32, 24)
    for leftover in (lq, hr):  # written by macOS on foreign disks and in zip files
        file = tmp_path / leftover.replace("#", "1")
        (file.parent / f"._{file.name}").write_bytes(b"no image")
        (file.parent / "Thumbs.db").write_bytes(b"x")
    assert DATASETS.get(name).available(tmp_path) is None
    first, second = DATASETS.get(name).pairs(tmp_path)
    for pair, number in ((first, "1"), (second, "2")):
        names = [name.replace("#", number) for name in (key, lq, hr)]
        assert [pair.id, pair.lq, pair.hr] == [names[0], tmp_path / names[1], tmp_path / names[2]]


def test_a_folder_of_the_sets_own_name_goes_first_and_two_others_are_refused(tmp_path):
    for folder in ("DIV2K_V2_val/lq", "DIV2K_valid_LR_bicubic/X4"):
        save(tmp_path / folder / "0801.png", 8, 8)
    for folder in ("DIV2K_V2_val/gt", "DIV2K_valid_HR"):
        save(tmp_path / folder / "0801.png", 32, 32)
    assert "there as DIV2K_V2_val and as DIV2K_valid; rename" in DATASETS.get("DIV2K_val").available(tmp_path)
    with pytest.raises(QartsrError, match="there as DIV2K_V2_val and as DIV2K_valid"):
        DATASETS.get("DIV2K_val").pairs(tmp_path)
    save(tmp_path / "DIV2K_val/LR/0801.png", 8, 8)
    save(tmp_path / "DIV2K_val/HR/0801.png", 32, 32)
    assert DATASETS.get("DIV2K_val").pairs(tmp_path)[0].hr.parent == tmp_path / "DIV2K_val/HR"


def test_pictures_whose_names_differ_in_an_ending_alone_keep_whole_names(tmp_path):
    for stem in ("a", "a_out", "b_HR"):
        save(tmp_path / f"RealSR/LR/{stem}.png", 8, 6)
        save(tmp_path / f"RealSR/HR/{stem}.png", 32, 24)
    assert [pair.id for pair in DATASETS.get("RealSR").pairs(tmp_path)] == ["a", "a_out", "b"]


def test_two_references_of_one_stem_are_refused(tmp_path):
    for ending in ("png", "jpg"):
        save(tmp_path / f"RealSR/LR/a.{ending}", 8, 6)
        save(tmp_path / f"RealSR/HR/a.{ending}", 32, 24)
    with pytest.raises(QartsrError, match="same name as"):
        DATASETS.get("RealSR").pairs(tmp_path)


def test_references_that_do_not_divide_by_four_are_cropped_from_the_top_left(tmp_path, home, capsys):
    whole = np.asarray(Image.open(save(tmp_path / "Urban100/HR/img_001.png", 35, 25, 1)))
    save(tmp_path / "Urban100/LR/img_001x4.png", 8, 6)
    plain = save(tmp_path / "Urban100/HR/img_002.png", 32, 24, 2)
    save(tmp_path / "Urban100/LR/img_002x4.png", 8, 6)
    cropped, other = DATASETS.get("Urban100").pairs(tmp_path)
    assert np.array_equal(np.asarray(Image.open(cropped.hr)), whole[:24, :32])
    assert check_pair(cropped) and cropped.hr.stem == "img_001" and home in cropped.hr.parents
    assert other.hr == plain
    assert "Urban100: 1 reference(s) cropped" in capsys.readouterr().out
    assert Image.open(tmp_path / "Urban100/HR/img_001.png").size == (35, 25), "the original is as it was"


def test_lr_as_large_as_hr_is_told(tmp_path):
    for folder, kind in (("LR", "LR4"), ("HR", "HR")):
        save(tmp_path / f"RealSR/{folder}/Canon_001_{kind}.png", 32, 24)
    with pytest.raises(
        QartsrError, match=r"Canon_001_LR4\.png: LR has the size of HR, 32x24: .*versions 1 and 2"
    ) as caught:
        DATASETS.get("RealSR").pairs(tmp_path)
    assert "\n" not in str(caught.value)


def test_absent_data_sets_have_a_reason(tmp_path):
    assert "DATA_ROOT is not set" in DATASETS.get("RealSR").available(None)
    assert "no folder Urban100" in DATASETS.get("Urban100").available(tmp_path)
    save(tmp_path / "Urban100/HR/img_001.png", 8, 8)
    assert "lacks the folder LR" in DATASETS.get("Urban100").available(tmp_path)
    with pytest.raises(QartsrError, match="lacks the folder LR"):
        DATASETS.get("Urban100").pairs(tmp_path)


def remove_partner(root):
    (root / "RealSR/LR/Nikon_001_LR4.png").unlink()


def resize_reference(root):
    save(root / "RealSR/HR/Nikon_001_HR.png", 32, 28)


def cut_reference(root):
    save(root / "RealSR/HR/Nikon_001_HR.png", 31, 24)


def damage_header(root):
    (root / "RealSR/HR/Nikon_001_HR.png").write_bytes(b"no image")


def same_stem_twice(root):
    save(root / "RealSR/LR/Nikon_001.png", 8, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_partner, r"Nikon_001_HR\.png: has no partner"),
        (resize_reference, r"Nikon_001_HR\.png: is 32x28, expected 32x24"),
        (cut_reference, r"Nikon_001_HR\.png: is 31x24, expected 32x24"),
        (damage_header, r"Nikon_001_HR\.png: not a readable image"),
        (same_stem_twice, r"Nikon_001_LR4\.png: has no partner .*Nikon_001\.png has its reference"),
    ],
)
def test_broken_pairs_name_the_file(realsr, change, message):
    change(realsr)
    with pytest.raises(QartsrError, match=message) as caught:
        DATASETS.get("RealSR").pairs(realsr)
    assert "\n" not in str(caught.value)


def test_broken_pair_is_found_although_max_images_would_skip_it(realsr):
    resize_reference(realsr)
    with pytest.raises(QartsrError, match="32x28"):
        DATASETS.get("RealSR").pairs(realsr, max_images=1)


def test_empty_folder(realsr):
    for path in (realsr / "RealSR/LR").iterdir():
        path.unlink()
    with pytest.raises(QartsrError, match="RealSR lacks the folder LR with images; put the images into RealSR/HR and"):
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
    assert 4 <= len(calibration) <= 6 <= len(test) <= 12
    installed = [*calibration, *test]
    assert len({photograph.path for photograph in installed}) == len(installed)
    assert {photograph.split for photograph in PHOTOGRAPHS} == {"calibration", "test"}
    assert len({photograph.file for photograph in PHOTOGRAPHS}) == len(PHOTOGRAPHS)
    # The table could be wrong about what is one photograph; the pixels cannot.
    for one in calibration:
        for other in test:
            assert thumbnail(one) @ thumbnail(other) < 0.8, (one.id, other.id)


def test_photographs_of_a_package_that_is_not_there_are_left_out_and_told(monkeypatch, capsys):
    def installed(place):
        return None if place.startswith("sporco/") else installed_file(place)

    monkeypatch.setattr(samples, "installed_file", installed)
    samples._tell.cache_clear()
    names = [photograph.id for photograph in photographs("test")]
    assert names == [item.id for item in PHOTOGRAPHS if item.split == "test" and "sporco" not in item.file]
    assert len(names) == 7 and len(photographs("test")) == 7
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "barbara, kodim23, monarch, sail, tulips" in told and "packages.txt" in told


def test_with_the_package_tiny_has_ten_photographs_or_more():
    if installed_file("sporco/data/kodim23.png") is None:
        pytest.skip("qartsr_lib/images/packages.txt is not installed")
    assert len(photographs("test")) == 12
    assert len(photographs("calibration")) + 12 == len(PHOTOGRAPHS)


def test_the_check_would_see_a_stereo_pair():
    left = next(item for item in PHOTOGRAPHS if item.id == "motorcycle")
    right = dataclasses.replace(left, file=left.file.replace("left", "right"))
    assert thumbnail(left) @ thumbnail(right) > 0.8 and right.path not in {item.path for item in PHOTOGRAPHS}


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


def test_crops_of_a_users_images_are_not_of_the_first_names_alone(tmp_path):
    for index in range(20):
        Image.new("RGB", (40, 40), (index, 0, 0)).save(tmp_path / f"{index:02d}.png")
    crops = low_quality_crops(tmp_path, 20, 32).images
    taken = [round(float(crop.amax()) * 255) for crop in crops]
    assert sorted(taken) == list(range(20)), "in turn, each once"
    assert max(taken[:4]) >= 10 and taken != list(range(20))
    assert [round(float(crop.amax()) * 255) for crop in low_quality_crops(tmp_path, 4, 32).images] == taken[:4]
