"""Transfer recipes: one dataclass a task, named constants, each number with its source.

Learning rates of `imagenet` are for 512 images a step, as SimMIM gives them; those of `coco` and
`ade20k` are for the recipe's own batch, as detection and segmentation papers give them.
`default_recipe` says which recipe a task takes for an arch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.archs import BackboneSpec
from simmim_bench.errors import UsageError
from simmim_bench.recipe import Recipe, check_positive

Precision = Literal["auto", "fp32", "bf16"]
POLICIES = ("rand", "augmix", "original", "v0", "3a")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """End-to-end classification, of `imagenet` and of `fewshot` with fine-tuning.

    Attributes:
        img_size: (H, W) in pixels.
        epochs, warmup_epochs: passes over the training set.
        batch_size: images a step, in total.
        base_lr, warmup_lr, min_lr: for 512 images a step; scaled to the batch.
        layer_decay: learning-rate factor a layer going down.
        mixup, cutmix: their alpha; 0 for off.
        auto_augment: timm's name of a policy; None for crop and flip alone.
        crop_scale: share of the image's area that a random crop covers.
        ema_decay: of a moving average of the weights, which is then what is scored and kept; its warm-up
            is timm's. 0 for the last weights.
        window_size: of a Swin; None for the checkpoint's own.
        precision: "auto" is bfloat16 on GPUs that have it, else float32.
    """

    img_size: tuple[int, int]
    epochs: int
    warmup_epochs: int
    batch_size: int
    base_lr: float
    warmup_lr: float
    min_lr: float
    weight_decay: float
    layer_decay: float
    drop_path_rate: float
    clip_grad: float
    label_smoothing: float
    mixup: float
    cutmix: float
    auto_augment: str | None
    random_erasing: float
    color_jitter: float
    crop_scale: tuple[float, float]
    hflip: float
    test_crop_ratio: float
    ema_decay: float = 0.0
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "epochs", "batch_size", "base_lr")
        if self.auto_augment is not None and not self.auto_augment.startswith(POLICIES):
            raise UsageError(
                f"auto_augment {self.auto_augment} is no policy of timm's; it begins with "
                f"{', '.join(POLICIES)}, such as rand-m9-mstd0.5-inc1, or is none."
            )


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe(Recipe):
    """Scores on frozen features: `linear` and `fewshot` (logistic regression) and `knn`.

    Every block's mean patch token is a candidate, and so is every entry of `l2`; the choice is made on
    training images alone: for `linear` and `fewshot` on a held-out part, for `knn` leave-one-out.

    Attributes:
        batch_size: images a forward pass; it does not change the result.
        held_out: share of the training images on which block and l2 are chosen, in (0, 1).
        l2: candidates for the weight of the squared norm of the classifier's weights.
        k: neighbours of `knn`.
        temperature: of the neighbours' votes (DINO, arXiv 2104.14294, section 4.1: 0.07).
    """

    img_size: tuple[int, int]
    batch_size: int
    held_out: float
    l2: tuple[float, ...]
    k: int
    temperature: float
    test_crop_ratio: float
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "batch_size", "k", "temperature", "held_out")


@dataclass(frozen=True, kw_only=True)
class CocoRecipe(Recipe):
    """Mask R-CNN through Detectron2.

    The neck follows from the backbone: a simple feature pyramid on a ViT's last map (ViTDet), an FPN on
    a Swin's stages. (train, test) pairs differ as Detectron2's do.

    Attributes:
        img_size: (H, W): training images are resized by a factor of `scale_range` of what fits this box,
            then cropped to it; test images are resized to fit it. Both are padded to a square.
        max_iters, warmup_iters: optimizer steps.
        batch_size: images a step, in total.
        base_lr: for this batch, of the last layer.
        milestones: shares of `max_iters` at which the rate is multiplied by 0.1.
        strides: of the pyramid's levels in pixels, each twice the one before; one above the neck's
            coarsest is pooled from it, for proposals only.
        anchor_sizes: side of the square of an anchor's area in pixels, one a stride.
        anchor_ratios: height / width of the anchors.
        rpn_convs, box_head_convs, box_head_fcs, mask_head_convs: depth of the heads.
        neck_channels, box_head_dim: width of pyramid and convolutions, and of the fully connected layers.
        head_norm: normalisation of the heads' convolutions; "" for none.
        rpn_samples, roi_samples: anchors and regions an image that the losses are taken over.
        pre_nms_topk, post_nms_topk: proposals kept, (train, test), a level before and an image after NMS.
        box_pool, mask_pool: side of the pooled region features; a mask has twice `mask_pool`.
        class_agnostic: one box and one mask a region instead of one a class.
        detections: at most so many an image.
        score_threshold: detections below it are dropped before scoring.
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
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr", "strides")
        if len(self.strides) != len(self.anchor_sizes):
            raise UsageError(
                f"recipe '{self.name}' has {len(self.strides)} strides and {len(self.anchor_sizes)} "
                "anchor_sizes; give one anchor size a stride."
            )


@dataclass(frozen=True, kw_only=True)
class Ade20kRecipe(Recipe):
    """UPerNet through MMSegmentation.

    Attributes:
        img_size: (H, W) of the training crop; images are resized by a factor of `scale_range` of
            what covers it. Test images are resized to cover it.
        max_iters, warmup_iters: optimizer steps; the rate falls by a polynomial of power 1.
        batch_size: images a step, in total.
        base_lr: for this batch, of the last layer.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        photometric: distort brightness, contrast, saturation and hue while training.
        head_channels: width of UPerNet; the auxiliary FCN head has half of it.
        auxiliary_weight: weight of the auxiliary head's loss; 0 for no such head.
        test_mode: predict an image "whole", or "slide" a window of `img_size` over it by two thirds
            of its side, and take the mean of the logits.
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
    photometric: bool
    head_channels: int
    auxiliary_weight: float
    test_mode: Literal["whole", "slide"]
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "max_iters", "batch_size", "base_lr")


_SOURCES = {
    "batch_size": "SimMIM: README.md (Fine-tuning pre-trained models), config.py (DATA.BATCH_SIZE)",
    "clip_grad": "SimMIM: config.py (TRAIN.CLIP_GRAD)",
    "label_smoothing": "SimMIM: config.py (MODEL.LABEL_SMOOTHING)",
    "mixup": "SimMIM: config.py (AUG.MIXUP)",
    "cutmix": "SimMIM: config.py (AUG.CUTMIX)",
    "auto_augment": "SimMIM: config.py (AUG.AUTO_AUGMENT)",
    "random_erasing": "SimMIM: config.py (AUG.REPROB)",
    "color_jitter": "SimMIM: config.py (AUG.COLOR_JITTER)",
    "num_workers": "SimMIM: config.py (DATA.NUM_WORKERS)",
    "crop_scale": "SimMIM: data/data_finetune.py, by timm's default",
    "hflip": "SimMIM: data/data_finetune.py, by timm's default",
    "test_crop_ratio": "SimMIM: data/data_finetune.py (256 / 224)",
    "precision": "ours; SimMIM has apex O1",
}
_SCORES = "SimMIM: README.md (Main Results)"
IMAGENET_VIT_B_800EP = FinetuneRecipe(
    name="imagenet_vit_b_800ep",
    source="SimMIM: configs/vit_base__800ep/simmim_finetune__vit_base__img224__800ep.yaml",
    sources=_SOURCES,
    published=f"top-1 83.8 after vit_b_800ep ({_SCORES})",
    img_size=(224, 224),
    epochs=100,
    warmup_epochs=20,
    batch_size=2048,
    base_lr=1.25e-3,
    warmup_lr=2.5e-7,
    min_lr=2.5e-7,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path_rate=0.1,
    clip_grad=5.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    color_jitter=0.4,
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    test_crop_ratio=224 / 256,
    num_workers=8,
)
IMAGENET_SWIN_B_800EP = replace(
    IMAGENET_VIT_B_800EP,
    name="imagenet_swin_b_800ep",
    source="SimMIM: configs/swin_base__800ep/simmim_finetune__swin_base__img224_window7__800ep.yaml",
    published=f"top-1 84.0 after swin_b_800ep ({_SCORES})",
    window_size=7,
    layer_decay=0.8,
)
IMAGENET_SWIN_B_100EP = replace(
    IMAGENET_SWIN_B_800EP,
    name="imagenet_swin_b_100ep",
    source="SimMIM: configs/swin_base__100ep/simmim_finetune__swin_base__img224_window7__100ep.yaml",
    published=f"top-1 83.5 after swin_b_100ep ({_SCORES})",
    layer_decay=0.9,
)
IMAGENET_SWIN_B_100EP_IMG192 = replace(
    IMAGENET_SWIN_B_100EP,
    name="imagenet_swin_b_100ep_img192",
    source="SimMIM: configs/swin_base__100ep/simmim_finetune__swin_base__img192_window6__100ep.yaml",
    published=f"top-1 82.8 after swin_b_100ep ({_SCORES})",
    img_size=(192, 192),
    window_size=6,
)
IMAGENET_SWIN_L_800EP = replace(
    IMAGENET_SWIN_B_800EP,
    name="imagenet_swin_l_800ep",
    source="SimMIM: configs/swin_large__800ep/simmim_finetune__swin_large__img224_window14__800ep.yaml",
    published=f"top-1 85.4 after swin_l_800ep ({_SCORES})",
    window_size=14,
    drop_path_rate=0.2,
    layer_decay=0.7,
)
IMAGENET_SWINV2_B_800EP = replace(
    IMAGENET_SWIN_B_800EP,
    name="imagenet_swinv2_b_800ep",
    source="Swin-Transformer: configs/simmim/simmim_finetune__swinv2_base__img224_window14__800ep.yaml",
    published="top-1 85.04, 500,000 iterations on ImageNet-1K (Swin-Transformer: MODELHUB.md); whether "
    "by this recipe is not said there",
    window_size=14,
    layer_decay=0.75,
)
IMAGENET_POCKET = FinetuneRecipe(
    name="imagenet_pocket",
    source="ours: thousands of small pictures, a CPU, a minute",
    img_size=(32, 32),
    epochs=2,
    warmup_epochs=1,
    batch_size=32,
    base_lr=1.6e-2,
    warmup_lr=1e-6,
    min_lr=1e-6,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.0,
    clip_grad=5.0,
    label_smoothing=0.1,
    mixup=0.0,
    cutmix=0.0,
    auto_augment=None,
    random_erasing=0.0,
    color_jitter=0.0,
    crop_scale=(0.5, 1.0),
    hflip=0.5,
    test_crop_ratio=1.0,
)
IMAGENET_CIFAR = replace(
    IMAGENET_POCKET,
    name="imagenet_cifar",
    source="ours: tens of thousands of small photographs, a CPU core, a quarter of an hour",
    epochs=3,
    batch_size=128,
    base_lr=6e-3,
)

PROBE = ProbeRecipe(
    name="probe",
    source="ours: every block, mean patch token; k and temperature as DINO, arXiv 2104.14294, section 4.1",
    img_size=(224, 224),
    batch_size=256,
    held_out=0.1,
    l2=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    k=20,
    temperature=0.07,
    test_crop_ratio=224 / 256,
    num_workers=8,
)
PROBE_POCKET = replace(
    PROBE,
    name="probe_pocket",
    img_size=(32, 32),
    held_out=0.2,
    test_crop_ratio=1.0,
    num_workers=0,
)

COCO_VIT_100EP = CocoRecipe(
    name="coco_vit_100ep",
    source="ViTDet, arXiv 2203.16527, appendix A.2; detectron2: configs/common/models/mask_rcnn_vitdet.py, "
    "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py",
    img_size=(1024, 1024),
    scale_range=(0.1, 2.0),
    max_iters=184375,
    warmup_iters=250,
    batch_size=64,
    base_lr=1e-4,
    weight_decay=0.1,
    layer_decay=0.7,
    drop_path_rate=0.1,
    clip_grad=1.0,
    milestones=(163889 / 184375, 177546 / 184375),
    strides=(4, 8, 16, 32, 64),
    anchor_sizes=(32, 64, 128, 256, 512),
    anchor_ratios=(0.5, 1.0, 2.0),
    neck_channels=256,
    rpn_convs=2,
    box_head_convs=4,
    box_head_fcs=1,
    box_head_dim=1024,
    mask_head_convs=4,
    head_norm="LN",
    rpn_samples=256,
    roi_samples=512,
    pre_nms_topk=(2000, 1000),
    post_nms_topk=(1000, 1000),
    box_pool=7,
    mask_pool=14,
    class_agnostic=False,
    detections=100,
    score_threshold=0.05,
    num_workers=8,
)
COCO_SWIN_3X = replace(
    COCO_VIT_100EP,
    name="coco_swin_3x",
    source="SimMIM, arXiv 2111.09886, appendix (COCO): AdamW 6e-5, batch 32, 36 epochs, drop path 0.2, "
    "large-scale jitter; heads: detectron2, configs/common/models/mask_rcnn_fpn.py",
    window_size=7,
    max_iters=131929,  # 36 epochs of 117,266 images, 32 an iteration
    warmup_iters=1000,
    batch_size=32,
    base_lr=6e-5,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.2,
    milestones=(27 / 36, 33 / 36),
    rpn_convs=1,
    box_head_convs=0,
    box_head_fcs=2,
    head_norm="",
)
COCO_POCKET = CocoRecipe(
    name="coco_pocket",
    source="ours: three hundred pictures of 64 pixels, a CPU, a minute",
    img_size=(64, 64),
    scale_range=(0.8, 1.25),
    max_iters=160,
    warmup_iters=20,
    batch_size=8,
    base_lr=1e-3,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.0,
    clip_grad=5.0,
    milestones=(0.8,),
    strides=(4, 8, 16),
    anchor_sizes=(12, 20, 32),
    anchor_ratios=(1.0,),
    neck_channels=64,
    rpn_convs=1,
    box_head_convs=0,
    box_head_fcs=1,
    box_head_dim=256,
    mask_head_convs=1,
    head_norm="",
    rpn_samples=64,
    roi_samples=32,
    pre_nms_topk=(100, 100),
    post_nms_topk=(60, 30),
    box_pool=7,
    mask_pool=7,
    class_agnostic=True,
    detections=30,
    score_threshold=0.01,
)

ADE20K_VIT_160K = Ade20kRecipe(
    name="ade20k_vit_160k",
    # SimMIM gives no ViT on ADE20K; this is what MAE's ViT-B scores 48.1 with there.
    source="MMSegmentation: configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    img_size=(512, 512),
    scale_range=(0.5, 2.0),
    max_iters=160000,
    warmup_iters=1500,
    batch_size=16,
    base_lr=1e-4,
    weight_decay=0.05,
    layer_decay=0.65,
    drop_path_rate=0.1,
    clip_grad=0.0,
    photometric=True,
    head_channels=768,
    auxiliary_weight=0.4,
    test_mode="slide",
    num_workers=8,
)
ADE20K_SWIN_160K = replace(
    ADE20K_VIT_160K,
    name="ade20k_swin_160k",
    # SimMIM's own 52.8 to 54.2 on ADE20K are of several scales and not comparable.
    source="MMSegmentation: configs/swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    base_lr=6e-5,
    weight_decay=0.01,
    layer_decay=1.0,
    drop_path_rate=0.3,
    head_channels=512,
    test_mode="whole",
)
ADE20K_POCKET = Ade20kRecipe(
    name="ade20k_pocket",
    source="ours: three hundred pictures of 64 pixels, a CPU, a minute",
    img_size=(64, 64),
    scale_range=(0.8, 1.25),
    max_iters=300,
    warmup_iters=30,
    batch_size=8,
    base_lr=2e-3,
    weight_decay=0.05,
    layer_decay=1.0,
    drop_path_rate=0.0,
    clip_grad=1.0,
    photometric=False,
    head_channels=64,
    auxiliary_weight=0.4,
    test_mode="whole",
)

TransferRecipe = FinetuneRecipe | ProbeRecipe | CocoRecipe | Ade20kRecipe
RECIPES: dict[str, TransferRecipe] = {
    recipe.name: recipe
    for recipe in (
        IMAGENET_VIT_B_800EP,
        IMAGENET_SWIN_B_800EP,
        IMAGENET_SWIN_B_100EP,
        IMAGENET_SWIN_B_100EP_IMG192,
        IMAGENET_SWIN_L_800EP,
        IMAGENET_SWINV2_B_800EP,
        IMAGENET_POCKET,
        IMAGENET_CIFAR,
        PROBE,
        PROBE_POCKET,
        COCO_VIT_100EP,
        COCO_SWIN_3X,
        COCO_POCKET,
        ADE20K_VIT_160K,
        ADE20K_SWIN_160K,
        ADE20K_POCKET,
    )
}


# task -> whose recipe: small archs, ViT, Swin, Swin V2
_DEFAULTS = {
    "imagenet": (
        "imagenet_pocket",
        "imagenet_vit_b_800ep",
        "imagenet_swin_b_800ep",
        "imagenet_swinv2_b_800ep",
    ),
    "linear": ("probe_pocket", "probe", "probe", "probe"),
    "knn": ("probe_pocket", "probe", "probe", "probe"),
    "fewshot": ("probe_pocket", "probe", "probe", "probe"),
    "coco": ("coco_pocket", "coco_vit_100ep", "coco_swin_3x", "coco_swin_3x"),
    "ade20k": ("ade20k_pocket", "ade20k_vit_160k", "ade20k_swin_160k", "ade20k_swin_160k"),
}
TASKS = tuple(_DEFAULTS)


def default_recipe(task: str, spec: BackboneSpec) -> TransferRecipe:
    """Give the recipe that a task takes for an arch when none is named."""
    pocket, vit, swin, swinv2 = _DEFAULTS[task]
    if spec.arch.endswith("_pocket"):
        return RECIPES[pocket]
    if task == "imagenet" and spec.arch == "swin_l":
        return IMAGENET_SWIN_L_800EP
    return RECIPES[{"vit": vit, "swin": swin, "swinv2": swinv2}[spec.family]]
