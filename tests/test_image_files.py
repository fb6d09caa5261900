"""What is read from the kinds of files that users have, against closed forms; and true reasons where nothing is."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from icc_builder import SRGB_PRIMARIES, cmyk_profile, grey_profile, rgb_profile
from PIL import Image, ImageCms

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images import image as images
from qartsr_lib.images.datasets import calibration
from qartsr_lib.images.datasets.samples import PHOTOGRAPHS
from qartsr_lib.images.image import IMAGE_SUFFIXES, header_size, list_images, read_image, to_uint8
from qartsr_lib.images.image_files import decode


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(images, "_told", set())


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(path, size, depth, kind, rows, extra=b""):
    """A PNG of packed rows, in kinds that Pillow does not write; size: (height, width)."""
    header = struct.pack(">IIBBBBB", *size[::-1], depth, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def png16(path, array, extra=b""):
    """16 bits per channel."""
    kind = {2: 0, 3: {1: 0, 2: 4, 3: 2, 4: 6}.get(array.shape[-1])}[array.ndim]
    png(path, array.shape[:2], 16, kind, [row.astype(">u2").tobytes() for row in array], extra)


def encoded(linear):
    """sRGB's curve (IEC 61966-2-1), in levels."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_colours_are_converted_by_the_profile(tmp_path, pixels, suffix):
    profile = rgb_profile([SRGB_PRIMARIES[n] for n in (1, 0, 2)], 1.8)  # red's primary is sRGB's green
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", icc_profile=profile, **options)
    found = decode(tmp_path / f"a.{suffix}")
    wanted = encoded((pixels / 255) ** 1.8)[..., [1, 0, 2]]
    assert np.abs(found.rgb - wanted).max() < 2
    assert found.notes == ("colours converted from its profile (hand-made RGB)",)
    assert np.array_equal(to_uint8(read_image(tmp_path / f"a.{suffix}")), found.rgb)
    assert np.array_equal(to_uint8(read_image(tmp_path / f"a.{suffix}", profiles=False)), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_greys_are_converted_by_the_profile(tmp_path, mode):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.5))
    assert np.abs(decode(tmp_path / "a.png").rgb - encoded((ramp / 255) ** 1.5)[..., None]).max() < 2


def test_inks_are_converted_by_the_profile_and_told_to_be_approximate_without_one(tmp_path):
    cyan = Image.new("CMYK", (6, 4), (255, 0, 0, 0))
    cyan.save(tmp_path / "a.tif", icc_profile=cmyk_profile((54.29, 80.81, 69.89)))  # Lab of sRGB's red at D50
    Image.new("CMYK", (6, 4)).save(tmp_path / "paper.tif", icc_profile=cmyk_profile((50, 0, 0)))
    cyan.save(tmp_path / "b.tif")
    assert np.abs(decode(tmp_path / "a.tif").rgb.astype(int) - (255, 0, 0)).max() <= 4
    assert decode(tmp_path / "paper.tif").rgb.min() >= 254
    plain = decode(tmp_path / "b.tif")
    assert np.array_equal(plain.rgb[0, 0], (0, 255, 255)) and "approximate" in plain.notes[0]


def test_srgb_in_any_writing_leaves_pixels_alone(tmp_path, pixels):
    built = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=built)
    found = decode(tmp_path / "a.png")
    assert np.array_equal(found.rgb, pixels) and found.notes == ()
    astronaut = next(photograph.path for photograph in PHOTOGRAPHS if photograph.id == "astronaut")
    with Image.open(astronaut) as opened:  # Hewlett-Packard's profile, the usual one
        assert opened.info["icc_profile"]
        assert np.array_equal(decode(astronaut).rgb, np.asarray(opened))


@pytest.mark.parametrize(
    ("profile", "words"),
    [(b"nothing of the kind", "broken"), (grey_profile(1.5), "is for GRAY"), (cmyk_profile((50, 0, 0)), "is for CMYK")],
)
def test_profiles_that_do_not_fit_are_told(tmp_path, pixels, profile, words):
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    found = decode(tmp_path / "a.png")
    assert np.array_equal(found.rgb, pixels) and words in found.notes[0]


def test_transparency_of_every_kind(tmp_path, pixels):
    alpha = np.full((12, 20), 255, np.uint8)
    alpha[:, :7] = 0
    rgba = np.dstack([pixels, alpha])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(rgba).save(tmp_path / "rgba.tif")
    Image.fromarray(rgba).convert("LA").save(tmp_path / "la.png")
    png16(tmp_path / "rgba16.png", rgba.astype(np.uint16) * 257)
    palette = Image.fromarray(np.where(alpha == 0, 1, 0).astype(np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=b"\xff\x00")
    palette.save(tmp_path / "p.gif", transparency=1)
    key = np.where(alpha[..., None] == 0, (300, 5000, 65535), 40000).astype(np.uint16)
    png16(tmp_path / "rgb16.png", key, chunk(b"tRNS", struct.pack(">3H", 300, 5000, 65535)))
    png16(tmp_path / "grey16.png", key[..., 0], chunk(b"tRNS", struct.pack(">H", 300)))
    paths = list_images(tmp_path)
    assert len(paths) == 10
    for path in paths:
        found = decode(path)
        assert np.array_equal(found.alpha, alpha), path.name
        if path.stem.startswith("rgba"):
            assert np.array_equal(found.rgb, pixels)
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "opaque.png")
    assert decode(tmp_path / "opaque.png").alpha is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", ["black", "white"])
def test_a_transparent_grey_of_few_bits(tmp_path, bits, transparent):
    white, side = 2**bits - 1, 8
    row = int("".join(f"{level:0{bits}b}" for level in [white] * 4 + [0] * 4), 2).to_bytes(bits, "big")
    key = white if transparent == "white" else 0
    png(tmp_path / "a.png", (3, side), bits, 0, [row] * 3, chunk(b"tRNS", struct.pack(">H", key)))
    found = decode(tmp_path / "a.png")
    half = np.repeat([0, 255], 4) if transparent == "white" else np.repeat([255, 0], 4)
    assert np.array_equal(found.rgb[..., 0], np.tile(np.repeat([255, 0], 4), (3, 1)))
    assert np.array_equal(found.alpha, np.tile(half, (3, 1)))


def test_a_transparent_colour_of_16_bits_is_told_to_take_its_neighbours_along(tmp_path):
    colours = np.array([[[0x8000] * 3, [0x80FF, 0x8001, 0x8010], [0x9000] * 3]], np.uint16)
    png16(tmp_path / "a.png", colours, chunk(b"tRNS", struct.pack(">3H", *[0x8000] * 3)))
    found = decode(tmp_path / "a.png")
    assert found.alpha.tolist() == [[0, 0, 255]] and any("next to it" in note for note in found.notes)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_whatever_else_its_exif_data_hold(tmp_path, pixels, orientation):
    tags = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + struct.pack("<HHII", 0x128, 4, 1, 2**32 - 1)
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)  # a resolution's unit is no such number
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exif=odd)
    expected = UPRIGHT[orientation](pixels)
    found = decode(tmp_path / "a.webp")
    assert np.array_equal(found.rgb, expected) and found.notes == ()
    assert header_size(tmp_path / "a.webp") == expected.shape[1::-1]


def test_the_size_of_a_png_that_xmp_turns(tmp_path, pixels):
    words = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmlns:tiff="t" tiff:Orientation="6"/></x:xmpmeta>'
    rows = [row.tobytes() for row in pixels]
    png(tmp_path / "a.png", pixels.shape[:2], 8, 2, rows, chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + words))
    assert decode(tmp_path / "a.png").rgb.shape == (20, 12, 3) and header_size(tmp_path / "a.png") == (12, 20)


def test_the_first_of_several_frames_is_used_and_told(tmp_path, pixels):
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    for name, options in (("a.tif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.gif", {})):
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        found = decode(tmp_path / name)
        assert found.notes == (f"the first of its 2 {'pages' if name == 'a.tif' else 'frames'} is used",), name
        assert np.abs(found.rgb.astype(int) - pixels).mean() < (12 if name == "a.gif" else 0.01), name


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_are_told(tmp_path, pixels, channels):
    levels = pixels[..., :channels].astype(np.uint16).squeeze()
    png16(tmp_path / "a.png", levels * 16)
    found = decode(tmp_path / "a.png")
    assert "below 4096 (12 bits)" in found.notes[0] and "multiply the values by 16" in found.notes[0]
    png16(tmp_path / "b.png", levels * 257)
    assert decode(tmp_path / "b.png").notes == ()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_uncompressed_tiffs_are_turned_as_a_whole(tmp_path, mode, orientation):
    """Pillow 13.0.0 maps these where they are opened by name, and reads sideways ones by the wrong size."""
    stored = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    stored = {"L": stored[..., 0], "I;16": stored[..., 0].astype(np.uint16) * 257}.get(mode, stored)
    for name, array, tags in (("sideways", stored, {274: orientation}), ("upright", UPRIGHT[orientation](stored), {})):
        array = np.ascontiguousarray(array)
        image = Image.fromarray(array, mode) if mode == "CMYK" else Image.fromarray(array)
        image.save(tmp_path / f"{name}.tif", tiffinfo=tags)
    found, expected = decode(tmp_path / "sideways.tif"), decode(tmp_path / "upright.tif")
    assert np.array_equal(found.rgb, expected.rgb)
    assert found.alpha is expected.alpha or np.array_equal(found.alpha, expected.alpha)


def test_greys_of_12_bits_have_the_whole_range(tmp_path):
    levels = np.array([[0, 1024, 2048, 3072, 4095, 7]])
    Image.fromarray(levels.astype(np.uint16)).save(path := tmp_path / "grey.tif")
    packed = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in levels.reshape(-1, 2))
    data = path.read_bytes().replace(levels.astype("<u2").tobytes(), packed + bytes(3))
    path.write_bytes(data.replace(struct.pack("<HHII", 258, 3, 1, 16), struct.pack("<HHII", 258, 3, 1, 12)))
    found = decode(path)
    assert found.rgb[0, :, 0].tolist() == [0, 64, 128, 191, 255, 0] and found.notes == ()


def test_premultiplied_greys_are_divided_by_their_alpha(tmp_path):
    grey = Image.fromarray(np.uint8([[[50, 100], [200, 255]]]), "LA")
    grey.save(path := tmp_path / "grey.tif")
    entry = struct.pack("<HHII", 338, 3, 1, 2)  # ExtraSamples: alpha that is not multiplied in
    assert path.read_bytes().count(entry) == 1
    path.write_bytes(path.read_bytes().replace(entry, struct.pack("<HHII", 338, 3, 1, 1)))
    found = decode(path)
    assert found.alpha.tolist() == [[100, 255]] and found.rgb[0, 1].tolist() == [200] * 3
    assert abs(int(found.rgb[0, 0, 0]) - 127) <= 1


def _page(path):
    path.write_text("\n<!DOCTYPE html><title>404</title>")


def _bomb(path):
    png16(path, np.zeros((2, 2), np.uint16))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 300_000, 300_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("white", [0, 1])
def test_greys_whose_zero_is_white_are_turned_round(tmp_path, bits, white):
    """Pillow 13.0.0 does that for 8 bits and leaves 16 as they are (TIFF 6.0, PhotometricInterpretation)."""
    ramp = np.arange(0, 256, dtype=np.uint8)[None].repeat(4, 0)
    stored = ramp if bits == 8 else ramp.astype(np.uint16) * 257
    Image.fromarray(stored).save(path := tmp_path / "grey.tif")
    entry = struct.pack("<HHII", 262, 3, 1, 1)  # tag, short, one value: black is zero
    assert path.read_bytes().count(entry) == 1
    path.write_bytes(path.read_bytes().replace(entry, entry[:8] + struct.pack("<I", white)))
    expected = ramp if white else 255 - ramp
    assert np.array_equal(decode(path).rgb, expected[..., None].repeat(3, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
        (_page, "a web page"),
        (lambda path: path.write_text("just text"), "of no kind that is known here"),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40)), "HEIC cannot be read"),
        (lambda path: path.symlink_to("gone.png"), "a link to a file that is not there"),
        (lambda path: path.mkdir(), "is a folder"),
        (_bomb, "million pixels"),
        (lambda path: Image.new("LAB", (4, 4)).save(path, "TIFF"), "Lab colours"),
        (lambda path: Image.fromarray(np.float32([[0.25, 0.5]])).save(path, "TIFF"), "from 0.25 to 0.5"),
    ],
)
def test_reasons_are_true(tmp_path, make, words):
    make(tmp_path / "a.png")
    with pytest.raises(QartsrError, match=rf"a\.png: .*{words}") as caught:
        decode(tmp_path / "a.png")
    assert "\n" not in str(caught.value) and "truncated" not in str(caught.value)


def test_a_raw_file_is_not_taken_for_its_preview(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.NEF", "TIFF")
    with pytest.raises(QartsrError, match=r"a\.NEF: a raw camera file"):
        decode(tmp_path / "a.NEF")


def test_a_result_of_a_large_photograph_can_be_read(tmp_path, recwarn):
    buffer = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(buffer, "PNG")  # beyond what Pillow refuses by itself
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert header_size(tmp_path / "a.png") == (14_000, 14_000)
    assert not recwarn.list


def test_the_study_tells_what_it_ignores_once(tmp_path, pixels, caplog):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(tmp_path / name)
        assert torch.equal(read_image(tmp_path / name), images.from_uint8(pixels))
    assert len(caplog.records) == 1 and "a.png: its transparency is ignored" in caplog.records[0].getMessage()


def test_hidden_files_are_no_images(tmp_path, pixels):
    for name in ("a.jfif", ".b.png", "._a.jfif"):
        Image.fromarray(pixels).save(tmp_path / name, "PNG")
    assert [path.name for path in list_images(tmp_path)] == ["a.jfif"]


def test_calibration_takes_the_stored_numbers_as_committed_results_did(monkeypatch):
    rocket = next(photograph.path for photograph in PHOTOGRAPHS if photograph.id == "rocket")
    monkeypatch.setattr(calibration, "degrade", lambda hr, kind, seed: hr)
    crop = to_uint8(calibration._crop(rocket, 0, 1000))
    with Image.open(rocket) as opened:  # in Adobe RGB
        stored = np.asarray(opened)
    height, width = crop.shape[:2]
    assert any(np.array_equal(crop, stored[top : top + height, :width]) for top in range(len(stored) - height + 1))
    assert not np.array_equal(decode(rocket).rgb, stored)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_listed_kind_is_read(tmp_path, suffix):
    Image.new("RGB", (6, 4), (200, 60, 40)).save(tmp_path / f"a{suffix}")
    assert np.abs(decode(tmp_path / f"a{suffix}").rgb.astype(int) - (200, 60, 40)).max() < 8


def test_16_bit_colours_in_separate_planes_are_refused(tmp_path):
    """Pillow 13.0.0 reads the bytes of such planes as pixels of 8 bits, without a word."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    planes = np.moveaxis(pixels, -1, 0)
    deep = planes.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", planarconfig="separate")
    with pytest.raises(QartsrError, match="deep.tif: colours of 16 bits in separate planes are not read; save it as"):
        decode(tmp_path / "deep.tif")
    tifffile.imwrite(tmp_path / "flat.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(decode(tmp_path / "flat.tif").rgb, pixels)
    tifffile.imwrite(tmp_path / "whole.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    assert np.array_equal(decode(tmp_path / "whole.tif").rgb, pixels)
