"""Check every design: it trains, its loss follows its scope, and its checkpoint restores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretraining import (
    half_masks,
    pixel_mask,
    pretrain_pocket,
    save_checkpoint,
    smooth_images,
)
from support.tiny import TINY

from pretrain.design import Design
from pretrain.evaluation.monitor import trivial_loss
from pretrain.heads import InverseSwin, head_shape
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.classes import ClusterTarget
from simmim_bench.backbones import load_backbone
from simmim_bench.errors import DataError, UsageError
from simmim_bench.overrides import override

FEW = {"clusters": 6}


# Every choice, and combinations that interact: (family, deviations from the default design).
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("vit", {}),
    "mlp": ("vit", {"head": "mlp"}),
    "mlp, swin": ("swin", {"head": "mlp"}),
    "conv": ("vit", {"head": "conv"}),
    "conv, swin": ("swin", {"head": "conv"}),
    "inverse swin": ("swin", {"head": "inverse_swin_t"}),
    "inverse swin, reduced": ("vit", {"head": "inverse_swin_t", "target_size": 16}),
    "aggregate": ("vit", {"aggregate": True}),
    "aggregate, swin": ("swinv2", {"aggregate": True, "head": "mlp"}),
    "norm_target": ("swin", {"norm_target": 7}),
    "patch_norm": ("vit", {"target": "patch_norm"}),
    "patch_norm, swin": ("swin", {"target": "patch_norm", "loss": "l2"}),
    "reduced": ("vit", {"target_size": 8}),
    "reduced, swin": ("swin", {"target_size": 4, "norm_target": 7}),
    "bins": ("vit", {"target": "bins"}),
    "bins, swin": ("swin", {"target": "bins", "target_size": 8, "head": "conv"}),
    "clusters": ("vit", {"target": "clusters", **FEW}),
    "clusters, swin": ("swin", {"target": "clusters", "target_size": 8, **FEW}),
    "tokens": ("vit", {"target": "tokens", "tokens": 6}),
    "tokens, swin": ("swin", {"target": "tokens", "tokens": 6, "target_size": 4, "head": "mlp"}),
    "smooth_l1": ("vit", {"loss": "smooth_l1"}),
    "l2": ("swin", {"loss": "l2"}),
    "all": ("vit", {"scope": "all"}),
    "zeros": ("vit", {"encoder_input": "zeros"}),
    "zeros, swin": ("swin", {"encoder_input": "zeros", "scope": "all"}),
    "zeros, resnet": ("resnet", {"encoder_input": "zeros", "aggregate": True}),
    "inverse swin, convnext": ("convnext", {"head": "inverse_swin_t", "aggregate": True}),
    "visible": ("vit", {"encoder_input": "visible"}),
    "visible, combined": (
        "vit",
        {"encoder_input": "visible", "aggregate": True, "target": "patch_norm", "head": "conv"},
    ),
}


every_design = pytest.mark.parametrize("name", DESIGNS)


def built(name: str) -> SimMIM:
    """Build the model of a design and fit its palette or tokenizer."""
    family, changes = DESIGNS[name]
    model = SimMIM(TINY[family], Design(**changes), seed=1)
    model.target.fit(smooth_images(model.spec, 4, seed=9).split(1), seed=0)
    return model


@pytest.mark.heavy
@every_design
def test_every_design_trains_all_parameters_and_loads_from_its_checkpoint(
    name: str, tmp_path: Path
) -> None:
    model = built(name)
    spec, images, mask = model.spec, smooth_images(model.spec), half_masks(model.spec)
    output = model(images, mask)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    assert output.reconstruction.shape == images.shape
    grid = [side // spec.stride for side in spec.img_size]
    assert output.features.shape == (2, spec.num_features, *grid)
    output.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []

    model.eval()
    ckpt = save_checkpoint(model, tmp_path / "ckpt")
    expected, found = model(images, mask), load_simmim(ckpt)(images, mask)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    report: Any = load_backbone(ckpt).load_report
    assert all(n.startswith(("fc_norm.", "head.")) for n in report.missing)
    # All of the encoder is loaded. Only a ViT's final norm belongs to the pretraining form alone.
    assert all(n.startswith("norm.") for n in report.unused)


# A token depends on more than its square: test_tokens.py checks its loss.
@pytest.mark.parametrize("name", [name for name in DESIGNS if "tokens" not in name])
def test_loss_follows_scope(name: str) -> None:
    """The target of a visible pixel changes the loss with scope "all" only."""
    model = built(name).eval()
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    hidden = pixel_mask(mask, model.spec).unsqueeze(1)
    # Images with the same hidden cells; normalisation by surroundings changes their borders.
    other = torch.where(hidden > 0, images, smooth_images(model.spec, seed=5))
    prediction = torch.randn(2, model.target.channels, *model.target.from_images(images).shape[-2:])
    before, after = (
        model.target.loss(prediction, model.target.from_images(x), hidden).item()
        for x in (images, other)
    )
    local = model.design.norm_target > 0
    if model.design.scope == "masked" and not local:
        assert after == pytest.approx(before, rel=1e-6)
    else:
        assert after != pytest.approx(before, rel=1e-5)


@pytest.mark.heavy
@every_design
def test_hidden_pixels_do_not_reach_the_encoder(name: str) -> None:
    model = built(name).eval()
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    hidden = pixel_mask(mask, model.spec).unsqueeze(1)
    other = torch.where(hidden > 0, smooth_images(model.spec, seed=5), images)
    before, after = model(images, mask), model(other, mask)
    torch.testing.assert_close(before.features, after.features)
    torch.testing.assert_close(before.reconstruction, after.reconstruction)


@pytest.mark.heavy
@every_design
def test_every_design_overfits_one_batch(name: str) -> None:
    model = built(name).train()
    if isinstance(model.decoder, InverseSwin):  # a smaller one, to save time
        torch.manual_seed(2)  # its blocks are initialised from the global generator
        shape = head_shape(
            model.spec,
            width=model.spec.num_features,
            channels=model.target.channels,
            stride=model.target.stride,
        )
        model.decoder = InverseSwin("swin_pocket", shape, torch.Generator().manual_seed(0))
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0)
    losses: list[float] = []
    trivial = trivial_loss(model.target, images.split(1))
    while len(losses) < 25 and not (losses and losses[-1] < min(0.8 * losses[0], trivial)):
        loss = model(images, mask).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert losses[-1] < trivial


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["target=patch_norm", "norm_target=7"], "norm_target 7 needs target pixels"),
        (["target=bins", "loss=l2"], "loss l2 is a distance, but target bins"),
        (["bins=1"], "bins 1 .* use 2 to 256"),
        (["head=swin"], "head=swin is not one of the allowed values"),
    ],
)
def test_contradictory_choices_are_rejected(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(POCKET, assignments)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "swin",
            {"encoder_input": "visible"},
            "visible needs a ViT, as the windows of swin_pocket",
        ),
        ("resnet", {"encoder_input": "visible"}, "the convolutions of resnet_pocket need every"),
        ("vit", {"target_size": 7}, "target_size 7 does not divide .* use one of 32, 16, 8"),
        ("vit", {"target_size": 4}, "cells of 4 pixels; use one of 32, 16, 8"),
        ("swin", {"target": "clusters"}, "131,072 outputs .* use a smaller -o target_size"),
    ],
)
def test_design_unsupported_by_the_backbone_is_rejected(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        SimMIM(TINY[family], Design(**changes))


def test_design_of_a_newer_version_is_a_data_error(tmp_path: Path) -> None:
    ckpt = save_checkpoint(built("paper"), tmp_path / "ckpt")
    meta = tmp_path / "ckpt" / "meta.json"
    meta.write_text(meta.read_text().replace('"scope"', '"unheard_of"'))
    with pytest.raises(DataError, match="unheard_of"):
        load_simmim(ckpt)


@pytest.mark.heavy
def test_run_stores_its_design_and_palette(tmp_path: Path, few: Path) -> None:
    data = few
    choices = ["target=clusters", "clusters=20", "encoder_input=visible", "aggregate=true"]
    first = pretrain_pocket(tmp_path / "first", data, *choices)
    model = load_simmim(str(first))
    assert model.design == override(POCKET, choices).design
    assert isinstance(model.target, ClusterTarget)
    assert len(model.target.palette.unique(dim=0)) == 20
    assert "predicts 20 colours of the data" in (tmp_path / "first" / "log.txt").read_text()
    # A run that starts from it keeps the meaning of the classes, regardless of the data.
    second = load_simmim(
        str(pretrain_pocket(tmp_path / "second", data, *choices, init_from=str(first)))
    )
    assert isinstance(second.target, ClusterTarget)
    assert torch.equal(second.target.palette, model.target.palette)
    with pytest.raises(
        UsageError, match=r"another design .* use -o aggregate=True -o target=clust"
    ):
        pretrain_pocket(tmp_path / "third", data, init_from=str(first))


def test_default_choices_leave_recipe_hash_unchanged() -> None:
    """The hash is that of POCKET before the design fields were added."""
    assert POCKET.sha256() == "4de96403081ffae9e59525fac0ab2d372eb44c46406c112ac1833fe5c137e800"
    assert POCKET.design == Design()
    assert override(POCKET, ["head=mlp"]).sha256() != POCKET.sha256()
