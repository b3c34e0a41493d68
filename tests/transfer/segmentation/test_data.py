"""Tests of the training samples and of how processes split them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.segmentation import CLASS_NAMES, RECIPE, build_loaders, segmentor, split_of

from simmim_bench.distributed import DistContext
from transfer.segmentation.ade20k_classes import ADE20K_CLASSES


def test_the_names_of_ade20k_are_mmsegmentations(mmseg: None) -> None:
    from mmseg.datasets import ADE20KDataset

    assert [name.strip() for name in ADE20KDataset.METAINFO["classes"]] == list(ADE20K_CLASSES)


@pytest.mark.heavy
def test_label_0_is_ignored_and_label_1_is_class_0(mmseg: None, data: Path) -> None:
    split = split_of(data, "validation")
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 10:] = 1
    labels[:, 20:] = 16
    Image.fromarray(labels).save(split.masks[0])
    _, loader = build_loaders(RECIPE, split, split, CLASS_NAMES, seed=0, first_iteration=0)
    truth = next(iter(loader))["data_samples"][0].gt_sem_seg.data[0]
    assert truth[0, [0, 9, 10, 19, 20, 63]].tolist() == [255, 255, 0, 0, 15, 15]


@pytest.mark.heavy
def test_training_crops_have_the_recipes_size_and_aligned_labels(mmseg: None, data: Path) -> None:
    split = split_of(data, "training")
    for image, mask in zip(split.images, split.masks, strict=True):
        # The image encodes its labels, smoothly enough for interpolation.
        ramp = np.linspace(1, 16, 64).round().astype(np.uint8)
        labels = np.broadcast_to(ramp, (64, 64))
        Image.fromarray(np.repeat(labels[..., None] * 15, 3, axis=2)).save(image, quality=100)
        Image.fromarray(labels).save(mask)
    recipe = replace(RECIPE, img_size=(48, 40), scale_range=(0.5, 2.0))
    loader, _ = build_loaders(recipe, split, split, CLASS_NAMES, seed=0, first_iteration=0)
    model = segmentor("random:vit_pocket", recipe)
    for batch in loader:
        packed = model.data_preprocessor(batch, training=True)
        assert packed["inputs"].shape == (2, 3, 48, 40)
        for pixels, sample in zip(batch["inputs"], packed["data_samples"], strict=True):
            truth = sample.gt_sem_seg.data[0]
            assert truth.shape == (48, 40)
            height, width = pixels.shape[1:]
            shown = pixels[0].float() / 15 - 1
            assert (shown - truth[:height, :width]).abs().max() < 1.1
            assert (truth[height:] == 255).all()
            assert (truth[:, width:] == 255).all()


@pytest.mark.heavy
def test_samples_depend_on_seed_and_number_alone(mmseg: None, generated: Path) -> None:
    split = split_of(generated, "training")

    def batches(first: int, workers: int, seed: int = 0) -> list[torch.Tensor]:
        recipe = replace(RECIPE, num_workers=workers, photometric=True)
        loader, _ = build_loaders(
            recipe, split, split, CLASS_NAMES, seed=seed, first_iteration=first
        )
        return [torch.stack([i.float().mean((1, 2)) for i in batch["inputs"]]) for batch in loader]

    whole = batches(0, 0)
    assert len(whole) == RECIPE.max_iters
    assert all(map(torch.equal, whole[2:], batches(2, 0)))
    assert all(map(torch.equal, whole, batches(0, 2)))
    assert not any(map(torch.equal, whole, batches(0, 0, seed=1)))


def test_every_image_is_sampled_once_per_epoch(mmseg: None, generated: Path) -> None:
    split = split_of(generated, "training")
    loader, _ = build_loaders(
        replace(RECIPE, max_iters=5), split, split, CLASS_NAMES, seed=0, first_iteration=0
    )
    sampled = [s.img_path for batch in loader for s in batch["data_samples"]]
    assert set(sampled[:5]) == set(sampled[5:]) == set(split.images)
    assert sampled[:5] != sampled[5:]


@pytest.mark.heavy
def test_the_slices_of_two_processes_are_disjoint_and_form_the_batches_of_one(
    mmseg: None, generated: Path
) -> None:
    training, validation = split_of(generated, "training"), split_of(generated, "validation")
    recipe = replace(RECIPE, batch_size=4)

    def loaders_of(dist: DistContext | None) -> Any:
        return build_loaders(
            recipe, training, validation, CLASS_NAMES, seed=0, first_iteration=1, dist=dist
        )

    (train_0, val_0), (train_1, val_1) = (loaders_of(DistContext(rank, 2)) for rank in (0, 1))
    alone, val_alone = loaders_of(None)
    assert not set(train_0.sampler) & set(train_1.sampler)
    assert len(alone) == len(train_0) == len(train_1) == 3
    for whole, *slices in zip(alone, train_0, train_1, strict=True):
        assert [len(part["inputs"]) for part in slices] == [2, 2]
        both = [image for part in slices for image in part["inputs"]]
        assert all(map(torch.equal, both, whole["inputs"]))
        sampled = [[s.img_path for s in batch["data_samples"]] for batch in (*slices, whole)]
        assert sampled[0] + sampled[1] == sampled[2]
    assert sorted([*val_0.sampler, *val_1.sampler]) == list(val_alone.sampler) == [0, 1, 2]
    assert (list(val_0.sampler), list(val_1.sampler)) == ([0, 2], [1])
    assert list(loaders_of(DistContext(3, 4))[1].sampler) == []  # three images
