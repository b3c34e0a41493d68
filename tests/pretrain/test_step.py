"""Test what a training step receives: masks from the workers; and that it reads no value from the device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.masking.masks import (
    STRATEGIES,
    mask_generator,
    sample_image_mask,
    sample_recipe_masks,
    visible_patch_count,
)
from pretrain.recipes import POCKET, PretrainRecipe
from pretrain.run import masked_loss
from pretrain.simmim import SimMIM
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.normalise import normalise
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import random_crop_flip
from simmim_bench.distributed import DistContext
from simmim_bench.models.archs import find_spec
from simmim_bench.training.accumulation import accumulate_gradients
from simmim_bench.training.finite import FiniteCheck

CPU = torch.device("cpu")
# Operations whose result, or its shape, the host must read.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"}
PATCH = find_spec(POCKET.arch).patch_size


class HostReads(TorchDispatchMode):
    """Collect the operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS or name.startswith("_unique"):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def loader_of(data: Path, recipe: PretrainRecipe, workers: int) -> EpochLoader:
    load = partial(random_crop_flip, img_size=recipe.img_size, crop_scale=recipe.crop_scale)
    return EpochLoader(
        ImageDataset(any_images(data), load),
        batch_size=16,
        num_workers=workers,
        seed=3,
        per_image=partial(sample_image_mask, recipe, PATCH),
    )


@pytest.mark.heavy
@pytest.mark.parametrize("masking", STRATEGIES)
def test_masks_of_the_workers_are_those_of_the_whole_batch(pocket: Path, masking: Any) -> None:
    recipe = replace(POCKET, masking=masking)
    batches = list(loader_of(pocket / "imagenet", recipe, workers=0).epoch(2))
    for pixels, _, indices, masks in batches:
        images = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD, CPU)
        generators = [mask_generator(3, 2, int(index)) for index in indices]
        wanted = sample_recipe_masks(recipe, PATCH, images, generators)
        assert torch.equal(masks.float(), wanted)
    if masking == "regions":  # a run that resumes after the first step, with workers
        resumed = loader_of(pocket / "imagenet", recipe, workers=2).epoch(2, first_step=1)
        for one, other in zip(resumed, batches[1:], strict=True):
            assert all(map(torch.equal, one, other))


def test_the_number_of_visible_patches_is_known_in_advance() -> None:
    cases: list[tuple[Any, float]] = [("random", 0.6), ("block", 0.33), ("square", 0.5)]
    for masking, ratio in cases:
        recipe = replace(POCKET, masking=masking, mask_ratio=ratio)
        pixels = torch.zeros(3, *recipe.img_size, dtype=torch.uint8)
        mask = sample_image_mask(recipe, PATCH, pixels, 0, 0, 0)
        assert visible_patch_count(recipe, PATCH) == int((~mask).sum())


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder_input": "visible"},
        {"target": "bins"},
        {"target": "patch_norm"},
        {"masking": "pixels"},
        {"arch": "swin_pocket", "mask_patch_size": 16},
        {"arch": "convnext_pocket", "mask_patch_size": 16},
    ],
    ids=str,
)
def test_a_step_reads_no_value_from_the_device(changes: dict[str, Any]) -> None:
    recipe = replace(POCKET, **changes)
    spec = find_spec(recipe.arch).at(recipe.img_size, None)
    model = SimMIM(spec, recipe.design, drop_path_rate=0.1).train()
    optimizer: Any = torch.optim.AdamW(model.parameters(), fused=True)
    pixels = torch.randint(0, 256, (4, 3, *recipe.img_size), dtype=torch.uint8)
    masks = [sample_image_mask(recipe, spec.patch_size, x, 0, 0, i) for i, x in enumerate(pixels)]
    batch = [pixels, torch.zeros(4), torch.arange(4), torch.stack(masks)]
    only_visible = recipe.encoder_input == "visible"
    visible = visible_patch_count(recipe, spec.patch_size) if only_visible else None
    compute_loss = partial(masked_loss, visible, CPU)
    check = FiniteCheck(DistContext())
    with HostReads() as reads:
        for step in range(2):
            loss = accumulate_gradients(model, batch, 0, compute_loss, "fp32", CPU, 2)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            skip = check.skip(step, batch, loss, norm, torch.ones(()))
            optimizer.found_inf = skip.float()
            optimizer.step()
        assert reads.found == set()
        check.first_bad()
    assert reads.found  # the mode sees what the host reads
