"""The command line: results of the right size and name, and one clear line for every bad input."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from qartsr_lib import cli, commands
from qartsr_lib.backbones import load_backbone
from qartsr_lib.base.errors import Diverged
from qartsr_lib.cli import main
from qartsr_lib.deploy import around_product
from qartsr_lib.deploy.shipped import shipped_model
from qartsr_lib.images import image
from qartsr_lib.images.image import psnr_y, read_image, upscale_bicubic, write_png
from qartsr_lib.methods import METHODS, svdquant
from qartsr_lib.methods.checkpoint import save_quantized
from qartsr_lib.study import runner


@pytest.fixture
def photograph(tmp_path, home):
    return write_png(tmp_path / "in" / "cat.png", torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "extra", [[], ["--backbone", "embedded-scaled", "--timestep", "1000"], ["--backbone", "bicubic"]]
)
def test_upscale_writes_four_times_the_size(photograph, tmp_path, extra):
    assert main(["upscale", str(photograph), "--out", str(tmp_path / "out"), *extra]) == 0
    assert Image.open(tmp_path / "out" / "cat.png").size == (56, 36)


def test_upscale_takes_folders_and_quantizes(photograph, tmp_path):
    full, quantized = tmp_path / "full", tmp_path / "quantized"
    assert main(["upscale", str(photograph.parent), "--out", str(full)]) == 0
    assert (
        main(["upscale", str(photograph.parent), "--out", str(quantized), "--method", "maxmin", "--bits", "W2A2"]) == 0
    )
    assert not torch.equal(read_image(full / "cat.png"), read_image(quantized / "cat.png"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--method", "maxmim", "--bits", "W4A4"], "did you mean 'maxmin'"),
        (["--method", "maxmin", "--bits", "W1A4"], "W1A4"),
        (["--bits", "W4A4"], "--method maxmin"),
        (["--timestep", "123"], "embedded-scaled-T0123.safetensors"),
        (["--timestep", "0"], "timestep 0"),
        (["--backbone", "osedif"], "unknown backbone 'osedif'"),
    ],
)
def test_wrong_options(photograph, tmp_path, capsys, extra, words):
    assert main(["upscale", str(photograph), "--out", str(tmp_path / "out"), *extra]) == 2
    _one_line(capsys, words)
    assert not (tmp_path / "out").exists()


TRAINED = ("--method", "qartsr", "--train-images", "12")


def _quantize(photograph, out, *extra):
    words = ["quantize", "--images", str(photograph.parent), "--out", str(out), "--bits", "W4A4", "--crops", "2"]
    return main([*words, *extra])


def test_quantize_and_upscale_with_the_checkpoint(photograph, tmp_path, capsys):
    assert _quantize(photograph, tmp_path / "q", "--method", "maxmin") == 0
    told = capsys.readouterr().out
    assert "MaxMin W4A4, 4.27 bits per weight stored" in told, "with the identity path at 8 bits"
    assert float(re.search(r"([\d.]+) dB from full precision on the 2 crops themselves", told)[1]) > 20
    assert main(["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", str(tmp_path / "q")]) == 0
    assert Image.open(tmp_path / "a" / "cat.png").size == (56, 36)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    backbone = load_backbone("embedded", 1)
    model = METHODS.get("maxmin").build(backbone, "W4A4", [torch.rand(1, 3, 8, 8)]).backbone
    folder = tmp_path_factory.mktemp("packed")
    save_quantized(model, folder / "q")
    return folder / "q"


def test_export_and_upscale_with_the_file(photograph, packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(around_product, "library", lambda: None)
    file = tmp_path / "model.safetensors"
    assert main(["export", "--checkpoint", str(packed), "--out", str(file)]) == 0
    assert "MB" in capsys.readouterr().out
    for extra in ([], ["--runtime", "int8"], ["--tile", "32"]):
        words = ["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", str(file), *extra]
        assert main(words) == 0
        assert Image.open(tmp_path / "a" / "cat.png").size == (56, 36)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--runtime", "int4"], "unknown runtime 'int4'"),
        (["--tile", "8"], "--tile 8: choose at least 32"),
    ],
)
def test_wrong_options_of_a_packed_model(photograph, packed, tmp_path, capsys, extra, words):
    file = tmp_path / "model.safetensors"
    assert main(["export", "--checkpoint", str(packed), "--out", str(file)]) == 0
    assert main(["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", str(file), *extra]) == 2
    assert words in capsys.readouterr().err


def test_a_runtime_needs_a_packed_model(photograph, tmp_path, capsys):
    assert main(["upscale", str(photograph), "--out", str(tmp_path / "a"), "--runtime", "int8"]) == 2
    _one_line(capsys, "--runtime int8: needs --checkpoint FILE.safetensors, which export writes (int8: of a model")


@pytest.mark.slow
def test_interrupted_quantization_ends_with_the_same_model(photograph, tmp_path, monkeypatch, capsys):
    from qartsr_lib.training.finetuning import engine

    assert _quantize(photograph, tmp_path / "whole", *TRAINED) == 0
    save, calls = engine.save_state, []

    def stop_after_four(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "save_state", stop_after_four)
    assert _quantize(photograph, tmp_path / "parts", *TRAINED) == 130
    assert (tmp_path / "parts" / "unfinished.pt").exists()
    assert _quantize(photograph, tmp_path / "parts", *TRAINED) == 0
    assert len(calls) > 4 and not (tmp_path / "parts" / "unfinished.pt").exists()
    whole, parts = (json.loads((tmp_path / name / "quantized.json").read_text()) for name in ("whole", "parts"))
    assert whole["tensors"]["sha256"] == parts["tensors"]["sha256"]


def test_a_method_without_training_leaves_an_interrupted_training_alone(photograph, tmp_path):
    unfinished = tmp_path / "q" / "unfinished.pt"
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"hours of work")
    assert _quantize(photograph, tmp_path / "q", "--method", "maxmin") == 0
    assert unfinished.read_bytes() == b"hours of work"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--method", "fp"], "choose qartsr, svdquant, maxmin"),
        (["--method", "qartrs"], "did you mean 'qartsr'"),
        (["--bits", "W5"], "write weights and activations as in W4A4"),
        (["--quality", "good"], "--quality good: choose one of fast, best"),
        (["--eight-bit", "some"], "unknown list of 8-bit layers 'some'"),
        (["--ranges", "wide"], "unknown range rule 'wide'"),
        (["--quality", "best", "--method", "maxmin"], "--quality best: give it or --method maxmin, not both"),
        (["--method", "maxmin", "--train-images", "4"], "MaxMin does not train; leave it out, or choose a --method"),
    ],
)
def test_quantize_with_wrong_options(photograph, tmp_path, capsys, extra, words):
    assert _quantize(photograph, tmp_path / "q", *extra) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "q").exists()


def test_quantize_refuses_images_of_one_colour(tmp_path, capsys):
    (tmp_path / "grey").mkdir()
    Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "grey" / "a.png")
    assert main(["quantize", "--images", str(tmp_path / "grey"), "--out", str(tmp_path / "q")]) == 2
    _one_line(capsys, "all crops are of one colour; name a folder of photographs")


def test_the_time_told_is_that_of_the_largest_crop(monkeypatch):
    seen, crops = [], [torch.zeros(1, 3, side, side) for side in (8, 32, 16)]
    monkeypatch.setattr("qartsr_lib.methods.base.stored_bits", lambda *_: 4.0)
    backbone = SimpleNamespace(upscale=lambda crop: seen.append(crop.shape[-1]))
    commands._expected(SimpleNamespace(label="A", calibration_adds_bits=False), backbone, "W4A4", None, crops, 0)
    assert set(seen) == {32}


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_qualities_of_quantize(photograph, tmp_path, capsys, monkeypatch, quality):
    monkeypatch.setattr(svdquant, "GRID", 2)
    monkeypatch.setattr(svdquant, "REFINEMENTS", 1)
    trained = ("--train-images", "2") if quality == "best" else ()
    assert _quantize(photograph, tmp_path / "q", "--quality", quality, *trained) == 0
    told = capsys.readouterr()
    *before, after = (line for line in told.out.splitlines() if "Groupwise" in line)
    labels = ["Groupwise [untrained] W4A4", "Groupwise W4A4"][: len(before)]
    assert len(before) == (2 if trained else 1)
    for label, line in zip(labels, before, strict=True):
        assert re.match(re.escape(label) + r": [0-9.]+ bits .* stored; \d+ minutes at most$", line)
    size = re.search(r"([0-9.]+) bits per weight stored", before[0]).group(1)
    assert f"{size} bits per weight stored" in after
    assert "warning: " in told.err and "2 crops of 1 images are few" in told.err
    near = [float(value) for value in re.findall(r"([0-9.]+) dB", after)]
    assert len(near) == len(before)


@pytest.mark.parametrize(("scores", "kept"), [((90, 20), "MaxMin"), ((20, 90), "LSQ")])
def test_best_keeps_the_model_nearest_to_full_precision(photograph, tmp_path, capsys, monkeypatch, scores, kept):
    monkeypatch.setitem(commands.QUALITIES, "best", ("maxmin", "lsq"))
    alone = ("--method", "maxmin") if kept == "MaxMin" else ("--method", "lsq", "--train-images", "2")
    assert _quantize(photograph, tmp_path / "alone", *alone) == 0
    told = iter([score for score in scores for _ in range(2)])  # of its two crops: the photograph has no others
    monkeypatch.setattr(image, "psnr_y", lambda *_: next(told))
    assert _quantize(photograph, tmp_path / "q", "--quality", "best", "--train-images", "2") == 0
    other = ({"MaxMin", "LSQ"} - {kept}).pop()
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"{kept} W4A4" in line and "90.0 dB" in line and line.endswith(f"; {other}: 20.0 dB")
    one, alone = (json.loads((tmp_path / name / "quantized.json").read_text()) for name in ("q", "alone"))
    assert one["tensors"]["sha256"] == alone["tensors"]["sha256"]


def test_best_keeps_what_was_made_before_a_training_that_diverges(photograph, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(commands.QUALITIES, "best", ("maxmin", "lsq"))

    def diverges(*_, **__):
        raise Diverged("LSQ W4A4: loss is not finite after 2 images; use smaller rates")

    monkeypatch.setattr(type(METHODS.get("lsq")), "build", diverges)
    assert _quantize(photograph, tmp_path / "q", "--quality", "best", "--train-images", "2") == 0
    told = capsys.readouterr()
    assert "note: LSQ W4A4: loss is not finite after 2 images; use smaller rates; MaxMin is kept" in told.err
    assert told.out.splitlines()[-1].startswith(f"{tmp_path / 'q'}: MaxMin W4A4")


def test_quantize_does_not_call_its_own_crops_further_ones(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for name, one in zip("ab", pixels, strict=True):  # no larger than a crop, so that each has one crop alone
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(one).save(tmp_path / "images" / f"{name}.png")
    words = ["quantize", "--images", str(tmp_path / "images"), "--method", "maxmin", "--crops", "2"]
    assert main([*words, "--out", str(tmp_path / "q")]) == 0
    told = capsys.readouterr().out
    assert told.rstrip().endswith("on the 2 crops themselves, as there are no others") and "further" not in told


def test_quantize_tells_what_it_replaces_and_keeps_what_is_not_its_own(photograph, tmp_path, capsys):
    out = tmp_path / "q"
    for crops in ("2", "3"):
        assert _quantize(photograph, out, "--method", "maxmin", "--crops", crops) == 0
        (own := out / "tensors-mine.safetensors").touch()
        said = capsys.readouterr().err
        assert (f"note: {out}: the model that is there is replaced" in said) == (crops == "3")
    assert own.exists() and len(list(out.glob("tensors-*"))) == 2
    (tmp_path / "file").touch()
    assert _quantize(photograph, tmp_path / "file", "--method", "maxmin") == 2
    _one_line(capsys, f"--out {tmp_path / 'file'}: {tmp_path / 'file'} is a file; name another folder")
    assert _quantize(photograph, out, "--train-images", "2") == 2
    _one_line(capsys, "--train-images: Groupwise [untrained] does not train; leave it out, or add --quality best")


@pytest.mark.parametrize("option", ["--train-images", "--crops"])
def test_quantize_needs_at_least_one(photograph, tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        _quantize(photograph, tmp_path / "q", option, "0")
    assert f"argument {option}: 0: choose a whole number of at least 1" in capsys.readouterr().err


def test_upscale_with_a_folder_that_is_no_checkpoint(photograph, tmp_path, capsys):
    words = ["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", str(tmp_path)]
    assert main(words) == 2
    assert "name a folder that quantize wrote" in capsys.readouterr().err


def test_a_bad_image_is_told_before_a_model_is_loaded(photograph, tmp_path, capsys):
    broken = photograph.parent / "dog.png"
    broken.write_bytes(photograph.read_bytes()[:60])
    words = ["upscale", str(broken), "--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "absent")]
    assert main(words) == 2
    _one_line(capsys, "dog.png: not a readable image")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["upscale", "{photo}", "--out", "{long}"],
        ["upscale", "{photo}", "--out", "{out}", "--checkpoint", "{long}"],
        ["upscale", "{photo}", "--out", "{out}", "--checkpoint", "{long}.safetensors"],
        ["quantize", "--images", "{photo}", "--out", "{long}"],
        ["quantize", "--images", "{long}", "--out", "{out}"],
        ["export", "--checkpoint", "{long}", "--out", "{out}.safetensors"],
        ["export", "--model", "w4a4", "--format", "web", "--out", "{long}"],
        ["evaluate", "--sr", "{long}", "--hr", "{long}", "--out", "{out}.csv"],
        ["evaluate", "--sr", "{out}", "--hr", "{out}", "--out", "{long}.csv"],
    ],
)
def test_names_that_are_too_long_are_one_line(photograph, tmp_path, capsys, words):
    places = {"photo": photograph, "long": tmp_path / ("n" * 300), "out": tmp_path / "out"}
    assert main([word.format(**places) for word in words]) == 2
    _one_line(capsys, "too long")
    assert not (tmp_path / "out").exists()


def test_missing_input_empty_folder_and_clashing_names(photograph, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    copy = write_png(tmp_path / "other" / "cat.png", torch.zeros(1, 3, 4, 4))
    for inputs, words in (
        ([tmp_path / "absent.png"], "absent.png: no such file"),
        ([tmp_path / "empty"], "holds no image"),
        ([photograph, copy], "would overwrite"),
    ):
        assert main(["upscale", *map(str, inputs), "--out", str(tmp_path / "out")]) == 2
        _one_line(capsys, words)


def test_evaluate_writes_the_contract(photograph, tmp_path, capsys):
    for name in ("sr", "hr"):
        image = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(len(name)))
        write_png(tmp_path / name / f"cat{'x4' if name == 'sr' else '_HR'}.png", image)
    out = tmp_path / "scores.csv"
    command = ["evaluate", "--sr", str(tmp_path / "sr"), "--hr", str(tmp_path / "hr"), "--out", str(out)]
    assert main([*command, "--metrics", "PSNR,SSIM,MUSIQ"]) == 0
    frame = pd.read_csv(out)
    assert list(frame.columns) == ["image", "metric", "value", "note"]
    assert set(frame["image"]) == {"catx4.png"} and list(frame["metric"]) == ["PSNR", "SSIM", "MUSIQ"]
    assert main([*command, "--metrics", "PSNRR"]) == 2
    assert "did you mean 'PSNR'" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "qartsr upscale photo.jpg --out upscaled" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    ["upscale", "quantize", "export", "evaluate", "reproduce", "report", "train", "train embedded", "train trq"],
)
def test_every_command_tells_its_options(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: qartsr {words} [-h]")


def test_programs_are_given_the_remaining_words(monkeypatch):
    given = []
    monkeypatch.setattr(runner, "main", lambda words: given.append(words) or 3)
    assert main(["reproduce", "--notebooks", "00", "02", "--profile", "smoke"]) == 3
    assert given == [["--notebooks", "00", "02", "--profile", "smoke"]]


def test_bench_needs_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "qartsr_lib" / "cli.py"))
    assert main(["bench"]) == 2
    _one_line(capsys, "bench: measures a checkout")


def _one_line(capsys, words):
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("error: ") and words in text


def test_inputs_are_never_overwritten(photograph, tmp_path, capsys):
    before = photograph.read_bytes()
    (tmp_path / "link").symlink_to(photograph.parent)
    other = photograph.parent / "dog.png"
    other.write_bytes(before)
    for inputs, folder in (([photograph], photograph.parent), ([other, photograph.parent / "cat.png"], "link")):
        out = str(tmp_path / folder)
        assert main(["upscale", *map(str, inputs), "--out", out, "--backbone", "bicubic"]) == 2
        _one_line(capsys, "is an input; choose another folder")
    assert photograph.read_bytes() == before == other.read_bytes()
    assert main(["upscale", str(photograph), "--out", str(photograph.parent / "x4"), "--backbone", "bicubic"]) == 0


@pytest.mark.parametrize(
    "extra",
    [["--backbone", "embedded"], ["--timestep", "1"], ["--method", "fp"], ["--bits", "W8A8"]],
)
@pytest.mark.parametrize("file", [False, True])
def test_what_a_checkpoint_decides_cannot_be_given_with_it(photograph, packed, tmp_path, capsys, extra, file):
    checkpoint = tmp_path / "model.safetensors" if file else packed
    words = ["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", str(checkpoint)]
    assert main([*words, *extra]) == 2
    _one_line(capsys, f"{extra[0]}: has no effect on {checkpoint}")


@pytest.mark.parametrize(("name", "nearest"), [("w4a4", 45.0), ("W3A3", 42.0), ("w2a2", 37.0)])
def test_shipped_models_are_small_and_near_full_precision(home, tmp_path, name, nearest):
    seeded = torch.Generator().manual_seed(0)
    smooth = upscale_bicubic(torch.rand(1, 3, 12, 12, generator=seeded)).clamp(0, 1)
    picture = write_png(tmp_path / "in" / "cat.png", smooth)
    words = ["upscale", str(picture), "--out"]
    assert main([*words, str(tmp_path / "full")]) == 0
    assert main([*words, str(tmp_path / "small"), "--model", name]) == 0
    full, small = (read_image(tmp_path / folder / "cat.png") for folder in ("full", "small"))
    assert psnr_y(small, full) > nearest
    assert shipped_model(name).stat().st_size < 2e6


def test_a_shipped_model_that_does_not_exist_and_two_models(photograph, tmp_path, capsys):
    words = ["upscale", str(photograph), "--out", str(tmp_path / "a"), "--model"]
    assert main([*words, "w4a3"]) == 2
    _one_line(capsys, "--model w4a3: did you mean 'w4a4'")
    assert main([*words, "w4a4", "--checkpoint", "x.safetensors"]) == 2
    _one_line(capsys, "--model w4a4: give it or --checkpoint, not both")
    assert main([*words, "w4a4", "--bits", "W2A2"]) == 2
    _one_line(capsys, "--bits: has no effect on")


@pytest.mark.parametrize("option", ["--base", "--osediff", "--prompt"])
def test_options_of_a_backbone_do_nothing_to_a_packed_model(photograph, tmp_path, capsys, option):
    words = ["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", "model.safetensors"]
    assert main([*words, option, "x"]) == 2
    _one_line(capsys, f"{option}: has no effect on model.safetensors")


def test_a_prompt_does_nothing_to_a_quantized_folder_which_holds_its_embedding(photograph, tmp_path, capsys):
    words = ["upscale", str(photograph), "--out", str(tmp_path / "a"), "--checkpoint", str(tmp_path / "quantized")]
    assert main([*words, "--prompt", "a cat"]) == 2
    _one_line(capsys, f"--prompt: has no effect on {tmp_path / 'quantized'}")


def test_export_of_a_file_and_no_crops_are_told(photograph, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    assert main(["export", "--checkpoint", str(photograph), "--out", out]) == 2
    _one_line(capsys, "is a file; name a folder that quantize wrote")
    with pytest.raises(SystemExit):
        main(["quantize", "--images", str(tmp_path), "--out", out, "--crops", "0"])
    assert "--crops: 0: choose a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "-1"], "--seed: -1: choose a whole number from 0 to 2**63 - 1"),
        (["--seed", str(2**63)], f"--seed: {2**63}: choose a whole number from 0 to 2**63 - 1"),
        (["--bits", "W32A32"], "--bits W32A32: is full precision; choose 2 to 8 bits, such as W4A4"),
    ],
)
def test_seeds_and_bits_that_cannot_be_are_told_before_anything_is_read(tmp_path, capsys, words, told):
    try:
        status = main(["quantize", "--images", str(tmp_path / "absent"), "--out", str(tmp_path / "q"), *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2 and told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_of_weights_that_is_not_there_is_told_first(tmp_path, capsys):
    words = ["--sr", "absent", "--hr", "absent", "--out", str(tmp_path / "a.csv"), "--weights", str(tmp_path / "w")]
    assert main(["evaluate", *words]) == 2
    assert f"--weights {tmp_path / 'w'}: no such folder" in capsys.readouterr().err
