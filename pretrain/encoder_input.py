"""What the encoder receives of a masked image: mask tokens, patches of zeros, or the visible patches alone.

Every function of `ENCODER_INPUTS` maps an encoder, images (B, C, H, W), a mask (B, h, w) with 1 = hidden, the
mask token, if there is one, and the number of visible patches, if it is known, to the encoder's feature maps, the
last level at the end. `LightDecoder`, MAE's
(arXiv 2111.06377, section 3), supplies features of hidden patches where the encoder has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from simmim_bench.errors import UsageError
from simmim_bench.models.build import Encoder
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.models.vit import ViT, sincos_position

# MAE: models_mae.py, 512 channels and heads of 32; four blocks instead of its eight, as fine-tuning accuracy hardly
# depends on the depth (table 1).
LIGHT_WIDTH, LIGHT_HEAD, LIGHT_BLOCKS = 512, 32, 4

EncodeFn = Callable[[Encoder, Tensor, Tensor, Tensor | None, bool, int | None], list[Tensor]]


def _encode(encoder: Encoder, tokens: Tensor, levels: bool) -> list[Tensor]:
    return encoder.encode_levels(tokens) if levels else [encoder.encode(tokens)]


def _zeroed(encoder: Encoder, images: Tensor, mask: Tensor) -> Tensor:
    patch = encoder.spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    return images * (1 - hidden.to(images))


def encode_with_mask_tokens(
    encoder: Encoder,
    images: Tensor,
    mask: Tensor,
    mask_token: Tensor | None,
    levels: bool,
    visible: int | None = None,
) -> list[Tensor]:
    """Replace every hidden patch's embedding by the mask token (SimMIM, section 3.1).

    An overlapping stem would leak hidden pixels into the embeddings of visible patches, so hidden pixels are zeroed
    before such a stem.
    """
    assert mask_token is not None
    if encoder.spec.has_overlapping_stem:
        images = _zeroed(encoder, images, mask)
    tokens = encoder.embed(images)
    hidden = mask.to(tokens).unsqueeze(-1)
    tokens = tokens * (1 - hidden) + mask_token.to(tokens) * hidden
    return _encode(encoder, tokens, levels)


def encode_with_zeros(
    encoder: Encoder,
    images: Tensor,
    mask: Tensor,
    mask_token: Tensor | None,
    levels: bool,
    visible: int | None = None,
) -> list[Tensor]:
    """Set hidden pixels to zero, the mean colour, before the patch embedding."""
    return _encode(encoder, encoder.embed(_zeroed(encoder, images, mask)), levels)


def encode_visible_only(
    encoder: Encoder,
    images: Tensor,
    mask: Tensor,
    mask_token: Tensor | None,
    levels: bool,
    visible: int | None = None,
) -> list[Tensor]:
    """Encode the visible patches alone; features of hidden ones are zero.

    Raises:
        UsageError: the images of the batch have different numbers of hidden patches.
    """
    assert isinstance(encoder, ViT)
    count = count_visible(mask) if visible is None else visible
    kept = visible_patches(mask, count).to(images.device)
    maps = encoder.encode_visible(encoder.embed(images), kept)
    return maps if levels else maps[-1:]


def count_visible(mask: Tensor) -> int:
    """Return the number of visible patches of every image of a mask (B, h, w); the host waits for a GPU.

    Raises:
        UsageError: the images have different numbers of hidden patches.
    """
    visible = mask.flatten(1) == 0
    counts = visible.sum(1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        raise UsageError(
            f"encoder_input visible needs the same number of hidden patches in every image of a batch, but {fewest} "
            f"to {most} of {visible.shape[1]} patches are visible; use a masking that hides the same number of "
            "patches in every image, such as random, or -o encoder_input=tokens."
        )
    return most


def visible_patches(mask: Tensor, count: int) -> Tensor:
    """Return the indices (B, count) of the visible patches of a mask (B, h, w), in ascending order."""
    return (mask.flatten(1) != 0).long().argsort(dim=1, stable=True)[:, :count]


class LightDecoder(nn.Module):
    """A few transformer blocks over visible features and mask tokens, with sine-cosine positions (MAE, section 3)."""

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
        """Map features (B, C, h, w), which are ignored where the mask (B, h, w) is 1, to (B, width, h, w)."""
        tokens = self.embed(features.permute(0, 2, 3, 1))
        hidden = mask.to(tokens).unsqueeze(-1)
        tokens = tokens * (1 - hidden) + self.mask_token.to(tokens) * hidden
        grid = (tokens.shape[1], tokens.shape[2])
        tokens = tokens + sincos_position(grid, self.width, tokens.device).to(tokens)
        tokens = self.norm(self.blocks(tokens.flatten(1, 2)))
        return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


class EncoderInput(NamedTuple):
    """How an encoder receives masked images.

    Attributes:
        encode: maps (encoder, images, mask, mask token, all levels or the last alone) to feature maps.
        takes_mask_token: the model has a mask token for the encoder.
        needs_light_decoder: the encoder has no features of hidden patches; `LightDecoder` supplies them.
    """

    encode: EncodeFn
    takes_mask_token: bool
    needs_light_decoder: bool


ENCODER_INPUTS: dict[str, EncoderInput] = {
    "tokens": EncoderInput(
        encode_with_mask_tokens, takes_mask_token=True, needs_light_decoder=False
    ),
    "zeros": EncoderInput(encode_with_zeros, takes_mask_token=False, needs_light_decoder=False),
    "visible": EncoderInput(encode_visible_only, takes_mask_token=False, needs_light_decoder=True),
}
