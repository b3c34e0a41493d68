"""Feature vectors that a frozen backbone offers: the pooled tokens after each of its blocks.

A `FeatureSet` names one kind of vector. `feature_sets` lists the feature sets of a recipe and checks them
against the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass

from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec
from transfer.frozen.recipes import FrozenRecipe, Pooling


@dataclass(frozen=True)
class FeatureSet:
    """One kind of feature vector of an image.

    Attributes:
        block: the block after which tokens are pooled, counted from 1; of a Swin or ResNet: the stage.
        pooling: the tokens that make the vector.
    """

    block: int
    pooling: Pooling

    @property
    def poolings(self) -> list[str]:
        """The single poolings that are concatenated: "cls+mean" has two."""
        return self.pooling.split("+")


@dataclass(frozen=True)
class RandomCrop:
    """One random crop of every image.

    Attributes:
        number: counted from 0; crops of other numbers are sampled independently.
        scale: range of the fraction of the image's area that the crop covers.
        hflip: probability of a horizontal flip.
    """

    number: int
    scale: tuple[float, float]
    hflip: float


def feature_sets(recipe: FrozenRecipe, spec: BackboneSpec) -> list[FeatureSet]:
    """Return the feature sets of a recipe: every block with every pooling.

    Raises:
        UsageError: the backbone does not have a block, or has no class token.
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
            raise UsageError(
                f"pooling={pooling} is not available: {spec.arch} has no class token; use -o pooling=mean."
            )
    # -1 and the last block's number name one block, which is listed once.
    numbers = dict.fromkeys(block % (count + 1) for block in blocks)
    return [
        FeatureSet(block, pooling) for block in numbers for pooling in recipe.pooling or poolings
    ]


def block_width(spec: BackboneSpec, block: int) -> int:
    """Return the channels after a block, counted from 1; early stages of a Swin are narrower."""
    if spec.family == "vit":
        return spec.num_features
    return spec.feature_levels[block - 1].channels
