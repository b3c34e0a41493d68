"""Check that pretraining with every choice learns, and that its checkpoint transfers.

The tests take minutes; `make test-slow` runs them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.launch import run_pretraining
from pretrain.recipes import resolve_recipe
from simmim_bench.display import Display
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.runs.options import RunOptions
from transfer.launch import TransferRequest, resolve_transfer, run_transfer

pytestmark = pytest.mark.slow

STEPS = ["epochs=5", "batch_size=16", "warmup_epochs=1"]  # 100 steps
TEACHER = "teacher=TAUGHT"  # replaced by the run of `taught`
MORE = "epochs=12"  # hundreds of classes take longer to learn

# By name: (arch, recipe or None for the default, overrides).
CHOICES: dict[str, tuple[str, str | None, list[str]]] = {
    "paper": ("vit_pocket", None, []),
    "swin": ("swin_pocket", None, []),
    **{
        f"random {unit}": ("vit_pocket", None, [f"mask_patch_size={unit}"])
        for unit in (1, 2, 4, 16)
    },
    **{
        masking: ("vit_pocket", None, [f"masking={masking}"])
        for masking in ("square", "block", "pixels", "regions", "multimodal")
    },
    "ratio 0.1": ("vit_pocket", None, ["mask_ratio=0.1"]),
    "ratio 0.9": ("vit_pocket", None, ["mask_ratio=0.9"]),
    "zeros": ("vit_pocket", None, ["encoder_input=zeros"]),
    "zeros, swin": ("swin_pocket", None, ["encoder_input=zeros"]),
    "visible": ("vit_pocket", None, ["encoder_input=visible"]),
    "mlp": ("vit_pocket", None, ["head=mlp"]),
    "conv": ("vit_pocket", None, ["head=conv"]),
    "inverse Swin-T": ("swin_pocket", None, ["head=inverse_swin_t"]),
    "inverse Swin-B": ("swin_pocket", None, ["head=inverse_swin_b", "target_size=4"]),
    "levels": ("vit_pocket", None, ["aggregate=true"]),
    "levels, swin": ("swin_pocket", None, ["aggregate=true"]),
    "a fourth of the points": ("vit_pocket", None, ["target_size=8"]),
    "normalised by surroundings": ("vit_pocket", None, ["norm_target=9"]),
    "patch norm": ("vit_pocket", None, ["target=patch_norm"]),
    "smooth L1": ("vit_pocket", None, ["loss=smooth_l1"]),
    "L2": ("vit_pocket", None, ["loss=l2"]),
    "all pixels": ("vit_pocket", None, ["scope=all"]),
    "8 bins": ("vit_pocket", None, ["target=bins"]),
    "256 bins": ("vit_pocket", None, ["target=bins", "bins=256", MORE]),
    "512 clusters": ("vit_pocket", None, ["target=clusters", MORE]),
    "tokens": ("vit_pocket", None, ["target=tokens", "tokens=64", MORE]),
    "tokens beside pixels": ("vit_pocket", None, ["target=tokens", "pixel_weight=1", MORE]),
    "a teacher's features": ("vit_mini_pocket", None, ["target=teacher_features", TEACHER]),
    "a teacher's features beside pixels": (
        "vit_mini_pocket",
        None,
        ["target=teacher_features", "pixel_weight=1", TEACHER],
    ),
    "a teacher's pixels": ("vit_mini_pocket", None, ["target=teacher_pixels", TEACHER]),
    "ConvNeXt": ("convnext_pocket", None, []),
    "ResNet": ("resnet_pocket", None, []),
    "visible_multiscale": ("vit_pocket", "visible_multiscale", []),
    "multimodal_masks": ("vit_pocket", "multimodal_masks", []),
    "cnn_mse": ("resnet_pocket", "cnn_mse", []),
    "masked_distillation": ("vit_mini_pocket", "masked_distillation", [TEACHER]),
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = PocketCounts(
        imagenet_train=320,
        imagenet_val=60,
        coco_train=2,
        coco_val=2,
        ade20k_train=8,
        ade20k_val=4,
    )
    root = tmp_path_factory.mktemp("generated")
    write_pocket(root, img_size=(32, 32), counts=counts)
    return root


@pytest.fixture(scope="module")
def taught(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pretrained run that serves as the teacher."""
    return pretrained(*CHOICES["paper"], generated, tmp_path_factory.mktemp("teacher") / "run")


def pretrained(arch: str, named_as: str | None, changes: list[str], data: Path, out: Path) -> Path:
    recipe, named = resolve_recipe(arch=arch, recipe=named_as, overrides=[*STEPS, *changes])
    run_pretraining(
        recipe=recipe,
        named=named,
        data=data / "imagenet",
        out=out,
        seed=0,
        display=Display(quiet=True),
    )
    return out


@pytest.mark.parametrize("name", CHOICES)
def test_choice_learns_and_transfers_to_linear_probe_and_segmentation(
    name: str, generated: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arch, named_as, changes = CHOICES[name]
    if TEACHER in changes:
        changes = [f"teacher={request.getfixturevalue('taught')}", *changes]
        changes.remove(TEACHER)
    pretrained(arch, named_as, changes, generated, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    evaluations = [figures for line in lines if "held_out_loss" in (figures := json.loads(line))]
    assert evaluations[-1]["held_out_loss"] < evaluations[-1]["trivial_loss"]

    for task, folder, quick, metric in (
        ("linear", "imagenet", ("epochs=3", "warmup_epochs=0"), "top1"),
        (
            "ade20k",
            "ade20k",
            ("max_iters=2", "warmup_iters=0", "img_size=32", "batch_size=2"),
            "miou",
        ),
    ):
        wanted = TransferRequest(
            task=task, options=RunOptions(data=generated / folder, overrides=quick)
        )
        out = tmp_path / task
        transfer = resolve_transfer(wanted, str(tmp_path / "run"))
        record = run_transfer(transfer, out, seed=0, display=Display(quiet=True))
        assert record is not None
        assert 0 <= record.metrics[metric] <= 100
        assert record.evaluated == record.expected
        assert (out / record.predictions["file"]).is_file()
