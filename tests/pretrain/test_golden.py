"""Check equality with the official SimMIM, by numbers measured on it.

The numbers were measured on microsoft/SimMIM at commit d3e29bca in float32. Schedules and parameter groups
are in `official_numbers.json`. Weights, inputs, outputs and gradients of two small models are in `golden/`,
whose README.md states how each number was measured. A larger set is tested as well where it lies beside the
checkout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretrain.simmim import SimMIM, load_simmim
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.swin import shift_downsample
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.training.optim import Schedule, parameter_groups

HERE = Path(__file__).resolve().parent
LARGER_SET = HERE.parents[2] / "shared" / "golden"
NUMBERS: dict[str, Any] = json.loads((HERE / "official_numbers.json").read_text(encoding="utf-8"))
FAMILIES = ("vit", "swin")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What was measured on one official model.

    Attributes:
        family: "vit" or "swin".
        config: sizes of the model.
        pretrained, finetuned: files of the official weights.
        numbers: inputs, outputs and gradients by the names that golden/README.md lists.
    """

    family: str
    config: dict[str, Any]
    pretrained: str
    finetuned: str
    numbers: dict[str, Tensor]


def golden_sets() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the folder and the model sizes of every available set."""
    config = json.loads((HERE / "golden" / "config.json").read_text(encoding="utf-8"))
    sets = {"small": (HERE / "golden", config)}
    if LARGER_SET.is_dir():
        sets["larger"] = (LARGER_SET, {family: NUMBERS[family]["config"] for family in FAMILIES})
    return sets


SETS = golden_sets()


@pytest.fixture(params=[(name, family) for name in SETS for family in FAMILIES], ids=" ".join)
def golden(request: pytest.FixtureRequest) -> Golden:
    name, family = request.param
    folder, configs = SETS[name]
    with np.load(folder / f"{family}.npz") as arrays:
        numbers = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return Golden(
        family=family,
        config=configs[family],
        pretrained=str(folder / f"{family}_pretrain.pth"),
        finetuned=str(folder / f"{family}_finetune.pth"),
        numbers=numbers,
    )


def official_spec(family: str, config: dict[str, Any], *, finetune: bool = False) -> BackboneSpec:
    """Return the spec of an official model of given sizes."""
    vit = family == "vit"
    size = config["img"] if not finetune else config["ft" if vit else "ftimg"]
    return BackboneSpec(
        arch="official",
        family="vit" if vit else "swin",
        img_size=(size, size),
        patch_size=config["patch_size"],
        embed_dim=config["dim"],
        depths=(config["depth"],) if vit else tuple(config["depths"]),
        num_heads=(config["heads"],) if vit else tuple(config["heads"]),
        window_size=0 if vit else config["ftwin" if finetune else "win"],
        init_values=config["init_values"],
        narrow_init=vit,
    )


def our_name(name: str) -> str:
    """Convert an official parameter name to ours."""
    if name.startswith("encoder.") and name != "encoder.mask_token":
        return "encoder." + our_name(name.removeprefix("encoder."))
    name = {"encoder.mask_token": "mask_token"}.get(name, name).replace("decoder.0", "decoder")
    name = name.replace("attn.relative_position_bias", "rel_pos_bias.relative_position_bias")
    if name.startswith("layers."):
        name = shift_downsample(name, 1).replace("rel_pos_bias.", "attn.")
    return name


def largest_relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest deviation in units of the largest expected number."""
    return float((found.detach() - expected).abs().max() / expected.abs().max())


def test_spec_is_inferred_from_official_weights(golden: Golden) -> None:
    for file, finetune in ((golden.pretrained, False), (golden.finetuned, True)):
        found = read_checkpoint(file).spec
        expected = official_spec(golden.family, golden.config, finetune=finetune)
        assert found == BackboneSpec(**{**vars(expected), "arch": found.arch})


def test_features_reconstruction_and_loss_equal_the_official_ones(golden: Golden) -> None:
    numbers = golden.numbers
    output = load_simmim(golden.pretrained)(numbers["x"], numbers["mask"])
    assert output.loss.item() == pytest.approx(float(numbers["loss"]), rel=1e-6)
    assert largest_relative(output.features, numbers["z"]) < 1e-5
    assert largest_relative(output.reconstruction, numbers["rec"]) < 1e-5


def test_every_gradient_equals_the_official_one(golden: Golden) -> None:
    numbers = golden.numbers
    model = load_simmim(golden.pretrained)
    model(numbers["x"], numbers["mask"]).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms = {k.removeprefix("gradnorm:"): v for k, v in numbers.items() if "gradnorm:" in k}
    assert {our_name(name) for name in norms} == set(ours)
    for name, norm in norms.items():
        grad = ours[our_name(name)]
        assert grad is not None
        assert grad.norm().item() == pytest.approx(float(norm), rel=1e-5, abs=1e-9), name
    tensors = [k for k in numbers if k.startswith("grad:")]
    assert tensors
    for key in tensors:
        grad = ours[our_name(key.removeprefix("grad:"))]
        assert grad is not None
        assert largest_relative(grad, numbers[key]) < 1e-5, key


@pytest.mark.heavy
def test_remapping_to_fine_tuning_equals_the_official_one(golden: Golden) -> None:
    official = load_backbone(golden.finetuned, num_classes=10)
    spec = official.spec
    window = spec.window_size or None
    ours = load_backbone(golden.pretrained, spec.img_size, 10, window_size=window)
    weights = official.state_dict()
    for name, value in ours.state_dict().items():
        if not name.startswith(("head.", "fc_norm.")):  # random in the official file
            assert (value - weights[name]).abs().max() < 1e-5, name


def test_fine_tuned_features_and_logits_equal_the_official_ones(golden: Golden) -> None:
    numbers = golden.numbers
    model = load_backbone(golden.finetuned, num_classes=10).eval()
    assert largest_relative(model.forward_features(numbers["xf"]), numbers["feats"]) < 1e-5
    assert largest_relative(model(numbers["xf"]), numbers["logits"]) < 1e-5


def decay_and_scale(
    model: nn.Module, backbone: Any, layer_decay: float = 1.0, *, pretraining: bool = False
) -> dict[str, tuple[float, float]]:
    """Return (lr scale, weight decay) of every parameter by name."""
    groups = parameter_groups(
        model, backbone, lr=1.0, weight_decay=0.05, layer_decay=layer_decay, pretraining=pretraining
    )
    by_id = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decay", ["0.65", "0.8"])
def test_every_parameter_is_in_its_official_fine_tuning_group(family: str, decay: str) -> None:
    model = build_backbone(official_spec(family, NUMBERS[family]["config"]), num_classes=10)
    ours = decay_and_scale(model, model, float(decay))
    official = NUMBERS[f"{family}_layer_decay_{decay}"]
    assert {our_name(name) for name in official} == set(ours)
    for name, (scale, weight_decay) in official.items():
        our_scale, our_weight_decay = ours[our_name(name)]
        assert our_scale == pytest.approx(scale, rel=1e-12), name
        assert our_weight_decay == weight_decay, name


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_exempts_the_official_parameters_from_weight_decay(family: str) -> None:
    model = SimMIM(official_spec(family, NUMBERS[family]["config"]))
    groups = decay_and_scale(model, model.encoder, pretraining=True)
    exempt = {name for name, (_, weight_decay) in groups.items() if not weight_decay}
    assert exempt == {our_name(name) for name in NUMBERS[f"{family}_pretrain_no_decay"]}


@pytest.mark.parametrize("kind", ["multistep", "cosine"])
def test_the_schedule_equals_the_official_one_at_every_step(kind: str) -> None:
    official = NUMBERS["schedules"][kind]
    args, steps = official["args"], official["args"]["steps_per_epoch"]
    schedule = Schedule(
        kind=kind,  # type: ignore[arg-type]
        peak_lr=args["base_lr"],
        total_steps=args["epochs"] * steps,
        warmup_steps=args["warmup_epochs"] * steps,
        warmup_lr=args["warmup_lr"],
        min_lr=args.get("min_lr", 0.0),
        milestones=[epoch * steps for epoch in args.get("milestones_epochs", [])],
    )
    for step, rates in enumerate(official["lr"]):
        for scale, rate in zip(args["scales"], rates, strict=True):
            # The timm release used for the measurement multiplies by lr_scale once more than SimMIM's did.
            once = rate / scale
            assert schedule.lr(step, scale) == pytest.approx(once, rel=1e-12, abs=0)
