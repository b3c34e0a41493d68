"""The type of COCO detection's recipes.

The recipes are in `vitdet_recipes.py`, `swin_recipes.py` and `own_recipes.py`. The default of a field that was added
later is what earlier recipes do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.models.spec import MapNorm, MapOptions, Position, RelPos
from simmim_bench.recipe import Precision, Recipe, check_positive

MaskFormat = Literal["bitmask", "polygon"]


@dataclass(frozen=True, kw_only=True)
class CocoRecipe(Recipe):
    """Mask R-CNN through Detectron2.

    The backbone determines the neck: a simple feature pyramid on a ViT's last map (ViTDet), an FPN on the
    stages of other backbones. Fields with (train, test) pairs are used as in Detectron2.

    Attributes:
        img_size: (H, W) in pixels, for position tables and windows. Without `short_sides`, training images are
            resized to fit it, times a random factor of `scale_range`, then cropped to it (large-scale jitter,
            arXiv 2012.07177).
        scale_range: of the large-scale jitter.
        short_sides: training images are resized so that their shorter side has one of these values, chosen at
            random, in place of the large-scale jitter; () for the jitter.
        crop_short_sides: with probability 0.5, training images are first resized to one of these shorter sides
            and cropped; () for never. DETR's augmentation (arXiv 2005.12872, appendix A.4).
        crop_sides: (least, most) height and width of that crop in pixels.
        max_side: longer side of a training image resized to a shorter one, at most.
        test_size: (shorter, longer) side of a test image, which is resized to the first, or to the second where
            the first is too large, and predicted alone; None to resize it to fit `img_size`.
        square_pad: pad images to a square with the longer side of `img_size`; otherwise to a multiple of the
            coarsest stride.
        mask_format: "polygon" crops the outlines of objects exactly; "bitmask" rasterises them first. Objects
            given as run lengths are bit masks in either case, and with them their whole split.
        recompute_boxes: compute the boxes of training objects from their masks after the crop; otherwise they
            are the annotated boxes, clipped.
        max_iters, warmup_iters: optimizer steps.
        batch_size: images per step, over all processes.
        base_lr: for this batch size, of the last layer.
        weight_decay: AdamW's, see decay_exempt.
        layer_decay: factor of the learning rate of each block towards the input.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less.
        clip_grad: maximum norm of the gradient; 0 for no clipping.
        lr_rule: "simmim": layer decay scales the peak, and a step has the rate of the step before it; "mae":
            layer decay scales the whole rate, and a step has its own rate (`Schedule`), as in Detectron2 and
            MMDetection.
        betas: AdamW's.
        decay_exempt: parameters without weight decay: "vectors" are vectors, biases and the backbone's position
            tables, as in SimMIM; "norms" are the norms and position tables of the backbone; or "nothing".
        milestones: fractions of `max_iters` at which the learning rate is multiplied by 0.1.
        strides: of the pyramid's levels in pixels, each twice the previous one; a level coarser than the
            neck's coarsest is pooled from it, for proposals only; () for those of the backbone (`transfer/pyramid.py`).
        anchor_sizes: side of the square with an anchor's area in pixels, one per stride; () for eight strides.
        anchor_ratios: height / width of the anchors.
        anchor_border: anchors that exceed the image by more pixels are not trained on; -1 for no limit.
        rpn_beta: difference at which the proposals' box loss changes from L2 to L1; 0 for L1.
        rpn_convs, box_head_convs, box_head_fcs, mask_head_convs: depth of the heads.
        neck_channels, box_head_dim: width of pyramid and convolutions, and of the fully connected layers.
        neck_norm: normalisation of the pyramid's convolutions; None for LN in a simple feature pyramid and none
            in an FPN.
        head_norm: normalisation of the heads' convolutions; "" for none.
        box_norm: normalisation of the box head's convolutions; None for `head_norm`. "BN" is normalised over
            all processes on GPUs.
        rpn_samples, roi_samples: anchors and regions sampled per image for the losses.
        pre_nms_topk, post_nms_topk: proposals kept, (train, test), per level before and per image after NMS.
        box_pool, mask_pool: side of the pooled region features; a mask's side is twice `mask_pool`.
        class_agnostic: predict one box and one mask per region instead of one per class.
        cascade: IoU from which a region is positive, one value per stage of a Cascade R-CNN (arXiv
            1712.00726); () for a single stage with 0.5.
        cascade_rule: "detectron2" or "mmdet", whose stages differ (`cascade.py`).
        box_loss, box_loss_weight: of the boxes of regions: "l1" of their offsets, or "giou" (arXiv 1902.09630).
        detections: maximum number of detections per image.
        score_threshold: detections with a lower score are dropped before evaluation.
        bad_annotations: "refuse" objects that cannot be trained on, or "skip" them (`coco_faults.find_bad`).
        many_crowds: "refuse" a split with too many crowds to be right
            (`coco_faults.crowd_faults`), or "ignore" these.
        window_size: of a Swin, or of a ViT's windowed blocks, in tokens; None for the checkpoint's.
        map_norm, rel_pos, position, patch_size: of the backbone's maps, see `MapOptions`.
        precision: of the backbone in training; pyramid and heads are computed in float32.
        num_workers: processes per GPU that load images; 0 to load in the training process.
        test_precision: of the backbone in evaluation; None for that of training.
    """

    img_size: tuple[int, int]
    scale_range: tuple[float, float]
    max_iters: int
    warmup_iters: int
    batch_size: int
    base_lr: float
    weight_decay: float
    layer_decay: float
    drop_path_rate: float
    clip_grad: float
    milestones: tuple[float, ...]
    strides: tuple[int, ...]
    anchor_sizes: tuple[int, ...]
    anchor_ratios: tuple[float, ...]
    neck_channels: int
    rpn_convs: int
    box_head_convs: int
    box_head_fcs: int
    box_head_dim: int
    mask_head_convs: int
    head_norm: Literal["", "LN"]
    rpn_samples: int
    roi_samples: int
    pre_nms_topk: tuple[int, int]
    post_nms_topk: tuple[int, int]
    box_pool: int
    mask_pool: int
    class_agnostic: bool
    detections: int
    score_threshold: float
    cascade: tuple[float, ...] = ()
    bad_annotations: Literal["refuse", "skip"] = "refuse"
    many_crowds: Literal["refuse", "ignore"] = "refuse"
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0
    short_sides: tuple[int, ...] = ()
    crop_short_sides: tuple[int, ...] = ()
    crop_sides: tuple[int, int] = (384, 600)
    max_side: int = 1333
    test_size: tuple[int, int] | None = None
    square_pad: bool = True
    mask_format: MaskFormat = "bitmask"
    recompute_boxes: bool = True
    lr_rule: Literal["simmim", "mae"] = "simmim"
    betas: tuple[float, float] = (0.9, 0.999)
    decay_exempt: Literal["vectors", "norms", "nothing"] = "vectors"
    anchor_border: int = -1
    rpn_beta: float = 0.0
    neck_norm: Literal["", "LN"] | None = None
    box_norm: Literal["", "LN", "BN"] | None = None
    cascade_rule: Literal["detectron2", "mmdet"] = "detectron2"
    box_loss: Literal["l1", "giou"] = "l1"
    box_loss_weight: float = 1.0
    map_norm: MapNorm = "plain"
    rel_pos: RelPos = "own"
    position: Position = "antialiased"
    patch_size: int | None = None
    test_precision: Precision | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr", "strides")
        if self.anchor_sizes and len(self.strides) != len(self.anchor_sizes):
            raise UsageError(
                f"recipe '{self.name}' has {len(self.strides)} strides and {len(self.anchor_sizes)} "
                "anchor_sizes; give one anchor size per stride."
            )
        if list(self.cascade) != sorted(set(self.cascade)) or not all(
            0 < v < 1 for v in self.cascade
        ):
            raise UsageError(
                f"cascade {self.cascade} of recipe '{self.name}' must increase within (0, 1), such as 0.5,0.6,0.7."
            )
        if not self.box_head_convs + self.box_head_fcs:
            raise UsageError(
                f"recipe '{self.name}' has neither box_head_convs nor box_head_fcs; set one of them to 1 or more."
            )
        if self.crop_short_sides and not self.short_sides:
            raise UsageError(
                f"recipe '{self.name}' has crop_short_sides without short_sides; set both, or neither."
            )
        if self.cascade_rule == "mmdet" and len(self.cascade) != 3:
            raise UsageError(
                f"cascade {self.cascade} of recipe '{self.name}' must have three stages with cascade_rule=mmdet; use "
                "cascade=0.5,0.6,0.7 or cascade_rule=detectron2."
            )
        if self.crop_sides[0] > self.crop_sides[1]:
            raise UsageError(
                f"crop_sides {self.crop_sides} of recipe '{self.name}' must not decrease; use crop_sides=LEAST,MOST."
            )
        if self.test_size is not None and self.test_size[0] > self.test_size[1]:
            raise UsageError(
                f"test_size {self.test_size} of recipe '{self.name}' must not decrease; use test_size=SHORTER,LONGER."
            )

    @property
    def maps(self) -> MapOptions:
        """How the backbone makes its maps."""
        return MapOptions(
            norm=self.map_norm,
            rel_pos=self.rel_pos,
            position=self.position,
            patch_size=self.patch_size,
        )
