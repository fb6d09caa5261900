"""Training: batches by step alone, resuming, and the recipes' starting points."""

import json

import pytest
import torch
from generated_images import generated_image
from torch import nn

from qartsr_lib.backbones import load_backbone, schedule
from qartsr_lib.backbones.base import OneStepSR, Stages
from qartsr_lib.backbones.embedded import RECIPES, build_prompt_embedding, build_unet, build_vae
from qartsr_lib.base.errors import Diverged, QartsrError
from qartsr_lib.base.files import write_text
from qartsr_lib.images.image import list_images, luma, psnr, upscale_bicubic, write_png
from qartsr_lib.training import command
from qartsr_lib.training.embedded import pipeline
from qartsr_lib.training.embedded.loop import Crops, Schedule, train
from qartsr_lib.training.embedded.pipeline import Validation
from qartsr_lib.training.embedded.stages import (
    LATENT_WEIGHT,
    OutputGain,
    noise_per_unit,
    restoration_loss,
    train_one_step,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(2):
        write_png(folder / f"{index}.png", generated_image(index)[..., :96, :128])
    return list_images(folder)


def test_batches_depend_on_seed_and_step_alone(photographs):
    first, second = (Crops(photographs, 32).pairs(4, seed=1, step=5) for _ in range(2))
    other = Crops(photographs, 32).pairs(4, seed=1, step=6)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == first[1].shape == (4, 3, 32, 32)


def test_images_that_are_too_small(photographs):
    for kind in (Crops, Validation):
        with pytest.raises(QartsrError, match="no image is at least 512x512"):
            kind(photographs, 512)


def test_images_left_out_are_counted_aloud(photographs, tmp_path, capsys):
    write_png(tmp_path / "small.png", generated_image(0)[..., :60, :50])
    crops = Crops([*photographs, tmp_path / "small.png"], 64)
    assert crops.count == 2 and "1 of 3 images are under 64x64 pixels and left out" in capsys.readouterr().out
    Validation([*photographs, tmp_path / "small.png"], 64)
    assert "--validation: 1 of 3 images are under 64x64 pixels and left out" in capsys.readouterr().out
    Crops(photographs, 64)
    assert "left out" not in capsys.readouterr().out


class _Stopped(Exception):
    pass


def _fit(folder, stop_at=None):
    """Regress a line; the loss raises at `stop_at` as an interruption would."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def batch(step):
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def loss(x, step):
        if step == stop_at:
            raise _Stopped
        return (model(x).float() - x.sum(1, keepdim=True)).pow(2).mean()

    train(model, model.parameters(), batch, loss, Schedule(30, 0.2, checkpoint_every=7, warmup=3), folder, "line")
    return model


def test_interrupted_training_ends_with_the_same_weights(tmp_path):
    whole = _fit(tmp_path / "whole")
    for stop_at in (5, 12, 23):
        with pytest.raises(_Stopped):
            _fit(tmp_path / "parts", stop_at)
    resumed = _fit(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    lines = [json.loads((tmp_path / name / "history.jsonl").read_text()) for name in ("whole", "parts")]
    assert lines[0]["loss"] == lines[1]["loss"] and lines[1]["step"] == 30, "the mean is of all steps"
    assert float((whole.weight - 1).abs().max()) < 0.5  # it did learn


def test_learning_rate_rises_then_falls():
    plan = Schedule(100, 1.0, warmup=10)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02 and rates[10:] == sorted(rates[10:], reverse=True)


def test_output_gain_folds_exactly():
    torch.manual_seed(0)
    layer = OutputGain(nn.Conv2d(4, 4, 3, padding=1), noise_per_unit(1))
    hidden = torch.randn(1, 4, 5, 5)
    before = layer(hidden)
    assert torch.allclose(layer.folded()(hidden), before, rtol=1e-5, atol=1e-5)
    assert noise_per_unit(1000) == pytest.approx(1 / 14.615, rel=1e-3)


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """Two steps of each recipe at T = 1000, with copies of what they started from."""
    result = {}
    for name, recipe in RECIPES.items():
        torch.manual_seed(0)
        vae, unet = build_vae(), build_unet()
        nn.init.zeros_(unet.conv_out.weight), nn.init.zeros_(unet.conv_out.bias)
        model = OneStepSR("test", 1000, vae, unet, build_prompt_embedding(), scaled=recipe.scaled)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        plan = Schedule(2, 1e-3, batch_size=2, warmup=1)
        folder = tmp_path_factory.mktemp("run")
        train_one_step(model, Crops(photographs, 32), plan, folder, trains_encoder=recipe.trains_encoder)
        result[name] = (start, model.state_dict())
    return result


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_only_the_recipes_parts_are_trained(trained, recipe):
    start, end = trained[recipe]
    assert start.keys() == end.keys()
    changed = {key for key in start if not torch.equal(start[key], end[key])}
    assert any(key.startswith("unet.") for key in changed)
    assert not any("decoder" in key or "post_quant" in key or key == "prompt_embedding" for key in changed)
    assert any(key.startswith("vae.encoder.") for key in changed) is RECIPES[recipe].trains_encoder


def test_restoration_loss_ties_z_h_to_the_decoders_latents():
    hr, target = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 2, 2)

    def loss(image, z_h):
        return float(restoration_loss(Stages(z_l=target, eps=target, z_h=z_h, image=image), hr, target))

    assert loss(hr, target) == 0.0
    assert loss(hr + 0.5, target) == pytest.approx(0.5)
    assert loss(hr, target - 2.0) == pytest.approx(2.0 * LATENT_WEIGHT)


def test_the_tie_is_to_the_vae_of_the_start(photographs, tmp_path, monkeypatch):
    """A trained encoder must not move its own target."""
    model = OneStepSR("test", 1, build_vae(), build_unet(), build_prompt_embedding())
    crops, targets = Crops(photographs, 32), []
    expected = [model.encode(crops.pairs(2, 0, step)[0]).detach() for step in range(2)]

    def spy(stages, hr, target):
        targets.append(target)
        return restoration_loss(stages, hr, target)

    monkeypatch.setattr("qartsr_lib.training.embedded.stages.restoration_loss", spy)
    train_one_step(model, crops, Schedule(2, 1e-2, batch_size=2, warmup=1), tmp_path)
    assert not torch.allclose(model.encode(crops.pairs(2, 0, 1)[0]), expected[1], atol=1e-2)  # the encoder moved
    pairs = zip(targets, expected, strict=True)
    assert all(torch.allclose(a.float(), b, atol=0.05) for a, b in pairs)  # bfloat16 against float32


def test_validation_measures_what_it_says(photographs):
    validation = Validation(photographs, size=64)
    baseline = validation.score(upscale_bicubic)
    assert set(baseline) == {"psnr_y_bicubic", "psnr_rgb_bicubic", "psnr_y_realistic", "psnr_rgb_realistic"}
    assert baseline["psnr_y_bicubic"] > baseline["psnr_y_realistic"] > 10


def test_reconstruction_of_a_perfect_autoencoder_is_unbounded(photographs):
    class Perfect:
        def encode(self, image):
            return 1.0 - image / 2

        def decode(self, latent):
            return 2.0 - 2.0 * latent

    quality = Validation(photographs, size=32).reconstruction(Perfect())
    assert set(quality) == {"psnr_y", "psnr_rgb"} and min(quality.values()) > 100


def test_two_more_ways_from_z_l_to_z_h(photographs):
    torch.manual_seed(0)
    model = OneStepSR("test", 500, build_vae(), build_unet(), build_prompt_embedding()).eval()
    validation = Validation(photographs, size=32)
    quality = validation.contributions(model)
    assert quality["full"] == validation(model)
    assert len({values["psnr_y_bicubic"] for values in quality.values()}) == 3


def test_psnr_and_luma_closed_forms():
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    assert psnr(black, grey) == pytest.approx(20.0, abs=1e-4)
    assert float(luma(torch.ones(1, 3, 1, 1))) == pytest.approx(235 / 255, abs=1e-5)
    assert float(luma(black)[0, 0, 0, 0]) == pytest.approx(16 / 255)


def test_schedule_of_the_prior_covers_all_noise_levels():
    assert schedule.NUM_STEPS == len(schedule.alphas_cumprod()) == 1000


def test_a_folder_is_of_one_set_of_photographs_and_options(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "Crops", lambda *_: pytest.fail("began"))
    words = ["--images", photographs[0].parent, "--out", tmp_path / "out"]

    def told(*more):
        assert command.embedded([str(word) for word in (*words, *more)]) == 2
        return capsys.readouterr().err

    assert "timestep 2000: outside 1..1000" in told("--timesteps", 1, 2000) and not (tmp_path / "out").exists()
    begun = {"--steps-scale": 1.0, "--seed": 0, "images": pipeline._contents(photographs)}
    write_text(tmp_path / "out" / "begun.json", json.dumps(begun))
    assert "begun.json: was begun with --seed 0; use that again, or name another --out" in told("--seed", 7)
    assert "was begun with --steps-scale 1.0" in told("--steps-scale", 0.5)
    write_png(tmp_path / "others" / "a.png", torch.rand(1, 3, 8, 8))
    assert "was begun with other photographs" in told("--images", tmp_path / "others")


def test_what_was_refused_before_it_began_is_not_noted(photographs, tmp_path, capsys):
    """Else the mended command would be refused, too."""
    write_png(tmp_path / "small" / "0.png", generated_image(0)[..., :32, :32])
    options = ["--out", tmp_path / "out", "--seed", 1]
    for images, more in ((tmp_path / "small", []), (photographs[0].parent, ["--validation", tmp_path / "no"])):
        assert command.embedded([str(word) for word in (*options, "--images", images, *more)]) == 2
    told = capsys.readouterr().err
    assert "no image is at least 64x64" in told and "no: no such folder" in told
    assert not (tmp_path / "out" / "begun.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"--seed": 0'])
def test_a_damaged_note_of_an_earlier_run_is_one_line(photographs, tmp_path, capsys, content):
    (tmp_path / "begun.json").write_text(content)
    assert command.embedded(["--images", str(photographs[0].parent), "--out", str(tmp_path)]) == 2
    assert "begun.json: damaged, or of another version; name another --out" in capsys.readouterr().err


def test_damaged_weights_of_an_earlier_stage_are_named(tmp_path):
    (tmp_path / "vae.safetensors").write_bytes(b"cut short")
    with pytest.raises(QartsrError, match=r"vae\.safetensors: damaged; remove it"):
        pipeline._stage(tmp_path, "vae", lambda: pytest.fail("made again"))


def test_other_files_in_the_folder_are_no_stages(tmp_path):
    """They ended a training of hours with a traceback, before its record was written."""
    pipeline._stage(tmp_path, "vae", lambda: {"weight": torch.ones(1)})
    for name, content in (("begun.json", "{}"), ("training.json", "{}"), ("notes.json", '{"mine": 1}')):
        (tmp_path / name).write_text(content)
    assert list(pipeline._found(tmp_path, [load_backbone("embedded-scaled", 1)], None)["seconds"]) == ["vae"]


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    model = nn.Linear(1, 1)
    asked = Schedule(4, 1e-2, checkpoint_every=1)

    def loss(data, step):
        return model(data).mean() * (float("nan") if step == 2 else 1.0)

    with pytest.raises(Diverged, match="line: the loss is not finite at step 2; use another --seed"):
        train(model, model.parameters(), lambda step: torch.ones(1, 1), loss, asked, tmp_path, "line")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2, "of the last sound step"


@pytest.mark.parametrize("number", ["nan", "0", "-1", "inf", "half"])
def test_a_share_of_the_steps_is_above_zero(number, capsys):
    with pytest.raises(SystemExit):
        command.embedded(["--images", "absent", "--out", "absent", "--steps-scale", number])
    assert f"--steps-scale: {number}: choose a number above 0" in capsys.readouterr().err
