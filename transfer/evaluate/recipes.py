"""The recipe of classifiers that others have fine-tuned: how images are resized, cropped and normalised.

The named recipe has the numbers that most official evaluations share. What a file, its framework or its publisher
specifies differently is kept as a deviation, so that only scores of equal preprocessing are ranked together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simmim_bench.errors import UsageError
from simmim_bench.recipe import Precision, Recipe, check_positive

CropMode = Literal["center", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe(Recipe):
    """Classification of a validation split without training.

    Attributes:
        img_size: (H, W) of the model's input in pixels.
        test_crop_ratio: side of the crop divided by the shorter side of the resized image, in (0, 1].
        crop_mode: "center": resize the shorter side and crop; "squash": resize both sides to `img_size` divided by
            the ratio, whatever the image's aspect, and crop.
        interpolation: filter of the resizing.
        mean, std: normalisation, for pixels in [0, 1], one value per channel; None for the model's own.
        window_size: of a Swin; None for the checkpoint's.
        precision: "auto" is bfloat16 on GPUs that support it, else float32.
        forward_batch_size: images of a forward pass in each process.
        num_workers: processes per GPU that load images; 0 to load in the process of the model.
        limit: the number of validation images that are used, for trying things out; None for all.
    """

    img_size: tuple[int, int]
    test_crop_ratio: float
    crop_mode: CropMode
    interpolation: Interpolation
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    window_size: int | None = None
    precision: Precision = "fp32"
    forward_batch_size: int = 256
    num_workers: int = 8
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "forward_batch_size")
        if self.std is not None:
            check_positive(self, "std")

    def check_channels(self, channels: int) -> None:
        """Check that mean and std have one value per channel of a model.

        Raises:
            UsageError: one of them has not.
        """
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != channels:
                raise UsageError(
                    f"{name} {values} of recipe '{self.name}' has {len(values)} values; use one per channel, such as "
                    f"-o {name}={','.join(['0.5'] * channels)}."
                )


EVALUATE_IMAGENET = EvaluateRecipe(
    name="evaluate_imagenet",
    source="SimMIM: data/data_finetune.py:97-113 (TEST.CROP); the same in Swin-Transformer: data/build.py:145-158, "
    "MAE: util/datasets.py:51-65 and unilm: beit/datasets.py:154-169, each up to 224 pixels",
    sources={
        "crop_mode": "SimMIM: data/data_finetune.py:100-103",
        "mean": "the model's own: of the file's configuration, timm's config or torchvision's transforms",
        "std": "as mean",
        "precision": "ours: float32, so that a score does not depend on the device",
    },
    img_size=(224, 224),
    test_crop_ratio=224 / 256,
    crop_mode="center",
    interpolation="bicubic",
)

RECIPES: dict[str, EvaluateRecipe] = {EVALUATE_IMAGENET.name: EVALUATE_IMAGENET}
