"""Patches are sampled with the labels that a loop over their pixels counts, and predictions are interpolated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.dense import KNN, write_data
from support.tiny import TINY

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from transfer.dense.choice import hold_out
from transfer.dense.classifiers import neighbour_labels
from transfer.dense.label_map import assemble_classes
from transfer.dense.patches import PatchReader, map_options, probed_levels, sample_training_patches
from transfer.dense.recipes import Sampling
from transfer.dense.windows import WindowDataset, WindowedImage, sample_patches, window_starts
from transfer.segmentation.ade20k_layout import find_split
from transfer.segmentation.label_maps import IGNORED, LabelScheme


@pytest.mark.parametrize("stride", [4, 5, 16])
@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_a_patch_has_the_fractions_of_its_labelled_pixels(stride: int, sampling: Sampling) -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, IGNORED], (2, 16, 18), p=[0.1, 0.1, 0.1, 0.7])
    labels[0, :8, :8] = IGNORED  # patches without a class
    sampled = sample_patches(
        labels.astype(np.uint8), stride, 1000, classes=3, sampling=sampling, generator=generator
    )
    expected = {}
    columns, cell = -(-18 // stride), 0
    for window in labels:
        for top in range(0, 16, stride):
            for left in range(0, 18, stride):
                inside = [
                    window[y, x]
                    for y in range(top, min(top + stride, 16))
                    for x in range(left, min(left + stride, 18))
                    if window[y, x] != IGNORED
                ]
                if inside:
                    expected[cell] = [inside.count(k) / len(inside) for k in range(3)]
                cell += 1
    assert cell == 2 * -(-16 // stride) * columns
    assert sampled.cells.tolist() == list(expected)
    found = sampled.labels.float()
    torch.testing.assert_close(found, torch.tensor([*expected.values()]), atol=5e-4, rtol=0)


def test_balanced_sampling_takes_as_many_patches_of_a_rare_class() -> None:
    """Of two classes with 90 and 10 patches, uniform sampling takes 9 to 1 and balanced sampling 1 to 1."""
    labels = np.zeros((1, 10, 10), np.uint8)
    labels[0, 0] = 1

    def rare(sampling: Sampling) -> float:
        fractions = [
            sample_patches(
                labels,
                1,
                8,
                classes=2,
                sampling=sampling,
                generator=np.random.default_rng(seed),
            ).labels[:, 1]
            for seed in range(300)
        ]
        return float(torch.cat(fractions).float().mean())

    assert rare("uniform") == pytest.approx(0.1, abs=0.02)
    assert rare("balanced") == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("side", "window", "stride", "starts"),
    [(32, 32, 21, [0]), (33, 32, 21, [0, 1]), (53, 32, 21, [0, 21]), (54, 32, 21, [0, 21, 22])],
)
def test_windows_cover_a_side(side: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(side, window, stride) == starts


def test_neighbours_vote_as_in_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(30, 6, generator=generator))
    queries = F.normalize(torch.randn(7, 6, generator=generator))
    labels = torch.rand(30, 4, generator=generator)
    (votes,) = neighbour_labels(bank, labels, queries, (1, 5, 100), temperature=0.1)
    for k, found in zip((1, 5, 30), votes, strict=True):
        for query, scores in zip(queries, found, strict=True):
            nearest = sorted(range(30), key=lambda n: -float(query @ bank[n]))[:k]
            weights = [np.exp(float(query @ bank[n]) / 0.1) for n in nearest]
            expected = sum(w * labels[n].numpy() for w, n in zip(weights, nearest, strict=True))
            assert np.allclose(scores.numpy(), expected / sum(weights), atol=1e-5)


def test_the_classes_of_pixels_do_not_depend_on_how_many_are_held_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 3, 3, generator=generator)
    image = WindowedImage(0, (21, 30), (12, 17), [(0, 0), (0, 5)], torch.zeros(0), None, [])
    whole = assemble_classes(scores, image, (12, 12), 5)
    assert whole.shape == (21, 30)
    assert np.array_equal(whole, assemble_classes(scores, image, (12, 12), 5, at_once=1))
    # The first of equal scores, in one part and in several.
    for at_once in (1, 2**20):
        equal = assemble_classes(torch.zeros(2, 5, 3, 3), image, (12, 12), 5, at_once=at_once)
        assert not equal.any()


def test_every_familys_maps_have_the_cells_that_the_labels_are_cut_into(tmp_path: Path) -> None:
    """36 pixels do not divide into the strides of a Swin, ConvNeXt or ResNet."""
    generator = np.random.default_rng(0)
    pairs = [
        (
            generator.integers(0, 256, (36, 52, 3), np.uint8),
            generator.integers(1, 3, (36, 52), np.uint8),
        )
        for _ in range(2)
    ]
    split = find_split(write_data(tmp_path / "data", {"training": pairs}, classes=2), "training")
    recipe = replace(KNN, img_size=(36, 36))
    for spec in TINY.values():
        checkpoint = replace(read_checkpoint("random:vit_pocket"), spec=spec)
        levels = probed_levels(recipe, spec)
        run = RunDir(tmp_path, Display(quiet=True), writes=False)
        reader = PatchReader(RunContext(run=run, seed=0), checkpoint, recipe, levels)
        dataset = WindowDataset(
            split,
            LabelScheme(classes=2),
            recipe,
            strides=[level.stride for level in levels],
            count=10**6,
        )
        samples = sample_training_patches(reader, dataset)
        (_, maps), _ = reader.read(dataset, range(2), "maps")
        for level, sample, one in zip(levels, samples, maps, strict=True):
            side = -(-36 // level.stride)
            assert one.shape == (2, side, side, level.channels), spec.arch
            assert sample.features.shape == (2 * 2 * side**2, level.channels), spec.arch
        run.close()


def test_blocks_are_counted_from_one_and_from_the_last() -> None:
    vit, swin = find_spec("vit_b"), find_spec("swin_t")
    assert [level.block for level in probed_levels(KNN, vit)] == [3, 6, 9, 12]
    some = replace(KNN, blocks=(-1, 5))
    assert [(level.block, level.index) for level in probed_levels(some, vit)] == [(5, 0), (12, 1)]
    assert map_options(some, vit).blocks == (5, 12)
    last = replace(KNN, blocks=(-1,))
    assert [(level.block, level.index) for level in probed_levels(last, swin)] == [(4, 3)]
    with pytest.raises(UsageError, match="swin_t has no block 5; choose from 1 to 4"):
        probed_levels(replace(KNN, blocks=(5,)), swin)


def test_samples_depend_on_an_images_path_and_not_on_the_order_of_the_images(
    pocket: Path, tmp_path: Path
) -> None:
    split = find_split(pocket / "ade20k", "training")
    turned = replace(split, images=split.images[::-1], masks=split.masks[::-1])
    recipe = replace(KNN, blocks=(-1,))
    checkpoint = read_checkpoint("random:vit_pocket")
    found = []
    for images in (split, turned):
        run = RunDir(tmp_path, Display(quiet=True), writes=False)
        levels = probed_levels(recipe, checkpoint.spec)
        reader = PatchReader(RunContext(run=run, seed=0), checkpoint, recipe, levels)
        dataset = WindowDataset(
            images, LabelScheme(classes=16), recipe, strides=[4], count=9, seed=1
        )
        (sample,) = sample_training_patches(reader, dataset)
        assert sample.images.bincount().tolist() == [9] * len(split)
        held_out = {images.images[index] for index in hold_out(dataset, sample, 3)}
        by_path = {
            images.images[index]: sample.labels[sample.images == index]
            for index in range(len(split))
        }
        found.append((held_out, by_path))
        run.close()
    (held_out, by_path), (other_held_out, other_by_path) = found
    assert held_out == other_held_out
    assert len(held_out) == 3
    assert all(torch.equal(labels, other_by_path[path]) for path, labels in by_path.items())
