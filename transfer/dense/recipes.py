"""Types of the recipes of segmentation on frozen patch features, and simmim-bench's own protocols.

Published protocols of this kind: "Towards In-Context Scene Understanding" (arXiv 2306.01667, section 3.1) labels a
patch by the labels of its nearest patches in a memory bank, and vpariza/open-hummingbird-eval (at 0fd976fc) reproduces
it; DINOv2 (arXiv 2304.07193, section 7.4) trains a linear layer on patch tokens, which `ade20k_dinov2_linear` follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.recipe import Norm, Precision, Recipe, check_positive

Sampling = Literal["balanced", "uniform"]

_HUMMINGBIRD = "vpariza/open-hummingbird-eval: hbird/hbird_eval.py"


@dataclass(frozen=True, kw_only=True)
class DenseRecipe(Recipe):
    """The patch features of a frozen backbone, and the candidates among them.

    A patch is a cell of one of the backbone's maps. Every combination of `blocks`, `norm` and the classifier's own
    settings is a candidate. The candidate is chosen by its mIoU on held-out training images alone.

    Attributes:
        img_size: (H, W) of a window in pixels. Images are resized to cover it, their ratio kept.
        slide_stride: (H, W) between the windows of an image, whose scores are averaged where they overlap; None for
            two thirds of the window's sides.
        blocks: blocks of a ViT, counted from 1, whose maps are candidates, -1 being the last; of other families:
            stages. None for all stages, or for the four blocks of a ViT at the quarters of its depth.
        norm: norm of the patch features, after that of the maps; see `FrozenRecipe.norm`.
        patches: largest number of training patches of a map, the same number of every image, and at least one.
        sampling: how an image's patches are sampled: "uniform", or "balanced" by class, which prefers patches with
            rare classes; see `windows.sample_patches`.
        choose_on: largest number of training images, sampled by the seed and at most half, that are held out to
            compare the candidates.
        forward_batch_size: windows of a forward pass; it does not change the result.
        window_size: attention window of a Swin in tokens; None for the checkpoint's.
        precision: of the backbone; "auto" is bfloat16 on GPUs that have it, float16 on others, float32 on CPUs.
        num_workers: processes per GPU that load images; 0 to load in the process of the backbone.
        reduce_zero_label: see `Ade20kRecipe`.
        limit: the number of training images and of validation images that are used, for trying things out; None for
            all. They are the same for every seed.
    """

    img_size: tuple[int, int]
    slide_stride: tuple[int, int] | None = None
    blocks: tuple[int, ...] | None = None
    norm: tuple[Norm, ...]
    patches: int
    sampling: Sampling
    choose_on: int
    forward_batch_size: int = 16
    window_size: int | None = None
    precision: Precision = "auto"
    num_workers: int = 0
    reduce_zero_label: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "patches", "choose_on", "forward_batch_size")
        if any(step > side for step, side in zip(self.stride, self.img_size, strict=True)):
            raise UsageError(
                f"slide_stride {self.slide_stride} of recipe '{self.name}' is larger than the window, img_size "
                f"{self.img_size}, and would leave pixels without a prediction; use a smaller one."
            )

    @property
    def stride(self) -> tuple[int, int]:
        """(H, W) between the windows of an image."""
        height, width = self.img_size
        return self.slide_stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))


@dataclass(frozen=True, kw_only=True)
class DenseKnnRecipe(DenseRecipe):
    """k-nearest-neighbour segmentation.

    Attributes:
        k: candidates for the number of neighbours.
        temperature: of the softmax of the similarities, by which the neighbours' labels are weighted.
    """

    k: tuple[int, ...]
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "k")


@dataclass(frozen=True, kw_only=True)
class DenseLogisticRecipe(DenseRecipe):
    """Multinomial logistic regression of a patch's most frequent class, by L-BFGS.

    Attributes:
        l2: candidates for the weight of the squared norm of the classifier's weights.
    """

    l2: tuple[float, ...]


ADE20K_KNN = DenseKnnRecipe(
    name="ade20k_knn",
    source="ours: after arXiv 2306.01667, section 3.1, and open-hummingbird-eval; there with augmented training "
    "images, here windows of resized images, every level and norm compared on held-out training images",
    sources={
        "img_size": "arXiv 2306.01667: 512 x 512, as in MMSegmentation's configs/_base_/datasets/ade20k.py",
        "patches": "open-hummingbird-eval: README.md (memory sizes 1024 * 10^2, 10^3 and 10^4)",
        "sampling": f"{_HUMMINGBIRD} (sample_features)",
        "temperature": f"{_HUMMINGBIRD} (cross_attention, beta)",
        "k": f"ours; {_HUMMINGBIRD} has 30 (n_neighbours)",
    },
    img_size=(512, 512),
    norm=("none", "batch"),
    patches=1_024_000,
    sampling="balanced",
    choose_on=200,
    k=(10, 30, 100),
    temperature=0.02,
    num_workers=8,
)
ADE20K_KNN_POCKET = replace(
    ADE20K_KNN,
    name="ade20k_knn_pocket",
    source="ours: three hundred images of 64 pixels, a CPU, seconds",
    sources={},
    img_size=(64, 64),
    patches=16_000,
    choose_on=30,
    num_workers=0,
)
ADE20K_KNN_SMALL = replace(
    ADE20K_KNN_POCKET,
    name="ade20k_knn_small",
    source="ours: street scenes by the dozen or the hundred, a CPU, minutes",
    img_size=(96, 128),
)

ADE20K_LOGISTIC = DenseLogisticRecipe(
    name="ade20k_logistic",
    source="ours: a linear layer on patch tokens, as in DINOv2, arXiv 2304.07193, section 7.4; fitted by L-BFGS to "
    "sampled patches instead of by gradient steps to whole crops, so that neither a learning rate nor a schedule is "
    "chosen",
    sources={
        "img_size": "DINOv2: dinov2_vitb14/dinov2_vitb14_ade20k_linear_config.py (crop_size)",
        "sampling": f"{_HUMMINGBIRD} (sample_features)",
    },
    img_size=(512, 512),
    norm=("batch",),
    patches=1_024_000,
    sampling="balanced",
    choose_on=200,
    l2=(1e-6, 1e-5, 1e-4, 1e-3),
    num_workers=8,
)
ADE20K_LOGISTIC_POCKET = replace(
    ADE20K_LOGISTIC,
    name="ade20k_logistic_pocket",
    source=ADE20K_KNN_POCKET.source,
    sources={},
    img_size=(64, 64),
    patches=16_000,
    choose_on=30,
    num_workers=0,
)
ADE20K_LOGISTIC_SMALL = replace(
    ADE20K_LOGISTIC_POCKET,
    name="ade20k_logistic_small",
    source=ADE20K_KNN_SMALL.source,
    img_size=(96, 128),
)
