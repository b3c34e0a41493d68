"""Feature vectors that a frozen backbone offers: the pooled tokens after each of its blocks.

A `FeatureSet` names one kind of vector. `feature_sets` lists the feature sets of a recipe and checks them
against the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.fit import NET_PREFIX
from simmim_bench.checkpoints.load import encoder_state
from simmim_bench.errors import UsageError
from simmim_bench.models.build import build_network
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.spec import BackboneSpec
from transfer.frozen.recipes import CropRule, FrozenRecipe, Pooling

LAYER_NORM_EPSILON = (
    1e-6  # of every ViT here: MAE, models_vit.py; DINO and DINOv2, vision_transformer.py
)


@dataclass(frozen=True)
class FeatureSet:
    """One kind of feature vector of an image.

    Attributes:
        block: the block after which tokens are pooled, counted from 1; of a Swin or ResNet: the stage.
        pooling: the tokens that make the vector.
        n_last_blocks: number of blocks, the last of them `block`, whose class tokens are concatenated; the
            patch tokens are always those of `block`.
    """

    block: int
    pooling: Pooling
    n_last_blocks: int = 1

    @property
    def poolings(self) -> list[str]:
        """The single poolings that are concatenated: "cls+mean" has two."""
        return self.pooling.split("+")

    @property
    def parts(self) -> list[tuple[int, str]]:
        """Block and single pooling of every part of the vector, in order: DINOv2's create_linear_input."""
        first = self.block - self.n_last_blocks + 1
        return [
            (block, pooling)
            for pooling in self.poolings
            for block in range(first if pooling == "cls" else self.block, self.block + 1)
        ]

    @property
    def blocks(self) -> set[int]:
        """The blocks whose tokens make the vector."""
        return {block for block, _ in self.parts}

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a candidate; the number of blocks only where it is not 1."""
        fields = asdict(self)
        if self.n_last_blocks == 1:
            del fields["n_last_blocks"]
        return fields

    @classmethod
    def of(cls, candidate: Mapping[str, Any]) -> FeatureSet:
        """Return the feature set of a candidate."""
        return cls(candidate["block"], candidate["pooling"], candidate.get("n_last_blocks", 1))


@dataclass(frozen=True)
class RandomCrop:
    """One random crop of every image.

    Attributes:
        number: counted from 0; crops of other numbers are sampled independently.
        scale: range of the fraction of the image's area that the crop covers.
        hflip: probability of a horizontal flip.
        rule: see `LinearRecipe.crop_rule`.
    """

    number: int
    scale: tuple[float, float]
    hflip: float
    rule: CropRule = "torchvision"


def feature_sets(recipe: FrozenRecipe, spec: BackboneSpec) -> list[FeatureSet]:
    """Return the feature sets of a recipe: every block with every pooling.

    Raises:
        UsageError: the backbone does not have a block, or has no class token; or several blocks are to be
            concatenated of which some do not exist or have no class token in the vector.
    """
    numbers = block_numbers(recipe.blocks, spec)
    poolings = available_poolings(spec)
    for pooling in recipe.pooling or ():
        if pooling not in poolings:
            reason = (
                "its pooled features are its mean token"
                if pooling == "own"
                else "has no class token"
            )
            raise UsageError(
                f"pooling={pooling} is not available: {spec.arch}, {reason}; use -o pooling={poolings[0]}."
            )
    wanted = recipe.pooling or poolings
    most, least = max(recipe.n_last_blocks), min(numbers)
    if most > least:
        raise UsageError(
            f"n_last_blocks={most} does not fit blocks={least}: there are {least} blocks up to it; use "
            f"-o n_last_blocks={least} or fewer."
        )
    if most > 1 and "mean" in wanted:
        raise UsageError(
            f"n_last_blocks={most} concatenates class tokens, but pooling=mean has none; use -o pooling=cls or "
            "-o pooling=cls+mean."
        )
    return [
        FeatureSet(block, pooling, last)
        for block in numbers
        for last in recipe.n_last_blocks
        for pooling in wanted
        if pooling != "own" or block == spec.probed_blocks
    ]


def available_poolings(spec: BackboneSpec) -> tuple[Pooling, ...]:
    """Return the poolings of a backbone, single and concatenated."""
    single = spec.poolings
    both: tuple[Pooling, ...] = ("cls+mean",) if "cls" in single and "mean" in single else ()
    tokens = tuple(name for name in single if name != "own")
    return (*tokens, *both, *(name for name in single if name == "own"))


def block_numbers(blocks: tuple[int, ...] | None, spec: BackboneSpec) -> list[int]:
    """Return the numbers, from 1, of a recipe's blocks; of all blocks for None.

    Raises:
        UsageError: the backbone does not have a block.
    """
    count = spec.probed_blocks
    for block in blocks or ():
        if not 1 <= abs(block) <= count:
            raise UsageError(
                f"{spec.arch} has no block {block}; choose from 1 to {count}, or -1 for the last: "
                f"-o blocks={min(max(block, 1), count)}."
            )
    # -1 and the last block's number name one block, which is listed once.
    return list(dict.fromkeys(block % (count + 1) for block in blocks or range(1, count + 1)))


def token_norm(recipe: FrozenRecipe, checkpoint: Checkpoint) -> nn.Module | None:
    """Return the norm that a recipe applies to tokens before they are pooled, with the checkpoint's weights.

    Raises:
        UsageError: see `final_norm`.
    """
    return None if recipe.token_norm == "none" else final_norm(checkpoint)


def final_norm(checkpoint: Checkpoint) -> nn.Module:
    """Return the LayerNorm after the last block, with the checkpoint's weights.

    Raises:
        UsageError: the checkpoint has no such norm for its tokens.
    """
    if isinstance(checkpoint.spec, ExternalSpec):
        return _norm_of_network(checkpoint, checkpoint.spec)
    norm = nn.LayerNorm(checkpoint.spec.num_features, eps=LAYER_NORM_EPSILON).requires_grad_(False)
    is_vit, names = checkpoint.spec.family == "vit", ("weight", "bias")
    if is_vit and checkpoint.state is None:
        return norm  # an untrained one has the weights 1 and 0
    state = encoder_state(checkpoint.state or {})
    # In its transfer form, a ViT has `fc_norm` instead, for the mean of its tokens.
    if not is_vit or checkpoint.form != "pretrain" or "norm.weight" not in state:
        raise UsageError(
            f"token_norm=final needs the LayerNorm after the last block of a ViT, which {checkpoint.name} does not "
            "have: a fine-tuned ViT and other families lack it; use -o token_norm=none, with -o norm=layer for a "
            "norm without weights."
        )
    norm.load_state_dict({name: state[f"norm.{name}"] for name in names})
    return norm


def _norm_of_network(checkpoint: Checkpoint, spec: ExternalSpec) -> nn.Module:
    """Return the norm after the last block of a network of other code, with the checkpoint's weights.

    Raises:
        UsageError: the network has none.
    """
    net = build_network(spec)
    norm: nn.Module = getattr(net, "norm", nn.Identity())
    names = list(norm.state_dict())
    if not names or not spec.is_plain:
        raise UsageError(
            f"token_norm=final needs a norm after the last block, which {spec.arch} does not have for its tokens; use "
            "-o token_norm=none, with -o norm=layer for a norm without weights."
        )
    if checkpoint.state is not None:
        norm.load_state_dict({n: checkpoint.state[f"{NET_PREFIX}norm.{n}"] for n in names})
    return norm.requires_grad_(False).eval()


def block_width(spec: BackboneSpec, block: int, pooling: str = "mean") -> int:
    """Return the channels after a block, counted from 1; early stages of a Swin are narrower."""
    return spec.pooled_width if pooling == "own" else spec.block_widths[block - 1]
