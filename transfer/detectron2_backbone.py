"""The Detectron2 adapter: backbones as `detectron2.modeling.Backbone`, raw maps or pyramids.

A backbone is built from a CKPT, or from a checkpoint already read, and maps images (B, 3, H, W) to named maps: `map0`,
`map1`, ... as returned by `forward_maps`, or a pyramid `p2`, `p3`, ... whose level pN has stride 2**N. A ViT gets the
simple feature pyramid of ViTDet (arXiv 2203.16527, section 3) on its last map, the others an FPN (arXiv 1612.03144) on
their stages. Maps and levels are float32 under autocast too: Detectron2's ROIAlign rounds boxes to the dtype of the
levels, and bfloat16 moves a corner near 1,000 pixels by up to two. A ResNet's BatchNorm is trained like all other
weights, as in SparK (arXiv 2301.03580), and not frozen as in Detectron2's own ResNet; `DistContext.wrap_model`
synchronises it between GPUs.

With a yaml config, call `add_simmim_config(cfg, CKPT)` and name `SimMIMBackbone` or `build_simmim_pyramid` in
`MODEL.BACKBONE.NAME`. With a LazyConfig, use `SimMIMBackbone` or `build_pyramid` directly.

Detectron2's defaults are BGR images with a standard deviation of 1 (detectron2: config/defaults.py, `INPUT.FORMAT` and
`MODEL.PIXEL_STD`), for weights whose first convolution has absorbed it. A checkpoint expects RGB images normalised with
its own mean and standard deviation: `add_simmim_config` and `set_pixel_statistics` set them in a yaml config,
`pixel_statistics` returns them for a LazyConfig. Detectron2's mapper reads RGB and grey images of 8 bits; a checkpoint
for others is refused in a yaml config, and needs a mapper of its own in a LazyConfig.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from simmim_bench.backbones import load_backbone, open_checkpoint
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.spec import MapOptions
from simmim_bench.models.user_network import is_permitted
from simmim_bench.training.precision import autocast
from transfer.detection.recipes import CocoRecipe
from transfer.pyramid import anchor_sizes, available_strides, default_strides, joined

PIXEL_TOLERANCE = 0.01  # of pixels in [0, 255]: configs round mean and standard deviation
# Images that Detectron2's mapper reads (data/detection_utils.py, `read_image`), and its names for them.
INPUT_FORMATS = {RGB: "RGB", PixelFormat(1, "uint8"): "L"}


@BACKBONE_REGISTRY.register()
class SimMIMBackbone(Backbone):
    """The maps of a backbone, in float32, under the names `map0`, `map1`, ...

    Attributes:
        precision: of the backbone in training, as `autocast` takes it; None for the caller's.
        test_precision: of the backbone in evaluation; None for the caller's.
    """

    precision: str | None = None
    test_precision: str | None = None

    @configurable
    def __init__(
        self,
        ckpt: str | Checkpoint,
        *,
        img_size: tuple[int, int] | None = None,
        window_size: int | None = None,
        drop_path_rate: float = 0.0,
        seed: int = 0,
        maps: MapOptions | None = None,
    ) -> None:
        super().__init__()
        self.backbone = load_backbone(
            ckpt,
            img_size=img_size,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            seed=seed,
            maps=maps,
        )
        self.freeze_beyond(-1)
        levels = self.backbone.feature_levels
        self._out_features = [f"map{i}" for i in range(len(levels))]
        self._out_feature_channels = {f"map{i}": lv.channels for i, lv in enumerate(levels)}
        self._out_feature_strides = {f"map{i}": lv.stride for i, lv in enumerate(levels)}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        """Read the node that `add_simmim_config` adds.

        Raises:
            UsageError: the config's pixel statistics are not those of the checkpoint.
        """
        checkpoint = _configured(cfg)
        _check_pixel_statistics(cfg, checkpoint)
        return {
            "ckpt": checkpoint,
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
        precision = self.precision if self.training else self.test_precision
        device = images.device
        with nullcontext() if precision is None else autocast(device, precision, allow_fp16=True):
            maps = self.backbone.forward_maps(images)
        return {name: x.float() for name, x in zip(self._out_features, maps, strict=True)}


class StagePyramid(FPN):
    """Detectron2's FPN with float32 levels."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"p2": (B, C, h, w), ...}."""
        return _to_float32(super().forward(images))


class ViTPyramid(SimpleFeaturePyramid):
    """Detectron2's simple feature pyramid with float32 levels, and with its padding corrected.

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

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to float32 levels {"p2": (B, C, h, w), ...}."""
        return _to_float32(super().forward(images))


def _to_float32(levels: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: level.float() for name, level in levels.items()}


def build_pyramid(
    net: SimMIMBackbone,
    strides: tuple[int, ...],
    channels: int,
    square_pad: int = 0,
    norm: str | None = None,
) -> Backbone:
    """Build a pyramid on a backbone.

    Args:
        strides: of the levels in pixels, each twice the previous one. A ViT of patch size p has p/4, p/2,
            p and 2p, the others the strides of their stages; one more level, twice as coarse, is pooled
            from the last. () for all of them from 4 pixels on.
        channels: of every level.
        square_pad: side in pixels of the square that images are padded to; 0 for no square.
        norm: of the pyramid's convolutions, a name of Detectron2's `get_norm`; None for LN in a simple feature
            pyramid and none in an FPN.

    Raises:
        UsageError: the backbone does not have these strides.
    """
    spec = net.backbone.spec
    available = available_strides(spec)
    strides = strides or default_strides(spec)
    pooled = len(strides) > 1 and strides[-1] not in available
    direct = strides[:-1] if pooled else strides
    doubles = all(fine * 2 == coarse for fine, coarse in pairwise(strides))
    if not (doubles and set(direct) <= set(available)):
        own = default_strides(spec)
        fix = f"-o strides={joined(own)} -o anchor_sizes={joined(anchor_sizes(own))}"
        raise UsageError(
            f"strides {strides} are not available from {spec.arch}: use consecutive strides of {available}, each "
            f"twice the previous one, and at most one more after them, such as {fix}."
        )
    # Of two stages with one stride, the later one.
    level_of = {stride: index for index, stride in enumerate(available)}
    top_block = None
    if pooled:
        top_block = LastLevelMaxPool()
        # Detectron2's class always pools "p5", whatever the strides are.
        top_block.in_feature = f"p{direct[-1].bit_length() - 1}"
    if spec.is_plain:
        return ViTPyramid(
            net,
            in_feature=f"map{len(spec.feature_levels) - 1}",
            out_channels=channels,
            scale_factors=[spec.stride / stride for stride in direct],
            top_block=top_block,
            norm="LN" if norm is None else norm,
            square_pad=square_pad,
        )
    net.freeze_beyond(level_of[direct[-1]])
    return StagePyramid(
        net,
        in_features=[f"map{level_of[stride]}" for stride in direct],
        out_channels=channels,
        norm=norm or "",
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
            maps=recipe.maps,
        )
        return build_pyramid(
            net,
            recipe.strides,
            recipe.neck_channels,
            max(recipe.img_size) if recipe.square_pad else 0,
            recipe.neck_norm,
        )


def pixel_statistics(ckpt: str | Checkpoint) -> dict[str, Any]:
    """Return the arguments with which `GeneralizedRCNN` normalises images as a checkpoint expects.

    `input_format` only names the channels' order: the data set mappers must read such images too.

    Returns:
        `pixel_mean` and `pixel_std`, one value per channel for pixels as their files store them, of 8 bits in
        [0, 255]; and `input_format`, None for images that Detectron2 cannot read.
    """
    checkpoint = open_checkpoint(ckpt)
    unit = checkpoint.pixel_format.unit
    return {
        "pixel_mean": [unit * value for value in checkpoint.mean],
        "pixel_std": [unit * value for value in checkpoint.std],
        "input_format": INPUT_FORMATS.get(checkpoint.pixel_format),
    }


def add_simmim_config(cfg: CfgNode, ckpt: str | None = None) -> None:
    """Add the node MODEL.SIMMIM, the checkpoint and the pyramid's settings, to a yaml config.

    Also sets INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD to the checkpoint's. Call `set_pixel_statistics`
    if the checkpoint or one of them is changed afterwards; a backbone is not built with other values.

    Args:
        ckpt: MODEL.SIMMIM.CKPT, a CKPT; None for `random:vit_b`.
    """
    cfg.MODEL.SIMMIM = CfgNode(
        {
            "CKPT": ckpt or "random:vit_b",
            "IMG_SIZE": [1024, 1024],
            "WINDOW_SIZE": 0,  # of attention windows; 0 for the checkpoint's
            "DROP_PATH_RATE": 0.0,
            "STRIDES": [4, 8, 16, 32, 64],
            "SQUARE_PAD": 0,
        }
    )
    if ckpt is not None:
        open_checkpoint(ckpt)
    set_pixel_statistics(cfg)


def set_pixel_statistics(cfg: CfgNode) -> None:
    """Set INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD to those of MODEL.SIMMIM.CKPT.

    Raises:
        UsageError: Detectron2's mapper does not read the images that the checkpoint takes.
    """
    statistics = _readable_statistics(_configured(cfg))
    cfg.INPUT.FORMAT = statistics["input_format"]
    cfg.MODEL.PIXEL_MEAN = statistics["pixel_mean"]
    cfg.MODEL.PIXEL_STD = statistics["pixel_std"]


def _configured(cfg: CfgNode) -> Checkpoint:
    """Read MODEL.SIMMIM.CKPT of a config, whose file may be a stranger's.

    Raises:
        DataError: it names code that `add_simmim_config` was not given.
    """
    ckpt = cfg.MODEL.SIMMIM.CKPT
    source = ckpt.removeprefix("py:").partition("@")[0]
    if ckpt.startswith("py:") and not is_permitted(source):
        raise DataError(
            f"MODEL.SIMMIM.CKPT names the code of py:{source}, which runs only if your program names it; if you trust "
            f"that code, call add_simmim_config(cfg, 'py:{source}')."
        )
    return open_checkpoint(ckpt)


def _readable_statistics(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the pixel statistics of a yaml config, which has Detectron2's own mapper.

    Raises:
        UsageError: the mapper does not read the images that the checkpoint takes.
    """
    statistics = pixel_statistics(checkpoint)
    if statistics["input_format"] is None:
        raise UsageError(
            f"checkpoint {checkpoint.name} takes {checkpoint.pixel_format}, which the mapper of a yaml config does not "
            "read; use `simmim-bench transfer coco`, or a LazyConfig with a mapper of your own."
        )
    return statistics


def _check_pixel_statistics(cfg: CfgNode, checkpoint: Checkpoint) -> None:
    """Raise a UsageError if images would reach the backbone in another range than its weights expect."""
    wanted = _readable_statistics(checkpoint)
    equal = wanted["input_format"] == cfg.INPUT.FORMAT
    for key in ("pixel_mean", "pixel_std"):
        found = cfg.MODEL[key.upper()]
        equal &= len(found) == len(wanted[key]) and all(
            math.isclose(a, b, abs_tol=PIXEL_TOLERANCE)
            for a, b in zip(found, wanted[key], strict=True)
        )
    if not equal:
        mean, std = (
            [round(value, 3) for value in wanted[key]] for key in ("pixel_mean", "pixel_std")
        )
        raise UsageError(
            f"INPUT.FORMAT={cfg.INPUT.FORMAT!r}, MODEL.PIXEL_MEAN={list(cfg.MODEL.PIXEL_MEAN)} and "
            f"MODEL.PIXEL_STD={list(cfg.MODEL.PIXEL_STD)} do not fit checkpoint {checkpoint.name}; call "
            f"set_pixel_statistics(cfg) after the last change of the config, or set {wanted['input_format']!r}, "
            f"{mean} and {std}."
        )


@BACKBONE_REGISTRY.register()
def build_simmim_pyramid(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the pyramid of a yaml config, with MODEL.FPN.OUT_CHANNELS channels."""
    node = cfg.MODEL.SIMMIM
    net = SimMIMBackbone(cfg, input_shape)
    return build_pyramid(net, tuple(node.STRIDES), cfg.MODEL.FPN.OUT_CHANNELS, node.SQUARE_PAD)
