"""Define `BackboneSpec`, the complete description of a backbone.

A spec determines the module (`build.py`), its feature levels and its layer numbers. `archs.py` names the published
ones. This module does not import torch, so that the command line starts fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from simmim_bench.errors import UsageError

Family = Literal["vit", "swin", "swinv2", "convnext", "resnet", "timm", "python"]
"""Family of a backbone; "timm" and "python" are networks of other code (`external_spec.py`)."""

Form = Literal["pretrain", "transfer"]
"""Form of a backbone: the encoder of a SimMIM model, or the backbone that is transferred to a task."""

MapNorm = Literal["plain", "affine", "none"]
RelPos = Literal["own", "table", "decomposed"]
Position = Literal["antialiased", "bicubic", "kept"]

# Limits of what a file may describe. ViT-22B has 48 blocks (arXiv 2302.05442, table 1), ResNet-152 36 in a stage.
MOST_BLOCKS = 1024
MOST_STAGES = 8
# Tokens on a side of a map, and of the map or window of a position table, whose index has LARGEST_GRID**4 entries.
LARGEST_MAP = 1024
LARGEST_GRID = 128
RESNET_STEM_DIM = 64  # arXiv 1512.03385, table 1 (conv1)


class FeatureLevel(NamedTuple):
    """Channels and stride, in pixels, of one feature map of a backbone."""

    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How a backbone makes feature maps for a detector or segmentor; the default is simmim-bench's own way.

    The options reproduce the backbones of published protocols: Detectron2's ViT (modeling/backbone/vit.py),
    MMSegmentation's MAE and BEiT (models/backbones/mae.py, beit.py), and the Swin and ConvNeXt of both.

    Attributes:
        blocks: blocks of a ViT, counted from 1, whose outputs are the feature levels; () for the quarters of
            the depth.
        norm: "plain" is a LayerNorm of every level without weights, except that the last level of a Swin or
            ConvNeXt has the checkpoint's last norm, and that a ResNet's levels end with a BatchNorm; "affine"
            is a new LayerNorm with weights per level; "none" is no norm.
        rel_pos: relative position of a ViT that has no position bias: "own" adds none, "table" a
            zero-initialised bias table to every block, "decomposed" ViTDet's zero-initialised vectors per row
            and column. A ViT with a position bias keeps it.
        layer_scale: initial layer scale of a ViT that has none; None adds none.
        position: a learned absolute position embedding is resized when it is loaded, with a bicubic filter that
            is "antialiased" (timm's) or not ("bicubic"); or it is "kept" at its size and resized without
            antialiasing in every forward pass.
        patch_size: of a ViT, to which the kernels of the patch embedding are resized; None for the checkpoint's.
    """

    blocks: tuple[int, ...] = ()
    norm: MapNorm = "plain"
    rel_pos: RelPos = "own"
    layer_scale: float | None = None
    position: Position = "antialiased"
    patch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Complete description of a backbone.

    Attributes:
        arch: name in `ARCHS`.
        family: determines the module class.
        img_size: (H, W) in pixels that position tables and windows are built for. The backbone accepts
            other sizes as well.
        patch_size: side of one token in pixels; for a convolutional network, the stride of its stem.
        embed_dim: channels of the first stage; every later stage doubles them. A ViT has one stage.
        depths: number of blocks of every stage.
        num_heads: attention heads of every stage; empty for a convolutional network.
        window_size: side of an attention window in tokens; 0 for a ViT with global attention and for a
            convolutional network. A ViT with windows is ViTDet's backbone (see `windowed_blocks`).
        in_chans: image channels.
        mlp_ratio: hidden width of the MLP divided by the block's width.
        init_values: initial layer scale of the residual branches of a ViT or ConvNeXt; None for a ViT
            without layer scale.
        rel_pos_bias: a ViT's attention has a learned relative position bias, as in BEiT and SimMIM.
        abs_pos_embed: a ViT adds a learned absolute position embedding to its tokens, as in the
            checkpoints of MAE and timm.
        sincos_position: a ViT adds a fixed sine-cosine position embedding to its patches, as MAE does
            (arXiv 2111.06377, appendix A.1). SimMIM's own ViT has no absolute position.
        narrow_init: a ViT uses SimMIM's narrow initialisation: a normal truncated at one standard
            deviation during pretraining (models/simmim.py), and a new head scaled by 1/1000
            (models/vision_transformer.py, init_scale).
        pretrained_windows: (h, w) of every stage that a Swin V2's weights were trained with, where
            they differ from the current windows: the scale of the continuous position bias
            (arXiv 2111.09883, section 3.3).
        map_blocks, map_norm: `blocks` and `norm` of `MapOptions`.
        decomposed_rel_pos: a ViT's attention has ViTDet's relative position vectors per row and column.
        position_grid: (h, w) of a ViT's learned absolute position embedding; () for that of `img_size`.
        antialias_position: whether a resized absolute position embedding is antialiased.
        norm_eps: epsilon of a ViT's LayerNorms where it is not the usual 1e-6.
    """

    arch: str
    family: Family
    img_size: tuple[int, int]
    patch_size: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...] = ()
    window_size: int = 0
    in_chans: int = 3
    mlp_ratio: float = 4.0
    init_values: float | None = None
    rel_pos_bias: bool = True
    abs_pos_embed: bool = False
    sincos_position: bool = False
    narrow_init: bool = False
    pretrained_windows: tuple[tuple[int, int], ...] = ()
    map_blocks: tuple[int, ...] = ()
    map_norm: MapNorm = "plain"
    decomposed_rel_pos: bool = False
    position_grid: tuple[int, ...] = ()
    antialias_position: bool = True
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        if any(size % self.patch_size for size in self.img_size):
            raise UsageError(
                f"img_size {self.img_size} is not a multiple of {self.arch}'s patch_size "
                f"{self.patch_size}; use {tuple(_round_up(s, self.patch_size) for s in self.img_size)}."
            )

    @property
    def num_features(self) -> int:
        """Channels of the last feature level."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def stride(self) -> int:
        """Stride of the last feature level in pixels; SimMIM's `encoder_stride`."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def is_convolutional(self) -> bool:
        """Whether the network has no attention, and hence no position tables and no windows."""
        return self.family in ("convnext", "resnet")

    @property
    def is_plain(self) -> bool:
        """Whether all maps have one stride, as a ViT's: a detector needs a simple feature pyramid then."""
        return self.family == "vit"

    @property
    def has_overlapping_stem(self) -> bool:
        """Whether the receptive fields of neighbouring cells of the stem's output overlap."""
        return self.family == "resnet"

    @property
    def stem_dim(self) -> int:
        """Channels of the embedding, and of the mask token that replaces hidden cells."""
        return RESNET_STEM_DIM if self.family == "resnet" else self.embed_dim

    @property
    def num_blocks(self) -> int:
        """Number of blocks in all stages."""
        return sum(self.depths)

    @property
    def probed_blocks(self) -> int:
        """Length of dimension 1 of `forward_pooled`: the blocks of a ViT, the stages of other families."""
        return self.depths[0] if self.family == "vit" else len(self.depths)

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Channels after every probed block; early stages of a hierarchical backbone are narrower."""
        if self.family == "vit":
            return (self.num_features,) * self.probed_blocks
        return tuple(level.channels for level in self.feature_levels)

    @property
    def pooled_width(self) -> int:
        """Channels of `forward_features`."""
        return self.num_features

    @property
    def probed_width(self) -> int:
        """Length of dimension 3 of `forward_pooled`; narrower features are padded with zeros."""
        return max(*self.block_widths, self.pooled_width)

    @property
    def has_class_token(self) -> bool:
        """Whether the transfer form has a class token; only a ViT without windows has one."""
        return self.family == "vit" and not self.windowed_blocks

    @property
    def poolings(self) -> tuple[Literal["mean", "cls", "own"], ...]:
        """Poolings that `forward_pooled` returns for every block: mean patch token, class token.

        "own" is `forward_features` in the last block's row, and zero in the others.
        """
        return ("mean", "cls") if self.has_class_token else ("mean",)

    @property
    def windowed_blocks(self) -> tuple[int, ...]:
        """Indices, from 0, of a ViT's blocks with window attention: all but the last of each quarter.

        ViTDet makes this choice (arXiv 2203.16527, section 3): for ViT-B all but blocks 2, 5, 8 and 11.
        A ViT of four blocks has no windowed block.
        """
        if self.family != "vit" or not self.window_size:
            return ()
        return tuple(i for i in range(self.depths[0]) if i + 1 not in quarters(self.depths[0]))

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """Levels that `forward_maps` returns: the stages, or four equally spaced blocks of a ViT."""
        if self.family == "vit":
            return (FeatureLevel(self.embed_dim, self.patch_size),) * len(self.level_blocks)
        return tuple(
            FeatureLevel(self.embed_dim * 2**stage, self.patch_size * 2**stage)
            for stage in range(len(self.depths))
        )

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """Block of a ViT or stage of another backbone, counted from 1, whose output is each feature level.

        A ViT's are by default the quarters of the depth, so that every depth from 4 up has four distinct levels. BEiT
        uses blocks 4, 6, 8 and 12 of 12 for ADE20K (semantic_segmentation/configs).
        """
        if self.family == "vit":
            return self.map_blocks or quarters(self.depths[0])
        return tuple(range(1, len(self.depths) + 1))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches of an image of `img_size`."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def absolute_grid(self) -> tuple[int, int]:
        """(h, w) of a ViT's learned absolute position embedding."""
        height, width = self.position_grid or self.grid
        return height, width

    @property
    def stage_windows(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of the attention window of every Swin stage, at most the size of the stage's map."""
        return tuple(
            (min(self.window_size, -(-h // 2**i)), min(self.window_size, -(-w // 2**i)))
            for i in range(len(self.depths))
            for h, w in (self.grid,)
        )

    @property
    def pads_windows(self) -> bool:
        """Whether a Swin pads the map of some stage to whole windows at `img_size`."""
        return self.family in ("swin", "swinv2") and any(
            -(-side // 2**i) % window
            for i, windows in enumerate(self.stage_windows)
            for side, window in zip(self.grid, windows, strict=True)
        )

    def at(
        self,
        img_size: tuple[int, int] | None = None,
        window_size: int | None = None,
        *,
        trained: bool = False,
        patch_size: int | None = None,
    ) -> BackboneSpec:
        """Return this architecture for another image size, window size or patch size.

        Args:
            img_size: (H, W) in pixels; None keeps the current one.
            window_size: side of an attention window in tokens; None keeps the current one.
            patch_size: of a ViT, in pixels; None keeps the current one.
            trained: whether weights were trained with this spec's windows. A Swin V2 then keeps the scale
                of its position bias (PRETRAINED_WINDOW_SIZES in Swin-Transformer's configs/).

        Raises:
            UsageError: The size is not a multiple of the patch size, or the network has no attention.
        """
        if window_size and self.is_convolutional:
            raise UsageError(
                f"window_size={window_size} does not apply to {self.arch}, which has no attention; remove it or "
                "use -o window_size=none."
            )
        if patch_size and self.family != "vit":
            raise UsageError(
                f"patch_size={patch_size} does not apply to {self.arch}, which is not a ViT; remove it or use "
                "-o patch_size=none."
            )
        changed = replace(
            self,
            img_size=img_size or self.img_size,
            window_size=window_size or self.window_size,
            patch_size=patch_size or self.patch_size,
        )
        rescaled = self.family == "swinv2" and changed.stage_windows != self.stage_windows
        if trained and rescaled and not self.pretrained_windows:
            changed = replace(changed, pretrained_windows=self.stage_windows)
        return changed

    def with_maps(self, options: MapOptions, trained: BackboneSpec) -> BackboneSpec:
        """Return this backbone with other feature maps.

        Args:
            trained: the spec of the weights, for the size of the position embedding.

        Raises:
            UsageError: an option that the network cannot have.
        """
        if self.family != "vit":
            if options.blocks or options.rel_pos != "own" or options.layer_scale is not None:
                raise UsageError(
                    f"map_blocks, rel_pos and layer_scale apply to a ViT, which {self.arch} is not; use another "
                    "--recipe, or none for the default of the architecture."
                )
            if options.norm == "affine" and self.family == "resnet":
                raise UsageError(
                    f"map_norm=affine does not apply to {self.arch}, whose blocks end with a BatchNorm; use "
                    "-o map_norm=plain."
                )
            return replace(self, map_norm=options.norm)
        check_map_blocks(options.blocks, self.num_blocks, self.arch)
        bare = not (self.rel_pos_bias or self.decomposed_rel_pos)
        decomposed = self.decomposed_rel_pos or (bare and options.rel_pos == "decomposed")
        if decomposed and self.has_class_token:
            raise UsageError(
                f"rel_pos=decomposed needs a ViT without class token, as with window_size; {self.arch} has one here. "
                "Use -o rel_pos=table."
            )
        kept = options.position == "kept" and self.abs_pos_embed
        return replace(
            self,
            map_blocks=options.blocks,
            map_norm=options.norm,
            rel_pos_bias=self.rel_pos_bias or (bare and options.rel_pos == "table"),
            decomposed_rel_pos=decomposed,
            init_values=self.init_values if self.init_values is not None else options.layer_scale,
            position_grid=trained.absolute_grid if kept else (),
            antialias_position=options.position == "antialiased",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` parses; without `norm_eps` at its default, as hashes depend on it."""
        fields = asdict(self)
        return {
            key: value for key, value in fields.items() if key != "norm_eps" or value is not None
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BackboneSpec:
        """Build a spec from the JSON object that `to_json` returned.

        Raises:
            ValueError: a field is unknown, of another type, or larger than any backbone's, or the heads are not those
                of every stage.
        """
        values = {key: as_tuples(value) for key, value in fields.items()}
        if (fault := describe_fault(values)) is not None:
            raise ValueError(fault)
        spec = cls(**values)
        heads = () if spec.is_convolutional else spec.num_heads
        if not spec.is_convolutional and len(heads) != len(spec.depths):
            raise ValueError(f"num_heads has {len(heads)} values for {len(spec.depths)} stages")
        if any(spec.embed_dim * 2**stage % count for stage, count in enumerate(heads)):
            raise ValueError(f"num_heads {heads} do not divide the width {spec.embed_dim}")
        return spec


def check_map_blocks(blocks: Sequence[int], count: int, arch: str) -> None:
    """Check the blocks whose outputs become maps, of a network with `count` blocks.

    Raises:
        UsageError: the network does not have one, or they do not increase.
    """
    if any(not 1 <= block <= count for block in blocks):
        raise UsageError(f"map_blocks {blocks} are not all blocks of {arch}; it has 1 to {count}.")
    if list(blocks) != sorted(set(blocks)):
        raise UsageError(
            f"map_blocks {blocks} must increase; use -o map_blocks={','.join(map(str, sorted(set(blocks))))}."
        )


def quarters(depth: int) -> tuple[int, ...]:
    """Return the last block, counted from 1, of each quarter of a network's blocks."""
    return tuple(max(1, depth * quarter // 4) for quarter in range(1, 5))


def describe_fault(fields: Mapping[str, Any]) -> str | None:
    """Return the first field of a spec that is unknown, of another type or beyond every backbone; None without one."""
    for key, value in fields.items():
        if key not in FIELDS or not FIELDS[key](value):
            return f"{ascii(key)[:40]} is {ascii(value)[:80]}"
    return None


def _is_count(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _counts(low: int, high: int) -> Callable[[Any], bool]:
    """Return a test of a tuple of at most 1,024 integers."""
    return lambda value: (
        isinstance(value, tuple)
        and len(value) <= 1024
        and all(_is_count(entry, low, high) for entry in value)
    )


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not _is_bool(value) and 0 < value <= 1024


# A test of the value of every field of a `BackboneSpec` that is read from a file. The limits are beyond every published
# backbone, and keep what is built from a file's sizes, before they are compared with its weights, within the memory.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "arch": lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.-]{1,100}", value)),
    "family": lambda value: value in ("vit", "swin", "swinv2", "convnext", "resnet"),
    "img_size": lambda value: _counts(1, 1 << 16)(value) and len(value) == 2,
    "patch_size": lambda value: _is_count(value, 1, 1024),
    "embed_dim": lambda value: _is_count(value, 1, 1 << 16),
    "depths": lambda value: _counts(1, MOST_BLOCKS)(value) and 1 <= len(value) <= MOST_STAGES,
    "num_heads": _counts(1, 1024),
    "window_size": lambda value: _is_count(value, 0, 1 << 12),
    "in_chans": lambda value: _is_count(value, 1, 1024),
    "mlp_ratio": _is_scale,
    "init_values": lambda value: value is None or value == 0 or _is_scale(value),
    "rel_pos_bias": _is_bool,
    "abs_pos_embed": _is_bool,
    "sincos_position": _is_bool,
    "narrow_init": _is_bool,
    "pretrained_windows": lambda value: (
        isinstance(value, tuple)
        and len(value) <= MOST_STAGES
        and all(_counts(0, 1 << 12)(window) and len(window) == 2 for window in value)
    ),
    "map_blocks": _counts(1, MOST_BLOCKS),
    "map_norm": lambda value: value in ("plain", "affine", "none"),
    "decomposed_rel_pos": _is_bool,
    "position_grid": lambda value: _counts(1, 1 << 16)(value) and len(value) in (0, 2),
    "antialias_position": _is_bool,
    "norm_eps": lambda value: value is None or (isinstance(value, float) and 0 < value <= 1e-2),
}


def as_tuples(value: Any) -> Any:
    """Convert lists of a JSON value to tuples, also nested ones."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
