"""The VAE's head start: a block cosine transform that passes through the untrained encoder."""

import pytest
import torch
import torch.nn.functional as F
from generated_images import generated_image
from scipy.fft import dctn

from qartsr_lib.backbones.embedded import build_vae
from qartsr_lib.training.embedded.initial import block_transform, start_as_block_transform

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


@pytest.fixture(scope="module")
def image():
    return generated_image(1)[..., :64, :96] * 2 - 1


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = build_vae()
    start_as_block_transform(vae)
    return vae.eval()


def test_the_basis_is_the_cosine_transform(image):
    block = image[0, :, 8:12, 20:24]
    coefficients = (block_transform(16) * block).sum(dim=(1, 2, 3))
    expected = torch.from_numpy(dctn((LUMA * block).sum(0).double().numpy(), norm="ortho"))
    assert float(coefficients[0]) == pytest.approx(0.25 * float(expected[0, 0]), abs=1e-5)
    order = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1)]
    assert torch.allclose(coefficients[3:10].double(), torch.stack([expected[uv] for uv in order]), atol=1e-5)


def test_chroma_rows_are_blind_to_grey():
    basis = block_transform(16)
    assert basis.shape == (16, 3, 4, 4)
    assert float(basis[1:3].sum(dim=1).abs().max()) < 1e-6
    assert float((basis[0] - 0.25 * 0.25 * LUMA).abs().max()) < 1e-6


@torch.no_grad()
def test_the_untrained_encoder_computes_it(vae, image):
    mode = vae.encode(image).latent_dist.mode()
    expected = F.conv2d(image, block_transform(16), stride=4)
    for latent, coefficient in zip(mode[0], expected[0], strict=True):  # scale and offset are left free
        assert float(torch.corrcoef(torch.stack([latent.flatten(), coefficient.flatten()]))[0, 1]) > 0.99


@torch.no_grad()
def test_the_untrained_decoder_shows_block_colours(vae, image):
    decoded = vae(image).sample
    means = F.interpolate(F.avg_pool2d(image, 4), scale_factor=4)
    assert float(torch.corrcoef(torch.stack([decoded.flatten(), means.flatten()]))[0, 1]) > 0.9


@torch.no_grad()
def test_posteriors_start_narrow(vae, image):
    deviation = vae.encode(image).latent_dist.std
    assert 0.01 < float(deviation.median()) < 0.2
