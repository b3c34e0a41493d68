"""What is claimed of ADE20K transfer through MMSegmentation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.commands import two_processes

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.display import Display, Task
from simmim_bench.distributed import DistContext
from simmim_bench.errors import (
    DataError,
    DivergedError,
    InterruptedRun,
    MissingFrameworkError,
    UsageError,
)
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.results.record import Record
from simmim_bench.runs.run_dir import RunDir, open_run
from transfer.segmentation.recipes import ADE20K_LINEAR_POCKET, ADE20K_POCKET, Ade20kRecipe
from transfer.segmentation.run import import_mmseg, run_ade20k

ARCHS = ("vit_pocket", "swin_pocket")
TINY = replace(
    ADE20K_POCKET, max_iters=4, warmup_iters=1, batch_size=2, head_channels=16, drop_path_rate=0.1
)


@pytest.fixture(scope="session")
def engine() -> Any:
    pytest.importorskip("mmseg", reason="needs the extra [seg]")
    return import_mmseg()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "pocket"
    one = dict.fromkeys(("coco_train", "coco_val"), 1) | dict.fromkeys(
        ("imagenet_train", "imagenet_val"), 10
    )
    write_pocket(root, counts=PocketCounts(ade20k_train=5, ade20k_val=3, **one))
    image = Image.open(root / "ade20k/images/validation/ADE_val_00000002.jpg").resize((57, 75))
    image.save(root / "ade20k/images/validation/ADE_val_00000002.jpg")
    mask = Image.open(root / "ade20k/annotations/validation/ADE_val_00000002.png")
    mask.resize((57, 75), Image.Resampling.NEAREST).save(
        root / "ade20k/annotations/validation/ADE_val_00000002.png"
    )
    return root / "ade20k"


@pytest.fixture
def data(generated: Path, tmp_path: Path) -> Path:
    """Give a copy that a test may spoil."""
    return Path(shutil.copytree(generated, tmp_path / "data"))


@contextmanager
def opened(path: Path, recipe: Ade20kRecipe, *, resume: bool = False) -> Iterator[RunDir]:
    display = Display(quiet=True)
    with open_run(
        path, recipe=recipe, deviates={}, arguments={}, display=display, resume=resume
    ) as run:
        yield run


def transfer(
    path: Path,
    data: Path,
    recipe: Ade20kRecipe = TINY,
    *,
    ckpt: str = "random:vit_pocket",
    seed: int = 3,
    resume: bool = False,
) -> Record:
    with opened(path, recipe, resume=resume) as run:
        return run_ade20k(
            checkpoint=read_checkpoint(ckpt),
            data=data,
            run=run,
            recipe=recipe,
            deviates={},
            seed=seed,
            resume=resume,
        )


@pytest.fixture(scope="session")
def finished(engine: Any, generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of an undisturbed run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    transfer(path, generated)
    return path


def entries(run: Path) -> np.ndarray:
    with np.load(run / "predictions/confusion.npz") as stored:
        return stored["entries"]


def loaders(*arguments: Any, **keywords: Any) -> Any:
    from transfer.segmentation.data import build_loaders

    return build_loaders(*arguments, **keywords)


# The adapter.


@pytest.mark.parametrize("arch", ARCHS)
def test_adapter_has_the_weights_of_load_backbone(engine: Any, arch: str) -> None:
    from simmim_bench.backbones import load_backbone

    adapter = adapter_class()(f"random:{arch}", img_size=64, seed=5)
    adapter.init_weights()
    expected = load_backbone(f"random:{arch}", (64, 64), seed=5).state_dict()
    for name, value in adapter.backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_adapter_is_built_from_a_plain_config_and_gives_the_levels_asked_for(engine: Any) -> None:
    from mmengine.config import Config
    from mmseg.registry import MODELS

    config = Config(
        {
            "custom_imports": {"imports": ["transfer.mmseg_backbone"]},
            "backbone": {
                "type": "SimMIMBackbone",
                "ckpt": "random:swin_pocket",
                "img_size": (64, 64),
                "out_indices": (1, 3),
            },
        }
    )
    adapter = MODELS.build(config.backbone)
    assert (adapter.channels, adapter.strides) == ((96, 384), (4, 16))
    assert [m.shape[1] for m in adapter(torch.zeros(1, 3, 64, 64))] == [96, 384]


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_trained_is_beyond_the_levels_asked_for(engine: Any, arch: str) -> None:
    adapter = adapter_class()(f"random:{arch}", out_indices=(0, -3))
    sum(m.square().mean() for m in adapter(torch.randn(1, 3, 32, 32))).backward()
    trained = [(n, p) for n, p in adapter.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None] == []


@pytest.mark.parametrize(
    ("arch", "layers"),
    [("vit_pocket", (1, 2, 4)), ("swin_pocket", (1, 2, 5)), ("resnet_pocket", (1, 3, 7))],
)
def test_frozen_stages_are_those_up_to_a_level(
    engine: Any, arch: str, layers: tuple[int, ...]
) -> None:
    everything = dict(adapter_class()(f"random:{arch}").named_parameters())
    for stages, first_trained in zip((0, 1, 3), layers, strict=True):
        adapter = adapter_class()(f"random:{arch}", frozen_stages=stages)
        for name, parameter in adapter.backbone.named_parameters():
            wanted = everything[f"backbone.{name}"].requires_grad
            deep = adapter.backbone.layer_id(name) >= first_trained
            assert parameter.requires_grad == (wanted and deep), name
    with pytest.raises(UsageError, match=r"frozen_stages 5 is not in -1..4"):
        adapter_class()(f"random:{arch}", frozen_stages=5)


def test_init_cfg_is_honoured_or_refused(engine: Any, tmp_path: Path) -> None:
    wanted = adapter_class()("random:vit_pocket", seed=5)
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": wanted.state_dict()}, file)
    init = {"type": "Pretrained", "checkpoint": str(file)}
    adapter = adapter_class()("random:vit_pocket", seed=6, init_cfg=init)
    adapter.init_weights()
    for name, value in wanted.state_dict().items():
        assert torch.equal(adapter.state_dict()[name], value), name
    with pytest.raises(DataError, match="does not hold this backbone"):
        adapter_class()("random:swin_pocket", init_cfg=init).init_weights()
    with pytest.raises(UsageError, match="not of type 'Pretrained'"):
        adapter_class()("random:swin_pocket", init_cfg={"type": "Normal"}).init_weights()


@pytest.mark.parametrize("synced", [False, True])
def test_a_resnet_is_normalised_over_as_many_images_as_the_heads(engine: Any, synced: bool) -> None:
    checkpoint = read_checkpoint("random:resnet_pocket")
    model = engine.build_segmentor(checkpoint, TINY, 5, 0, synced=synced)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 30
    assert all(isinstance(m, torch.nn.SyncBatchNorm) == synced for m in norms)


def test_a_linear_layer_leaves_a_resnets_statistics_alone(engine: Any) -> None:
    model = segmentor(
        engine, "random:resnet_pocket", replace(TINY, head="linear", auxiliary_weight=0.0)
    )
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    model.train().loss(*training_batch())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_buffers())


@pytest.mark.parametrize("arch", ARCHS)
def test_loss_reaches_every_weight_of_the_backbone(engine: Any, arch: str) -> None:
    model = segmentor(engine, f"random:{arch}", TINY)
    losses = model.loss(*training_batch())
    sum(value for name, value in losses.items() if "loss" in name).backward()
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def adapter_class() -> Any:
    from transfer.mmseg_backbone import SimMIMBackbone

    return SimMIMBackbone


def segmentor(engine: Any, ckpt: str, recipe: Ade20kRecipe, classes: int = 5, seed: int = 0) -> Any:
    return engine.build_segmentor(read_checkpoint(ckpt), recipe, classes, seed)


def training_batch() -> tuple[torch.Tensor, list[Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        truth = torch.randint(0, 5, (1, 64, 64), generator=generator)
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=truth)))
    return torch.randn(2, 3, 64, 64, generator=generator), samples


def test_pyramid_of_a_vit_begins_with_stride_4_or_half_a_small_patch(engine: Any) -> None:
    from simmim_bench.models.archs import find_spec

    for arch, size, wanted in (("vit_pocket", 64, [2, 4, 8, 16]), ("vit_ti", 128, [4, 8, 16, 32])):
        recipe = replace(TINY, img_size=(size, size))
        model = segmentor(engine, f"random:{arch}", recipe)
        maps = model.extract_feat(torch.zeros(1, 3, size, size))
        assert [size // m.shape[-1] for m in maps] == wanted
        assert {m.shape[1] for m in maps} == {find_spec(arch).embed_dim}


# The protocol.


def test_images_reach_the_backbone_as_normalised_rgb(engine: Any, data: Path) -> None:
    checkpoint = read_checkpoint("random:vit_pocket")
    model = segmentor(engine, "random:vit_pocket", TINY)
    split = split_of(data, "training")
    _, loader = loaders(TINY, split, split, ["x"] * 16, seed=0, first_iteration=0)
    inputs = model.data_preprocessor(next(iter(loader)))["inputs"]
    pixels = np.asarray(Image.open(split.images[0]).convert("RGB")) / 255
    expected = (pixels - np.array(checkpoint.mean)) / np.array(checkpoint.std)
    np.testing.assert_allclose(inputs[0].permute(1, 2, 0), expected, atol=1e-5)


def split_of(data: Path, name: str) -> Any:
    from transfer.segmentation.ade20k_layout import find_split

    return find_split(data, name)


def test_label_0_is_ignored_and_label_1_is_class_0(engine: Any, data: Path) -> None:
    split = split_of(data, "validation")
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 10:] = 1
    labels[:, 20:] = 16
    Image.fromarray(labels).save(split.masks[0])
    _, loader = loaders(TINY, split, split, ["x"] * 16, seed=0, first_iteration=0)
    truth = next(iter(loader))["data_samples"][0].gt_sem_seg.data[0]
    assert truth[0, [0, 9, 10, 19, 20, 63]].tolist() == [255, 255, 0, 0, 15, 15]


def test_training_crops_have_the_recipes_size_and_pair_pixels_with_labels(
    engine: Any, data: Path
) -> None:
    split = split_of(data, "training")
    for image, mask in zip(split.images, split.masks, strict=True):
        # An image that shows its own labels, smooth enough for interpolation.
        ramp = np.linspace(1, 16, 64).round().astype(np.uint8)
        labels = np.broadcast_to(ramp, (64, 64))
        Image.fromarray(np.repeat(labels[..., None] * 15, 3, axis=2)).save(image, quality=100)
        Image.fromarray(labels).save(mask)
    recipe = replace(TINY, img_size=(48, 40), scale_range=(0.5, 2.0))
    loader, _ = loaders(recipe, split, split, ["x"] * 16, seed=0, first_iteration=0)
    model = segmentor(engine, "random:vit_pocket", recipe)
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


def test_draws_depend_on_seed_and_number_alone(engine: Any, generated: Path) -> None:
    split = split_of(generated, "training")

    def batches(first: int, workers: int, seed: int = 0) -> list[torch.Tensor]:
        recipe = replace(TINY, num_workers=workers, photometric=True)
        loader, _ = loaders(recipe, split, split, ["x"] * 16, seed=seed, first_iteration=first)
        return [torch.stack([i.float().mean((1, 2)) for i in batch["inputs"]]) for batch in loader]

    whole = batches(0, 0)
    assert len(whole) == TINY.max_iters
    assert all(map(torch.equal, whole[2:], batches(2, 0)))
    assert all(map(torch.equal, whole, batches(0, 2)))
    assert not any(map(torch.equal, whole, batches(0, 0, seed=1)))


def test_every_image_is_drawn_once_an_epoch(engine: Any, generated: Path) -> None:
    split = split_of(generated, "training")
    loader, _ = loaders(
        replace(TINY, max_iters=5), split, split, ["x"] * 16, seed=0, first_iteration=0
    )
    drawn = [s.img_path for batch in loader for s in batch["data_samples"]]
    assert set(drawn[:5]) == set(drawn[5:]) == set(split.images)
    assert drawn[:5] != drawn[5:]


def test_shares_of_two_processes_are_disjoint_and_make_the_batches_of_one(
    engine: Any, generated: Path
) -> None:
    training, validation = split_of(generated, "training"), split_of(generated, "validation")
    recipe = replace(TINY, batch_size=4)

    def loaders_of(dist: DistContext | None) -> Any:
        return loaders(
            recipe, training, validation, ["x"] * 16, seed=0, first_iteration=1, dist=dist
        )

    (train_0, val_0), (train_1, val_1) = (loaders_of(DistContext(rank, 2)) for rank in (0, 1))
    alone, val_alone = loaders_of(None)
    assert not set(train_0.sampler) & set(train_1.sampler)
    assert len(alone) == len(train_0) == len(train_1) == 3
    for whole, *shares in zip(alone, train_0, train_1, strict=True):
        assert [len(share["inputs"]) for share in shares] == [2, 2]
        both = [image for share in shares for image in share["inputs"]]
        assert all(map(torch.equal, both, whole["inputs"]))
        drawn = [[s.img_path for s in batch["data_samples"]] for batch in (*shares, whole)]
        assert drawn[0] + drawn[1] == drawn[2]
    assert sorted([*val_0.sampler, *val_1.sampler]) == list(val_alone.sampler) == [0, 1, 2]
    assert (list(val_0.sampler), list(val_1.sampler)) == ([0, 2], [1])
    assert list(loaders_of(DistContext(3, 4))[1].sampler) == []  # three images


@pytest.mark.parametrize("images", [1, 4, 5])
def test_matrices_of_two_processes_come_in_the_images_order(
    engine: Any, generated: Path, images: int
) -> None:
    """Of one image the second process has none."""
    split = split_of(generated, "training")
    validation = replace(split, images=split.images[:images], masks=split.masks[:images])
    metrics = []
    for rank in (0, 1):
        _, loader = loaders(
            TINY,
            split,
            validation,
            ["x"] * 16,
            seed=0,
            first_iteration=0,
            dist=DistContext(rank, 2),
        )
        metric = engine.ConfusionMetric(generated / "images/training")
        metric.dataset_meta = {"classes": ["x"] * 16}
        for batch in loader:
            truth = batch["data_samples"][0].gt_sem_seg.data
            sample = {"gt_sem_seg": {"data": truth}, "pred_sem_seg": {"data": truth % 16}}
            metric.process(None, [sample])
        metrics.append(metric)
    shares = [(metric.confusions, metric.shown) for metric in metrics]
    assert [len(confusions) for confusions, _ in shares] == [-(-images // 2), images // 2]
    confusions, shown = (engine.in_order(part, images) for part in zip(*shares, strict=True))
    for kept in (confusions, shown):
        assert len(kept) == images
    for index, mask in enumerate(validation.masks):
        labels = np.asarray(Image.open(mask)).astype(np.uint8)
        counts = np.bincount(labels.ravel(), minlength=17)[1:]
        assert np.array_equal(confusions[index], np.diag(counts))
        assert np.array_equal(shown[index], (labels - np.uint8(1)) % 16)


def test_learning_rate_is_that_of_mmengines_schedulers(engine: Any) -> None:
    from mmengine.optim import LinearLR, PolyLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        LinearLR(optimizer, start_factor=1e-6, by_epoch=False, begin=0, end=15),
        PolyLR(optimizer, eta_min=0.0, power=1.0, begin=15, end=100, by_epoch=False),
    ]
    for iteration in range(100):
        expected = optimizer.param_groups[0]["lr"]
        assert engine.lr_factor(iteration, 15, 100) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_bfloat16_trains_on_a_cpu_too(engine: Any, generated: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, precision="bf16", max_iters=2)
    record = transfer(tmp_path / "run", generated, recipe, ckpt="random:swin_pocket")
    assert record.evaluated == 3


def test_sliding_windows_predict_at_the_original_size(
    engine: Any, generated: Path, tmp_path: Path
) -> None:
    recipe = replace(TINY, test_mode="slide", img_size=(32, 32), max_iters=2)
    transfer(tmp_path / "run", generated, recipe)
    assert_counts_every_labelled_pixel(tmp_path / "run", generated)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_several_scales_and_mirrored_are_averaged_at_the_original_size(
    engine: Any, data: Path, tmp_path: Path, mode: str
) -> None:
    """Images smaller and larger than the crop, of odd sides."""
    for index, size in enumerate([(31, 23), (57, 75), (201, 90)]):
        name = f"ADE_val_{index + 1:08}"
        for folder, kind in (("images", "jpg"), ("annotations", "png")):
            path = data / folder / "validation" / f"{name}.{kind}"
            with Image.open(path) as picture:
                picture.resize(size, Image.Resampling.NEAREST).save(path)
    recipe = replace(TINY, test_mode=mode, max_iters=2, test_scales=(0.5, 1.0, 1.75))
    transfer(tmp_path / "run", data, replace(recipe, test_flip=True))
    assert_counts_every_labelled_pixel(tmp_path / "run", data)
    transfer(tmp_path / "unmirrored", data, recipe)
    assert not np.array_equal(entries(tmp_path / "run"), entries(tmp_path / "unmirrored"))


def test_views_of_an_image_are_averaged_as_probabilities(
    engine: Any, data: Path, tmp_path: Path
) -> None:
    from simmim_bench.checkpoints.read import read_training_state

    recipe = replace(TINY, max_iters=1, test_flip=True)
    with opened(tmp_path / "run", recipe) as run:
        run_ade20k(
            checkpoint=read_checkpoint("random:vit_pocket"),
            data=data,
            run=run,
            recipe=recipe,
            deviates={},
            seed=3,
            label_maps=True,
        )
    model = segmentor(engine, "random:vit_pocket", recipe, classes=16)
    model.load_state_dict(read_training_state(tmp_path / "run/checkpoints/last")["model"])
    model.eval()
    split = split_of(data, "validation")
    pixels = np.array(Image.open(split.images[0]))[..., ::-1].copy()  # 64 x 64, BGR
    views = torch.from_numpy(np.stack([pixels, pixels[:, ::-1]])).permute(0, 3, 1, 2)
    with torch.no_grad():
        inputs = model.data_preprocessor({"inputs": list(views)})["inputs"]
        found = model.encode_decode(inputs, [{"img_shape": (64, 64)}] * 2).softmax(1)
    mean = (found[0] + found[1].flip(-1)) / 2
    kept = np.array(Image.open(tmp_path / "run/predictions/label_maps/ADE_val_00000001.png"))
    assert (kept == mean.argmax(0).numpy() + 1).mean() > 0.999  # a tie may fall the other way


def test_a_linear_head_learns_and_leaves_the_backbone_alone(
    engine: Any, generated: Path, tmp_path: Path
) -> None:
    from simmim_bench.checkpoints.read import read_training_state

    recipe = replace(ADE20K_LINEAR_POCKET, max_iters=3, warmup_iters=0, batch_size=2)
    transfer(tmp_path / "run", generated, recipe)
    before = segmentor(engine, "random:vit_pocket", recipe, classes=16, seed=3)
    names = [name for name, p in before.named_parameters() if p.requires_grad]
    assert names == ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"]
    assert before.decode_head.conv_seg.weight.shape == (16, 4 * 128, 1, 1)
    after = read_training_state(tmp_path / "run/checkpoints/last")["model"]
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(after[f"backbone.{name}"], value), name
    assert after["decode_head.conv_seg.weight"].abs().max() > 0


def test_iou_by_class_is_that_of_a_naive_count(finished: Path, generated: Path) -> None:
    stored = entries(finished).tolist()
    names = (generated / "classes.txt").read_text().splitlines()
    by_class = json.loads((finished / "iou_by_class.json").read_text())
    for c, name in enumerate(names):
        union = sum(n for _, t, p, n in stored if c in (t, p))
        hit = sum(n for _, t, p, n in stored if t == p == c)
        assert by_class.get(name) == (pytest.approx(100 * hit / union) if union else None)


def test_two_processes_train_together_and_predict_what_one_does(
    engine: Any, generated: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [f"-o{key}" for key in ("max_iters=3", "batch_size=4", "head_channels=16")]
    arguments = ["transfer", "ade20k", "--ckpt", "random:vit_pocket", "--data", str(generated)]
    two_processes(*arguments, *overrides, "--out", str(run))
    found = entries(run)
    assert_counts_every_labelled_pixel(run, generated)
    shutil.rmtree(run / "predictions")
    (run / "record.json").unlink()
    done = CliRunner().invoke(
        cli, [*arguments, *overrides, "--out", str(run), "--resume", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    assert np.array_equal(entries(run), found)


def assert_counts_every_labelled_pixel(run: Path, data: Path) -> None:
    masks = sorted((data / "annotations/validation").glob("*.png"))
    stored = entries(run)
    for index, mask in enumerate(masks):
        labelled = int((np.asarray(Image.open(mask)) > 0).sum())
        assert stored[stored[:, 0] == index, 3].sum() == labelled


# Scores.


def test_record_has_the_miou_of_a_naive_count_and_of_mmseg(
    engine: Any, finished: Path, generated: Path
) -> None:
    from simmim_bench.results.record import read_record

    record = read_record(finished / "record.json")
    assert (record.evaluated, record.expected) == (3, 3)
    ious, hits, labelled = [], 0, 0
    stored = entries(finished).tolist()
    for c in range(16):
        hit = sum(n for _, t, p, n in stored if t == c and p == c)
        union = sum(n for _, t, p, n in stored if t == c or p == c)
        hits, labelled = hits + hit, labelled + sum(n for _, t, _, n in stored if t == c)
        if union:
            ious.append(hit / union)
    assert record.metrics["miou"] == pytest.approx(100 * sum(ious) / len(ious), abs=1e-6)
    assert record.metrics["aacc"] == pytest.approx(100 * hits / labelled, abs=1e-6)


def test_record_names_the_data_of_both_splits(finished: Path, generated: Path) -> None:
    from simmim_bench.results.record import read_record

    record = read_record(finished / "record.json")
    assert record.data == {
        "root": str(generated),
        "fingerprint": split_of(generated, "validation").fingerprint(),
        "train_fingerprint": split_of(generated, "training").fingerprint(),
    }


def test_stored_counts_are_what_mmseg_counts_at_the_original_size(
    engine: Any, finished: Path, generated: Path
) -> None:
    from mmseg.evaluation import IoUMetric

    assert_counts_every_labelled_pixel(finished, generated)
    # Predict again, by the saved weights and mmseg's own evaluation.
    from simmim_bench.checkpoints.read import read_training_state
    from simmim_bench.results.record import read_record

    checkpoint = read_checkpoint("random:vit_pocket")
    model = engine.build_segmentor(checkpoint, TINY, 16, 3)
    model.load_state_dict(read_training_state(finished / "checkpoints/last")["model"])
    model.eval()
    split = split_of(generated, "validation")
    _, loader = loaders(TINY, split, split, ["x"] * 16, seed=0, first_iteration=0)
    areas = []
    for batch in loader:
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        found, truth = sample.pred_sem_seg.data[0], sample.gt_sem_seg.data[0]
        with Image.open(sample.img_path) as image:
            assert found.shape == truth.shape == (image.height, image.width)
        areas.append(IoUMetric.intersect_and_union(found, truth, 16, 255))
    totals = [torch.stack(area).sum(0).double() for area in zip(*areas, strict=True)]
    scores = IoUMetric.total_area_to_metrics(*totals, ["mIoU"])
    record = read_record(finished / "record.json")
    assert record.metrics["miou"] == pytest.approx(100 * np.nanmean(scores["IoU"]), abs=1e-6)
    assert record.metrics["macc"] == pytest.approx(100 * np.nanmean(scores["Acc"]), abs=1e-6)
    assert record.metrics["aacc"] == pytest.approx(100 * float(scores["aAcc"]), abs=1e-6)


def test_confusion_has_truth_in_rows_and_leaves_ignored_pixels_out(engine: Any) -> None:
    truth = np.array([[0, 0, 2], [255, 1, 2]])
    predicted = np.array([[1, 0, 2], [2, 1, 0]])
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert engine.confusion_matrix(truth, predicted, 3).tolist() == expected


def test_label_maps_lie_as_their_images_do(engine: Any, tmp_path: Path) -> None:
    metric = engine.ConfusionMetric(tmp_path / "images/validation", tmp_path / "maps")
    metric.dataset_meta = {"classes": ("x", "y")}
    for city, predicted in (("cityA", 0), ("cityB", 1)):
        sample = {
            "img_path": tmp_path / f"images/validation/{city}/1.jpg",
            "gt_sem_seg": {"data": torch.zeros(1, 4, 6, dtype=torch.uint8)},
            "pred_sem_seg": {"data": torch.full((1, 4, 6), predicted)},
        }
        metric.process(None, [sample])
    for city, label in (("cityA", 1), ("cityB", 2)):
        with Image.open(tmp_path / f"maps/{city}/1.png") as kept:
            assert np.array_equal(np.asarray(kept), np.full((4, 6), label))


# Runs.


def test_run_leaves_what_is_promised_and_nothing_else(finished: Path) -> None:
    assert sorted(entry.name for entry in finished.iterdir()) == [
        "checkpoints",
        "env.json",
        "iou_by_class.json",
        "log.txt",
        "metrics.jsonl",
        "predictions",
        "predictions.png",
        "recipe.json",
        "record.json",
        "tensorboard",
    ]
    with Image.open(finished / "predictions.png") as picture:
        assert picture.height == 3 * 192


def test_run_is_silent_where_the_display_is(
    engine: Any, generated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        transfer(tmp_path / "run", generated, replace(TINY, max_iters=1))
    assert capfd.readouterr() == ("", "")


def test_same_seed_gives_the_same_predictions_and_another_seed_others(
    generated: Path, finished: Path, tmp_path: Path
) -> None:
    transfer(tmp_path / "same", generated)
    transfer(tmp_path / "other", generated, seed=4)
    assert np.array_equal(entries(finished), entries(tmp_path / "same"))
    assert not np.array_equal(entries(finished), entries(tmp_path / "other"))


def test_interrupted_run_resumes_at_its_iteration_and_ends_as_an_undisturbed_one(
    engine: Any,
    generated: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = Task.advance
    steps = []

    def stop_at_second(self: Task, count: int = 1, **figures: float) -> None:
        advance(self, count, **figures)
        steps.append(count)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "run"
    monkeypatch.setattr(Task, "advance", stop_at_second)
    with pytest.raises(InterruptedRun, match=r"step 2 of 4, which is saved.*--resume") as caught:
        transfer(path, generated)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert not (path / "record.json").exists()
    steps.clear()
    monkeypatch.setattr(Task, "advance", lambda *a, **k: steps.append(a))
    record = transfer(path, generated, resume=True)
    assert len(steps) == 2 + 3  # iterations and images
    assert np.array_equal(entries(finished), entries(path))
    assert record.metrics["miou"] >= 0


def test_run_interrupted_while_predicting_resumes_without_training(
    engine: Any, generated: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "record.json").unlink()
    (path / ".mmengine-killed").mkdir()
    monkeypatch.setattr(engine.Runner, "train", lambda self: pytest.fail("trained again"))
    transfer(path, generated, resume=True)
    assert np.array_equal(entries(finished), entries(path))
    assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in finished.iterdir())


def test_warning_of_slurm_while_predicting_ends_the_run_as_sigterm_does(
    engine: Any, generated: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    (path / "record.json").unlink()
    steps = []

    def warn_at_first(self: Task, count: int = 1, **figures: float) -> None:
        steps.append(count)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Task, "advance", warn_at_first)
    message = r"4 iterations done and saved, predicting: stopped by SIGUSR1.*--resume"
    with pytest.raises(InterruptedRun, match=message) as caught:
        transfer(path, generated, resume=True)
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_saved_checkpoint_is_the_finetuned_backbone(finished: Path) -> None:
    from simmim_bench.backbones import load_backbone

    checkpoint = read_checkpoint(str(finished))
    report: Any = load_backbone(checkpoint).load_report
    assert [report.missing, report.unused, report.resized] == [[], [], []]
    assert checkpoint.label == "vit_pocket, random, ade20k_pocket"


def test_ade20ks_own_names_serve_where_classes_txt_is_missing(
    engine: Any, data: Path, tmp_path: Path
) -> None:
    (data / "classes.txt").unlink()
    record = transfer(tmp_path / "run", data, replace(TINY, max_iters=1))
    assert record.details["classes"] == 150
    with np.load(tmp_path / "run/predictions/confusion.npz") as stored:
        assert stored["names"][[0, 7, 149]].tolist() == ["wall", "bed", "flag"]


# Errors.


def image_of(data: Path, split: str = "training") -> Path:
    return sorted((data / "images" / split).glob("*.jpg"))[0]


def mask_of(data: Path, split: str = "training") -> Path:
    return sorted((data / "annotations" / split).glob("*.png"))[0]


def spoil_label(data: Path) -> None:
    labels = np.array(Image.open(mask_of(data)))
    labels[3, 5] = 17
    Image.fromarray(labels).save(mask_of(data))


def spoil_sixteen_bit_label(data: Path) -> None:
    # 257 would be label 1 in 8 bits.
    Image.fromarray(np.full((64, 64), 257, np.uint16)).save(mask_of(data))


def empty_images(data: Path) -> None:
    for path in (data / "images/training").glob("*"):
        path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no data": (shutil.rmtree, r"images/training is not there"),
    "no validation": (
        lambda data: shutil.rmtree(data / "images/validation"),
        r"images/validation is not there; .*ADE20K's layout",
    ),
    "no annotations": (
        lambda data: shutil.rmtree(data / "annotations/training"),
        r"annotations/training is not there",
    ),
    "no images": (
        empty_images,
        r"images/training has no images \(\*\.jpg\)",
    ),
    "image without annotation": (
        lambda data: mask_of(data).unlink(),
        r"ADE_train_00000001\.png is not there \(1 of 5 images",
    ),
    "label above K": (
        spoil_label,
        r"ADE_train_00000001\.png has label 17, the largest of 16 classes is 16; use 0",
    ),
    "label above 255": (spoil_sixteen_bit_label, r"has label 257, the largest"),
    "mask of another size": (
        lambda data: Image.open(mask_of(data)).resize((60, 64)).save(mask_of(data)),
        r"\.png is 64x60 pixels \(HxW\), its image 64x64",
    ),
    "mask in colour": (
        lambda data: Image.open(mask_of(data)).convert("RGB").save(mask_of(data)),
        r"ADE_train_00000001\.png has 3 channels \(RGB\), a label map has one; save it as",
    ),
    "truncated mask": (
        lambda data: truncate(mask_of(data, "validation")),
        r"ADE_val_00000001\.png cannot be read",
    ),
    "truncated image": (lambda data: truncate(image_of(data)), r"_00000001\.jpg cannot be read"),
    "one class": (
        lambda data: (data / "classes.txt").write_text("all\n"),
        r"classes\.txt names 1 classes; 2 to 255 are allowed",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_bad_data_is_named_in_one_line(engine: Any, data: Path, tmp_path: Path, what: str) -> None:
    spoil, message = SPOILED[what]
    spoil(data)
    with pytest.raises(DataError, match=message) as caught:
        transfer(tmp_path / "run", data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_found_while_training_is_named_in_one_line_too(
    engine: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("transfer.segmentation.ade20k_layout.CHECK_AT_ONCE", 0)
    for mask in (data / "annotations/training").glob("*.png"):
        Image.fromarray(np.full((64, 64), 99, np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"^annotation .*png has label 99, ") as caught:
        transfer(tmp_path / "run", data, replace(TINY, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_validation_without_a_label_is_refused(engine: Any, data: Path, tmp_path: Path) -> None:
    for mask in (data / "annotations/validation").glob("*.png"):
        Image.open(mask).point(lambda _: 0).save(mask)
    with pytest.raises(DataError, match=r"annotations/validation hold nothing but label 0"):
        transfer(tmp_path / "run", data, replace(TINY, max_iters=1))


def test_loss_that_is_not_finite_ends_the_run(engine: Any, generated: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, base_lr=1e30, max_iters=20, clip_grad=0.0)
    with pytest.raises(DivergedError, match=r"gradient norm \S+ at iteration \d+; lower base_lr"):
        transfer(tmp_path / "run", generated, recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, r"batch_size 1 is too small"),
        ({"img_size": (12, 64)}, r"img_size \(12, 64\) is below 16 pixels"),
        ({"test_scales": (0.1, 1.0)}, r"test_scales 0.1 of img_size .* use 0.25 or more"),
    ],
)
def test_sizes_that_upernet_cannot_have_are_refused(
    engine: Any, generated: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        transfer(tmp_path / "run", generated, replace(TINY, **changes))


@pytest.mark.parametrize("library", ["mmseg", "mmengine", "mmcv"])
def test_missing_engine_names_the_extra(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    # The adapter stays: a second import would register it twice.
    for name in ("transfer.segmentation.loop", "transfer.segmentation.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("transfer.segmentation.loop", raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingFrameworkError, match=r"simmim-bench\[seg\]"):
        transfer(tmp_path / "run", generated)
