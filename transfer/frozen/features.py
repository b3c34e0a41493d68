"""Features of a frozen backbone, computed once and kept on disk for every task that asks for them.

In: a checkpoint, images, a recipe's preprocessing. Out: the pooled tokens of every image after every block,
in a file that is mapped, not read: ImageNet's under a ViT-B are 48 GB. A file belongs to one combination of
weights, images and preprocessing; its folder's name is a hash of them, and `features.json` beside it says
what they are.

Legend: N images, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec
from transfer.frozen.recipes import FrozenRecipe, Pooling


@dataclass(frozen=True)
class FeatureSet:
    """One way to make a vector of an image: after which block, counted from 1, and of which tokens."""

    block: int
    pooling: Pooling

    @property
    def parts(self) -> list[str]:
        """What is laid side by side."""
        return self.pooling.split("+")


@dataclass(frozen=True)
class Crop:
    """A random crop of every image: which one, and how it is drawn."""

    number: int
    scale: tuple[float, float]
    hflip: float


def feature_sets(recipe: FrozenRecipe, spec: BackboneSpec) -> list[FeatureSet]:
    """Give all feature sets that a recipe asks for.

    Raises:
        UsageError: a block that is not there, or the class token of a backbone without one.
    """
    count = spec.probed_blocks
    blocks = recipe.blocks or tuple(range(1, count + 1))
    for block in blocks:
        if not 1 <= abs(block) <= count:
            raise UsageError(
                f"{spec.arch} has no block {block}; choose from 1 to {count}, or -1 for the last: "
                f"-o blocks={min(max(block, 1), count)}."
            )
    has_class_token = "cls" in spec.poolings
    poolings: tuple[Pooling, ...] = ("mean", "cls", "cls+mean") if has_class_token else ("mean",)
    for pooling in recipe.pooling or ():
        if pooling not in poolings:
            raise UsageError(f"{spec.arch} has no class token; use -o pooling=mean.")
    # Written as -1 or as 12, a block is one.
    numbers = dict.fromkeys(block % (count + 1) for block in blocks)
    return [
        FeatureSet(block, pooling) for block in numbers for pooling in recipe.pooling or poolings
    ]


def block_width(spec: BackboneSpec, block: int) -> int:
    """Give the channels after a block, counted from 1: a Swin's early stages are narrower."""
    if spec.family == "vit":
        return spec.num_features
    return spec.feature_levels[block - 1].channels
