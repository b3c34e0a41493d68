"""What is claimed of COCO transfer in parts and on several processes, and in projects of users' own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import two_processes

from simmim_bench.archs import find_spec
from simmim_bench.backbones import build_backbone
from simmim_bench.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    read_training_state,
    write_checkpoint,
)
from simmim_bench.cli import cli

pytest.importorskip("detectron2")
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import build_model

README = Path(__file__).parent.parent / "README.md"
SMALL = {
    "img_size": "32",
    "max_iters": "3",
    "warmup_iters": "0",
    "batch_size": "4",
    "neck_channels": "16",
    "box_head_dim": "16",
    "post_nms_topk": "8,8",
    # All anchors and regions are taken, so that nothing is drawn.
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


def test_two_processes_train_as_one_does_in_two_parts(pocket: Path, tmp_path: Path) -> None:
    two_processes(*arguments(tmp_path / "two", pocket))
    one = transfer(*arguments(tmp_path / "one", pocket), "--accumulate", "2")
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["details"]["losses"] == pytest.approx(one["details"]["losses"], rel=1e-4)
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)

    # Every image is detected in once, and found in the same order.
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


def test_a_batch_that_processes_cannot_share_is_refused(pocket: Path, tmp_path: Path) -> None:
    from simmim_bench.checkpoint import read_checkpoint
    from simmim_bench.errors import UsageError
    from simmim_bench.team import Team
    from transfer.dense_recipes import COCO_POCKET
    from transfer.detection import run_coco

    with pytest.raises(UsageError, match="batch_size 8 cannot be shared by 3 processes"):
        run_coco(
            checkpoint=read_checkpoint("random:swin_pocket"),
            data=pocket / "coco",
            run=None,  # type: ignore[arg-type]
            recipe=COCO_POCKET,
            deviates={},
            seed=0,
            team=Team(rank=0, size=3),
        )


def test_a_cascade_is_trained_and_scored(pocket: Path, tmp_path: Path) -> None:
    record = transfer(*arguments(tmp_path / "run", pocket, cascade="0.5,0.6,0.7"))
    stages = {name.split("/")[0] for name in record["details"]["losses"] if "stage" in name}
    assert {"box_ap", "mask_ap"} <= set(record["metrics"])
    assert len(record["details"]["losses"]) == 10, (
        stages
    )  # two a stage, two of proposals, mask, the sum


def test_checkpointed_blocks_train_the_same(pocket: Path, tmp_path: Path) -> None:
    plain = transfer(*arguments(tmp_path / "a", pocket))
    saving = transfer(*arguments(tmp_path / "b", pocket), "--grad-checkpointing")
    assert saving["details"]["losses"] == pytest.approx(plain["details"]["losses"], rel=1e-4)


# In projects of users' own


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a checkpoint runs/vit_b, which is a small ViT here."""
    spec = replace(find_spec("vit_b"), embed_dim=32, depths=(8,), num_heads=(2,))
    write_checkpoint(
        tmp_path / "runs" / "vit_b",
        state=build_backbone(spec, seed=1).state_dict(),
        spec=spec,
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "small", "method": "simmim"},
    )
    monkeypatch.chdir(tmp_path)


def readme_lines(heading: str) -> str:
    """Give the code block below a line of the README."""
    _, _, rest = README.read_text(encoding="utf-8").partition(heading)
    block = re.search(r"```python\n(.*?)```", rest, re.DOTALL)
    assert block is not None
    return block.group(1)


def test_the_readmes_lines_for_a_yaml_project_give_a_detector(project: None) -> None:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    exec(readme_lines("**In a Detectron2 project of your own**, from yaml"), {"cfg": cfg})
    model = build_model(cfg).eval()
    backbone = model.backbone.net.backbone
    assert backbone.spec.embed_dim == 32
    assert backbone.spec.windowed_blocks == (0, 2, 4, 6)
    assert (backbone.load_report.missing, backbone.load_report.unused) == ([], [])
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 200, 300), "height": 200, "width": 300}])
    assert found["instances"].image_size == (200, 300)


def test_the_readmes_lines_for_a_lazyconfig_project_give_a_pyramid(project: None) -> None:
    from detectron2.modeling import GeneralizedRCNN

    model = LazyCall(GeneralizedRCNN)(backbone=None)
    exec(readme_lines("from LazyConfig"), {"model": model})
    pyramid = instantiate(model.backbone)
    assert list(pyramid.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert pyramid.net.backbone.spec.embed_dim == 32
    with torch.no_grad():
        maps = pyramid.eval()(torch.zeros(1, 3, 128, 128))
    assert maps["p3"].shape == (1, 256, 16, 16)
