"""The pixels that reach the backbone, and the labels, equal those of MMSegmentation's own data pipelines."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.mmseg_models import build_official, checkpoint_of, mmseg_scope, official_config
from torch import Tensor

from simmim_bench.data.decode import read_image
from transfer.recipes import RECIPES
from transfer.segmentation.recipes import Ade20kRecipe

pytestmark = pytest.mark.usefixtures("mmseg")

CONFIGS = {
    "ade20k_mae_vit_b": "mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
    "ade20k_swin_w7": "swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "ade20k_beit_vit_b_640": "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py",
}
SIZES = [(200, 151), (97, 300), (640, 90)]  # (W, H); the last is longer than four times its height
CLASSES = 150


def recipe_of(name: str) -> Ade20kRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, Ade20kRecipe)
    return recipe


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def item(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Write a smooth JPEG and a label map with all 151 labels."""
    width, height = request.param
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.jpg", quality=90)
    labels = rng.integers(0, CLASSES + 1, (height // 8 + 1, width // 8 + 1), np.uint8)
    mask = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    mask.save(tmp_path / "mask.png")
    return {
        "img_path": tmp_path / "image.jpg",
        "seg_map_path": tmp_path / "mask.png",
        "reduce_zero_label": True,
    }


def run(steps: list[Any], item: dict[str, Any], seed: int = 0) -> Any:
    np.random.seed(seed)
    random.seed(seed)
    results: Any = {**item, "seg_fields": []}
    for step in steps:
        results = step(results)
    return results


def official_steps(pipeline: list[dict[str, Any]]) -> list[Any]:
    from mmseg.registry import TRANSFORMS

    with mmseg_scope():
        return [TRANSFORMS.build(step) for step in pipeline]


def batched(preprocessor: Any, packed: dict[str, Any], *, training: bool) -> tuple[Tensor, Tensor]:
    """Return the pixels (1, 3, H, W) that reach the backbone, and the labels (H, W)."""
    batch = {"inputs": [packed["inputs"].clone()], "data_samples": [packed["data_samples"]]}
    done = preprocessor(batch, training=training)
    return done["inputs"], done["data_samples"][0].gt_sem_seg.data[0]


def preprocessors(config: Any, recipe: Ade20kRecipe) -> tuple[Any, Any]:
    from transfer.segmentation.model import build_preprocessor

    ours = build_preprocessor(checkpoint_of("vit_b"), recipe)
    return ours, build_official(config.model.data_preprocessor)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_images_and_labels_are_those_of_the_config_with_the_same_seed(
    item: dict[str, Any], name: str
) -> None:
    from transfer.segmentation.data import train_pipeline

    config, recipe = official_config(CONFIGS[name]), recipe_of(name)
    ours = train_pipeline(recipe, CLASSES)
    theirs = official_steps(config.train_dataloader.dataset.pipeline)
    assert config.train_dataloader.dataset.pipeline == config.train_pipeline
    assert [type(step).__name__ for step in ours[2:]] == [type(s).__name__ for s in theirs[2:]]
    our_pixels, their_pixels = preprocessors(config, recipe)
    seen = set()
    for seed in range(4):
        pixels, labels = batched(our_pixels, run(ours, item, seed), training=True)
        wanted, wanted_labels = batched(their_pixels, run(theirs, item, seed), training=True)
        assert pixels.shape[2:] == labels.shape == tuple(recipe.img_size)
        torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)
        assert torch.equal(labels, wanted_labels)
        seen.add(pixels.mean().item())
    assert len(seen) == 4


@pytest.mark.parametrize("name", CONFIGS)
def test_test_images_and_labels_are_those_of_the_config(item: dict[str, Any], name: str) -> None:
    from transfer.segmentation.data import eval_pipeline

    config, recipe = official_config(CONFIGS[name]), recipe_of(name)
    theirs = run(official_steps(config.test_dataloader.dataset.pipeline), item)
    our_pixels, their_pixels = preprocessors(config, recipe)
    pixels, labels = batched(our_pixels, run(eval_pipeline(recipe, CLASSES), item), training=False)
    wanted, wanted_labels = batched(their_pixels, theirs, training=False)
    torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)
    assert torch.equal(labels, wanted_labels)  # at the original size
    height, width = (int(side) for side in wanted.shape[2:])
    assert max(height, width) <= max(recipe.resize_within)
    assert min(height, width) == min(recipe.resize_within) or max(height, width) == max(
        recipe.resize_within
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_view_of_the_original_size_is_that_of_the_configs_tta_pipeline(
    item: dict[str, Any], name: str
) -> None:
    from transfer.segmentation.data import eval_pipeline

    config = official_config(CONFIGS[name])
    recipe = replace(
        recipe_of(name),
        test_scales=recipe_of("ade20k_mae_vit_b_ms").test_scales,
        test_flip=True,
        views_of="original",
    )
    theirs = run(official_steps(config.tta_pipeline), item)
    ours = run(eval_pipeline(recipe, CLASSES), item)
    assert len(ours["inputs"]) == len(theirs["inputs"]) == recipe.views == 12
    for view, wanted, sample, other in zip(
        ours["inputs"], theirs["inputs"], ours["data_samples"], theirs["data_samples"], strict=True
    ):
        assert torch.equal(view, wanted)
        assert sample.metainfo["flip"] == other.metainfo["flip"]
        assert torch.equal(sample.gt_sem_seg.data, other.gt_sem_seg.data)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["ade20k_mae_vit_b_ms", "ade20k_beit_vit_b_640_ms", "ade20k_swin_w7_ms"]
)
def test_every_view_has_the_size_of_the_published_multi_scale_tests(
    item: dict[str, Any], name: str
) -> None:
    """MultiScaleFlipAug with SETR_Resize (microsoft/unilm: resize_transform.py:173-190) or with Resize (Swin)."""
    import cv2

    from transfer.segmentation.data import eval_pipeline

    recipe = recipe_of(name)
    bgr = np.asarray(read_image(item["img_path"]))[..., ::-1]
    height, width = bgr.shape[:2]
    views = run(eval_pipeline(recipe, CLASSES), item)["inputs"]
    assert len(views) == 12
    number = 0
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        long = {512: 2048, 640: 2560}[recipe.img_size[0]]
        long, short = int(long * ratio), int(recipe.img_size[0] * ratio)
        if name == "ade20k_swin_w7_ms":
            factor = min(long / max(height, width), short / min(height, width))
        else:
            factor = max(short, recipe.img_size[0]) / min(height, width)
        size = (int(width * factor + 0.5), int(height * factor + 0.5))
        wanted = cv2.resize(bgr, size, interpolation=cv2.INTER_LINEAR)
        for one in (wanted, wanted[:, ::-1]):
            assert np.array_equal(views[number].permute(1, 2, 0).numpy(), one), (ratio, size)
            number += 1
