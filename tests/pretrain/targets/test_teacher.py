"""Check teachers: the targets that they provide, and that the student loads without its teacher."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.commands import two_processes
from support.pretraining import (
    half_masks,
    pixel_mask,
    pretrain_first_epoch,
    pretrain_pocket,
    smooth_images,
)
from support.tiny import TINY
from torch import Tensor

from pretrain.design import Design
from pretrain.estimate import plan_pretraining
from pretrain.evaluation.monitor import trivial_loss
from pretrain.evaluation.visualize import visualize_folder
from pretrain.masking.masks import STRATEGIES, sample_masks
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.models import load_target_model
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.diagnostics.estimate import DataSize
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.overrides import override

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
OTHER_MEAN, OTHER_STD = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
CPU = torch.device("cpu")
OF_FEATURES: dict[str, Any] = {"target": "teacher_features"}
OF_PIXELS: dict[str, Any] = {"target": "teacher_pixels"}


def backbone_teacher(path: Path, family: str = "vit", seed: int = 5, **sizes: Any) -> str:
    """Write a backbone checkpoint with a different normalisation than the student's."""
    spec = replace(TINY[family], **sizes)
    backbone = build_backbone(spec, seed=seed)
    write_checkpoint(
        path,
        state=backbone.state_dict(),
        spec=spec,
        form="transfer",
        mean=OTHER_MEAN,
        std=OTHER_STD,
        provenance={"label": "a teacher"},
    )
    return str(path)


def simmim_teacher(path: Path, mean: Any = OTHER_MEAN, std: Any = OTHER_STD, **design: Any) -> str:
    """Write a SimMIM checkpoint whose head has larger weights, so that its reconstruction varies."""
    model = SimMIM(TINY["vit"], Design(**design), seed=6)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    write_checkpoint(
        path,
        state=model.state_dict(),
        spec=model.spec,
        form="pretrain",
        mean=mean,
        std=std,
        provenance={"label": "a SimMIM teacher", "design": asdict(model.design)},
    )
    return str(path)


def student(teacher: str, spec: BackboneSpec = TINY["vit"], unit: int = 8, **design: Any) -> SimMIM:
    expected = Design(teacher=teacher, **design)
    source = load_target_model(expected, spec, unit)
    assert source is not None
    model = SimMIM(spec, expected, source.known, seed=1)
    model.target.attach_model(source.model)
    return model


def renormalised(images: Tensor) -> Tensor:
    """Convert the student's images to the teacher's normalisation via pixels in [0, 1]."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OTHER_MEAN, OTHER_STD))
    return (images * STD + MEAN - mean) / std


def normed(features: Tensor) -> Tensor:
    found = features.double().numpy()
    mean, deviation = found.mean(1, keepdims=True), found.std(1, keepdims=True)
    return torch.from_numpy((found - mean) / deviation)


@pytest.mark.parametrize("scope", ["masked", "all"])
@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "l2"])
def test_loss_is_the_distance_to_normalised_features_of_the_unmasked_image(
    tmp_path: Path, loss: Any, scope: Any
) -> None:
    teacher = backbone_teacher(tmp_path / "teacher")
    model = student(teacher, **OF_FEATURES, loss=loss, scope=scope).eval()
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    with torch.no_grad():
        features = load_backbone(teacher).eval().forward_maps(renormalised(images))[-1]
        output = model(images, mask)
        predicted = model.decoder(output.features).double()
    expected, losses = normed(features), []
    for b, y, x in np.ndindex(2, 8, 8):
        if not mask[b, y, x] and scope == "masked":
            continue
        for gap in (expected[b, :, y, x] - predicted[b, :, y, x]).abs().tolist():
            small = gap * gap / 2 if gap < 1 else gap - 0.5
            losses.append({"l1": gap, "l2": gap * gap, "smooth_l1": small}[loss])
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-3)


@pytest.mark.parametrize(("own", "teachers"), [("swin", "vit"), ("vit", "swin")])
def test_teacher_maps_of_other_grids_are_averaged_or_interpolated(
    tmp_path: Path, own: str, teachers: str
) -> None:
    teacher = backbone_teacher(tmp_path / "teacher", teachers)
    model = student(teacher, TINY[own], **OF_FEATURES)
    images = smooth_images(model.spec)
    with torch.no_grad():
        features = load_backbone(teacher).eval().forward_maps(renormalised(images))[-1]
    found, expected = model.target.from_images(images), normed(features)
    cells = 32 // TINY[own].stride
    assert found.shape == (2, expected.shape[1], cells, cells)
    if own == "swin":  # 4 x 4 of the teacher's cells in each of the student's
        for y, x in np.ndindex(2, 2):
            square = expected[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean((2, 3))
            torch.testing.assert_close(found[:, :, y, x].double(), square, rtol=1e-3, atol=1e-3)
    else:
        larger = F.interpolate(expected, (8, 8), mode="bilinear")
        torch.testing.assert_close(found.double(), larger, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("design", [{}, {"target": "patch_norm"}, {"target": "bins", "bins": 4}])
@pytest.mark.parametrize("usual", [True, False])
def test_pixel_target_is_the_teachers_reconstruction_of_the_same_masked_image(
    tmp_path: Path, design: dict[str, Any], usual: bool
) -> None:
    how = (IMAGENET_MEAN, IMAGENET_STD) if usual or design else (OTHER_MEAN, OTHER_STD)
    teacher = simmim_teacher(tmp_path / "teacher", *how, **design)
    model = student(teacher, **OF_PIXELS).eval()
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in how)
    inputs = (images * STD + MEAN - mean) / std
    own = load_simmim(teacher)
    with torch.no_grad():
        reconstruction = own.target.denormalise(own(inputs, mask).reconstruction, inputs)
        output = model(images, mask)
    expected = (reconstruction * std + mean - MEAN) / STD
    torch.testing.assert_close(
        model.target.from_images(images, mask), expected, rtol=1e-4, atol=1e-4
    )
    hidden = pixel_mask(mask, model.spec).bool()
    gap = (expected - output.reconstruction).abs().mean(1)[hidden].mean()
    assert output.loss.item() == pytest.approx(gap.item(), rel=1e-4)
    # The teacher receives the visible pixels only: other hidden pixels do not change its reconstruction. It is
    # denormalised with the mean and standard deviation of patches, which a flipped patch has as well.
    other = smooth_images(model.spec, seed=8)
    if design.get("target") == "patch_norm":
        other = images.unflatten(3, (8, 4)).flip(4).flatten(3)
    other = torch.where(hidden.unsqueeze(1), other, images)
    torch.testing.assert_close(
        model.target.from_images(other, mask), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("masking", [name for name in STRATEGIES if name != "pixels"])
def test_teacher_with_visible_input_accepts_finer_masks_of_the_student(
    tmp_path: Path, masking: str
) -> None:
    teacher = simmim_teacher(tmp_path / "teacher", encoder_input="visible")
    spec = replace(TINY["vit"], patch_size=2)
    model = student(teacher, spec, unit=4, **OF_PIXELS)
    images, generator = smooth_images(spec, 4), torch.Generator().manual_seed(0)
    sizes: dict[str, Any] = {"mask_patch_size": 4, "patch_size": 2, "mask_ratio": 0.6}
    mask = sample_masks(
        4, spec.img_size, masking=masking, generator=generator, images=images, **sizes
    )
    assert model.target.from_images(images, mask).isfinite().all()


def test_teacher_with_visible_input_rejects_partially_hidden_patches(
    tmp_path: Path,
) -> None:
    teacher = simmim_teacher(tmp_path / "teacher", encoder_input="visible")
    message = (
        f"teacher {tmp_path}.* visible patches of 4 pixels only, .* units of {{}} pixels hide parts .* "
        "mask_patch_size=4 and any masking but pixels, or a teacher with encoder_input tokens"
    )
    for unit in (1, 2):
        with pytest.raises(UsageError, match=message.format(unit)):
            student(teacher, unit=unit, **OF_PIXELS)
    recipe = override(POCKET, ["target=teacher_pixels", f"teacher={teacher}", "mask_patch_size=2"])
    with pytest.raises(UsageError, match=message.format(2)):
        plan_pretraining(recipe, DataSize(60, 30, 10, "your"), CPU)


@pytest.mark.parametrize("target", [OF_FEATURES, OF_PIXELS])
def test_auxiliary_pixels_add_their_loss_and_are_the_reconstruction(
    tmp_path: Path, target: dict[str, Any]
) -> None:
    teacher = simmim_teacher(tmp_path / "teacher")
    model = student(teacher, **target, pixel_weight=0.25, loss="l2").eval()
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    hidden = pixel_mask(mask, model.spec)
    output = model(images, mask)
    pixels = ((output.reconstruction - images) ** 2).mean(1)[hidden > 0].mean()
    expected = model.target.from_images(images, mask)
    alone = model.target.loss(model.decoder(output.features), expected, hidden.unsqueeze(1))
    assert output.loss.item() == pytest.approx(alone.item() + 0.25 * pixels.item(), rel=1e-4)
    output.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model.reconstruction_target.can_visualize


@pytest.mark.heavy
@pytest.mark.parametrize(
    "design",
    [
        OF_FEATURES,
        {**OF_FEATURES, "loss": "l2", "head": "mlp"},
        {**OF_FEATURES, "loss": "smooth_l1", "scope": "all", "encoder_input": "visible"},
        {**OF_FEATURES, "pixel_weight": 0.5, "aggregate": True, "head": "conv"},
        OF_PIXELS,
        {**OF_PIXELS, "target_size": 8, "pixel_weight": 2.0},
    ],
)
def test_student_overfits_one_batch(tmp_path: Path, design: dict[str, Any]) -> None:
    model = student(simmim_teacher(tmp_path / "teacher"), **design).train()
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    each = iter(mask.split(1))
    trivial = sum(
        weight
        * trivial_loss(target, images.split(1), None if weight != 1 else lambda _: next(each))
        for weight, target in model.weighted_targets()
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    for _ in range(40):
        loss = model(images, mask).loss
        if loss.item() < 0.9 * trivial:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    pytest.fail(f"the loss is {loss.item():.4g} after 40 steps, that of a constant {trivial:.4g}")


def test_teacher_is_not_part_of_the_student(tmp_path: Path) -> None:
    teacher = backbone_teacher(tmp_path / "teacher")
    model = student(teacher, **OF_FEATURES)
    alone = SimMIM(TINY["vit"])
    assert {n.split(".")[0] for n in model.state_dict()} == {
        n.split(".")[0] for n in alone.state_dict()
    }
    backbone = model.target._model[0]
    assert not backbone.training
    model.train()
    assert not backbone.training
    model(smooth_images(model.spec), half_masks(model.spec)).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


@pytest.mark.heavy
def test_student_loads_without_its_teacher(tmp_path: Path, few: Path) -> None:
    teacher = pretrain_pocket(tmp_path / "teacher", few, "epochs=1")
    known = read_checkpoint(str(teacher))
    for name, target in (("features", OF_FEATURES), ("pixels", OF_PIXELS)):
        choices = [f"target={target['target']}", f"teacher={tmp_path / 'teacher'}"]
        pretrain_pocket(tmp_path / name, few, *choices, "epochs=1")
        pretrain_pocket(tmp_path / f"{name}_beside", few, *choices, "pixel_weight=1", "epochs=1")
    shutil.rmtree(tmp_path / "teacher")
    for name in ("features", "pixels", "features_beside", "pixels_beside"):
        ckpt = str(tmp_path / name)
        provenance = read_checkpoint(ckpt).provenance
        kept = provenance["target_model"]
        assert (kept["label"], kept["sha256"]) == (known.label, known.sha256)
        assert kept["name"] == str(tmp_path / "teacher")
        model = load_simmim(ckpt)
        output = model(smooth_images(model.spec), half_masks(model.spec))
        assert output.loss.isnan()
        assert output.features.isfinite().all()
        visualizable = name != "features"
        assert bool(output.reconstruction.isfinite().all()) == visualizable
        assert (tmp_path / name / "reconstructions.png").exists() == visualizable
        assert ("psnr" in provenance) == visualizable
        assert np.isfinite(provenance["held_out_loss"])
        load_backbone(ckpt)
        how: dict[str, Any] = {"count": 2, "masking": "random", "annotations": None}
        how |= {"mask_patch_size": 8, "mask_ratio": 0.6, "seed": 0}
        if visualizable:
            visualize_folder(ckpt, few, tmp_path / f"{name}.png", **how)
        else:
            with pytest.raises(
                UsageError, match=r"cannot be visualised; pretrain with -o pixel_weight"
            ):
                visualize_folder(ckpt, few, tmp_path / f"{name}.png", **how)
            log = (tmp_path / name / "log.txt").read_text()
            assert f"features of {known.label}" in log
            assert "the target cannot be visualised" in log
    # The student of pixels has the modules of plain SimMIM and can initialise it.
    pretrain_pocket(tmp_path / "on", few, "epochs=1", init_from=str(tmp_path / "pixels"))


@pytest.mark.heavy
def test_run_resumes_with_the_same_teacher_only(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = backbone_teacher(tmp_path / "teacher")
    choices = ("target=teacher_features", f"teacher={teacher}")
    whole = load_file(pretrain_pocket(tmp_path / "whole", few, *choices) / "model.safetensors")
    pretrain_first_epoch(tmp_path / "run", few, *choices, monkeypatch=monkeypatch)
    backbone_teacher(tmp_path / "teacher", seed=6)
    with pytest.raises(UsageError, match="other weights than at the start of this run"):
        pretrain_pocket(tmp_path / "run", few, *choices, resume=True)
    backbone_teacher(tmp_path / "teacher")
    again = load_file(
        pretrain_pocket(tmp_path / "run", few, *choices, resume=True) / "model.safetensors"
    )
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


@pytest.mark.slow
def test_two_processes_use_the_same_teacher(tmp_path: Path, few: Path) -> None:
    teacher = simmim_teacher(tmp_path / "teacher")
    arguments = ["pretrain", "--arch", "vit_pocket", "--data", str(few), "--quiet"]
    choices = ["target=teacher_features", f"teacher={teacher}", "pixel_weight=0.5"]
    choices += ["epochs=1", "warmup_epochs=0", "batch_size=6", "precision=fp32"]
    arguments += [part for choice in choices for part in ("-o", choice)]
    two_processes(*arguments, "--out", str(tmp_path / "two"))
    pretrain_pocket(tmp_path / "one", few, *choices)
    found, expected = (
        load_file(tmp_path / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("two", "one")
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_estimate_and_flops_include_the_teacher(tmp_path: Path, few: Path) -> None:
    teacher = backbone_teacher(tmp_path / "teacher")
    recipe = override(POCKET, ["target=teacher_features", f"teacher={teacher}"])
    work = plan_pretraining(recipe, DataSize(60, 30, 10, "your"), CPU)
    assert work.forward(2).isfinite()
    rates = {}
    for name, choices in {
        "with": ["target=teacher_features", f"teacher={teacher}"],
        "pixels": [],
    }.items():
        pretrain_pocket(tmp_path / name, few, *choices, "epochs=1")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        figures = [line for line in map(json.loads, lines) if "gflop_per_s" in line]
        rates[name] = figures[-1]["gflop_per_s"] / figures[-1]["images_per_s"]
    # In GFLOP: three passes of a head with 32 outputs instead of 48, and one pass of the teacher.
    assert rates["with"] > rates["pixels"]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["teacher=x"], "teacher x needs target teacher_features or teacher_pixels"),
        (["target=bins", "teacher=x"], "the target is bins; use one of them as -o target="),
        (["target=teacher_pixels"], "target teacher_pixels needs a teacher; add -o teacher=CKPT"),
        (["target=teacher_features", "teacher=x", "target_size=8"], "remove -o target_size"),
        (
            ["target=teacher_features", "teacher=x", "norm_target=7"],
            "norm_target 7 needs target pixels",
        ),
        (["pixel_weight=1"], "pixel_weight 1 adds a pixel loss to targets tokens, teacher_feat"),
        (["target=patch_norm", "pixel_weight=0.5"], "use -o pixel_weight=0 with target patch_norm"),
        (["target=tokens", "pixel_weight=-1"], "pixel_weight -1.0 .* use 0 to 1000"),
    ],
)
def test_choices_that_contradict_a_teacher_are_rejected(
    assignments: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        override(POCKET, assignments)


def test_incompatible_teacher_is_rejected(tmp_path: Path) -> None:
    spec = TINY["vit"]
    backbone = backbone_teacher(tmp_path / "backbone", "swin")
    with pytest.raises(DataError, match="does not exist"):
        student(str(tmp_path / "none"), **OF_FEATURES)
    with pytest.raises(DataError, match="has no SimMIM head"):
        student(backbone, **OF_PIXELS)
    with pytest.raises(UsageError, match=r"not a multiple of the stride 16 .* use \(32, 48\)"):
        student(backbone, spec.at((32, 40)), **OF_FEATURES)
    with pytest.raises(UsageError, match=r"reconstructs images of \(32, 32\) .* img_size=32x32"):
        student(simmim_teacher(tmp_path / "simmim"), spec.at((32, 64)), **OF_PIXELS)
    grey = backbone_teacher(tmp_path / "grey", in_chans=1)
    with pytest.raises(UsageError, match="images of 1 channels, but the student has 3"):
        student(grey, **OF_FEATURES)
    with pytest.raises(UsageError, match="needs the metadata of teacher x"):
        SimMIM(spec, Design(teacher="x", **OF_FEATURES))


def test_student_of_features_can_teach_features_but_not_pixels(tmp_path: Path) -> None:
    teacher = backbone_teacher(tmp_path / "teacher")
    model = student(teacher, **OF_FEATURES)
    assert model.target_model is not None
    write_checkpoint(
        tmp_path / "student",
        state=model.state_dict(),
        spec=model.spec,
        form="pretrain",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={
            "label": "a student",
            "design": asdict(model.design),
            "target_model": asdict(model.target_model),
        },
    )
    shutil.rmtree(tmp_path / "teacher")
    ckpt = str(tmp_path / "student")
    assert (
        student(ckpt, **OF_FEATURES).target.from_images(smooth_images(model.spec)).isfinite().all()
    )
    with pytest.raises(
        UsageError, match="cannot be converted to pixels; use -o target=teacher_features"
    ):
        student(ckpt, **OF_PIXELS)
