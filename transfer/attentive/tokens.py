"""The tokens of a frozen backbone after some of its blocks, computed anew for every batch.

The patch tokens of a ViT, or the cells of the other families' maps. Class tokens are left out: SimMIM's loss trains
none after the last block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.models.build import Backbone
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.training.kernels import use_channels_last
from transfer.attentive.heads import check_width, divides
from transfer.attentive.recipes import AttentiveRecipe
from transfer.frozen.features import LAYER_NORM_EPSILON, block_numbers, block_width, final_norm

# Ours: SimMIM's features are best in the middle of the network (github.com/microsoft/SimMIM/issues/14).
DEPTHS = (1 / 2, 2 / 3, 5 / 6, 1)


def blocks_of(recipe: AttentiveRecipe, spec: BackboneSpec) -> list[int]:
    """Return the blocks, counted from 1, whose tokens a recipe pools.

    Raises:
        UsageError: the backbone has no tokens or does not have a block, or its channels cannot be divided among the
            queries.
    """
    if isinstance(spec, ExternalSpec) and not spec.levels:
        raise UsageError(
            f"attentive pools the tokens of maps, and {spec.arch} has no maps of constant stride; use linear or knn."
        )
    count = spec.probed_blocks
    blocks = recipe.blocks or tuple(max(1, round(depth * count)) for depth in DEPTHS)
    numbers = block_numbers(blocks, spec)
    if (
        recipe.blocks is None
    ):  # stages of small networks have channels such as 20, which 8 heads do not divide
        fitting = [
            block
            for block in numbers
            if all(divides(head, block_width(spec, block), recipe) for head in recipe.heads)
        ]
        numbers = fitting or numbers
    for block in numbers:
        for head in recipe.heads:
            check_width(head, block_width(spec, block), block, recipe)
    return numbers


class FrozenTokens(nn.Module):
    """A frozen backbone that maps images to the tokens after some blocks.

    Attributes:
        backbone: in evaluation mode, and stays in it.
        blocks: numbers of the blocks, from 1.
        norm: norm of every token.
    """

    def __init__(
        self, backbone: Backbone, blocks: Sequence[int], norm: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.backbone, self.blocks, self.norm = backbone, list(blocks), norm
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenTokens:
        """Stay in evaluation mode: dropped paths and BatchNorm's statistics are no part of a frozen backbone."""
        super().train(False)
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to one float32 map of tokens (B, h, w, D) per block."""
        with torch.no_grad():
            after_blocks = self.backbone.forward_tokens(images)
            return [self.norm(after_blocks[block - 1].float()) for block in self.blocks]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to float32 tokens (B, L, D) per block."""
        return [x.flatten(1, 2) for x in self.maps(images)]


def load_tokens(
    recipe: AttentiveRecipe,
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    seed: int = 0,
) -> FrozenTokens:
    """Load the backbone of a checkpoint for the tokens of a recipe.

    Args:
        seed: initialises the weights that the checkpoint does not hold.

    Raises:
        UsageError: the recipe names blocks or a norm that the backbone does not have.
        DataError: the weights do not fit the backbone.
    """
    numbers = blocks_of(recipe, checkpoint.spec)
    norm = _token_norm(recipe, checkpoint, device)
    backbone = load_backbone(
        checkpoint, recipe.img_size, window_size=recipe.window_size, seed=seed
    ).to(device)
    use_channels_last(backbone, backbone.spec, device)
    return FrozenTokens(backbone, numbers, norm)


def _token_norm(
    recipe: AttentiveRecipe, checkpoint: Checkpoint, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the norm of the tokens; a BatchNorm belongs to the heads, as it depends on the batch."""
    if recipe.token_norm == "layer":
        return _layer_norm
    if recipe.token_norm == "final":
        return final_norm(checkpoint).to(device)
    return _no_norm


def _layer_norm(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPSILON)


def _no_norm(tokens: Tensor) -> Tensor:
    return tokens
