"""Time a linear probe that runs the backbone every epoch, and one on stored features.

    python benchmarks/linear_probe.py --ckpt runs/vit --data imagenet --recipe linear_cifar

The first alternative trains one classifier: one block, pooling, norm and rate. Ours trains all settings on one pass of
the backbone, compares them on held-out images, and trains the best one again on all images. The first alternative
gets this best setting, the same batches in the same order, the features' means and deviations and no augmentation,
so that both should reach the same top-1. The pass over val/ is timed in neither.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import compare, report

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.loader import eval_loader
from simmim_bench.data.sources import ImageList
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import find_recipe
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.precision import autocast
from transfer.frozen.candidates import ProbeResult, TrainingSubset
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.features import FeatureSet, block_width, feature_sets
from transfer.frozen.linear_probe import probe_linear
from transfer.frozen.parallel_heads import ParallelLinearHeads, epoch_steps
from transfer.frozen.recipes import LinearRecipe
from transfer.recipes import RECIPES

SEED = 0


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
    arguments = parse_arguments()
    recipe = find_centre_crop_recipe(arguments.recipe)
    checkpoint = read_checkpoint(arguments.ckpt)
    train, val = (class_folders(arguments.data, split) for split in ("train", "val"))
    train = first_per_class(train, arguments.images)
    sets = tuple(feature_sets(recipe, checkpoint.spec))
    top1: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        run = RunDir(Path(temporary), Display(quiet=True), writes=False)
        dist = DistContext(device=best_device())
        store = FeatureStore(run.path / "f", checkpoint, recipe, sets, SEED, run, dist)
        sweep = build_sweep(store, recipe, train, val)
        probe_once = build_single_probe(store, recipe, sweep().chosen, train, val)

        def run_ours() -> None:
            ranked = sweep().ranking.ranked
            top1["ours"] = 100 * float((ranked[:, 0] == np.array(val.labels)).mean())

        def run_plain() -> None:
            top1["plain"] = probe_once()

        candidates = len(sets) * len(recipe.norm) * len(recipe.base_lr)
        timings = compare(
            {
                "one setting, backbone run every epoch": run_plain,
                f"ours: all {candidates} settings": run_ours,
            },
            rounds=arguments.rounds,
            warm_up=False,
        )
    report(
        f"linear probe of {checkpoint.spec.arch}, {len(train)} images in {len(train.classes)} classes, "
        f"{recipe.epochs} epochs",
        timings,
        arguments.json,
        top1_of_the_one_setting=round(top1["plain"], 2),
        top1_of_ours=round(top1["ours"], 2),
        images_scored=len(val),
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder in ImageNet's layout")
    parser.add_argument("--recipe", default="linear")
    parser.add_argument("--images", type=int, default=228, help="training images per class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        sys.exit(f"--rounds {arguments.rounds} is too few for quartiles; use 3 or more.")
    return arguments


def find_centre_crop_recipe(name: str) -> LinearRecipe:
    """Return the linear-probe recipe of a name; exit if it needs random crops."""
    recipe = find_recipe(RECIPES, name)
    if not isinstance(recipe, LinearRecipe) or recipe.crops:
        sys.exit(
            f"--recipe {name} is not a linear probe on centre crops; use linear, linear_pocket or linear_cifar."
        )
    return recipe


def build_sweep(
    store: FeatureStore, recipe: LinearRecipe, train: ImageList, val: ImageList
) -> Callable[[], ProbeResult]:
    """Return our alternative: compute the training features and probe all settings."""
    val_features = store.load_or_compute(val)
    val_folders = set(store.folder.iterdir())

    def sweep() -> ProbeResult:
        for folder in set(store.folder.iterdir()) - val_folders:
            shutil.rmtree(folder)
        subset = TrainingSubset(train, None, store.load_or_compute(train))
        result = probe_linear(
            subset, val_features, recipe, val_labels=val.labels, store=store, seed=SEED
        )
        assert result is not None
        return result

    return sweep


def build_single_probe(
    store: FeatureStore,
    recipe: LinearRecipe,
    chosen: dict[str, Any],
    train: ImageList,
    val: ImageList,
) -> Callable[[], float]:
    """Return the plain alternative: train one setting with the backbone in every step, and return its top-1."""
    device = store.dist.device
    single = replace(recipe, norm=(chosen["norm"],), base_lr=(chosen["base_lr"],))
    feature_set = FeatureSet(chosen["block"], chosen["pooling"])
    normaliser = Normaliser(single.norm, store.load_or_compute(train).read(feature_set))
    features_of = build_forward(store.checkpoint, single, feature_set, device)
    val_features, val_labels = features_of(val), torch.tensor(val.labels)

    def probe_once() -> float:
        head = ParallelLinearHeads(
            normaliser,
            val_features.shape[1],
            len(train.classes),
            single,
            seed=SEED,
            device=device,
        )
        targets = torch.tensor(train.labels, device=device)
        for epoch in range(single.epochs):
            for rows, factor in epoch_steps(len(train), single, seed=SEED, epoch=epoch):
                features = features_of(train.subset(rows.tolist()))
                head.step(features, targets[rows.to(device)], factor)
        correct = head.predict(val_features)[0, 0].argmax(1) == val_labels
        return 100 * float(correct.float().mean())

    return probe_once


def build_forward(
    checkpoint: Checkpoint, recipe: LinearRecipe, feature_set: FeatureSet, device: torch.device
) -> Callable[[ImageList], torch.Tensor]:
    """Return a function that runs the backbone over images and returns their vectors (N, D)."""
    model = load_backbone(checkpoint, recipe.img_size, seed=SEED).to(device).eval()
    columns = [checkpoint.spec.poolings.index(name) for name in feature_set.poolings]
    width = block_width(checkpoint.spec, feature_set.block)
    transform = eval_transform(
        recipe.img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )

    @torch.no_grad()
    def features_of(images: ImageList) -> torch.Tensor:
        batches = eval_loader(
            ImageDataset(images, transform),
            batch_size=recipe.forward_batch_size,
            num_workers=recipe.num_workers,
        )
        rows = []
        for pixels, _ in batches:
            with autocast(device, recipe.precision):
                pooled = model.forward_pooled(pixels.to(device))
                rows.append(pooled[:, feature_set.block - 1, columns, :width])
        return torch.cat(rows).float().flatten(1)

    return features_of


def first_per_class(images: ImageList, count: int) -> ImageList:
    """Return the first `count` images of every class."""
    counts: dict[int, int] = {}
    kept = []
    for number, label in enumerate(images.labels):
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= count:
            kept.append(number)
    return images.subset(kept)


if __name__ == "__main__":
    main()
