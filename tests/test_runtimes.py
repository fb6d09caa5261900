"""Tiles of large images, and the registry of runtimes."""

import pytest
import torch
from quant_stand_in import tiny_backbone

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.deploy.runtimes import RUNTIMES, keep_freed_memory
from qartsr_lib.images.tiling import upscale_in_tiles


class Nearest:
    """A model whose tiles agree wherever they overlap."""

    factor = 4

    def __init__(self):
        self.sizes = []

    def upscale(self, lq):
        self.sizes.append(tuple(lq.shape[-2:]))
        return lq.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_tiles_equal_the_whole_and_are_bounded():
    model, lq = Nearest(), torch.rand(1, 3, 70, 37)
    assert torch.allclose(upscale_in_tiles(model, lq, 32), model.upscale(lq), atol=1e-6)
    assert max(max(size) for size in model.sizes[:-1]) == 32 and len(model.sizes) > 4


def test_an_image_that_fits_is_not_cut():
    model, lq = tiny_backbone(), torch.rand(1, 3, 32, 9)
    assert torch.equal(upscale_in_tiles(model, lq, 32), model.upscale(lq))


def test_a_tile_too_small():
    with pytest.raises(QartsrError, match="--tile 31: choose at least 32"):
        upscale_in_tiles(Nearest(), torch.rand(1, 3, 8, 8), 31)


def test_runtimes_are_registered():
    assert {"simulate", "int8"} <= set(RUNTIMES)


def test_keeping_memory_does_not_change_results():
    x = torch.rand(4, 4)
    wanted = x @ x
    assert keep_freed_memory() in (True, False)
    assert torch.equal(x @ x, wanted)
