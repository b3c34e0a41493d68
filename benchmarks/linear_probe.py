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
from dataclasses import replace
from pathlib import Path

import torch
from timing import compare, report

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.loader import eval_loader
from simmim_bench.data.sources import ImageList, class_folders
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, best_device
from simmim_bench.recipe import find_recipe
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.precision import autocast
from transfer.frozen.candidates import ProbeResult, TrainingSubset
from transfer.frozen.feature_store import FeatureStore
from transfer.frozen.features import FeatureSet, block_width, feature_sets
from transfer.frozen.linear_probe import probe_linear
from transfer.frozen.norms import Normaliser
from transfer.frozen.parallel_heads import ParallelLinearHeads, epoch_steps
from transfer.frozen.recipes import LinearRecipe
from transfer.recipes import RECIPES

SEED = 0


def main() -> None:
    """Parse the arguments, time the alternatives and report."""
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
    recipe = find_recipe(RECIPES, arguments.recipe)
    if not isinstance(recipe, LinearRecipe) or recipe.crops:
        sys.exit(
            f"--recipe {arguments.recipe} is not a linear probe on centre crops; use linear, linear_pocket or "
            "linear_cifar."
        )
    checkpoint = read_checkpoint(arguments.ckpt)
    train, val = (class_folders(arguments.data, split) for split in ("train", "val"))
    train = first_per_class(train, arguments.images)
    device = best_device()
    load = eval_transform(
        recipe.img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )
    labels = torch.tensor(val.labels)
    top1: dict[str, float] = {}
    folder = Path(tempfile.mkdtemp())
    run = RunDir(folder, Display(quiet=True), writes=False)
    sets = tuple(feature_sets(recipe, checkpoint.spec))
    store = FeatureStore(
        folder / "f", checkpoint, recipe, sets, SEED, run, DistContext(device=device)
    )

    val_features = store.load_or_compute(val)
    stored = set(store.folder.iterdir())

    def sweep() -> ProbeResult:
        for folder in set(store.folder.iterdir()) - stored:
            shutil.rmtree(folder)
        subset = TrainingSubset(train, None, store.load_or_compute(train))
        result = probe_linear(subset, val_features, recipe, store=store, seed=SEED)
        assert result is not None
        top1["ours"] = 100 * float((result.ranking.ranked[:, 0] == labels.numpy()).mean())
        return result

    chosen = sweep().chosen
    single = replace(recipe, norm=(chosen["norm"],), base_lr=(chosen["base_lr"],))
    feature_set = FeatureSet(chosen["block"], chosen["pooling"])
    normaliser = Normaliser(single.norm, store.load_or_compute(train).read(feature_set))
    model = load_backbone(checkpoint, recipe.img_size, seed=SEED).to(device).eval()
    columns = [checkpoint.spec.poolings.index(name) for name in feature_set.poolings]
    width = block_width(checkpoint.spec, feature_set.block)

    @torch.no_grad()
    def features_of(images: ImageList) -> torch.Tensor:
        rows = []
        dataset = ImageDataset(images, load)
        batches = eval_loader(
            dataset, batch_size=recipe.forward_batch_size, num_workers=recipe.num_workers
        )
        for pixels, _ in batches:
            with autocast(device, recipe.precision):
                pooled = model.forward_pooled(pixels.to(device))
                rows.append(pooled[:, feature_set.block - 1, columns, :width])
        return torch.cat(rows).float().flatten(1)

    scored = features_of(val)

    def run_backbone_every_epoch() -> None:
        classifier = ParallelLinearHeads(
            normaliser, len(columns) * width, len(train.classes), single, seed=SEED, device=device
        )
        targets = torch.tensor(train.labels, device=device)
        for epoch in range(single.epochs):
            for rows, factor in epoch_steps(len(train), single, seed=SEED, epoch=epoch):
                features = features_of(train.subset(rows.tolist()))
                classifier.step(features, targets[rows.to(device)], factor)
        right = classifier.predict(scored)[0, 0].argmax(1) == labels
        top1["plain"] = 100 * float(right.float().mean())

    candidates = len(sets) * len(recipe.norm) * len(recipe.base_lr)
    timings = compare(
        {
            "one setting, backbone run every epoch": run_backbone_every_epoch,
            f"ours: all {candidates} settings": sweep,
        },
        rounds=arguments.rounds,
        warm_up=False,
    )
    shutil.rmtree(folder)
    report(
        f"linear probe of {checkpoint.spec.arch}, {len(train)} images in {len(train.classes)} classes, "
        f"{recipe.epochs} epochs",
        timings,
        arguments.json,
        top1_of_the_one_setting=round(top1["plain"], 2),
        top1_of_ours=round(top1["ours"], 2),
        images_scored=len(val),
    )


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
