"""Images at the seam: reading, writing, padding, resizing, atomic files."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from qartsr_lib.base import files
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images import image as images


@pytest.fixture
def photograph():
    return torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(0))


def test_png_round_trip_is_exact_on_8_bit_levels(tmp_path, photograph):
    levels = images.from_uint8(images.to_uint8(photograph))
    images.write_png(tmp_path / "a.png", levels)
    assert torch.equal(images.read_image(tmp_path / "a.png"), levels)


def test_grey_and_alpha_become_rgb(tmp_path):
    Image.fromarray(np.full((4, 6), 51, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 6, 4), 51, np.uint8), "RGBA").save(tmp_path / "alpha.png")
    for name in ("grey.png", "alpha.png"):
        assert torch.allclose(images.read_image(tmp_path / name), torch.full((1, 3, 4, 6), 0.2))


def test_unreadable_images_name_the_file(tmp_path, photograph):
    whole = images.write_png(tmp_path / "whole.png", photograph).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png", "absent.png"):
        with pytest.raises(QartsrError, match=name) as caught:
            images.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_list_images_of_missing_and_empty_folders(tmp_path):
    with pytest.raises(QartsrError, match="no such folder"):
        images.list_images(tmp_path / "absent")
    with pytest.raises(QartsrError, match="holds no image"):
        images.list_images(tmp_path)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding_reaches_the_multiple_and_keeps_the_image(height, width):
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    padded = images.pad_to_multiple(image, 16)
    assert padded.shape[-2] % 16 == 0 and padded.shape[-1] % 16 == 0
    assert padded.shape[-2] - height < 16 and padded.shape[-1] - width < 16
    assert torch.equal(padded[..., :height, :width], image)


def test_padding_equals_torchs_reflection():
    image = torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.pad_to_multiple(image, 16), F.pad(image, (0, 4, 0, 12), mode="reflect"))


def test_bicubic_equals_pillow(photograph):
    levels = images.to_uint8(photograph)
    for height, width in ((80, 112), (5, 7)):
        channels = [Image.fromarray(levels[..., c].astype(np.float32), mode="F") for c in range(3)]
        expected = np.stack([np.asarray(c.resize((width, height), Image.Resampling.BICUBIC)) for c in channels])
        ours = images.resize_bicubic(images.from_uint8(levels), height, width)[0].numpy() * 255
        assert np.abs(ours - expected.clip(0, 255)).max() < 0.01


@pytest.mark.parametrize(("free", "kind"), [(4096, QartsrError), (2**30, RuntimeError)])
def test_a_full_disk_is_told_whatever_a_library_raises(tmp_path, monkeypatch, free, kind):
    """safetensors 0.8 raises SafetensorError, torch 2.15 a RuntimeError."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))

    def write(_):
        raise RuntimeError("[enforce fail at inline_container.cc:671]")

    with pytest.raises(kind, match="disk is full" if kind is QartsrError else "enforce fail"):
        files.write_atomically(tmp_path / "a.bin", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_keeps_the_old_file_and_says_so(tmp_path, number):
    target = files.write_text(tmp_path / "table.csv", "old")

    def fail(path):
        path.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(QartsrError, match="table.csv: the disk is full"):
        files.write_atomically(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_interrupted_write_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "new.csv", fail)
    assert list(tmp_path.iterdir()) == []


def test_central_crop_begins_at_a_multiple_and_leaves_short_sides_whole():
    image = torch.arange(11 * 5).view(1, 1, 11, 5)
    assert torch.equal(images.central_crop(image, 6), image[..., 2:8, :])
    assert torch.equal(images.central_crop(image, 3), image[..., 4:7, 1:4])
    assert torch.equal(images.central_crop(image, 4, multiple=4), image[..., 0:4, 0:4])


@pytest.mark.parametrize(("suffix", "kind"), [("png", np.uint16), ("tif", np.int32), ("tif", ">u2")])
def test_sixteen_bits_keep_their_range(tmp_path, suffix, kind):
    ramp = np.linspace(0, 65535, 256).round().reshape(16, 16)
    Image.fromarray(ramp.astype(kind)).save(tmp_path / f"ramp.{suffix}")
    found = images.read_image(tmp_path / f"ramp.{suffix}")
    assert torch.equal(found, images.from_uint8(np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)))


@pytest.mark.parametrize("pixels", [np.float32([[0.5, 700.0]]), np.int32([[0, 70000]]), np.int32([[-1, 5]])])
def test_pixels_without_a_known_range_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "odd.tif")
    with pytest.raises(QartsrError, match="odd.tif: pixels of kind [IF] have no range of 8 or 16 bits") as caught:
        images.read_image(tmp_path / "odd.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_turned_upright(tmp_path, suffix, orientation):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # bright where the camera's first corner is
    exif, file = Image.Exif(), tmp_path / f"turned.{suffix}"
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    found = images.read_image(file)[0, 0]
    assert found.shape == ((16, 32) if orientation in (1, 3) else (32, 16))
    corner = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
    assert found[corner] > 0.8 and found.mean() < 0.4
    assert images.header_size(file) == tuple(found.shape[::-1])


def test_damaged_exif_data_do_not_concern_the_pixels(tmp_path):
    Image.new("RGB", (6, 4), (255, 255, 255)).save(tmp_path / "a.png", exif=b"Exif\x00\x00nothing of the kind")
    assert images.read_image(tmp_path / "a.png").shape == (1, 3, 4, 6)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_folder_that_cannot_be_made_and_a_folder_in_place_of_a_file(tmp_path, photograph):
    with pytest.raises(QartsrError, match="/proc/x/a.png: cannot be written"):
        images.write_png("/proc/x/a.png", photograph)
    with pytest.raises(QartsrError, match="is a folder; name a file"):
        images.write_png(tmp_path, photograph)
    with pytest.raises(FileNotFoundError):  # of another file: an error of the program, not of the user's
        files.write_atomically(tmp_path / "a.txt", lambda _: (tmp_path / "absent").read_text())
