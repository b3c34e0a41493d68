"""The Detectron2 adapter: backbones as `detectron2.modeling.Backbone`, raw maps or pyramids.

A backbone is built from a CKPT, or from a checkpoint already read, and maps images (B, 3, H, W) to named maps: `map0`,
`map1`, ... as returned by `forward_maps`, or a pyramid `p2`, `p3`, ... whose level pN has stride 2**N. A ViT gets the
simple feature pyramid of ViTDet (arXiv 2203.16527, section 3) on its last map, the others an FPN (arXiv 1612.03144) on
their stages. A ResNet's BatchNorm is trained like all other weights, as in SparK (arXiv 2301.03580), and not frozen as
in Detectron2's own ResNet; `DistContext.wrap_model` synchronises it between GPUs.

With a LazyConfig, use `SimMIMBackbone` or `build_pyramid` directly. With a yaml config, call
`add_simmim_config(cfg)` and name `SimMIMBackbone` or `build_simmim_pyramid` in `MODEL.BACKBONE.NAME`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import UsageError
from transfer.detection.recipes import CocoRecipe


@BACKBONE_REGISTRY.register()
class SimMIMBackbone(Backbone):
    """The maps of a backbone, unchanged, under the names `map0`, `map1`, ..."""

    @configurable
    def __init__(
        self,
        ckpt: str | Checkpoint,
        *,
        img_size: tuple[int, int] | None = None,
        window_size: int | None = None,
        drop_path_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = load_backbone(
            ckpt,
            img_size=img_size,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            seed=seed,
        )
        self.freeze_beyond(-1)
        levels = self.backbone.feature_levels
        self._out_features = [f"map{i}" for i in range(len(levels))]
        self._out_feature_channels = {f"map{i}": lv.channels for i, lv in enumerate(levels)}
        self._out_feature_strides = {f"map{i}": lv.stride for i, lv in enumerate(levels)}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read the node that `add_simmim_config` adds."""
        return {
            "ckpt": cfg.MODEL.SIMMIM.CKPT,
            "img_size": tuple(cfg.MODEL.SIMMIM.IMG_SIZE),
            "window_size": cfg.MODEL.SIMMIM.WINDOW_SIZE or None,
            "drop_path_rate": cfg.MODEL.SIMMIM.DROP_PATH_RATE,
            "seed": max(cfg.SEED, 0),
        }

    def freeze_beyond(self, level: int) -> None:
        """Freeze the weights that the maps up to a level do not depend on.

        DistributedDataParallel waits for a gradient of every trained weight.
        """
        for name in self.backbone.unused_in_maps(level):
            self.backbone.get_parameter(name).requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map; images of other sizes work too, their last cells extend beyond the image."""
        return self.backbone.feature_levels[-1].stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"map0": (B, C, h, w), ...}, h = ceil(H / stride)."""
        return dict(zip(self._out_features, self.backbone.forward_maps(images), strict=True))


class ViTPyramid(SimpleFeaturePyramid):
    """Detectron2's simple feature pyramid, with its padding corrected.

    Detectron2's `padding_constraints` misspells "size_divisibility", and its property of that name stays 0,
    so that batches would not be padded to a multiple of the stride.
    """

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest level that is not pooled from another."""
        return int(self._size_divisibility)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Padding to a multiple of the stride and, if requested, to a square."""
        return {"size_divisibility": self.size_divisibility, "square_size": self._square_pad}


def build_pyramid(
    net: SimMIMBackbone, strides: tuple[int, ...], channels: int, square_pad: int = 0
) -> Backbone:
    """Build a pyramid on a backbone.

    Args:
        strides: of the levels in pixels, each twice the previous one. A ViT of patch size p has p/4, p/2,
            p and 2p, the others the strides of their stages; one more level, twice as coarse, is pooled
            from the last.
        channels: of every level.
        square_pad: side in pixels of the square that images are padded to; 0 for no square.

    Raises:
        UsageError: the backbone does not have these strides.
    """
    spec = net.backbone.spec
    available = [level.stride for level in spec.feature_levels]
    if spec.family == "vit":
        available = [spec.patch_size * factor // 4 for factor in (1, 2, 4, 8)]
    pooled = len(strides) > 1 and strides[-1] not in available
    direct = strides[:-1] if pooled else strides
    doubles = all(fine * 2 == coarse for fine, coarse in pairwise(strides))
    if not (doubles and set(direct) <= set(available)):
        raise UsageError(
            f"strides {strides} are not available from {spec.arch}: use consecutive strides of {available}, each "
            "twice the previous one, and at most one more after them."
        )
    top_block = None
    if pooled:
        top_block = LastLevelMaxPool()
        # Detectron2's class always pools "p5", whatever the strides are.
        top_block.in_feature = f"p{direct[-1].bit_length() - 1}"
    if spec.family == "vit":
        return ViTPyramid(
            net,
            in_feature=f"map{len(spec.feature_levels) - 1}",
            out_channels=channels,
            scale_factors=[spec.patch_size / stride for stride in direct],
            top_block=top_block,
            square_pad=square_pad,
        )
    net.freeze_beyond(available.index(direct[-1]))
    return FPN(
        net,
        in_features=[f"map{available.index(stride)}" for stride in direct],
        out_channels=channels,
        top_block=top_block,
        square_pad=square_pad,
    )


def build_detection_backbone(checkpoint: Checkpoint, recipe: CocoRecipe, seed: int) -> Backbone:
    """Build the pyramid of a recipe; the seed initialises the weights that the checkpoint does not have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SimMIMBackbone(
            checkpoint,
            img_size=recipe.img_size,
            window_size=recipe.window_size,
            drop_path_rate=recipe.drop_path_rate,
            seed=seed,
        )
        return build_pyramid(net, recipe.strides, recipe.neck_channels, max(recipe.img_size))


def add_simmim_config(cfg: CfgNode) -> None:
    """Add the node MODEL.SIMMIM, the checkpoint and the pyramid's settings, to a yaml config."""
    cfg.MODEL.SIMMIM = CfgNode(
        {
            "CKPT": "random:vit_b",
            "IMG_SIZE": [1024, 1024],
            "WINDOW_SIZE": 0,  # of attention windows; 0 for the checkpoint's
            "DROP_PATH_RATE": 0.0,
            "STRIDES": [4, 8, 16, 32, 64],
            "SQUARE_PAD": 0,
        }
    )


@BACKBONE_REGISTRY.register()
def build_simmim_pyramid(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the pyramid of a yaml config, with MODEL.FPN.OUT_CHANNELS channels."""
    node = cfg.MODEL.SIMMIM
    net = SimMIMBackbone(cfg, input_shape)
    return build_pyramid(net, tuple(node.STRIDES), cfg.MODEL.FPN.OUT_CHANNELS, node.SQUARE_PAD)
