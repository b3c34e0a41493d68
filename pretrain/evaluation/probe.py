"""Probe the model under training: k-NN and logistic regression on features of a few labelled images.

Held-out loss and reconstructions do not show whether the features become useful; these scores do, epoch by epoch. They
monitor a run and are no scores of the leaderboard: few images, one setting of each classifier, no choice among
candidates. Labels reach the two classifiers alone. The model's weights, buffers and gradients stay as they are.

Legend: N images, D channels, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM
from simmim_bench.data.class_checks import check_same_classes
from simmim_bench.data.class_splits import class_files, has_validation
from simmim_bench.data.datasets import ImageDataset, eval_transform
from simmim_bench.data.loader import eval_loader
from simmim_bench.data.normalise import normalise
from simmim_bench.data.sources import NamedImages, describe_left_out
from simmim_bench.data.subsets import balanced_subset
from simmim_bench.display import format_duration
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.probes.knn import count_correct, knn_votes, to_unit_length
from simmim_bench.probes.logistic import fit_logistic
from simmim_bench.probes.norms import Normaliser
from simmim_bench.runs.context import RunContext
from simmim_bench.training.precision import autocast

# Ours: most images learnt and scored, 0.9 GB at 224 x 224 pixels; and most of both as a fraction of the training
# images. The forward pass of an image costs a third of its training step, or most of it if the encoder skips hidden
# patches: less than 5 % of the time if every epoch is probed. With 4 %, the demo's probes took 1.6 % of it.
LEARNT, SCORED = 4000, 2000
FRACTION = 0.06
HELD_OUT = (
    0.1  # fraction of the images of every class that is scored, of data without a validation split
)
MAX_TIME = 0.05  # fraction of the run's time, above which the log warns
NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO: eval_knn.py:195-196
L2 = 1e-3  # ours: among the strengths of the recipe `logistic`
BATCH = 64


@dataclass(frozen=True)
class ProbeImages:
    """Labelled images in memory.

    Attributes:
        pixels: (N, C, H, W), as decoded; the first `learnt` images are learnt, the others scored.
        labels: (N,).
        classes: the number of classes of the data set.
    """

    pixels: Tensor
    labels: Tensor
    learnt: int
    classes: int

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the images as tensors, which processes can send."""
        counts = torch.tensor([self.learnt, self.classes])
        return {"pixels": self.pixels, "labels": self.labels, "counts": counts}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> ProbeImages:
        """Return the images of the tensors of `to_tensors`."""
        learnt, classes = tensors["counts"].tolist()
        return cls(tensors["pixels"], tensors["labels"], learnt, classes)


def probe_blocks(spec: BackboneSpec) -> list[int]:
    """Return the blocks whose features are probed, counted from 1: the middle, three quarters, the last."""
    count = spec.probed_blocks  # of a Swin or a convolutional network: stages
    return sorted({ceil(count / 2), ceil(3 * count / 4), count})


def load_probe_images(
    context: RunContext, data: Path, recipe: PretrainRecipe, images: int, *, shard: bool
) -> ProbeImages | None:
    """Load images to learn from `train/` and to score from `val/`, sampled from the classes by a fixed seed.

    Without `val/`, a part of every class is held out to be scored.

    Args:
        data: a folder in ImageNet's layout.
        images: the number of training images.
        shard: whether the model is sharded, and every process takes part in its forward pass.

    Returns:
        None on processes that take no part.

    Raises:
        DataError: the data are missing, their splits differ in classes, or an image cannot be read.
    """

    def compute() -> dict[str, Tensor]:
        loaded.append(_load(context, data, recipe, int(FRACTION * images)))
        return loaded[0].to_tensors() if shard else {}

    loaded: list[ProbeImages] = []
    tensors = context.dist.compute_once(compute)
    return loaded[0] if loaded else ProbeImages.of(tensors) if tensors else None


def _load(context: RunContext, data: Path, recipe: PretrainRecipe, most: int) -> ProbeImages:
    """Load and decode at most `most` images, but one of each class of each split, and log their numbers."""
    started = time.monotonic()
    fraction = None
    if not has_validation(data):
        fraction = recipe.val_fraction or HELD_OUT
        context.run.log(
            f"probe: no validation images in {data}: held out fraction={fraction:g} of every class to score"
        )
    train, val = (class_files(data, split, fraction) for split in ("train", "val"))
    check_same_classes(train, val, data)
    for split, images in (("train", train), ("val", val)):
        for line in describe_left_out(images, split):
            context.run.log(f"probe: {line}")
    learnt = _sample(train, min(LEARNT, most * LEARNT // (LEARNT + SCORED)))
    scored = _sample(val, min(SCORED, most * SCORED // (LEARNT + SCORED)))
    mean, std = recipe.statistics
    transform = eval_transform(
        recipe.img_size,
        crop_ratio=1.0,
        mean=mean,
        std=std,
        as_bytes=True,
        pixel_format=recipe.pixel_format,
    )
    batches = [
        batch
        for images in (learnt, scored)
        for batch in eval_loader(
            ImageDataset(images, transform), batch_size=BATCH, num_workers=recipe.num_workers
        )
    ]
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    context.run.log(
        f"probe: images learnt={len(learnt):,} scored={len(scored):,} classes={len(train.classes):,} of {data}, loaded "
        f"in {format_duration(time.monotonic() - started)}; a monitor of the run, not a score of the leaderboard"
    )
    return ProbeImages(pixels, labels, len(learnt), len(train.classes))


def _sample(images: NamedImages, count: int) -> NamedImages:
    """Sample `count` images, but at least one of every class; the same in every run."""
    fraction = min(1.0, max(count, 1) / len(images))
    return images.subset(balanced_subset(images.labels, fraction, seed=0))


@torch.no_grad()
def probe_features(
    model: SimMIM,
    pixels: Tensor,
    *,
    statistics: tuple[Sequence[float], Sequence[float]],
    device: torch.device,
    precision: str,
) -> Tensor:
    """Return the mean patch tokens (N, blocks, D) of unmasked images after each of `probe_blocks`, float32.

    Args:
        pixels: (N, C, H, W) as decoded.
        statistics: mean and standard deviation that normalise the images.
        precision: "fp32", "bf16" or "fp16", of the forward pass.
    """
    model.eval()
    rows = torch.tensor([block - 1 for block in probe_blocks(model.spec)], device=device)
    features = []
    for part in pixels.split(BATCH):
        images = normalise(part, *statistics, device)
        with autocast(device, precision):
            pooled = model.forward_pooled(images)
        # The mean token is the first pooling; narrower stages end with zeros, which change no score.
        features.append(pooled[:, rows, 0].float())
    return torch.cat(features)


def probe_scores(features: Tensor, images: ProbeImages, spec: BackboneSpec) -> dict[str, float]:
    """Learn the first images and score the others by both classifiers: `knn_block6`, ...; top-1 in percent.

    Args:
        features: (N, blocks, D), as `probe_features` returns them.
    """
    labels = images.labels.to(features.device)
    learnt, truth = labels[: images.learnt], labels[images.learnt :]
    scores = {}
    for block, x in zip(probe_blocks(spec), features.unbind(1), strict=True):
        normaliser = Normaliser(["batch"], x[: images.learnt])
        train, val = normaliser.normalise_all(x).tensor_split([images.learnt])
        fit = fit_logistic(train, learnt, images.classes, L2)
        correct = int((fit.logits(val).argmax(1) == truth).sum())
        scores[f"logistic_block{block}"] = 100 * correct / len(truth)
        votes = knn_votes(
            to_unit_length(train),
            learnt,
            to_unit_length(val),
            images.classes,
            ks=[NEIGHBOURS],
            temperature=TEMPERATURE,
        )
        (correct,) = count_correct(votes, images.labels[images.learnt :], 1)
        scores[f"knn_block{block}"] = 100 * correct / len(truth)
    return dict(sorted(scores.items()))


def describe_cost(spent: float, total: float, every: int) -> str:
    """Describe the fraction of a run's time that its probes took, and the option that limits a large one.

    Args:
        spent: seconds of the probes.
        total: seconds of the run.
        every: epochs between probes.
    """
    fraction = spent / total
    line = f"fraction={fraction:.1%} of the run's time"
    if fraction > MAX_TIME:
        line += f"; --probe-every {ceil(every * fraction / MAX_TIME)} keeps it below {MAX_TIME:.0%}"
    return line
