"""Claims of equality with the official SimMIM, where its measured numbers lie beside the checkout.

The numbers were measured on microsoft/SimMIM at commit d3e29bca in float32. They are not part of this
project: without them these claims are skipped, saying so.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.simmim import SimMIM
from simmim_bench.archs import BackboneSpec
from simmim_bench.backbones import build_backbone, load_state
from simmim_bench.checkpoint import Checkpoint
from simmim_bench.optim import Schedule

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the official implementation's numbers are not beside the checkout"
)

SPECS = {
    "vit": BackboneSpec(
        arch="golden",
        family="vit",
        img_size=(64, 64),
        patch_size=16,
        embed_dim=96,
        depths=(3,),
        num_heads=(3,),
        init_values=0.1,
    ),
    "swin": BackboneSpec(
        arch="golden",
        family="swin",
        img_size=(96, 96),
        patch_size=4,
        embed_dim=24,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=3,
    ),
}
FINETUNE = {"vit": {"img_size": (96, 96)}, "swin": {"img_size": (128, 128), "window_size": 4}}


def official_weights(name: str) -> dict[str, Tensor]:
    """Read the weights of an official file; its configuration becomes a plain dict, nothing is executed."""
    with torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode")]):
        content = torch.load(GOLDEN / name, map_location="cpu", weights_only=True)
    return {
        k: v
        for k, v in content["model"].items()
        if not k.endswith("relative_position_index") and "attn_mask" not in k
    }


def our_name(family: str, name: str) -> str:
    """Translate an official parameter name."""
    name = {"encoder.mask_token": "mask_token"}.get(name, name).replace("decoder.0", "decoder")
    if family == "vit":
        return name.replace("attn.relative_position_bias", "rel_pos_bias.relative_position_bias")
    return re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)


def summary() -> dict[str, Any]:
    return json.loads((GOLDEN / "summary.json").read_text())


@pytest.fixture(params=["vit", "swin"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def simmim(family: str) -> SimMIM:
    model = SimMIM(SPECS[family])
    weights = official_weights(f"{family}_pretrain.pth")
    model.load_state_dict({our_name(family, k): v for k, v in weights.items()})
    return model.eval()


def test_pretraining_forward_equals_the_official_one(family: str, simmim: SimMIM) -> None:
    with np.load(GOLDEN / f"{family}.npz") as golden:
        output = simmim(torch.from_numpy(golden["x"]), torch.from_numpy(golden["mask"]))
        assert output.loss.item() == pytest.approx(float(golden["loss"]), abs=1e-6)
        for found, name in ((output.features, "z"), (output.reconstruction, "rec")):
            assert (found - torch.from_numpy(golden[name])).abs().max() < 1e-5


def test_gradients_equal_the_official_ones(family: str, simmim: SimMIM) -> None:
    with np.load(GOLDEN / f"{family}.npz") as golden:
        simmim(torch.from_numpy(golden["x"]), torch.from_numpy(golden["mask"])).loss.backward()
        ours = {n: p.grad for n, p in simmim.named_parameters()}
        norms = [n for n in golden.files if n.startswith("gradnorm:")]
        assert len(norms) > 20
        for key in norms:
            grad = ours[our_name(family, key.removeprefix("gradnorm:"))]
            assert grad is not None
            assert grad.norm().item() == pytest.approx(float(golden[key]), rel=1e-3, abs=1e-6), key


def test_fine_tuning_remap_and_forward_equal_the_official_ones(family: str, simmim: SimMIM) -> None:
    checkpoint = Checkpoint(
        name="golden",
        spec=SPECS[family],
        form="pretrain",
        state=simmim.state_dict(),
        sha256="",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        provenance={},
    )
    model = build_backbone(replace(SPECS[family], **FINETUNE[family]), num_classes=10).eval()
    load_state(model, checkpoint)
    official = official_weights(f"{family}_finetune.pth")
    wanted = {our_name(family, k): v for k, v in official.items()}
    for name, value in model.state_dict().items():
        if not name.startswith(("head.", "fc_norm.")):
            assert (value - wanted[name]).abs().max() < 1e-5, name
    model.load_state_dict(wanted)
    with np.load(GOLDEN / f"{family}.npz") as golden:
        images = torch.from_numpy(golden["xf"])
        pooled = torch.from_numpy(golden["feats"])
        assert (model.forward_features(images) - pooled).abs().max() < 1e-5
        assert (model(images) - torch.from_numpy(golden["logits"])).abs().max() < 1e-5


@pytest.mark.parametrize("decay", ["0.65", "0.8"])
def test_layer_decay_and_weight_decay_equal_the_official_groups(family: str, decay: str) -> None:
    model = build_backbone(SPECS[family], num_classes=10)
    named = dict(model.named_parameters())
    for official, (scale, weight_decay) in summary()[f"{family}_layer_decay_{decay}"].items():
        name = our_name(family, official)
        ours = float(decay) ** (model.num_layers - 1 - model.layer_id(name))
        assert ours == pytest.approx(scale)
        parameter = named[name]
        exempt = parameter.ndim <= 1 or name.endswith(".bias") or model.no_weight_decay(name)
        assert (0.0 if exempt else 0.05) == weight_decay, name


@pytest.mark.parametrize("kind", ["multistep", "cosine"])
def test_the_schedule_equals_the_official_one_for_the_last_layer(kind: str) -> None:
    golden = summary()["schedules"][kind]
    given, steps = golden["args"], golden["args"]["steps_per_epoch"]
    schedule = Schedule(
        kind=kind,  # type: ignore[arg-type]
        peak_lr=given["base_lr"],
        total_steps=given["epochs"] * steps,
        warmup_steps=given["warmup_epochs"] * steps,
        warmup_lr=given["warmup_lr"],
        min_lr=given.get("min_lr", 0.0),
        milestones=[epoch * steps for epoch in given.get("milestones_epochs", [])],
    )
    for step, rates in enumerate(golden["lr"]):
        assert schedule.lr(step) == pytest.approx(rates[0])
