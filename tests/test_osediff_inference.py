"""OSEDiff's inference: sizes, tiles, posterior, Eq. (6) by the scheduler's definition, full size, quantization."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from osediff_stand_in import tiny_networks
from PIL import Image
from torch import nn

from qartsr_lib.backbones import schedule
from qartsr_lib.backbones.osediff_checkpoint import unet_targets, vae_targets
from qartsr_lib.backbones.osediff_configs import SCHEDULER_CONFIG, UNET_CONFIG, VAE_CONFIG
from qartsr_lib.backbones.osediff_model import Inference, OSEDiff, resize_as_pillow
from qartsr_lib.backbones.steps import Flow, steps
from qartsr_lib.base.errors import QartsrError
from qartsr_lib.images.image import from_uint8, to_uint8
from qartsr_lib.methods import METHODS
from qartsr_lib.methods.checkpoint import load_quantized, save_quantized


def tiny(timestep=1000, **inference) -> OSEDiff:
    unet, vae = tiny_networks()
    embedding = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(5))
    model = OSEDiff(timestep, vae, unet, embedding, Inference(**inference))
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return tiny(smallest=8)


def picture(*size, seed=0):
    return from_uint8(to_uint8(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 12), (33, 17)])
def test_any_size_becomes_exactly_four_times_as_large(model, size):
    sr = model.upscale(picture(*size))
    assert sr.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert float(sr.min()) >= 0 and float(sr.max()) <= 1


def test_small_images_are_enlarged_first_as_released_and_scaled_back():
    model, lq = tiny(), picture(64, 49)
    prepared = model.prepare(lq)
    assert prepared.shape[-2:] == (4 * 168, 4 * 128)  # 167 = 64 x 128 // 49 rows, padded to a multiple of 8 pixels
    large = resize_as_pillow(lq, 64 * 128 // 49, 128)
    assert torch.equal(prepared[..., : 4 * 167, :], resize_as_pillow(large, 4 * 167, 512))
    assert model.upscale(lq).shape[-2:] == (256, 196)


def test_network_input_is_pillows_bicubic_in_8_bits(model):
    lq = picture(13, 10)
    expected = Image.fromarray(to_uint8(lq)).resize((40, 52), Image.BICUBIC)
    prepared = model.prepare(lq)
    assert prepared.shape[-2:] == (56, 40)
    assert np.array_equal(to_uint8(prepared[..., :52, :40]), np.asarray(expected))


@torch.no_grad()
def test_the_chain_of_steps_is_the_network_at_odd_latent_sizes(model):
    upscaled = model.prepare(picture(26, 19))
    assert upscaled.shape[-2:] == (104, 80)
    flow = Flow(upscaled)
    for _, step in steps(model):
        flow = step(flow)
    assert torch.equal(flow.x, model(upscaled))


@torch.no_grad()
def test_tiles_change_nothing_where_the_image_fits(model):
    upscaled, tiled = model.prepare(picture(16, 16)), tiny(smallest=8, tile=8)
    assert torch.equal(tiny(smallest=8, tile=9).stages(upscaled).image, model.stages(upscaled).image)
    assert torch.equal(tiled.stages(upscaled).image, model.stages(upscaled).image)


@torch.no_grad()
def test_unet_tiles_are_blended_in_the_noise():
    model = tiny(smallest=8, tile=16)
    object.__setattr__(model.inference, "overlap", 8)
    z_l = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    eps, (left, right) = model.predict_noise(z_l), (z_l[..., :16], z_l[..., 8:])
    parts = [model.unet(part, 999, model.prompt_embedding).sample for part in (left, right)]
    assert torch.allclose(eps[..., :8], parts[0][..., :8]) and torch.allclose(eps[..., 16:], parts[1][..., 8:])
    distance = torch.arange(16, dtype=torch.float64) - 7.5
    bell = torch.exp(-(distance**2) / (2 * 0.01 * 16**2))
    share = (bell[8:] / (bell[8:] + bell[:8])).float()
    expected = parts[0][..., 8:] * share + parts[1][..., :8] * (1 - share)
    assert torch.allclose(eps[..., 8:16], expected, atol=1e-6)


@torch.no_grad()
def test_vae_tiles_are_near_the_whole(model):
    """Not equal: GroupNorm and the middle's attention see a tile instead of the image."""
    how = {"encoder_tile": 128, "encoder_overlap": 64, "encoder_whole": 0}
    how |= {"decoder_tile": 16, "decoder_overlap": 8, "decoder_whole": 0}
    tiled, upscaled = tiny(smallest=8, **how), model.prepare(picture(48, 64))
    whole_latent, tiled_latent = model.encode(upscaled), tiled.encode(upscaled)
    assert tiled_latent.shape == whole_latent.shape == (1, 4, 24, 32)
    whole, tiled = model.decode(whole_latent), tiled.decode(whole_latent)
    assert tiled.shape == whole.shape == (1, 3, 192, 256)
    for a, b in ((whole_latent, tiled_latent), (whole, tiled)):
        assert 0 < float((a - b).std()) < float(a.std())


@torch.no_grad()
def test_posterior_mode_repeats_and_sample_has_a_seed(model):
    upscaled = model.prepare(picture(16, 16))
    first, again, other = (tiny(posterior="sample", seed=seed).encode(upscaled) for seed in (0, 0, 1))
    mode = model.encode(upscaled)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, mode)
    distribution = model.vae.encode(upscaled * 2 - 1).latent_dist
    expected = distribution.sample(torch.Generator().manual_seed(1)) * 0.18215
    assert torch.equal(other, expected) and torch.equal(mode, distribution.mean * 0.18215)


@pytest.mark.parametrize("timestep", [1000, 500, 1])
def test_closed_form_is_the_schedulers_definition(timestep):
    """DDPMScheduler's estimate of x0 at the index, and what one step to "before 0" leaves of it, in float64."""
    config = {key: value for key, value in SCHEDULER_CONFIG.items()}
    scheduler = DDPMScheduler(**config, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    z_l, eps = (torch.randn(1, 4, 5, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    ours = schedule.estimate_z_h(z_l, eps, timestep)
    scheduler.alphas_cumprod = schedule.alphas_cumprod()  # the same formula in float64, compared below
    theirs = scheduler.step(eps, timestep - 1, z_l).pred_original_sample
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    single = DDPMScheduler(**config).alphas_cumprod.double()
    assert torch.allclose(schedule.alphas_cumprod(), single, rtol=1e-4)


def test_full_size_is_stable_diffusion_2_1_base():
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET_CONFIG), AutoencoderKL(**VAE_CONFIG)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in _parts(unet, vae).items()}
    assert count == {"UNet": 865_910_724, "encoder": 34_163_664, "decoder": 49_490_199}
    adapters = list(unet_targets(unet).values())
    assert [adapters.count(f"default_{part}") for part in ("encoder", "decoder", "others")] == [94, 148, 16]
    assert len(vae_targets(vae)) == 32
    layers = {
        n: [m for m in p.modules() if isinstance(m, (nn.Linear, nn.Conv2d))] for n, p in _parts(unet, vae).items()
    }
    assert {name: len(found) for name, found in layers.items()} == {"UNet": 282, "encoder": 32, "decoder": 40}


def _parts(unet, vae):
    encoder, decoder = nn.ModuleList([vae.encoder, vae.quant_conv]), nn.ModuleList([vae.decoder, vae.post_quant_conv])
    return {"UNet": unet, "encoder": encoder, "decoder": decoder}


def test_every_layer_lies_in_exactly_one_block_in_inference_order(model):
    names = [name for name, _ in model.blocks_in_order()]
    for layer, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert sum(layer == name or layer.startswith(name + ".") for name in names) == 1, layer
    assert [name for name, _ in steps(model)] == names
    assert all(isinstance(model.get_submodule(name), (nn.Conv2d, nn.Linear)) for name in model.eight_bit_layers)


@pytest.mark.parametrize(("method", "options"), [("maxmin", {}), ("qartsr", {"images": 22, "batch": 1})])
def test_quantization_methods_work(model, tmp_path, method, options):
    images = [picture(8, 8, seed=seed) for seed in range(2)]
    result = METHODS.get(method).build(model, "W4A4", images, **options)
    quantized = result.backbone.upscale(images[0])
    assert quantized.shape == (1, 3, 32, 32) and bool(torch.isfinite(quantized).all())
    assert not torch.equal(quantized, model.upscale(images[0]))
    assert result.w_bits_effective > 4 and (not options or result.steps > 0)
    save_quantized(result.backbone, tmp_path / "q")
    loaded = load_quantized(tmp_path / "q", lambda name, timestep: tiny(timestep, smallest=8))
    assert torch.equal(loaded.upscale(images[0]), quantized)


def test_wrong_settings():
    with pytest.raises(QartsrError, match="--tile 4: choose at least 8"):
        Inference(tile=4)
    with pytest.raises(QartsrError, match="choose one of mode, sample"):
        Inference(posterior="mean")
