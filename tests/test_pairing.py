"""Which files show the same picture. Every expectation is written out by hand, as the archives name their files."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.datasets.pairing import bare_stem, match, match_folders


def found(images, references):
    """{image name: reference name} that `match` finds."""
    result = match(
        *({Path(side, name): name for name in names} for side, names in (("sr", images), ("hr", references)))
    )
    return {image.relative_to("sr").as_posix(): hr.relative_to("hr").as_posix() for image, hr in result.pairs}


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("a.png", "a.png"),
        ("a.png", "a.jpg"),
        ("cat.png", "cat.JPEG"),
        ("IMG_1.PNG", "img_1.png"),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), unicodedata.normalize("NFC", "caf\u00e9.png")),
        ("img_001_SRF_4_LR.png", "img_001_SRF_4_HR.png"),
        ("img_001_SRF_2_LR.png", "img_001_SRF_2_HR.png"),
        ("img_001x4.png", "img_001_SRF_4_HR.png"),
        ("0801x4.png", "0801.png"),
        ("0801.png", "0801x4.png"),
        ("0801x2.png", "0801.png"),
        ("0801x3.png", "0801.png"),
        ("0801x8.png", "0801.png"),
        ("0801_x4.png", "0801.png"),
        ("0801-x4.png", "0801.png"),
        ("0801X4.PNG", "0801.png"),
        ("0801x4m.png", "0801.png"),
        ("0801x4d.png", "0801.png"),
        ("0801x4w.png", "0801.png"),
        ("0801x4w2.png", "0801.png"),
        ("0801_bicLRx4.png", "0801.png"),
        ("0801_LR_bicubic_x4.png", "0801.png"),
        ("0801_pch_00001.png", "0801_pch_00001.png"),
        ("0801_pch_00001_out.png", "0801_pch_00001.png"),
        ("Canon_001_LR4.png", "Canon_001_HR.png"),
        ("Nikon_001_LR2.png", "Nikon_001_HR.png"),
        ("0801_LR4x4.png", "0801_HR.PNG"),
        ("DSC_1276_x4.png", "DSC_1276_x1.png"),
        ("P1120032_x2.png", "P1120032_x1.png"),
        ("baby_LRBI_x4.png", "baby_HR_x4.png"),
        ("baby_out.png", "baby.png"),
        ("baby_rlt.png", "baby.png"),
        ("baby_SwinIR.png", "baby.png"),
        ("baby_LR4_SwinIR.png", "baby_HR.png"),
        ("baby_upscaled_4x.png", "baby.png"),
        ("baby_GT_out.png", "baby_GT.png"),
        ("baby_SR.png", "baby_HR.png"),
        ("baby_sr.png", "baby_gt.jpg"),
        ("baby_upscaled.png", "baby.webp"),
        ("baby_lq.png", "baby_gt.png"),
        ("Set5/baby_SR.png", "Set5/baby.png"),
        ("set5/baby.png", "Set5/baby.png"),
        ("baby.jpg.png", "baby.jpg"),
        ("baby.jpg.png", "baby.png"),
    ],
)
def test_published_names_pair(image, reference):
    assert found([image, "comparison_grid.png"], [reference, "unused.png", "0802.png", "img_002.png"]) == {
        image: reference
    }


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("1.png", "10.png"),
        ("10.png", "1.png"),
        ("0801.png", "0801_pch_00001.png"),
        ("img_1.png", "img_11.png"),
        ("img_1_1.png", "img_1.png"),
        ("photo_SR2.png", "photo_HR3.png"),
        ("result_0001.png", "butterfly.png"),
        ("x4.png", "y4.png"),
        ("layout.png", "lay.png"),
        ("flashsr.png", "flash.png"),
        ("baby_mask.png", "baby.png"),
        ("Set5/baby.png", "Set14/baby.png"),
        ("Set5/baby.png", "baby.png"),
        ("box3.png", "box4.png"),
        ("box4.png", "box1.png"),
        ("baby_x2.png", "baby_x4.png"),
        ("scan_LR2.png", "scan_LR3.png"),
    ],
)
def test_other_names_do_not(image, reference):
    assert found([image], [reference]) == {}


def test_as_few_endings_as_possible_are_cut():
    for images, references in (
        (["car_x2_SR.png", "car_x3_SR.png"], ["car_x2.png", "car_x3.png"]),
        (["ex1_SR.png", "ex2_SR.png"], ["ex1.png", "ex2.png"]),
        (["look_out_SR.png", "look_SR.png"], ["look_out.png", "look.png"]),
        (["photo.jpg.png", "photo.png.png"], ["photo.jpg", "photo.png"]),  # what upscale calls them
    ):
        assert found(images, references) == dict(zip(images, references, strict=True))


@pytest.mark.parametrize(
    ("images", "references", "expected"),
    [
        (["img_001.png"], ["img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png", "img_001_SRF_4_bicubic.png"], 0),
        (["img_001_SRF_4_SRCNN.png"], ["img_001_SRF_4_HR.png", "img_001_SRF_4_SRCNN.png"], None),
        (["DSC_1_x4.png"], ["DSC_1_x1.png", "DSC_1_x4.png"], 0),
        (["img_1.png", "img_1_2.png"], ["img_1_HR.png", "img_1_2_HR.png"], 0),
    ],
)
def test_what_lies_beside_an_original_is_no_reference(images, references, expected):
    assert found(images, references).get(images[0]) == (None if expected is None else references[expected])


def test_numbers_are_whole_names():
    names = ["1.png", "2.png", "10.png", "100.png"]
    assert found(names, names) == {name: name for name in names}
    assert found(["1_out.png", "10_out.png"], ["10.png", "1.png"]) == {"1_out.png": "1.png", "10_out.png": "10.png"}


def test_an_equal_name_wins_over_an_equal_stem():
    pairs = found(["a.png", "b_LR4.png"], ["a.png", "ax4.png", "a_HR.png", "b_HR.png"])
    assert pairs == {"a.png": "a.png", "b_LR4.png": "b_HR.png"}


def test_the_worse_fitting_of_two_images_is_left_out_and_named():
    result = match({Path("0801.png"): "0801.png", Path("0801x4.png"): "0801x4.png"}, {Path("hr/0801.png"): "0801.png"})
    assert result.pairs == [(Path("0801.png"), Path("hr/0801.png"))]
    assert result.remarks() == ["1 image(s) left out: 0801x4.png (0801.png has its reference)"]


def test_what_several_images_have_alike_is_an_ending():
    hat = "_HAT_SRx4_ImageNet-pretrain"  # BasicSR appends the experiment's name
    images = [f"0801x4{hat}.png", f"0802x4{hat}.png", "comparison_grid.png"]
    assert found(images, ["0801.png", "0802.png", "0803.png"]) == {images[0]: "0801.png", images[1]: "0802.png"}
    assert found(
        ["Canon_001_LR4_OurNet.png", "Canon_002_LR4_OurNet.png"], ["Canon_001_HR.png", "Canon_002_HR.png"]
    ) == {
        "Canon_001_LR4_OurNet.png": "Canon_001_HR.png",
        "Canon_002_LR4_OurNet.png": "Canon_002_HR.png",
    }
    assert found(["a_1.png", "b_1.png"], ["a.png", "b.png"]) == {}, "a number may tell pictures apart"


@pytest.mark.parametrize(
    ("images", "references", "message"),
    [
        (["a_LR4.png"], ["a.png", "a_HR.png"], r"a_LR4\.png: more than one reference fits \(a\.png and a_HR\.png"),
        (["a.bmp"], ["a.png", "a.jpg"], r"a\.bmp: more than one reference fits"),
        (["A.png"], ["a.png", "a.jpg"], r"A\.png: more than one reference fits"),
        (["a_SR.png", "a_out.png"], ["a.png"], r"a_SR\.png and .*a_out\.png both belong to the reference a\.png"),
        (["a.bmp", "a.tif"], ["a.png"], r"both belong to the reference a\.png"),
        (["0801x4w1.png", "0801x4w2.png"], ["0801.png"], "both belong to the reference 0801"),
    ],
)
def test_two_that_fit_equally_are_refused(images, references, message):
    with pytest.raises(QartsrError, match=message):
        found(images, references)


@settings(max_examples=80, deadline=None)
@given(
    stem=st.text("abx4_LRH0-", min_size=1, max_size=6), ending=st.sampled_from(["", "_LR4", "_HR", "x4", "_SRF_4_HR"])
)
def test_an_ending_never_changes_the_bare_stem(stem, ending):
    bare = bare_stem(stem + ending)
    assert bare == bare_stem(stem)
    assert bare and stem.startswith(bare)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("Canon_001_LR4", "Canon_001"), ("0801x4", "0801"), ("img_001", "img_001"), ("_HR", "_HR"), ("x4", "x4")],
)
def test_bare_stems(stem, expected):
    assert bare_stem(stem) == expected


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "sr", tmp_path / "hr"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_hidden_files_and_other_files_are_no_images(folders):
    sr, hr = folders
    touch(sr, "x.png", "._x.png", ".DS_Store", "Thumbs.db", "readme.txt", "__MACOSX/x.png", ".thumbnails/y.png")
    touch(hr, "x.png", "._x.png", "._y.png")
    assert match_folders(sr, hr) == ([(sr / "x.png", hr / "x.png")], {}, [])


def test_inputs_beside_their_references_are_no_references(folders):
    sr, hr = folders
    touch(sr, "img_001_SRF_4_LR.png", "only_LR.png")
    touch(hr, "img_001_SRF_4_LR.png", "img_001_SRF_4_HR.png", "only_LR.png")
    names = {image.name: reference.name for image, reference in match_folders(sr, hr).pairs}
    assert names == {"img_001_SRF_4_LR.png": "img_001_SRF_4_HR.png", "only_LR.png": "only_LR.png"}


def test_references_without_an_image_are_counted(folders):
    touch(folders[0], "a.png")
    touch(folders[1], "a.png", "b.png", "c.png")
    assert match_folders(*folders).remarks() == ["2 of 3 references have no image"]


def test_many_images_left_out_are_counted_and_some_named(folders):
    touch(folders[0], "a.png", *(f"grid{i}.png" for i in range(7)))
    touch(folders[1], "a.png")
    (line,) = match_folders(*folders).remarks()
    assert line.startswith("7 image(s) left out: grid0.png (no reference") and line.endswith(" and 2 more")


def test_nothing_that_pairs_is_an_error(folders):
    touch(folders[0], "result_0001.png", "result_0002.png")
    touch(folders[1], "butterfly.png", "head.png")
    with pytest.raises(QartsrError, match=r"result_0001\.png and butterfly\.png are the first\); rename") as caught:
        match_folders(*folders)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["sr", "hr"])
@pytest.mark.parametrize("state", ["empty", "missing"])
def test_empty_and_missing_folders(folders, which, state):
    for folder in folders:
        if folder.name != which:
            touch(folder, "a.png")
        elif state == "empty":
            folder.mkdir()
    with pytest.raises(QartsrError, match=f"{which}: (holds no image|no such folder)"):
        match_folders(*folders)
