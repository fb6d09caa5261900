"""Parameters and MACs of the networks that OSEDiff runs beside UNet and VAE, from their published shapes.

They explain the full-precision row of the paper's Table 2 and count nowhere else: with a constant
prompt embedding neither is needed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextTower:
    """A pre-norm text transformer: token and position embeddings, layers, a final normalization.

    Attributes:
        layers: OpenCLIP's ViT-H has 24; diffusers' export leaves the last one out.
    """

    layers: int = 24
    width: int = 1024
    hidden: int = 4096
    vocabulary: int = 49408
    tokens: int = 77

    @property
    def parameters(self) -> int:
        """All of them, without the text projection."""
        attention = 4 * self.width * self.width + 4 * self.width
        feed_forward = 2 * self.width * self.hidden + self.hidden + self.width
        norms = 2 * 2 * self.width
        embeddings = (self.vocabulary + self.tokens) * self.width
        return embeddings + self.layers * (attention + feed_forward + norms) + 2 * self.width

    @property
    def macs(self) -> int:
        """Of the linear layers, for one prompt."""
        return self.tokens * self.layers * (4 * self.width * self.width + 2 * self.width * self.hidden)


@dataclass(frozen=True)
class SwinTransformer:
    """A Swin transformer; the defaults are Swin-L at 384x384, the image encoder of the tagger RAM.

    Attributes:
        size: side of the image in pixels.
        width: channels of the first stage; every further stage halves the sides and doubles the channels.
        depths: blocks per stage.
    """

    size: int = 384
    patch: int = 4
    width: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)

    @property
    def macs(self) -> int:
        """Of patch embedding, linear layers and patch merging, for one image."""
        tokens, width = (self.size // self.patch) ** 2, self.width
        total = tokens * width * 3 * self.patch**2
        for stage, depth in enumerate(self.depths):
            if stage:
                tokens //= 4
                total += tokens * (4 * width) * (2 * width)
                width *= 2
            total += depth * tokens * 12 * width**2  # query, key, value, output, and two layers of 4 x width
        return total


TEXT_TOWER = TextTower()
TAGGER_ENCODER = SwinTransformer()
