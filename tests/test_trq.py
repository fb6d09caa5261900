"""TRQ: OSEDiff's training and the distillation, a few steps on the tiny pipeline, and files that the backbone reads."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from osediff_stand_in import checkpoint, tiny_networks, write_base, write_checkpoint

from qartsr_lib.backbones import load_backbone, schedule
from qartsr_lib.backbones.base import OneStepSR
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import write_png
from qartsr_lib.training.command import trq as main
from qartsr_lib.training.trq import loop
from qartsr_lib.training.trq.config import TrqConfig
from qartsr_lib.training.trq.degradation import DegradedCrops, degraded
from qartsr_lib.training.trq.objectives import (
    Generator,
    OSEDiffLosses,
    Regularizer,
    clean,
    noisy_latents,
    seeded,
    trained,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model, an OSEDiff file and three photographs."""
    root = tmp_path_factory.mktemp("trq")
    write_base(root / "base")
    write_checkpoint(root / "osediff.pkl")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        smooth = F.interpolate(torch.rand(1, 3, 12, 14, generator=generator), (96, 112), mode="bicubic")
        write_png(root / "images" / f"{seed}.png", smooth.clamp(0, 1))
    return root


def run(folder, out, *extra, steps=6, variant="osediff"):
    words = ["--timestep", "1", "--images", folder / "images", "--base", folder / "base", "--out", out, "--cpu"]
    words += ["--steps", steps, "--batch", 2, "--crop", 64, "--learning-rate", 1e-2, "--workers", 0]
    words += ["--image-loss", "vae-features+mse", "--checkpoint-every", 2, "--variant", variant]
    words += ["--teacher", folder / "osediff.pkl", *extra]
    return main([str(word) for word in words])


def stop_at_the_first_save(monkeypatch):
    save = loop._save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", save_and_stop)


def history(out):
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def pairs(folder):
    data = DegradedCrops(sorted((folder / "images").iterdir()), 64, seed=123, first=0, count=12)
    hr, upscaled = zip(*(data[index] for index in range(12)), strict=True)
    return torch.stack(hr), torch.stack(upscaled)


def models(folder, out):
    """The backbone as the file that TRQ wrote makes it, and the untrained one."""
    after = load_backbone("osediff", 1, base=folder / "base", osediff=out / "osediff-T0001.pkl")
    unet, vae = tiny_networks()
    return after, OneStepSR("base", 1, vae, unet, after.prompt_embedding)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A training by OSEDiff's losses, run without interruption."""
    out = tmp_path_factory.mktemp("whole")
    assert run(folder, out, "--learning-rate", "2e-3", steps=8) == 0
    return out


@torch.no_grad()
@pytest.mark.slow
def test_a_few_steps_reduce_the_image_loss_and_the_backbone_reads_the_file(home, folder, whole):
    records = history(whole)
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert all({"image", "vsd", "regularizer"} <= set(record) for record in records)
    assert not (whole / "unfinished.pt").exists()
    after, before = models(folder, whole)
    hr, upscaled = pairs(folder)
    assert float(F.mse_loss(after(upscaled), hr)) < 0.97 * float(F.mse_loss(before(upscaled), hr))
    assert after.timestep == 1
    assert torch.equal(after.vae.decoder.conv_in.weight, before.vae.decoder.conv_in.weight)  # the decoder is frozen


@torch.no_grad()
@pytest.mark.slow
def test_distillation_approaches_its_teacher(home, folder, tmp_path):
    with torch.enable_grad():
        assert run(folder, tmp_path, steps=8, variant="distil") == 0
    after, before = models(folder, tmp_path)
    teacher = load_backbone("osediff", 1000, base=folder / "base", osediff=folder / "osediff.pkl")
    _, upscaled = pairs(folder)
    target = teacher.stages(upscaled).z_h
    distances = [float(F.mse_loss(model.stages(upscaled).z_h, target)) for model in (after, before)]
    assert distances[0] < 0.95 * distances[1]
    content = torch.load(tmp_path / "osediff-T0001.pkl", weights_only=True)
    assert content["qartsr"]["variant"] == "distil" and content["qartsr"]["timestep"] == 1


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_weights(home, folder, whole, tmp_path, monkeypatch, capsys):
    rate = ("--learning-rate", "2e-3")
    with monkeypatch.context() as patched:
        stop_at_the_first_save(patched)
        assert run(folder, tmp_path, *rate, steps=8) == 130
    fewer = shutil.copytree(folder / "images", tmp_path / "fewer")
    (fewer / "0.png").unlink()
    for option, value, begun in (
        ("--crop", "56", "crop 64"),
        ("--regularizer", "released", "regularizer paper"),
        ("--prompt", "cat", "prompt "),
        ("--image-loss", "lpips+mse", "image_loss vae-features+mse"),
        ("--images", fewer, "other photographs"),
        ("--base", write_base(tmp_path / "base", seed=9), "another base model"),
    ):
        assert run(folder, tmp_path, *rate, option, value, steps=8) == 2
        assert f"was begun with {begun}; use that again" in capsys.readouterr().err
    assert run(folder, tmp_path, *rate, steps=1) == 2
    assert "--steps 1: 2 are done; choose more, or remove" in capsys.readouterr().err
    older = torch.load(tmp_path / "unfinished.pt", weights_only=True)
    older["config"].pop("regularizer")  # as the first versions wrote it
    kept = (tmp_path / "unfinished.pt").read_bytes()
    torch.save(older, tmp_path / "unfinished.pt")
    assert run(folder, tmp_path, *rate, steps=8) == 2
    assert "unfinished.pt: damaged, or of another version; remove it" in capsys.readouterr().err
    (tmp_path / "unfinished.pt").write_bytes(kept)
    assert run(folder, tmp_path, *rate, steps=8) == 0
    assert run(folder, tmp_path, *rate, steps=9) == 2
    assert "osediff-T0001.pkl: is there, without unfinished.pt to continue from" in capsys.readouterr().err
    one, other = (torch.load(out / "osediff-T0001.pkl", weights_only=True) for out in (whole, tmp_path))
    for entry in ("state_dict_unet", "state_dict_vae"):
        assert all(torch.equal(value, other[entry][key]) for key, value in one[entry].items())


@pytest.mark.slow
def test_distillation_is_not_resumed_with_another_teacher(home, folder, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_at_the_first_save(patched)
        assert run(folder, tmp_path, steps=4, variant="distil") == 130
    other = torch.load(folder / "osediff.pkl", weights_only=True)
    other["state_dict_unet"] = {key: 2 * value for key, value in other["state_dict_unet"].items()}
    torch.save(other, tmp_path / "other.pkl")
    assert run(folder, tmp_path, "--teacher", tmp_path / "other.pkl", steps=4, variant="distil") == 2
    assert "was begun with another teacher; use that again" in capsys.readouterr().err


@torch.no_grad()
def test_untrained_generator_is_the_base_model_and_layout_is_the_released_one():
    unet, vae = (network.requires_grad_(False) for network in tiny_networks())
    prompt, upscaled = torch.randn(1, 77, 16), torch.rand(1, 3, 64, 64)
    plain = OneStepSR("base", 500, vae, unet, prompt).stages(upscaled)
    generator = Generator(unet, vae, 500, prompt, decodes=True)
    z_h, image = generator(upscaled)
    assert torch.allclose(z_h, plain.z_h, atol=1e-5) and torch.allclose(image, plain.image.clamp(0, 1), atol=1e-5)
    content = checkpoint()
    released = {f"model.unet.{key}" for key in content["state_dict_unet"]}
    released |= {f"model.vae.{key}" for key in content["state_dict_vae"]}
    assert set(trained(generator)) == released
    assert not any(parameter.requires_grad for parameter in unet.conv_in.parameters())


def test_images_are_clamped_before_the_loss_as_in_the_released_code():
    """osediff.py, OSEDiff_gen.forward: vae.decode(...).sample.clamp(-1, 1); no gradient from beyond."""
    unet, vae = (network.requires_grad_(False) for network in tiny_networks())
    vae.decoder.conv_out.weight.mul_(30)
    prompt, upscaled = torch.randn(1, 77, 16), torch.rand(1, 3, 64, 64)
    z_h, image = Generator(unet, vae, 1, prompt, decodes=True)(upscaled)
    released = vae.decode(z_h / 0.18215).sample.clamp(-1, 1) * 0.5 + 0.5
    assert torch.allclose(image, released, atol=1e-5) and 0 < float(((image == 0) | (image == 1)).float().mean()) < 1
    image.retain_grad()
    z_h.retain_grad()
    outside = (image == 0) | (image == 1)
    image[outside].sum().backward()
    assert float(z_h.grad.abs().max()) == 0


def test_regularizers_of_the_paper_and_of_the_released_code():
    """There, diffusers' add_adapter leaves the last of three adapters active: default_others, the middle block."""
    unet, _ = tiny_networks()
    prompt, z = torch.randn(1, 77, 16), torch.randn(2, 4, 8, 8)
    layers = {}
    for name in ("paper", "released"):
        objective = OSEDiffLosses(None, unet.requires_grad_(False), prompt, prompt, regularizer=name)
        objective.regularizer_loss(objective.regularizer, z, seeded(1)).backward()
        parameters = trained(objective.regularizer)
        assert all(parameter.grad is not None for parameter in parameters.values())
        layers[name] = {key.split(".lora_")[0] for key in parameters}
    lists = {part: checkpoint()[f"unet_lora_{part}_modules"] for part in ("encoder", "decoder", "others")}
    assert layers["paper"] == {f"unet.{layer}" for listed in lists.values() for layer in listed}
    assert layers["released"] == {f"unet.{layer}" for layer in lists["others"]} and len(layers["released"]) == 16


def test_networks_share_the_frozen_weights():
    unet, vae = tiny_networks()
    prompt = torch.randn(1, 77, 16)
    generator, regularizer = Generator(unet, vae, 1, prompt, decodes=False), Regularizer(unet)
    frozen = {id(parameter) for parameter in (*unet.parameters(), *vae.parameters())}
    for network in (generator, regularizer):
        own = [p for p in network.parameters() if id(p) not in frozen]
        assert {id(p) for p in own} == {id(p) for p in trained(network).values()}


def test_vsd_has_the_published_gradient():
    """By z_H it is 2 g / numel with g = (x0 of the regularizer - x0 of the guided frozen model) / mean |z - x0|."""
    unet, _ = tiny_networks()
    prompt, negative = torch.randn(1, 77, 16), torch.randn(1, 77, 16)
    objective = OSEDiffLosses(None, unet.requires_grad_(False), prompt, negative)
    for layer in objective.regularizer.modules():
        if hasattr(layer, "lora_B"):
            torch.nn.init.normal_(layer.lora_B[layer.adapter].weight)
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    objective.vsd(z, seeded(7)).backward()
    _, eps, index = noisy_latents(z, 20, 980, seeded(7))
    alpha = schedule.alphas_cumprod()[index].float().view(2, 1, 1, 1)
    with torch.no_grad():
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * eps
        learned = objective.regularizer(noisy, index, prompt)
        cond, uncond = (unet(noisy, index, text.expand(2, -1, -1)).sample for text in (prompt, negative))
        guided = uncond + 7.5 * (cond - uncond)
        x_learned, x_guided = ((noisy - (1 - alpha).sqrt() * e) / alpha.sqrt() for e in (learned, guided))
        g = (x_learned - x_guided) / (z - x_guided).abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(z.grad, 2 * g / z.numel(), rtol=1e-3, atol=1e-7)
    assert float(g.abs().max()) > 0


def test_noise_can_be_taken_away_again():
    index, z, eps = torch.tensor([0, 499, 979]), torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    assert torch.allclose(clean(schedule.add_noise(z, eps, index), eps, index), z, atol=1e-5)


def test_draws_depend_on_every_part_of_the_seed():
    seeds = (1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2, 3)
    drawn = [torch.randn(4, generator=seeded(*seed)) for seed in seeds]
    assert torch.equal(drawn[0], drawn[4])
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:4])


def test_the_scale_of_gradients_is_resumed(tmp_path, monkeypatch):
    """With --precision fp16 it decides which steps overflow and are skipped."""
    monkeypatch.setattr(loop, "write_checkpoint", lambda *_: None)
    network = torch.nn.Linear(2, 2)
    network.model = SimpleNamespace(unet=None, vae=None)
    begun = [network], [torch.optim.AdamW(network.parameters())], {"timestep": 1, "steps": 9, "checkpoint_every": 1}
    loop._save(tmp_path, *begun, {"step": 3}, torch.amp.GradScaler("cpu", init_scale=4.0))
    scaler = torch.amp.GradScaler("cpu")
    assert loop._resume(tmp_path / loop.UNFINISHED, *begun, scaler) == 3 and scaler.get_scale() == 4
    loop._save(tmp_path, *begun, {"step": 4}, None)
    assert loop._resume(tmp_path / loop.UNFINISHED, *begun, None) == 4


def test_pairs_are_a_function_of_their_number(folder):
    paths = sorted((folder / "images").iterdir())
    first, later = DegradedCrops(paths, 64, 5, 0, 10), DegradedCrops(paths, 64, 5, 4, 6)
    for one, other in zip(first[6], later[2], strict=True):
        assert one.shape == (3, 64, 64) and torch.equal(one, other)
    assert not torch.equal(first[0][1], first[1][1])
    rng = np.random.default_rng((5, 6))
    rng.integers(len(paths)), [rng.integers(side - 63) for side in (96, 112)], rng.random()
    assert torch.equal(degraded(first[6][0][None], rng)[0], first[6][1])


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--timestep", "0"], "timestep 0: outside"),
        (["--crop", "100"], "--crop 100: choose a multiple of 8"),
        (["--crop", "512"], "no image is at least 512x512"),
        (["--batch", "0"], "--batch 0: choose at least 1"),
        (["--image-loss", "lpips"], "unknown image loss 'lpips'"),
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--base", "./nowhere"], "nowhere: no such folder"),
        (["--variant", "distil", "--teacher", "absent.pkl"], "absent.pkl: no such file"),
        (["--workers", "-1"], "--workers: -1: choose a whole number"),
        (["--seed", "-1"], "--seed: -1: choose a whole number"),
        (["--learning-rate", "-1"], "--learning-rate: -1: choose a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate: nan: choose a number above 0"),
    ],
)
def test_wrong_options(home, folder, tmp_path, capsys, extra, words):
    try:
        status = run(folder, tmp_path / "out", *extra)
    except SystemExit as ended:  # of argparse
        status = ended.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and "error: " in lines[-1] and words in lines[-1] and not (tmp_path / "out").exists()


def test_no_file_of_another_is_replaced(home, folder, tmp_path, capsys):
    released = shutil.copy(folder / "osediff.pkl", tmp_path)
    before = (tmp_path / "osediff.pkl").read_bytes()
    assert run(folder, tmp_path, "--timestep", "1000") == 2
    assert "osediff.pkl: is there, without unfinished.pt to continue from; move it" in capsys.readouterr().err
    (tmp_path / "unfinished.pt").touch()
    assert run(folder, tmp_path, "--timestep", "1000", "--teacher", released, variant="distil") == 2
    assert "osediff.pkl: is the teacher's; name another --out" in capsys.readouterr().err
    assert run(folder, folder / "osediff.pkl") == 2 and "is a file; name another folder" in capsys.readouterr().err
    assert (tmp_path / "osediff.pkl").read_bytes() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photograph_is_one_line(home, folder, tmp_path, capsys, workers):
    images = shutil.copytree(folder / "images", tmp_path / "images")
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:-300])  # the headers are whole
    assert run(folder, tmp_path / "out", "--images", images, "--workers", workers, steps=1) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ".png: not a readable image: damaged" in line and line.startswith(f"error: {images}")


def test_losses_that_explode_are_told(home, folder, tmp_path, capsys):
    assert run(folder, tmp_path, "--learning-rate", "1e30", steps=3) == 2
    assert "the loss is not finite; choose a smaller --learning-rate" in capsys.readouterr().err


def test_regularizer_learns_the_noise_of_the_generators_latents():
    unet, _ = tiny_networks()
    prompt = torch.randn(1, 77, 16)
    objective = OSEDiffLosses(None, unet.requires_grad_(False), prompt, prompt)
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    loss = objective.regularizer_loss(objective.regularizer, z, seeded(1))
    loss.backward()
    assert z.grad is None and all(p.grad is not None for p in trained(objective.regularizer).values())


def test_qartsr_error_is_what_users_see():
    with pytest.raises(QartsrError, match="--steps 0"):
        TrqConfig(1, "osediff", steps=0)
