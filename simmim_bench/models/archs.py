"""The architectures by name, as plain descriptions: no torch here, so that the command line stays light.

In: a name such as `vit_b`. Out: a `BackboneSpec`, from which the module (`backbones.py`), its feature
levels and its layer numbers follow. Sizes are those of ViT (arXiv 2010.11929, table 1; "ti" and "s" as
in DeiT, arXiv 2012.12877, table 1), Swin (arXiv 2103.14030, section 3.3), Swin V2 (arXiv 2111.09883,
section 3.4), ConvNeXt (arXiv 2201.03545, section 3) and ResNet (arXiv 1512.03385, table 1). SimMIM's own
choices (layer scale 0.1, no absolute position embedding, window 6 at 192 pixels while pretraining) are from
SimMIM's configs/ folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from simmim_bench.errors import UsageError, nearest

Family = Literal["vit", "swin", "swinv2", "convnext", "resnet"]
RESNET_STEM = 64  # arXiv 1512.03385, table 1 (conv1)


class FeatureLevel(NamedTuple):
    """One feature map that a backbone gives: its channels and its stride in pixels."""

    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Describe a backbone completely.

    Attributes:
        arch: the name it was looked up under.
        family: which module builds it.
        img_size: (H, W) in pixels that the position tables and windows are made for. Other sizes run too.
        patch_size: pixels a side of one token; of a convolutional network, the stride of its stem.
        embed_dim: channels of the first stage; all but a ViT double them at every later stage.
        depths: blocks a stage; a ViT has one stage.
        num_heads: attention heads a stage; a convolutional network has none.
        window_size: tokens a side of an attention window. A ViT has 0 for attention over the whole image;
            with windows it is the backbone of ViTDet (see `windowed_blocks`). A convolutional network has 0.
        in_chans: image channels.
        mlp_ratio: hidden width of the MLP over the block's width.
        init_values: initial layer scale of residual branches; None for none, of a ViT. A ConvNeXt has one.
        rel_pos_bias: give a ViT's attention a learnt relative position bias, as BEiT and SimMIM do.
        abs_pos_embed: add a learnt embedding of the position to a ViT's tokens, as MAE's and timm's
            files hold it.
        sincos_position: add fixed sines and cosines of the position to a ViT's patches, as MAE does
            (arXiv 2111.06377, appendix A.1). SimMIM's own ViT has no absolute position.
        narrow_init: draw a ViT's weights as narrowly as SimMIM does: from a normal cut off at one
            deviation while pretraining (models/simmim.py), a new head a thousandfold smaller
            (models/vision_transformer.py, init_scale).
        pretrained_windows: (h, w) a stage that a Swin V2's weights were trained with, where it is not
            its own window: the scale of its continuous position bias (arXiv 2111.09883, section 3.3).
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

    def __post_init__(self) -> None:
        if any(size % self.patch_size for size in self.img_size):
            raise UsageError(
                f"img_size {self.img_size} is not a multiple of {self.arch}'s patch_size "
                f"{self.patch_size}; use {tuple(_round_up(s, self.patch_size) for s in self.img_size)}."
            )

    @property
    def num_features(self) -> int:
        """Channels of the last level."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def stride(self) -> int:
        """Pixels a side of one cell of the last level; SimMIM's `encoder_stride`."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def is_convolutional(self) -> bool:
        """Whether it has no attention: no position tables and no windows either."""
        return self.family in ("convnext", "resnet")

    @property
    def has_overlapping_stem(self) -> bool:
        """Whether a cell of the embedding sees pixels of its neighbours."""
        return self.family == "resnet"

    @property
    def stem_dim(self) -> int:
        """Channels of the embedding, and of the mask token that takes a cell's place in it."""
        return RESNET_STEM if self.family == "resnet" else self.embed_dim

    @property
    def num_blocks(self) -> int:
        """Blocks in all stages."""
        return sum(self.depths)

    @property
    def probed_blocks(self) -> int:
        """How many features `forward_pooled` gives of an image: a ViT's blocks, or another's stages."""
        return self.depths[0] if self.family == "vit" else len(self.depths)

    @property
    def has_class_token(self) -> bool:
        """Whether tokens are mixed with a class token: in a ViT without windows."""
        return self.family == "vit" and not self.windowed_blocks

    @property
    def poolings(self) -> tuple[Literal["mean", "cls"], ...]:
        """What `forward_pooled` gives of a block: the mean patch token and the class token, if there is one."""
        return ("mean", "cls") if self.has_class_token else ("mean",)

    @property
    def windowed_blocks(self) -> tuple[int, ...]:
        """Which blocks of a ViT, counted from 0, attend within windows: all but the last of each quarter.

        That is ViTDet's choice (arXiv 2203.16527, section 3), for ViT-B all but blocks 2, 5, 8 and 11. A
        ViT of four blocks has none.
        """
        if self.family != "vit" or not self.window_size:
            return ()
        return tuple(i for i in range(self.depths[0]) if i + 1 not in self.level_blocks)

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """What `forward_maps` gives: the stages, or four equally spaced blocks of a ViT."""
        if self.family == "vit":
            return (FeatureLevel(self.embed_dim, self.patch_size),) * len(self.level_blocks)
        return tuple(
            FeatureLevel(self.embed_dim * 2**stage, self.patch_size * 2**stage)
            for stage in range(len(self.depths))
        )

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """After which block, counted from 1, each of a ViT's levels is taken.

        BEiT takes blocks 4, 6, 8 and 12 of 12 for ADE20K (semantic_segmentation/configs); quarters of
        the depth are ours, so that every depth from 4 up has four distinct levels.
        """
        depth = self.depths[0]
        return tuple(max(1, depth * quarter // 4) for quarter in range(1, 5))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches of an image of `img_size`."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def stage_windows(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of the attention window of every stage of a Swin: no larger than the stage's map."""
        return tuple(
            (min(self.window_size, -(-h // 2**i)), min(self.window_size, -(-w // 2**i)))
            for i in range(len(self.depths))
            for h, w in (self.grid,)
        )

    def at(
        self,
        img_size: tuple[int, int] | None = None,
        window_size: int | None = None,
        *,
        trained: bool = False,
    ) -> BackboneSpec:
        """Give the same architecture made for another (H, W) or window; None for its own.

        Args:
            trained: there are weights for this spec's own windows, to which a Swin V2 then scales its
                position bias (PRETRAINED_WINDOW_SIZES in Swin-Transformer's configs/).

        Raises:
            UsageError: a size that the patches do not divide, or a window for a network without attention.
        """
        if window_size and self.is_convolutional:
            raise UsageError(
                f"window_size {window_size} is of attention, which {self.arch} has none of; leave it out, or "
                "give -o window_size=none."
            )
        changed = replace(
            self, img_size=img_size or self.img_size, window_size=window_size or self.window_size
        )
        moved = changed.stage_windows != self.stage_windows and self.family == "swinv2"
        if trained and moved and not self.pretrained_windows:
            changed = replace(changed, pretrained_windows=self.stage_windows)
        return changed

    def to_json(self) -> dict[str, Any]:
        """Give the plain form that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BackboneSpec:
        """Rebuild a spec from its plain form."""
        return cls(**{key: _tuples(value) for key, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _vit(arch: str, embed_dim: int, depth: int, num_heads: int) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="vit",
        img_size=(224, 224),
        patch_size=16,
        embed_dim=embed_dim,
        depths=(depth,),
        num_heads=(num_heads,),
        narrow_init=True,
        init_values=0.1,  # SimMIM: configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml
    )


def _swin(
    arch: str, embed_dim: int, depths: tuple[int, ...], first_heads: int, *, v2: bool = False
) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="swinv2" if v2 else "swin",
        img_size=(
            192,
            192,
        ),  # SimMIM: configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml
        patch_size=4,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=tuple(first_heads * 2**stage for stage in range(len(depths))),
        window_size=12 if v2 else 6,  # Swin V2 with SimMIM: Swin-Transformer, configs/simmim/
    )


def _convnext(arch: str, embed_dim: int, depths: tuple[int, ...]) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="convnext",
        img_size=(224, 224),
        patch_size=4,
        embed_dim=embed_dim,
        depths=depths,
        init_values=1e-6,  # arXiv 2201.03545, appendix A.1
    )


def _resnet(arch: str, depths: tuple[int, ...]) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="resnet",
        img_size=(224, 224),
        patch_size=4,
        embed_dim=256,
        depths=depths,
    )


ARCHS: dict[str, BackboneSpec] = {
    spec.arch: spec
    for spec in (
        _vit("vit_ti", 192, 12, 3),
        _vit("vit_s", 384, 12, 6),
        _vit("vit_b", 768, 12, 12),
        _vit("vit_l", 1024, 24, 16),
        _swin("swin_t", 96, (2, 2, 6, 2), 3),
        _swin("swin_s", 96, (2, 2, 18, 2), 3),
        _swin("swin_b", 128, (2, 2, 18, 2), 4),
        _swin("swin_l", 192, (2, 2, 18, 2), 6),
        _swin("swinv2_t", 96, (2, 2, 6, 2), 3, v2=True),
        _swin("swinv2_s", 96, (2, 2, 18, 2), 3, v2=True),
        _swin("swinv2_b", 128, (2, 2, 18, 2), 4, v2=True),
        _swin("swinv2_l", 192, (2, 2, 18, 2), 6, v2=True),
        # arXiv 2111.09883, section 3.4, without the extra norms that it adds for H and G: timm has none.
        _swin("swinv2_h", 352, (2, 2, 18, 2), 11, v2=True),
        _swin("swinv2_g", 512, (2, 2, 42, 4), 16, v2=True),
        # The SwinV2-g of arXiv 2206.04664, whose SimMIM weights are public: the width gives its 1.06 billion.
        _swin("swinv2_g1b", 448, (2, 2, 18, 2), 14, v2=True),
        _convnext("convnext_t", 96, (3, 3, 9, 3)),
        _convnext("convnext_s", 96, (3, 3, 27, 3)),
        _convnext("convnext_b", 128, (3, 3, 27, 3)),
        _resnet("resnet50", (3, 4, 6, 3)),
        _resnet("resnet101", (3, 4, 23, 3)),
        # Ours, for pictures of 32 to 96 pixels and training on a CPU in minutes. A layer scale of 0.1
        # is for deep models and long runs: four blocks learn faster without one. A position bias
        # starts at zero and takes thousands of steps to tell near from far: minutes have none to spare.
        # Narrow weights cost seven points of linear probe after those minutes, a narrow head most of
        # what two epochs of fine-tuning teach.
        replace(
            _vit("vit_pocket", 128, 4, 4),
            img_size=(32, 32),
            patch_size=4,
            init_values=None,
            sincos_position=True,
            narrow_init=False,
        ),
        # Half as wide: a student of `vit_pocket`.
        replace(
            _vit("vit_mini_pocket", 64, 4, 2),
            img_size=(32, 32),
            patch_size=4,
            init_values=None,
            sincos_position=True,
            narrow_init=False,
        ),
        replace(
            _swin("swin_pocket", 48, (1, 1, 2, 1), 2),
            img_size=(32, 32),
            patch_size=2,
            window_size=4,
        ),
        # A stem of half the usual stride leaves the last stage four cells of a picture of 32 pixels.
        replace(
            _convnext("convnext_pocket", 32, (1, 1, 2, 1)),
            img_size=(32, 32),
            patch_size=2,
            init_values=1.0,
        ),
        replace(
            _resnet("resnet_pocket", (2, 2, 2, 2)),
            img_size=(32, 32),
            patch_size=2,
            embed_dim=64,
        ),
    )
}


def find_spec(arch: str) -> BackboneSpec:
    """Look an architecture up by name.

    Raises:
        UsageError: the name is not known; the nearest one is named.
    """
    if arch not in ARCHS:
        raise UsageError(f"unknown arch '{arch}'; {nearest(arch, ARCHS)}")
    return ARCHS[arch]
