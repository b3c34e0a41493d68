"""Pretraining recipes: SimMIM's official ones and small ones of ours, each number with its source.

Learning rates are stated for 512 images per step, as in SimMIM, and are scaled to the total batch size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

from pretrain.design import Design
from pretrain.systems import SYSTEMS
from simmim_bench.data.pixel_format import VALUE_RANGES, PixelFormat, ValueRange, check_statistics
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec, recipe_family
from simmim_bench.overrides import override
from simmim_bench.recipe import Precision, Recipe, check_positive, find_recipe

# Classes divide the range [0, 1] of 8 or 16 bits; a tokenizer or teacher takes pixels of 8 bits.
RANGES_OF_TARGETS: dict[str, tuple[ValueRange, ...]] = {
    "bins": ("uint8", "uint16"),
    "clusters": ("uint8", "uint16"),
    "tokens": ("uint8",),
    "teacher_features": ("uint8",),
    "teacher_pixels": ("uint8",),
}
Masking = Literal["random", "square", "block", "pixels", "regions", "multimodal"]


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Design, Recipe):
    """SimMIM pretraining with the paper's design or another one (`Design`).

    Attributes:
        arch: a name of `simmim_bench.models.archs`.
        img_size: (H, W) in pixels.
        mask_patch_size: side of the masking unit in pixels.
        mask_ratio: fraction of hidden units, in (0, 1); every masking hides exactly the ceiling of
            fraction times units.
        masking: how hidden units are chosen. "random", "square" (one, at a random position) and "block"
            (BEiT's) are those of SimMIM's section 4.1.1; BEiT's is from arXiv 2106.08254, section 2.3.
            "pixels" hides single pixels, whatever mask_patch_size is. "regions" (of a segmentation of each
            image by colour and position) and "multimodal" (units alike in colour, position and texture in
            turn) are ours.
        epochs, warmup_epochs: passes over the images.
        batch_size: images per step, in total over all processes.
        base_lr, warmup_lr, min_lr: learning rates for 512 images per step.
        schedule: "cosine" down to min_lr, or "multistep": times 0.1 at each of `milestones` (epochs).
        milestones: epochs after which a "multistep" schedule multiplies the rate by 0.1.
        weight_decay: AdamW's, of all weights but vectors and biases.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less.
        crop_scale: range of the fraction of the image's area that a random crop covers.
        crops_per_decode: crops, each with its mask, of an image for each time that it is decoded, in different
            batches. An epoch has as many steps as with one: it shows one image in `crops_per_decode`, each that
            often, and as many epochs in succession show every image equally often.
        window_size: a Swin's window; None for the arch's own, and for models without windows.
        betas: AdamW's betas.
        precision: "auto" is bfloat16 on GPUs that have it and on CPUs that are faster with it, float16 on other
            GPUs.
        num_workers: processes per GPU that load images; 0 to load in the training process.
        in_chans: channels of the images.
        value_range: what their values are: "uint8", "uint16" or "float"; see `PixelFormat`.
        mean, std: normalisation, one value per channel; None for ImageNet's, of RGB images of 8 bits alone.
        limit: the number of training images and of held-out images that are used, for trying things out; None for
            all. They are the same for every seed.
        val_fraction: fraction of the training images that is held out for the loss after each epoch, for data without
            a validation split; None for 5 %, at most 512 images. They are the same for every seed.
    """

    arch: str
    img_size: tuple[int, int]
    mask_patch_size: int
    mask_ratio: float
    epochs: int
    warmup_epochs: int
    batch_size: int
    base_lr: float
    warmup_lr: float
    min_lr: float
    schedule: Literal["cosine", "multistep"]
    milestones: tuple[int, ...]
    weight_decay: float
    clip_grad: float
    drop_path_rate: float
    crop_scale: tuple[float, float]
    masking: Masking = "random"
    betas: tuple[float, float] = (0.9, 0.999)
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0
    in_chans: int = 3
    value_range: ValueRange = "uint8"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crops_per_decode: int = 1
    limit: int | None = None
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        Design.__post_init__(self)
        check_positive(self, "img_size", "mask_patch_size", "epochs", "batch_size", "base_lr")
        if not 0 < self.mask_ratio < 1:
            raise UsageError(f"mask_ratio {self.mask_ratio} is not in (0, 1); SimMIM uses 0.6.")
        self._check_pixels()

    def _check_pixels(self) -> None:
        """Check that mean, std and the target suit the images.

        Raises:
            UsageError: they do not.
        """
        wanted = self.pixel_format
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std belong together; set both or neither.")
        if self.mean is None or self.std is None:
            if not wanted.is_rgb:
                raise UsageError(
                    f"{wanted} need their mean and std: `simmim-bench data statistics DIR` computes both and prints "
                    "them as -o mean=... -o std=..."
                )
        else:
            check_statistics(self.mean, self.std)
            if len(self.mean) != self.in_chans:
                raise UsageError(
                    f"mean and std have {len(self.mean)} values, but in_chans={self.in_chans}; use one value per "
                    "channel."
                )
        ranges = RANGES_OF_TARGETS.get(self.target, VALUE_RANGES)
        if self.value_range not in ranges:
            raise UsageError(
                f"target {self.target} needs pixels of {' or '.join(ranges)}, but value_range={self.value_range}; use "
                "-o target=pixels."
            )
        if self.tokenizer is not None and not wanted.is_rgb:
            raise UsageError(
                f"tokenizer {self.tokenizer} takes RGB images of 8 bits, but the recipe has {wanted}; remove "
                "-o tokenizer=... to fit one."
            )

    @property
    def pixel_format(self) -> PixelFormat:
        """What the images are like."""
        return PixelFormat(self.in_chans, self.value_range)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that normalise the images."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD  # loads torch

        return IMAGENET_MEAN, IMAGENET_STD

    @property
    def design(self) -> Design:
        """The design: everything in the model besides its encoder."""
        return Design(**{f.name: getattr(self, f.name) for f in fields(Design)})


_SOURCES = {
    # 16 GPUs of 128 images: its learning rates are scaled with this batch size.
    "batch_size": "SimMIM: README.md (Pre-training with SimMIM), config.py (DATA.BATCH_SIZE)",
    "clip_grad": "SimMIM: config.py (TRAIN.CLIP_GRAD)",
    "betas": "SimMIM: config.py (TRAIN.OPTIMIZER.BETAS)",
    "num_workers": "SimMIM: config.py (DATA.NUM_WORKERS)",
    "crop_scale": "SimMIM: data/data_simmim.py",
    "precision": "ours; SimMIM has apex O1",
}
_MIN_LR = {"min_lr": "SimMIM: config.py (TRAIN.MIN_LR); of no effect with steps"}
_SCORES = "SimMIM: README.md (Main Results)"
VIT_B_800EP = PretrainRecipe(
    name="vit_b_800ep",
    source="SimMIM: configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml",
    sources={**_SOURCES, **_MIN_LR},
    published=f"ImageNet top-1 83.8 after imagenet_vit_b_800ep ({_SCORES})",
    arch="vit_b",
    img_size=(224, 224),
    mask_patch_size=32,
    mask_ratio=0.6,
    epochs=800,
    warmup_epochs=10,
    batch_size=2048,
    base_lr=1e-4,
    warmup_lr=5e-7,
    min_lr=5e-6,
    schedule="multistep",
    milestones=(700,),
    weight_decay=0.05,
    clip_grad=5.0,
    drop_path_rate=0.1,
    crop_scale=(0.67, 1.0),
    num_workers=8,
)
SWIN_B_800EP = replace(
    VIT_B_800EP,
    name="swin_b_800ep",
    source="SimMIM: configs/swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml",
    published=f"ImageNet top-1 84.0 after imagenet_swin_b_800ep ({_SCORES})",
    arch="swin_b",
    img_size=(192, 192),
    window_size=6,
    drop_path_rate=0.0,
)
SWIN_L_800EP = replace(
    SWIN_B_800EP,
    name="swin_l_800ep",
    source="SimMIM: configs/swin_large__800ep/simmim_pretrain__swin_large__img192_window12__800ep.yaml",
    published=f"ImageNet top-1 85.4 after imagenet_swin_l_800ep ({_SCORES})",
    arch="swin_l",
    window_size=12,
)
SWIN_B_100EP = replace(
    SWIN_B_800EP,
    name="swin_b_100ep",
    source="SimMIM: configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml",
    sources=_SOURCES,
    published="ImageNet top-1 82.8 after imagenet_swin_b_100ep_img192, 83.5 after imagenet_swin_b_100ep "
    f"({_SCORES})",
    epochs=100,
    base_lr=2e-4,
    warmup_lr=1e-6,
    min_lr=1e-5,
    schedule="cosine",
    milestones=(),
)
SWINV2_B_800EP = replace(
    SWIN_B_800EP,
    name="swinv2_b_800ep",
    source="Swin-Transformer: configs/simmim/simmim_pretrain__swinv2_base__img192_window12__800ep.yaml",
    published="ImageNet top-1 85.04, 500,000 iterations on ImageNet-1K (Swin-Transformer: MODELHUB.md); "
    "whether it is this recipe's is not said there",
    arch="swinv2_b",
    window_size=12,
    drop_path_rate=0.1,
    norm_target=47,
)
RESNET50_300EP = replace(
    VIT_B_800EP,
    name="resnet50_300ep",
    # SimMIM as A2MIM's authors implement it; their mask token is at the stem as well.
    source="openmixup: configs/selfsup/simmim/imagenet/r50_sz224_8xb256_fp16_ep300.py",
    sources={
        "crop_scale": "openmixup: configs/selfsup/_base_/datasets/imagenet/simmim_sz224_bs64.py",
        "num_workers": "ours",
        "precision": "ours; there mixed, in float16",
    },
    published="ImageNet top-1 79.9 after imagenet_resnet50_rsb_a2 (A2MIM: README.md)",
    arch="resnet50",
    epochs=300,
    base_lr=2e-4,
    warmup_lr=2e-10,
    min_lr=2.5e-6,
    schedule="cosine",
    milestones=(),
    clip_grad=0.0,
    drop_path_rate=0.0,
)
CONVNEXT_B_300EP = replace(
    RESNET50_300EP,
    name="convnext_b_300ep",
    # There the mask token is added to the hidden positions of the stem's output; here it replaces them.
    source="openmixup: configs/selfsup/simmim/imagenet/convnext_base_sz224_8xb256_fp16_ep300.py",
    published="ImageNet top-1 83.6 after 300 epochs of RSB's A2, no recipe here for ConvNeXt (A2MIM: README.md)",
    arch="convnext_b",
)
POCKET = PretrainRecipe(
    name="pocket",
    source="ours: thousands of small images, a CPU, minutes; many small steps, as steps are few",
    arch="vit_pocket",
    img_size=(32, 32),
    mask_patch_size=8,  # two by two patches, like 32 pixels of ViT-B
    mask_ratio=0.6,
    epochs=9,
    warmup_epochs=1,
    batch_size=16,
    base_lr=3.2e-2,
    warmup_lr=1e-6,
    min_lr=1e-5,
    schedule="cosine",
    milestones=(),
    weight_decay=0.05,
    clip_grad=5.0,
    drop_path_rate=0.0,
    crop_scale=(0.67, 1.0),
    betas=(0.9, 0.95),
)
CIFAR = replace(
    POCKET,
    name="cifar",
    source="ours: CIFAR-10's 45,000 images of 32 pixels, a CPU, minutes",
    epochs=1,
    warmup_epochs=0,
)
PHOTOS_64PX = replace(
    POCKET,
    name="photos_64px",
    source="ours: tens of thousands of photographs of 64 pixels, a CPU core, twenty minutes",
    arch="vit_64px",
    img_size=(64, 64),
    mask_patch_size=16,
    epochs=8,
    base_lr=1.6e-2,
)
DEMO = replace(
    POCKET,
    name="demo",
    source="ours: `simmim-bench demo`; six of pocket's nine epochs",
    epochs=6,
)

_PLAIN: dict[str, PretrainRecipe] = {
    recipe.name: recipe
    for recipe in (
        VIT_B_800EP,
        SWIN_B_800EP,
        SWIN_L_800EP,
        SWIN_B_100EP,
        SWINV2_B_800EP,
        CONVNEXT_B_300EP,
        RESNET50_300EP,
        POCKET,
        CIFAR,
        PHOTOS_64PX,
        DEMO,
    )
}


def default_recipe(arch: str) -> PretrainRecipe:
    """Return the default recipe of an arch.

    An arch without a recipe uses that of its family, under the name `RECIPE@ARCH`.

    Raises:
        UsageError: the arch is not known.
    """
    spec = find_spec(arch)
    if arch == "swin_b":
        return SWIN_B_100EP
    if arch in ("vit_b", "swin_l"):
        return next(recipe for recipe in _PLAIN.values() if recipe.arch == arch)
    of_family = {
        "pocket": POCKET,
        "64px": PHOTOS_64PX,
        "vit": VIT_B_800EP,
        "swin": SWIN_B_800EP,
        "swinv2": SWINV2_B_800EP,
        "convnext": CONVNEXT_B_300EP,
        "resnet": RESNET50_300EP,
    }
    return for_arch(of_family[recipe_family(spec)], arch)


def resolve_recipe(
    *, arch: str, recipe: str | None, overrides: Iterable[str]
) -> tuple[PretrainRecipe, PretrainRecipe]:
    """Return the recipe with its overrides, and the named one; the arch's default where none is named.

    Raises:
        UsageError: an unknown arch or recipe, or an override that the recipe does not have.
    """
    find_spec(arch)
    named = default_recipe(arch) if recipe is None else for_arch(find_recipe(RECIPES, recipe), arch)
    return override(named, overrides), named


def for_arch(recipe: PretrainRecipe, arch: str) -> PretrainRecipe:
    """Return a recipe for another arch, under the name `RECIPE@ARCH`.

    For one of `SYSTEMS`, the system's changes are applied to the default recipe of the arch.
    """
    if recipe.arch == arch:
        return recipe
    name = f"{recipe.name}@{arch}"
    if recipe.name in SYSTEMS:
        return _of_system(recipe.name, name, arch)
    window = recipe.window_size if find_spec(arch).window_size else None
    return replace(recipe, name=name, arch=arch, window_size=window, published=None)


def _of_system(system: str, name: str, arch: str) -> PretrainRecipe:
    """Apply the changes of one of `SYSTEMS` to the default recipe of an arch."""
    own, described = default_recipe(arch), SYSTEMS[system]
    sources = {key: text for key, text in own.sources.items() if key not in described.changes}
    return replace(
        own,
        name=name,
        source=f"{described.source}; all else as in {own.name}",
        sources=sources,
        published=None,
        **{"norm_target": 0, **described.changes},
    )


RECIPES: dict[str, PretrainRecipe] = {
    **_PLAIN,
    **{name: _of_system(name, name, system.arch) for name, system in SYSTEMS.items()},
}
