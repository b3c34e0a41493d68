"""Types of the recipes on frozen features, and simmim-bench's own protocols.

LINEAR and its variants are linear probes, LOGISTIC is logistic regression, KNN is k-nearest-neighbour
classification. Learning rates are for 256 images a step, as in MAE and BEiT. Others' protocols are in
`published_recipes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.recipe import Draw, Norm, Precision, Recipe, Resizing, check_positive

Pooling = Literal["mean", "cls", "cls+mean", "own"]
TokenNorm = Literal["none", "final"]
CropRule = Literal["torchvision", "mae"]


@dataclass(frozen=True, kw_only=True)
class FrozenRecipe(Recipe):
    """The features of a frozen backbone, and the candidates among them.

    Every combination of `blocks`, `pooling`, `norm` and the classifier's own settings is a candidate. The
    candidate is chosen on training images alone.

    Attributes:
        img_size: (H, W) in pixels.
        blocks: blocks after which tokens are pooled, counted from 1 (of a Swin: stages), -1 being the
            last; None for all.
        pooling: the mean of the patch tokens, the class token, or both concatenated; None for all that
            the backbone has.
        n_last_blocks: numbers of blocks, up to each of `blocks`, whose class tokens are concatenated; patch
            tokens are those of the last of them alone.
        token_norm: norm of the tokens before they are pooled: none, or "final", the checkpoint's own LayerNorm
            after the last block, with its weights, after every block. Only a ViT in its pretraining form has it.
        norm: norm of the pooled features: "layer" over an image's channels, "batch" over the training images
            (BatchNorm without weights, with exact instead of running statistics), or one after the other.
        test_crop_ratio: fraction of the shorter side that the centre crop covers.
        forward_batch_size: images a forward pass; it does not change the result.
        window_size: window size of a Swin; None for the checkpoint's.
        precision: of the backbone; "auto" is bfloat16 on GPUs that have it, float16 on others, float32 on CPUs.
        resizing: "pil", as the published pipelines, or "fast", which differs by about a level of 255.
        num_workers: processes per GPU that load images; 0 to load in the process of the backbone.
        limit: the number of training images and of validation images that are used, for trying things out; None for
            all. They are the same for every seed, as evenly from the classes as these allow.
        val_fraction: fraction of the training images of every class that is scored instead of trained on, for data
            without a validation split; None for data with one. They are the same for every seed.
    """

    img_size: tuple[int, int]
    blocks: tuple[int, ...] | None = None
    pooling: tuple[Pooling, ...] | None = None
    n_last_blocks: tuple[int, ...] = (1,)
    token_norm: TokenNorm = "none"
    norm: tuple[Norm, ...]
    test_crop_ratio: float
    forward_batch_size: int = 256
    window_size: int | None = None
    precision: Precision = "auto"
    resizing: Resizing = "pil"
    num_workers: int = 0
    limit: int | None = None
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "forward_batch_size")


@dataclass(frozen=True, kw_only=True)
class LinearRecipe(FrozenRecipe):
    """A linear classifier trained by gradient steps: the linear probe; see `linear_probe.py`.

    Attributes:
        epochs, warmup_epochs: passes over the features; the rate follows a cosine, updated every step.
        epoch_steps: limit of the steps of an epoch; None for all images, in whole batches.
        batch_size: images a step.
        norm_images: images over which BatchNorm computes its statistics in training, the batch of one process in
            the official code; running statistics of the first such group predict, as in torch. None for exact
            statistics over all training images.
        base_lr: candidates for the rate, for 256 images a step.
        optimizer: "lars" is SGD with the rate of each weight scaled by the ratio of the weight's norm to
            its gradient's norm (arXiv 1708.03888).
        momentum: of SGD and LARS.
        weight_decay: of the classifier's weights.
        held_out: fraction of the training images on which the candidates are compared, in (0, 1).
        crops: number of random crops of every training image, used in turn, one an epoch; 0 for the centre
            crop alone. Candidates are always compared on centre crops. Every crop is decoded and forwarded once:
            90 crops of ImageNet are 115 million images.
        crop_rule: how a random crop is sampled: torchvision's ten tries, or MAE's single one; see `crops.py`.
        crop_scale: range of the fraction of the image's area that a random crop covers.
        hflip: probability that a random crop is flipped horizontally.
        draw: which training images `fewshot` samples; see `LogisticRecipe`.
    """

    epochs: int
    warmup_epochs: int
    epoch_steps: int | None = None
    batch_size: int
    norm_images: int | None = None
    base_lr: tuple[float, ...]
    optimizer: Literal["sgd", "lars", "adamw"]
    momentum: float = 0.9
    weight_decay: float = 0.0
    held_out: float
    crops: int = 0
    crop_rule: CropRule = "torchvision"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    draw: Draw = "balanced"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "epochs", "batch_size", "base_lr")


@dataclass(frozen=True, kw_only=True)
class LogisticRecipe(FrozenRecipe):
    """Logistic regression by L-BFGS: `fewshot`, and `linear` on few images.

    Attributes:
        folds: folds of the cross-validation that compares the candidates; few-shot images are too few to
            hold out a fixed part.
        l2: candidates for the weight of the squared norm of the classifier's weights.
        draw: which training images `fewshot` samples: "balanced", equally many of every class as in SimCLR's lists,
            or "proportional", the same fraction of every class.
    """

    folds: int
    l2: tuple[float, ...]
    draw: Draw = "balanced"


@dataclass(frozen=True, kw_only=True)
class KnnRecipe(FrozenRecipe):
    """k-nearest-neighbour classification: `knn`.

    Attributes:
        k: candidates for the number of neighbours.
        temperature: temperature of the votes.
        choose_on: number of training images, sampled by the seed, on which the candidates are compared, each
            image against all others.
        leave_one_out: score the other training images in the same way, instead of val/; the scored images are
            then the same for every seed.
        choose_votes: the images that vote while the candidates are compared: "all" training images, or the images
            that they are compared on ("choosing") alone. None is "choosing" with leave_one_out, where the other
            images are scored: their labels must have no part in the choice. Else it is "all", as val/ is scored.
            With fewer votes the choice favours a smaller k.
    """

    k: tuple[int, ...]
    temperature: float
    choose_on: int = 5000
    leave_one_out: bool = False
    choose_votes: Literal["all", "choosing"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leave_one_out and self.choose_votes is None:
            # Kept as a value, so that the hash is not that of earlier versions, in which all images voted.
            object.__setattr__(self, "choose_votes", "choosing")
        check_positive(self, "k", "temperature", "choose_on")


LINEAR = LinearRecipe(
    name="linear",
    source="ours: every block, pooling, norm and rate jointly; 90 epochs of SGD without weight decay as "
    "in MAE: FINETUNE.md (Linear Probing), but on centre crops",
    img_size=(224, 224),
    norm=("none", "layer", "batch"),
    epochs=90,
    warmup_epochs=0,
    batch_size=4096,
    base_lr=(1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
    optimizer="sgd",
    held_out=0.1,
    test_crop_ratio=224 / 256,
    num_workers=8,
)
LINEAR_POCKET = replace(
    LINEAR,
    name="linear_pocket",
    source="ours: thousands of small images, a CPU, seconds",
    img_size=(32, 32),
    epochs=30,
    batch_size=256,
    held_out=0.2,
    test_crop_ratio=1.0,
    num_workers=0,
)
LINEAR_CIFAR = replace(
    LINEAR_POCKET,
    name="linear_cifar",
    source="ours: tens of thousands of small photographs, a CPU, minutes",
    epochs=90,
    batch_size=1024,
    held_out=0.1,
)
LINEAR_64PX = replace(
    LINEAR_POCKET,
    name="linear_64px",
    source="ours: tens of thousands of photographs of 64 pixels, a CPU core, minutes",
    img_size=(64, 64),
    batch_size=1024,
    held_out=0.1,
)

LOGISTIC = LogisticRecipe(
    name="logistic",
    source="ours: every block and pooling, compared by cross-validation, solved by L-BFGS",
    img_size=(224, 224),
    norm=("batch",),
    folds=5,
    l2=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    test_crop_ratio=224 / 256,
    num_workers=8,
)
LOGISTIC_POCKET = replace(
    LOGISTIC, name="logistic_pocket", img_size=(32, 32), test_crop_ratio=1.0, num_workers=0
)
LOGISTIC_64PX = replace(LOGISTIC_POCKET, name="logistic_64px", img_size=(64, 64))

KNN = KnnRecipe(
    name="knn",
    source="ours: every block, pooling and norm; temperature and votes of DINO, arXiv 2104.14294, section 4.1, and "
    "its eval_knn.py",
    sources={"k": "DINO: eval_knn.py (10, 20, 100, 200)"},
    img_size=(224, 224),
    norm=("none", "batch"),
    k=(10, 20, 100),
    temperature=0.07,
    test_crop_ratio=224 / 256,
    num_workers=8,
)
KNN_POCKET = replace(KNN, name="knn_pocket", img_size=(32, 32), test_crop_ratio=1.0, num_workers=0)
KNN_64PX = replace(KNN_POCKET, name="knn_64px", img_size=(64, 64))
