"""Load a classifier, its head included, from whatever a CKPT names.

A checkpoint of ours, and a third-party file whose model our backbones compute exactly, becomes a backbone with its
head: SimMIM's, Swin's and BEiT's files, MAE's fine-tuned ViT, and timm's of the same layouts. Anything else is built by
the library that has the model: timm for `timm:NAME`, a timm folder and a ViT that classifies by its class token (DeiT),
torchvision for its own files, which are recognised by their hash, else by the names and shapes of their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.checkpoints.fit import BATCHNORM_COUNTER, shorten
from simmim_bench.checkpoints.load import check_statistics_fit
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file
from simmim_bench.results.record import describe_checkpoint
from transfer.evaluate import timm_models, torchvision_models
from transfer.evaluate.classifier import Classifier, head_classes, no_head
from transfer.evaluate.preprocessing import Preprocessing
from transfer.evaluate.weights_file import read_model_state

LIBRARIES = ("timm", "torchvision")


def load_classifier(
    ckpt: str,
    model_name: str | None = None,
    img_size: tuple[int, int] | None = None,
    window_size: int | None = None,
) -> Classifier:
    """Load a third-party classifier, or a checkpoint directory of ours.

    Args:
        model_name: `timm:NAME` or `torchvision:NAME`, the model of a weights file that does not show it.
        img_size: (H, W) that position tables are resized to; None for the model's.
        window_size: of a Swin; None for the model's.

    Raises:
        UsageError: an unknown model name, or one for a CKPT that names its model itself.
        DataError: the file is damaged, has no classification head, or is of no known kind.
    """
    path = Path(ckpt)
    if model_name is not None:
        if not path.is_file():
            raise UsageError(
                f"--model {model_name} is for a weights file, and {ckpt} is none; remove --model."
            )
        return _of_library(path, model_name, img_size)
    if ckpt.startswith("timm:"):
        return timm_models.load_pretrained(ckpt, img_size)
    if (path / "config.json").is_file():
        return timm_models.load_folder(path, img_size)
    if path.is_file():
        return _of_file(path, img_size, window_size)
    return of_checkpoint(read_checkpoint(ckpt), img_size, window_size)


def of_checkpoint(
    checkpoint: Checkpoint,
    img_size: tuple[int, int] | None = None,
    window_size: int | None = None,
) -> Classifier:
    """Build the classifier of a checkpoint whose head is inside.

    Raises:
        DataError: the checkpoint has no classification head, or lacks weights in front of it.
    """
    state = checkpoint.state or {}
    if checkpoint.form == "pretrain" or "head.weight" not in state:
        raise no_head(checkpoint.name)
    check_statistics_fit(checkpoint)
    classes = len(state["head.weight"])
    model = load_backbone(checkpoint, img_size, classes, window_size=window_size)
    report: Any = model.load_report  # torch types attributes of modules as tensors and modules
    missing = [name for name in report.missing if not name.endswith(BATCHNORM_COUNTER)]
    if missing:
        raise DataError(
            f"{checkpoint.name} lacks weights of its classifier ({shorten(missing)}); use a complete checkpoint."
        )
    names = checkpoint.provenance.get("classes")
    return Classifier(
        model=model,
        num_classes=classes,
        described=describe_checkpoint(checkpoint),
        preprocessing=_official_preprocessing(checkpoint, img_size),
        code="simmim-bench",
        classes=None if names is None else tuple(names),
    )


def _official_preprocessing(
    checkpoint: Checkpoint, img_size: tuple[int, int] | None
) -> Preprocessing:
    """Return how the official codes evaluate a model of a checkpoint's family and image size.

    They agree up to 224 pixels. Above, the crop is the whole image: MAE (util/datasets.py:53-56, above 224), BEiT
    (unilm: beit/datasets.py:156-160, from 384), and, with both sides resized, Swin and Swin V2 at 384 pixels (TEST.CROP
    False in configs/swin and configs/swinv2) and ConvNeXt (datasets.py:77-82, from 384). Swin V2 at 256 has the same
    ratio as at 224 (data/build.py:148).
    """
    spec = checkpoint.spec
    size = img_size or spec.img_size
    large, squashed = max(size) >= 384, spec.family in ("swin", "swinv2", "convnext")
    return Preprocessing(
        img_size=size,
        test_crop_ratio=1.0 if large else 224 / 256,
        crop_mode="squash" if large and squashed else "center",
        mean=checkpoint.mean,
        std=checkpoint.std,
        pixel_format=checkpoint.pixel_format,
        source="the official codes of the family",
        warning=checkpoint.warning,
    )


def _of_library(path: Path, model_name: str, img_size: tuple[int, int] | None) -> Classifier:
    """Build the model that --model names and load a file into it."""
    library, _, name = model_name.partition(":")
    if library not in LIBRARIES or not name:
        raise UsageError(f"--model {model_name} is not timm:NAME or torchvision:NAME.")
    state = read_model_state(path)
    classes = head_classes(state)
    if classes is None:
        raise no_head(str(path))
    if library == "timm":
        return timm_models.load_file(path, state, name, classes, img_size)
    return torchvision_models.load_file(path, state, name, classes, sha256_file(path), img_size)


def _of_file(path: Path, img_size: tuple[int, int] | None, window_size: int | None) -> Classifier:
    """Recognise a weights file, and load it.

    Raises:
        DataError: the file is damaged, has no classification head, or is of no known kind.
    """
    state = read_model_state(path)
    sha256 = sha256_file(path)
    classes = head_classes(state)
    published = torchvision_models.published_as(sha256)
    if published is not None and classes is not None:
        return torchvision_models.load_file(path, state, published, classes, sha256, img_size)
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = read_checkpoint(str(path))
    except DataError as error:
        unread = error
    else:
        if classes is None:
            raise no_head(str(path))
        check_statistics_fit(checkpoint)
        if "head.weight" in (checkpoint.state or {}) and not _has_other_head(checkpoint, state):
            return of_checkpoint(checkpoint, img_size, window_size)
        unread = DataError(f"{path} classifies in another way than simmim-bench's backbones")
    if classes is not None:
        name = torchvision_models.recognise(state, classes)
        if name is not None:
            return torchvision_models.load_file(path, state, name, classes, sha256, img_size)
        if checkpoint is not None and checkpoint.spec.family == "vit":
            token_vit = timm_models.build_token_vit(state, classes, checkpoint.spec.num_heads[0])
            if token_vit is not None:
                return timm_models.of_token_vit(path, token_vit, checkpoint, img_size)
    raise DataError(
        f"{path} holds no classifier that `evaluate` recognises ({str(unread).rstrip('.')}); name its model with "
        "--model timm:NAME or --model torchvision:NAME."
    )


def _has_other_head(checkpoint: Checkpoint, state: StateDict) -> bool:
    """Return whether a file classifies otherwise than our backbones, which would read it without a part.

    Our ViT pools the patch tokens before the last norm, `fc_norm`. A ViT with a norm before the pooling, as DeiT and
    timm's ViTs with class token, has `norm` instead.
    """
    if checkpoint.spec.family == "vit":
        return "fc_norm.weight" not in state or "norm.weight" in state
    # torchvision's ResNets have timm's names, but another evaluation.
    return checkpoint.spec.family == "resnet" and "fc.weight" in state
