"""What the encoder sees of a masked image: mask tokens, patches of zeros, or the visible patches alone.

In: an encoder, images (B, C, H, W), a mask (B, h, w) with 1 = hidden, the mask token if there is one.
Out: the encoder's feature maps, the last level's last. A light decoder, MAE's (arXiv 2111.06377, section 3),
gives the head features of hidden patches where the encoder has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.build import Backbone
from simmim_bench.models.vit import ViT, sincos_position

# MAE: models_mae.py, 512 channels and heads of 32; but four blocks for its eight: fine-tuning does not tell (table 1).
LIGHT_WIDTH, LIGHT_HEAD, LIGHT_BLOCKS = 512, 32, 4

See = Callable[[Backbone, Tensor, Tensor, Tensor | None, bool], list[Tensor]]


def _encode(encoder: Backbone, tokens: Tensor, levels: bool) -> list[Tensor]:
    return encoder.encode_levels(tokens) if levels else [encoder.encode(tokens)]


def _zeroed(encoder: Backbone, images: Tensor, mask: Tensor) -> Tensor:
    patch = encoder.spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    return images * (1 - hidden.to(images))


def see_tokens(
    encoder: Backbone, images: Tensor, mask: Tensor, mask_token: Tensor | None, levels: bool
) -> list[Tensor]:
    """Put the mask token in the place of every hidden patch's embedding (SimMIM, section 3.1).

    Where the embeddings of visible patches would see into hidden ones, these are zeroed before.
    """
    assert mask_token is not None
    if encoder.spec.has_overlapping_stem:
        images = _zeroed(encoder, images, mask)
    tokens = encoder.embed(images)
    hidden = mask.to(tokens).unsqueeze(-1)
    tokens = tokens * (1 - hidden) + mask_token.to(tokens) * hidden
    return _encode(encoder, tokens, levels)


def see_zeros(
    encoder: Backbone, images: Tensor, mask: Tensor, mask_token: Tensor | None, levels: bool
) -> list[Tensor]:
    """Set hidden pixels to zero, the mean colour, before they are embedded."""
    return _encode(encoder, encoder.embed(_zeroed(encoder, images, mask)), levels)


def see_visible(
    encoder: Backbone, images: Tensor, mask: Tensor, mask_token: Tensor | None, levels: bool
) -> list[Tensor]:
    """Encode the visible patches alone; features of hidden ones are zero.

    Raises:
        UsageError: images of the batch with different numbers of hidden patches.
    """
    assert isinstance(encoder, ViT)
    seen = visible_patches(mask).to(images.device)
    maps = encoder.encode_visible(encoder.embed(images), seen)
    return maps if levels else maps[-1:]


def visible_patches(mask: Tensor) -> Tensor:
    """Give which patches (B, V) of a mask (B, h, w) are visible, in order.

    Raises:
        UsageError: images with different numbers of hidden patches.
    """
    visible = mask.flatten(1) == 0
    counts = visible.sum(1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        raise UsageError(
            f"encoder_input visible needs as many hidden patches in every image of a batch, and here {fewest} to "
            f"{most} of {visible.shape[1]} are visible; use masks of one size, such as random ones, or "
            "-o encoder_input=tokens."
        )
    return visible.nonzero()[:, 1].view(len(mask), most)


class LightDecoder(nn.Module):
    """A few transformer blocks over visible features and mask tokens (MAE, section 3).

    Positions are added as sines and cosines, as there.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.width = min(LIGHT_WIDTH, spec.num_features)
        self.embed = nn.Linear(spec.num_features, self.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, self.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.Sequential(
            *(
                Block(self.width, max(1, self.width // LIGHT_HEAD), qkv_bias=True)
                for _ in range(LIGHT_BLOCKS)
            )
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Map (B, C, h, w), meaningless where the mask (B, h, w) hides, to (B, width, h, w)."""
        tokens = self.embed(features.permute(0, 2, 3, 1))
        hidden = mask.to(tokens).unsqueeze(-1)
        tokens = tokens * (1 - hidden) + self.mask_token.to(tokens) * hidden
        grid = (tokens.shape[1], tokens.shape[2])
        tokens = tokens + sincos_position(grid, self.width).to(tokens)
        tokens = self.norm(self.blocks(tokens.flatten(1, 2)))
        return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


class EncoderInput(NamedTuple):
    """How an encoder is fed, whether it takes a mask token, and whether a light decoder must follow."""

    see: See
    takes_mask_token: bool
    needs_light_decoder: bool


ENCODER_INPUTS: dict[str, EncoderInput] = {
    "tokens": EncoderInput(see_tokens, takes_mask_token=True, needs_light_decoder=False),
    "zeros": EncoderInput(see_zeros, takes_mask_token=False, needs_light_decoder=False),
    "visible": EncoderInput(see_visible, takes_mask_token=False, needs_light_decoder=True),
}
