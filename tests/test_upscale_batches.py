"""`upscale` on folders as people have them: nothing lost, nothing overwritten, nothing left out in silence."""

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from qartsr_lib.backbones.bicubic import Bicubic
from qartsr_lib.base.errors import Diverged
from qartsr_lib.cli import main
from qartsr_lib.deploy import upscaling
from qartsr_lib.images.image import IMAGE_SUFFIXES, read_image, write_png
from qartsr_lib.images.stamp import read_stamp, stamped_png


@pytest.fixture
def photos(tmp_path, home):
    folder = tmp_path / "photos"
    for number in range(3):
        write_png(folder / f"p{number}.png", torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(number)))
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    """Upscale bicubically into out/: (exit status, standard output, lines of errors and notes)."""

    def command(*words, out=tmp_path / "out"):
        status = main(["upscale", *map(str, words), "--out", str(out), "--backbone", "bicubic"])
        said = capsys.readouterr()
        lines = said.err.replace("\r", "\n").splitlines()
        return status, said.out, [line for line in lines if line.startswith(("error: ", "note: "))]

    return command


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def states(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_bad_files_are_all_named_and_lose_no_others(photos, run, tmp_path):
    whole = (photos / "p1.png").read_bytes()
    (photos / "p1.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    (tmp_path / "none").mkdir()
    status, out, lines = run(photos, tmp_path / "absent.jpg", tmp_path / "none")
    assert status == 1 and names(tmp_path / "out") == ["p0.png", "p2.png"]
    assert "2 image(s) written" in out and "4 failed" in out
    for bad, why in (
        ("p1", "damaged"),
        ("empty", "empty file"),
        ("absent", "no such file"),
        ("none", "holds no image"),
    ):
        assert sum(f"{bad}" in line and why in line for line in lines) == 1, bad
    assert len(lines) == 4
    assert run(photos / "p1.png", photos / "empty.png", out=tmp_path / "b")[0] == 2 and not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "error", [Diverged("numbers that are not finite"), MemoryError(), RuntimeError("out of memory")]
)
def test_an_image_that_cannot_be_computed_loses_no_others(photos, run, tmp_path, monkeypatch, error):
    bad, compute = read_image(photos / "p1.png"), Bicubic.upscale

    def upscale(self, lq):
        if torch.equal(lq, bad):
            raise error
        return compute(self, lq)

    monkeypatch.setattr(Bicubic, "upscale", upscale)
    status, _, lines = run(photos)
    assert status == 1 and names(tmp_path / "out") == ["p0.png", "p2.png"]
    assert len(lines) == 1 and lines[0].startswith(f"error: {photos / 'p1.png'}: ")


def test_a_result_whose_name_is_too_long_loses_no_others(photos, run, tmp_path):
    long = "n" * 251  # with either ending a name of 255 letters; results are called .bmp.png and .png.png
    for ending in (".bmp", ".png"):
        Image.new("RGB", (4, 4)).save(photos / f"{long}{ending}")
    status, out, lines = run(photos)
    assert status == 1 and names(tmp_path / "out") == ["p0.png", "p1.png", "p2.png"]
    assert "3 image(s) written" in out and "2 failed" in out
    told = [line for line in lines if line.startswith("error: ")]
    assert [line.partition(": its result: ")[0] for line in told] == [
        f"error: {photos / long}{ending}" for ending in (".bmp", ".png")
    ]
    assert all("is too long (259 bytes)" in line for line in told)
    status, out, _ = run(photos, out=tmp_path / "b" / ("n" * 256))
    assert status == 2 and not out and not (tmp_path / "b").exists()


def test_what_is_left_out_of_a_folder_is_told(photos, run, tmp_path):
    for folder in ("2023", "2024", ".thumbnails"):
        write_png(photos / folder / "q.png", torch.zeros(1, 3, 4, 4))
    for name in ("notes.txt", "scan", "d.heic", ".DS_Store", "Thumbs.db", "._p0.png"):
        (photos / name).write_bytes(b"x")
    (photos / "link.png").symlink_to("gone.png")
    status, _, lines = run(photos)
    assert status == 0 and names(tmp_path / "out") == ["p0.png", "p1.png", "p2.png"]
    assert lines == [
        f"note: {photos}: left out: 2 subfolder(s) (2023, 2024; name them too), 3 file(s) with endings other than "
        f"{', '.join(IMAGE_SUFFIXES)} (d.heic, notes.txt, scan; name them too to have them read), "
        "1 link(s) to nothing (link.png)"
    ]
    for number in range(7):
        (photos / f"{number}.txt").touch()
    assert "(0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 5 more" in run(photos)[2][0]


def test_a_folder_of_folders_is_refused_by_name(run, tmp_path, home):
    write_png(tmp_path / "tree" / "chapter" / "a.png", torch.zeros(1, 3, 4, 4))
    status, _, lines = run(tmp_path / "tree")
    assert status == 2 and "holds no image" in lines[0] and "chapter; name them too" in lines[0]


def test_a_file_named_twice_is_one_and_clashing_names_are_counted(photos, run, tmp_path):
    (tmp_path / "link.png").symlink_to(photos / "p0.png")
    _, told, lines = run(photos, photos / "p0.png", tmp_path / "link.png")
    assert told.startswith("3 image(s) written")
    assert lines == [f"note: {tmp_path / 'link.png'}: left out: the same file as {photos / 'p0.png'}"]
    other = tmp_path / "other"
    for number in range(2):
        write_png(other / f"p{number}.png", torch.zeros(1, 3, 4, 4))
    status, _, lines = run(photos, other, out=tmp_path / "b")
    assert status == 2 and "p0.png.png" not in lines[0] and "would overwrite the result of" in lines[0]
    assert "(1 more such)" in lines[0] and not (tmp_path / "b").exists()


def test_names_that_differ_in_their_endings_alone_keep_them(photos, run, tmp_path):
    Image.new("RGB", (4, 4)).save(photos / "p0.jpg")
    status, _, lines = run(photos)
    assert status == 0 and names(tmp_path / "out") == ["p0.jpg.png", "p0.png.png", "p1.png", "p2.png"]
    assert lines == [
        "note: inputs whose names differ in their endings alone: results are called p0.jpg.png, p0.png.png"
    ]
    assert Image.open(tmp_path / "out" / "p0.jpg.png").size == (16, 16)


def test_other_peoples_files_are_not_overwritten_unless_asked_for(photos, run, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    edited = write_png(tmp_path / "photo.png", torch.zeros(1, 3, 5, 5))
    before = edited.read_bytes()
    status, _, lines = run(tmp_path / "photo.jpg", photos, out=tmp_path)
    assert status == 1 and edited.read_bytes() == before and (tmp_path / "p0.png").exists()
    assert str(edited) in lines[0] and "--overwrite" in lines[0]
    assert run(tmp_path / "photo.jpg", out=tmp_path)[0] == 2
    (tmp_path / "linked.png").hardlink_to(edited)
    for source in (edited, tmp_path / "linked.png"):  # an input of this run
        assert "is an input" in run(source, "--overwrite", out=tmp_path)[2][0]
    assert edited.read_bytes() == before
    assert run(tmp_path / "photo.jpg", "--overwrite", out=tmp_path)[0] == 0
    assert Image.open(edited).size == (16, 16)


def test_the_same_name_in_another_folder_is_another_input(photos, run, tmp_path):
    (other := tmp_path / "other").mkdir()
    (other / "p0.png").write_bytes((photos / "p1.png").read_bytes())
    assert run(photos / "p0.png")[0] == 0
    before = states(tmp_path / "out")
    status, _, lines = run(other / "p0.png")
    assert status == 2 and "p0.png, the result of another input; name another --out" in lines[0]
    (other / "p0.png").write_bytes((photos / "p0.png").read_bytes())  # a copy, as when a folder was moved
    status, out, lines = run(other / "p0.png")
    assert status == 0 and "1 already there" in out and states(tmp_path / "out") == before
    (photos / "p0.png").write_bytes((photos / "p1.png").read_bytes())  # edited in its place
    assert run(photos / "p0.png")[0::2] == (0, []) and states(tmp_path / "out") != before
    status, _, lines = run(photos / "p0.png", "--colour-fix", "adain")
    assert status == 0 and "made with other settings or another version, is replaced" in lines[0]


def test_an_empty_name_is_not_the_current_folder(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("")
    assert "argument INPUT: an empty name; name a file or folder" in capsys.readouterr().err


def test_a_result_of_another_input_is_not_replaced(photos, run, tmp_path):
    Image.new("RGB", (4, 4)).save(photos / "p0.jpg")
    assert run(photos / "p0.png")[0] == 0
    before = (tmp_path / "out" / "p0.png").read_bytes()
    status, _, lines = run(photos / "p0.jpg")
    assert status == 2 and "p0.png, the result of another input; name another --out" in lines[0]
    assert (tmp_path / "out" / "p0.png").read_bytes() == before
    assert run(photos / "p0.jpg", "--overwrite")[0] == 0


def test_finished_results_are_kept_and_outdated_ones_made_anew(photos, run, tmp_path):
    out = tmp_path / "out"
    assert run(photos)[0] == 0
    first = states(out)
    status, said, _ = run(photos)
    assert (status, states(out)) == (0, first) and said.startswith("0 image(s) written") and "3 already there" in said
    (photos / "p0.png").write_bytes((photos / "p1.png").read_bytes())
    assert "2 already there" in run(photos)[1]
    assert torch.equal(read_image(out / "p0.png"), read_image(out / "p1.png"))
    second = states(out)
    assert run(photos, "--colour-fix", "adain")[1].startswith("3 image(s) written to")
    assert all(state != second[name] for name, state in states(out).items())
    assert run(photos, "--overwrite")[1].startswith("3 image(s) written")


def test_a_result_that_somebody_changed_is_somebodys(photos, run, tmp_path):
    out = tmp_path / "out"
    assert run(photos)[0] == 0
    with Image.open(out / "p1.png") as opened:  # an editor that keeps the text
        text = PngImagePlugin.PngInfo()
        text.add_text("qartsr", opened.text["qartsr"])
        opened.rotate(90, expand=True).save(out / "p1.png", pnginfo=text)
    changed = (out / "p1.png").read_bytes()
    for words in ([], ["--colour-fix", "adain"]):
        status, _, lines = run(photos, *words)
        assert status == 1 and "was changed since" in lines[-1] and (out / "p1.png").read_bytes() == changed


def test_settings_are_all_that_pixels_depend_on(photos, tmp_path):
    class Model:
        name, timestep, weights_sha256 = "embedded", 1, "a"

    class Other(Model):
        weights_sha256 = "b"

    def settings(model=Model, fix="none", checkpoint=None, **options):
        parsed = upscaling.argparse.Namespace(inputs=[photos], out=tmp_path, checkpoint=checkpoint, **options)
        return upscaling._settings(parsed, model, fix)

    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder, content in zip(folders, ("one", "two", "two"), strict=True):
        folder.mkdir()
        (folder / "quantized.json").write_text(content)
    found = [settings(), settings(Other), settings(fix="adain"), settings(tile=64), settings(method="maxmin")]
    found += [settings(checkpoint=folder) for folder in folders]
    assert len(set(found)) == len(found) - 1 and found[-1] == found[-2]
    assert settings(overwrite=True) == settings()


def test_an_interrupted_run_goes_on_where_it_stopped(photos, run, tmp_path, monkeypatch):
    out, compute, calls = tmp_path / "out", Bicubic.upscale, []

    def upscale(self, lq):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, lq)

    monkeypatch.setattr(Bicubic, "upscale", upscale)
    assert run(photos)[0] == 130 and names(out) == ["p0.png", "p1.png"]
    first = states(out)
    assert "2 already there" in run(photos)[1] and first.items() <= states(out).items()


def test_results_beside_their_inputs_are_no_inputs(run, tmp_path, home):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    assert run(tmp_path, out=tmp_path)[0] == 0
    status, said, lines = run(tmp_path, out=tmp_path)
    assert status == 0 and "1 already there" in said and "1 result(s) of earlier runs (a.png)" in lines[0]


def test_a_folder_in_the_place_of_a_result_and_long_names(photos, run, tmp_path):
    (tmp_path / "out" / "p1.png").mkdir(parents=True)
    (photos / "p2.png").rename(photos / f"{'雪' * 83}.png")
    status, _, lines = run(photos, "--overwrite")
    assert status == 1 and len(lines) == 1 and "p1.png, its result, is a folder" in lines[0]
    assert names(tmp_path / "out") == ["p0.png", "p1.png", f"{'雪' * 83}.png"]


def test_results_need_a_folder(photos, run, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        status, _, lines = run(photos, out=out)
        assert status == 2 and f"--out {out}: {tmp_path / 'file'} is a file" in lines[0]


def test_a_stamp_is_all_that_is_added_and_only_by_upscale(photos, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    data = stamped_png(pixels, "input settings")
    (tmp_path / "a.png").write_bytes(data)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.text["qartsr"].startswith("input settings ") and np.array_equal(np.asarray(opened), pixels)
    assert read_stamp(tmp_path / "a.png") == "input settings"
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    assert len(data) > len((tmp_path / "plain.png").read_bytes()) and read_stamp(tmp_path / "plain.png") is None
    for changed in (data[:-1], data.replace(b"input", b"other"), b"", data + b"x"):
        (tmp_path / "b.png").write_bytes(changed)
        assert read_stamp(tmp_path / "b.png") in (None, "other settings")
    assert read_stamp(photos / "p0.png") is None


def test_transparency_is_enlarged_and_what_is_invisible_does_not_show(photos, run, tmp_path):
    pixels = np.zeros((8, 12, 4), np.uint8)
    pixels[...] = (0, 200, 0, 255)
    pixels[:, :6] = (255, 0, 255, 0)
    pixels[0, 11, 3] = 90
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4, 4), (9, 9, 9, 77), np.uint8)).save(tmp_path / "even.png")
    assert run(tmp_path / "a.png", tmp_path / "even.png")[0] == 0
    with Image.open(tmp_path / "out" / "a.png") as made:
        assert made.mode == "RGBA" and made.size == (48, 32)
        result = np.asarray(made)
    assert (result[..., :3] == (0, 200, 0)).all()
    wanted = Image.fromarray(pixels[..., 3]).resize((48, 32), Image.Resampling.BICUBIC)  # Pillow as the oracle
    assert np.abs(result[..., 3].astype(int) - np.asarray(wanted)).max() <= 1
    assert (np.asarray(Image.open(tmp_path / "out" / "even.png"))[..., 3] == 77).all()


def test_what_was_done_to_images_is_told_once_with_all_names(photos, run, tmp_path):
    for name in "abcdefg":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.tif", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    _, _, lines = run(*sorted(tmp_path.glob("*.tif")))
    assert len(lines) == 1 and lines[0].endswith("e.tif and 2 more: the first of its 2 pages is used")


def test_what_could_not_be_read_again_is_not_made(photos, run, tmp_path, monkeypatch):
    monkeypatch.setattr(upscaling, "LARGEST", 16 * 47)
    status, _, lines = run(photos / "p0.png")
    assert status == 2 and "at most 0 million are upscaled" in lines[0]
