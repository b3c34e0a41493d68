"""Tests of COCO transfer with gradient accumulation, recomputed activations and several processes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.commands import two_processes

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint, read_training_state
from simmim_bench.cli.main import cli
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError, UsageError
from simmim_bench.training.memory import step_memory

pytest.importorskip("detectron2")
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from transfer.detectron2_backbone import SimMIMBackbone, build_pyramid

SMALL = {
    "img_size": "32",
    "max_iters": "3",
    "warmup_iters": "0",
    "batch_size": "4",
    "neck_channels": "16",
    "box_head_dim": "16",
    "post_nms_topk": "8,8",
    # All anchors and regions are used, so that nothing is sampled.
    "rpn_samples": "1000",
    "roi_samples": "1000",
}


def arguments(out: Path, data: Path, **changes: str) -> list[str]:
    overrides = [f"--override={key}={value}" for key, value in {**SMALL, **changes}.items()]
    start = ["transfer", "coco", "--ckpt", "random:swin_pocket", "--data", str(data / "coco")]
    return [*start, "--out", str(out), "--quiet", *overrides]


def transfer(*options: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_training_state(run / "checkpoints" / "last")["model"]
    return state


@pytest.mark.heavy
def test_two_processes_train_like_one_with_two_accumulation_steps(
    pocket: Path, tmp_path: Path
) -> None:
    two_processes(*arguments(tmp_path / "two", pocket), "--accumulate", "1")
    one = transfer(*arguments(tmp_path / "one", pocket), "--accumulate", "2")
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["details"]["losses"] == pytest.approx(one["details"]["losses"], rel=1e-4)
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)

    # Every image is predicted once, in the same order.
    assert (two["evaluated"], two["expected"]) == (6, 6)
    detections = [
        json.loads((tmp_path / run / "predictions" / "coco_results.json").read_text())
        for run in ("two", "one")
    ]
    images = [[d["image_id"] for d in found] for found in detections]
    assert images[0] == images[1]
    assert images[0] == sorted(images[0])
    for a, b in zip(*detections, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-3)


def test_a_batch_that_processes_cannot_split_evenly_is_refused(
    pocket: Path, tmp_path: Path
) -> None:
    from simmim_bench.checkpoints.read import read_checkpoint
    from simmim_bench.distributed import DistContext
    from simmim_bench.runs.context import RunContext
    from transfer.detection.own_recipes import COCO_POCKET
    from transfer.detection.run import run_coco
    from transfer.job import TransferJob

    job = TransferJob(
        task="coco",
        checkpoint=read_checkpoint("random:swin_pocket"),
        data=pocket / "coco",
        recipe=COCO_POCKET,
        deviates={},
    )
    context = RunContext(run=None, seed=0, dist=DistContext(rank=0, size=3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size=8 is not a multiple of the 3 processes"):
        run_coco(context, job)


@pytest.mark.heavy
def test_a_cascade_is_trained_and_scored(pocket: Path, tmp_path: Path) -> None:
    record = transfer(*arguments(tmp_path / "run", pocket, cascade="0.5,0.6,0.7"))
    stages = {name.split("/")[0] for name in record["details"]["losses"] if "stage" in name}
    assert {"box_ap", "mask_ap"} <= set(record["metrics"])
    assert len(record["details"]["losses"]) == 10, (
        stages
    )  # two per stage, two of proposals, mask, the sum


@pytest.mark.heavy
def test_recomputed_blocks_train_the_same(
    pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed = []

    def counted(*inputs: Any, **options: Any) -> Any:
        recomputed.append(inputs)
        return torch.utils.checkpoint.checkpoint(*inputs, **options)

    monkeypatch.setattr("simmim_bench.models.vit.checkpoint", counted)
    vit = ["--ckpt", "random:vit_pocket"]  # overrides the earlier --ckpt
    plain = transfer(*arguments(tmp_path / "a", pocket), *vit)
    assert not recomputed
    saving = transfer(*arguments(tmp_path / "b", pocket), *vit, "--grad-checkpointing")
    assert recomputed
    assert saving["details"]["losses"] == pytest.approx(plain["details"]["losses"], rel=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("arch", ["vit_pocket", "swin_pocket"])
def test_recomputed_blocks_save_fewer_activations(arch: str) -> None:
    saved = {}
    for recompute in (False, True):
        model = load_backbone(f"random:{arch}", (64, 64))
        model.set_grad_checkpointing(recompute)
        images = torch.randn(1, 3, 64, 64)
        memory = step_memory(model, partial(model.forward_maps, images), 1, torch.device("cpu"))
        saved[recompute] = memory.per_image
    assert saved[True] < saved[False] / 2


def test_the_memory_of_many_images_follows_from_one_and_two() -> None:
    """A ViT with a position bias of 64 x 64 pixels, under autocast, as by ViTDet's recipe on a GPU."""
    from transfer.detection.estimate import synthetic_image
    from transfer.detection.memory import estimate_memory
    from transfer.detection.model import build_detector
    from transfer.detection.own_recipes import COCO_POCKET

    recipe = replace(COCO_POCKET, precision="bf16", neck_channels=16, box_head_dim=16)
    cpu = torch.device("cpu")
    checkpoint = read_checkpoint("random:vit_pocket")
    model = build_detector(checkpoint, recipe, num_classes=3, masks=True, seed=0, device=cpu)
    image = synthetic_image(recipe.img_size, 3)
    memory = estimate_memory(model, image, recipe, DistContext())
    # All that is crowded in the estimate is so in the images.
    crowded = Instances.cat([image["instances"]] * recipe.roi_samples)
    with EventStorage():
        batch = [{**image, "instances": crowded}] * 6
        wanted = 6 * step_memory(model, lambda: model(batch), 6, cpu).per_image
    assert memory.shared > 0.02 * wanted
    assert memory.shared + 6 * memory.per_image == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("arch", ["vit_pocket", "swin_pocket"])
def test_no_trained_weight_is_beyond_a_pyramids_last_level(arch: str) -> None:
    """DistributedDataParallel waits for the gradient of every trained weight."""
    pyramid = build_pyramid(SimMIMBackbone(f"random:{arch}"), (2, 4, 8), 16)
    maps = pyramid(torch.randn(1, 3, 64, 64))
    sum(m.square().mean() for m in maps.values()).backward()
    trained = [(n, p) for n, p in pyramid.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None] == []
    assert arch == "vit_pocket" or not pyramid.bottom_up.backbone.norm.weight.requires_grad


@pytest.mark.heavy
def test_a_resumed_run_keeps_its_accumulation_steps_and_refuses_changed_data(
    pocket: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(pocket, data)
    record = transfer(*arguments(run, data), "--accumulate", "4")
    assert (record["details"]["parts"], record["details"]["processes"]) == (4, 1)
    (run / "record.json").unlink()
    assert transfer(*arguments(run, data), "--resume")["details"]["parts"] == 4
    annotations = data / "coco" / "annotations" / "instances_train2017.json"
    annotations.write_text(annotations.read_text() + " ")
    (run / "record.json").unlink()
    with pytest.raises(DataError, match=r"instances_train2017.json has changed since"):
        transfer(*arguments(run, data), "--resume")


def test_more_accumulation_steps_than_images_are_refused(pocket: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--accumulate 5 is more than the 4 images"):
        transfer(*arguments(tmp_path / "run", pocket), "--accumulate", "5")


def test_options_of_another_task_are_refused(pocket: Path) -> None:
    data = str(pocket / "imagenet")
    start = ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", data]
    for option, task in (("--grad-checkpointing", "coco"), ("--label-maps", "ade20k")):
        with pytest.raises(UsageError, match=f"{option} is only for {task}, not for knn"):
            transfer(*start, option)
