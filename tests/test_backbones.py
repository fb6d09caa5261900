"""The embedded backbones that ship: shape, size, recipes, Eq. (6), and files that go wrong."""

import shutil

import pytest
import torch
from quant_stand_in import tiny_backbone
from safetensors.torch import load_file, save_file
from torch import nn

from qartsr_lib.backbones import BACKBONES, load_backbone, schedule
from qartsr_lib.backbones.embedded import PACKAGED_WEIGHTS
from qartsr_lib.backbones.features import pretrained_distance
from qartsr_lib.base.errors import QartsrError

RECIPES, TIMESTEPS = ("embedded", "embedded-scaled"), (1000, 500, 1)


@pytest.fixture(scope="module", params=[(r, t) for r in RECIPES for t in TIMESTEPS], ids=lambda p: f"{p[0]}-{p[1]}")
def model(request):
    return load_backbone(*request.param)


def test_files_are_half_precision_and_small_and_share_one_vae():
    files = sorted(PACKAGED_WEIGHTS.glob("*.safetensors"))
    assert len(files) == 1 + len(RECIPES) * len(TIMESTEPS)
    assert sum(file.stat().st_size for file in files) <= 40e6
    for file in files:
        state = load_file(file)
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}
        assert file.name == "vae.safetensors" or not any("decoder" in key for key in state)
        assert "scaled" not in file.name or not any(key.startswith("vae.") for key in state)


def test_reference_weights_are_the_rounded_ones(model):
    assert all(torch.equal(p, p.half().float()) for p in model.unet.parameters())


def test_sizes(model):
    parameters = sum(p.numel() for p in model.parameters())
    assert 2e6 <= parameters <= 5e6
    inner = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and n not in ("vae.encoder.conv_in",)]
    narrow = [m for m in inner if min(m.in_channels, m.out_channels) < 32]
    latent, image = model.vae.config.latent_channels, 3
    assert all(min(m.in_channels, m.out_channels) in (latent, 2 * latent, image) for m in narrow)


def test_attention_sees_at_most_1024_tokens_of_a_512_image(model):
    from diffusers.models.attention_processor import Attention

    tokens = []
    hooks = [
        m.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape[1]))
        for m in model.modules()
        if isinstance(m, Attention)
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()
    assert tokens and max(tokens) * 16 <= 1024


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 12), (33, 17)])
def test_any_size_becomes_exactly_four_times_as_large(model, size):
    sr = model.upscale(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert sr.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert float(sr.min()) >= 0 and float(sr.max()) <= 1


def test_stages_obey_equation_6(model):
    upscaled = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = model.stages(upscaled)
        assert torch.equal(model.decode(stages.z_h), stages.image)
    alpha = schedule.alpha(model.timestep)
    z_l, eps = stages.z_l.double(), stages.eps.double()
    expected = (
        z_l - ((1 - alpha) / alpha) ** 0.5 * eps if model.scaled else (z_l - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    )
    assert torch.allclose(stages.z_h.double(), expected, atol=1e-4 * float(expected.abs().max()))


def test_without_noise_the_scaled_recipe_is_the_vaes_identity(model):
    z_l = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    gain = 1.0 if model.scaled else schedule.alpha(model.timestep) ** -0.5
    assert torch.allclose(model.to_z_h(z_l, torch.zeros_like(z_l)), gain * z_l, rtol=1e-5)


def test_every_layer_lies_in_exactly_one_block_and_blocks_are_in_inference_order(model):
    names = [name for name, _ in model.blocks_in_order()]
    for layer, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert sum(layer == name or layer.startswith(name + ".") for name in names) == 1, layer
    seen = []
    hooks = [m.register_forward_pre_hook(lambda *_, name=n: seen.append(name)) for n, m in model.blocks_in_order()]
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    assert seen == names


def test_eight_bit_layers_exist(model):
    assert all(isinstance(model.get_submodule(name), (nn.Conv2d, nn.Linear)) for name in model.eight_bit_layers)


def test_two_loads_are_bit_equal():
    lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (load_backbone("embedded", 1) for _ in range(2))
    assert torch.equal(first.upscale(lq), second.upscale(lq))
    assert first.weights_sha256 == second.weights_sha256 != load_backbone("embedded", 500).weights_sha256


def test_unknown_backbone_and_untrained_timestep():
    with pytest.raises(QartsrError, match="unknown backbone 'embeded'; did you mean 'embedded'"):
        load_backbone("embeded", 1)
    with pytest.raises(QartsrError, match="embedded-T0123.safetensors: no such backbone weights"):
        load_backbone("embedded", 123)


def test_a_folder_of_weights_that_is_not_there(tmp_path, monkeypatch):
    """The shipped weights in its place would be another model."""
    monkeypatch.setenv("QARTSR_BACKBONE_WEIGHTS", str(tmp_path / "absent"))
    with pytest.raises(QartsrError, match="absent: no such folder; check QARTSR_BACKBONE_WEIGHTS"):
        load_backbone("embedded", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("vae.safetensors", "embedded-T0001.safetensors"):
        shutil.copy(PACKAGED_WEIGHTS / name, tmp_path)
    monkeypatch.setenv("QARTSR_BACKBONE_WEIGHTS", str(tmp_path))
    return tmp_path


def test_a_unet_is_never_given_another_folders_vae(folder):
    (folder / "vae.safetensors").unlink()
    with pytest.raises(QartsrError, match="no such file, and embedded-T0001.safetensors needs the VAE"):
        load_backbone("embedded", 1)
    shipped = load_file(PACKAGED_WEIGHTS / "vae.safetensors")
    save_file({key: value * 1.5 for key, value in shipped.items()}, folder / "vae.safetensors")
    own, other = load_backbone("embedded", 1), load_backbone("embedded-scaled", 1)
    key = "encoder.conv_in.weight"
    assert torch.equal(other.vae.state_dict()[key], shipped[key].float()), "the package's, whole"
    assert torch.equal(own.vae.decoder.conv_in.weight, (shipped["decoder.conv_in.weight"] * 1.5).float())
    found = pretrained_distance("cpu").first.weight
    assert torch.equal(found, shipped[key].float()), "a metric's numbers are of one network"


def test_damaged_weights_name_the_file(folder):
    path = folder / "embedded-T0001.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(QartsrError, match="embedded-T0001.safetensors: damaged weight file"):
        load_backbone("embedded", 1)


def test_weights_of_another_architecture_are_refused(folder):
    path = folder / "embedded-T0001.safetensors"
    state = load_file(path)
    state["unet.conv_in.weight"] = state["unet.conv_in.weight"][:10].clone()
    save_file(state, path)
    with pytest.raises(QartsrError, match="does not fit"):
        load_backbone("embedded", 1)


def test_a_backbone_that_names_no_hash_of_its_weights_gets_one_of_its_tensors(monkeypatch):
    """Else whatever the cache and `upscale` keep of it would be taken for that of other weights."""
    BACKBONES.names()  # all modules, before one entry is added
    monkeypatch.setitem(BACKBONES._entries, "mine", tiny_backbone)
    first, again = (load_backbone("mine", 1).weights_sha256 for _ in range(2))
    monkeypatch.setitem(BACKBONES._entries, "mine", lambda timestep=1: tiny_backbone(timestep, seed=1))
    assert first == again != load_backbone("mine", 1).weights_sha256


def test_bicubic_is_measured_through_the_same_seam():
    assert load_backbone("bicubic", 1).upscale(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 20, 28)
