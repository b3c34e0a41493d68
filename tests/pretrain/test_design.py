"""Claims about the choices beside SimMIM's own: heads, targets, losses, what the encoder sees."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pretraining import MEAN, STD, at_pixels, masks, pictures, run, save
from support.tiny import TINY
from torch import Tensor

from pretrain.design import Design
from pretrain.encoder_input import visible_patches
from pretrain.heads import HEADS, HeadShape, InverseSwin, head_shape
from pretrain.monitor import trivial_loss
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.base import Target
from pretrain.targets.classes import Clusters
from pretrain.targets.pixels import Pixels
from pretrain.targets.table import TARGETS
from pretrain.train import check_sizes
from simmim_bench.backbones import load_backbone
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.vit import sincos_position
from simmim_bench.recipe import override

FEW = {"clusters": 6}
# One of each choice, and those that meet: (family, what differs from SimMIM's own).
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
    "visible, all that meets": (
        "vit",
        {"encoder_input": "visible", "aggregate": True, "target": "patch_norm", "head": "conv"},
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


every_design = pytest.mark.parametrize("name", DESIGNS)


def built(name: str) -> SimMIM:
    """Build a model of a design, its palette or tokenizer fitted."""
    family, changes = DESIGNS[name]
    model = SimMIM(TINY[family], Design(**changes), seed=1)
    model.target.fit(pictures(model.spec, 4, seed=9).split(1), seed=0)
    return model


@every_design
def test_every_design_learns_whole_and_is_rebuilt_from_its_checkpoint(
    name: str, tmp_path: Path
) -> None:
    model = built(name)
    spec, images, mask = model.spec, pictures(model.spec), masks(model.spec)
    output = model(images, mask)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    assert output.reconstruction.shape == images.shape
    grid = [side // spec.stride for side in spec.img_size]
    assert output.features.shape == (2, spec.num_features, *grid)
    output.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []

    model.eval()
    ckpt = save(model, tmp_path / "ckpt")
    wanted, found = model(images, mask), load_simmim(ckpt)(images, mask)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    report = load_backbone(ckpt).load_report
    assert all(n.startswith(("fc_norm.", "head.")) for n in report.missing)
    # No head's weights: those are not the encoder's. A ViT's last norm is of its pretraining form.
    assert all(n.startswith("norm.") for n in report.unused)


# A token is of more than its own square: test_tokens.py counts its loss.
@pytest.mark.parametrize("name", [name for name in DESIGNS if "tokens" not in name])
def test_the_loss_is_of_what_the_scope_says(name: str) -> None:
    """A visible pixel's target changes the loss where everything counts, and nowhere else."""
    model = built(name).eval()
    images, mask = pictures(model.spec), masks(model.spec)
    hidden = at_pixels(mask, model.spec).unsqueeze(1)
    # Pictures whose hidden cells are the same: what is normalised around them differs at the rim.
    other = torch.where(hidden > 0, images, pictures(model.spec, seed=5))
    prediction = torch.randn(2, model.target.channels, *model.target.of(images).shape[-2:])
    before, after = (
        model.target.loss(prediction, model.target.of(x), hidden).item() for x in (images, other)
    )
    local = model.design.norm_target > 0
    if model.design.scope == "masked" and not local:
        assert after == pytest.approx(before, rel=1e-6)
    else:
        assert after != pytest.approx(before, rel=1e-5)


@every_design
def test_no_hidden_pixel_reaches_the_encoder(name: str) -> None:
    model = built(name).eval()
    images, mask = pictures(model.spec), masks(model.spec)
    hidden = at_pixels(mask, model.spec).unsqueeze(1)
    other = torch.where(hidden > 0, pictures(model.spec, seed=5), images)
    before, after = model(images, mask), model(other, mask)
    torch.testing.assert_close(before.features, after.features)
    torch.testing.assert_close(before.reconstruction, after.reconstruction)


@every_design
def test_every_design_learns_a_batch_by_heart(name: str) -> None:
    model = built(name).train()
    if isinstance(model.decoder, InverseSwin):  # a small Swin turned round, for the time it takes
        shape = head_shape(
            model.spec,
            width=model.spec.num_features,
            channels=model.target.channels,
            stride=model.target.stride,
        )
        model.decoder = InverseSwin("swin_pocket", shape, torch.Generator().manual_seed(0))
    images, mask = pictures(model.spec), masks(model.spec)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0)
    losses = []
    for _ in range(25):
        loss = model(images, mask).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    trivial = trivial_loss(model.target, images.split(1))
    assert losses[-1] < 0.8 * losses[0]
    assert losses[-1] < trivial


def target_of(family: str = "vit", **changes: Any) -> Target:
    design = Design(**changes)
    return TARGETS[design.target](design, TINY[family], None)


def test_patch_norm_is_that_of_a_naive_loop() -> None:
    spec, images = TINY["vit"], pictures(TINY["vit"])
    found = target_of(target="patch_norm").of(images)
    for b in range(2):
        for y in range(0, 32, 4):
            for x in range(0, 32, 4):
                patch = images[b, :, y : y + 4, x : x + 4].double().numpy()
                wanted = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
                np.testing.assert_allclose(
                    found[b, :, y : y + 4, x : x + 4], wanted, rtol=1e-4, atol=1e-5
                )
    assert spec.stride == 4


@pytest.mark.parametrize("changes", [{"target": "patch_norm"}, {"norm_target": 7}])
def test_a_normalised_target_is_restored_to_the_image(changes: dict[str, Any]) -> None:
    images = pictures(TINY["swin"])
    target = target_of("swin", **changes)
    torch.testing.assert_close(target.denormalise(target.of(images), images), images)


@pytest.mark.parametrize("size", [4, 16])
def test_a_reduced_target_is_the_mean_of_every_square(size: int) -> None:
    spec = TINY["vit"].at((32, 64))
    images = pictures(spec)
    target = Pixels(Design(target_size=8 if size == 4 else 16), spec)
    side = 32 // target.of(images).shape[2]
    found = target.of(images)
    for y, x in ((0, 0), (1, 5), (7, 15)):
        square = images[1, :, y * side : (y + 1) * side, x * side : (x + 1) * side]
        torch.testing.assert_close(found[1, :, y, x], square.mean((1, 2)))
    drawn = target.to_pixels(found)
    assert drawn.shape == images.shape
    assert torch.equal(drawn[:, :, side, :side], found[:, :, 1, :1].expand(-1, -1, side))


def test_bins_are_those_of_a_naive_loop() -> None:
    for count in (8, 256):
        levels = torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        target = target_of(target="bins", bins=count)
        found = target.of((levels / 255 - MEAN) / STD)
        assert torch.equal(found, (levels * count // 255).clamp(max=count - 1))


def test_clusters_are_the_nearest_of_a_naive_loop() -> None:
    target = target_of(target="clusters", **FEW)
    assert isinstance(target, Clusters)
    images = pictures(TINY["vit"], 4)
    target.fit(images.split(1), seed=0)
    palette = target.palette.double().numpy()
    found = target.of(images)
    colours = (images * STD + MEAN).double().numpy()
    for y, x in ((0, 0), (3, 30), (17, 8)):
        distances = [np.sum((colours[2, :, y, x] - colour) ** 2) for colour in palette]
        assert found[2, 0, y, x] == int(np.argmin(distances))
    # Lloyd's fixed point: every colour of the palette is the mean of what is nearest to it.
    points = colours.transpose(0, 2, 3, 1).reshape(-1, 3)
    for number in range(FEW["clusters"]):
        own = points[found.flatten().numpy() == number]
        np.testing.assert_allclose(own.mean(0), palette[number], atol=2e-2)


def test_a_palette_follows_from_its_images_and_seed() -> None:
    images = pictures(TINY["vit"], 4)
    palettes = []
    for seed in (0, 0, 1):
        target = target_of(target="clusters", **FEW)
        target.fit(images.split(1), seed=seed)
        palettes.append(target.state_dict()["palette"])
    assert torch.equal(palettes[0], palettes[1])
    assert not torch.equal(palettes[0], palettes[2])


@pytest.mark.parametrize("kind", ["bins", "clusters"])
def test_the_cross_entropy_is_that_of_a_naive_loop(kind: str) -> None:
    spec, images, mask = TINY["vit"], pictures(TINY["vit"]), masks(TINY["vit"])
    target = target_of(target=kind, bins=5, target_size=16, **FEW)
    target.fit(images.split(1), seed=0)
    groups, classes = (3, 5) if kind == "bins" else (1, 6)
    wanted = target.of(images)
    prediction = torch.randn(2, groups * classes, 16, 16)
    total, count = 0.0, 0
    hidden = at_pixels(mask, spec)
    for b in range(2):
        for y in range(16):
            for x in range(16):
                if not hidden[b, 2 * y, 2 * x]:
                    continue
                for g in range(groups):
                    logits = prediction[b, g * classes : (g + 1) * classes, y, x].double()
                    total -= logits.log_softmax(0)[wanted[b, g, y, x]].item()
                    count += 1
    found = target.loss(prediction, wanted, hidden.unsqueeze(1))
    assert found.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("kind", ["bins", "clusters"])
def test_a_certain_prediction_is_drawn_as_its_classes(kind: str) -> None:
    images = pictures(TINY["vit"])
    target = target_of(target=kind, bins=64, clusters=200)
    target.fit(images.split(1), seed=0)
    classes = target.of(images)
    certain = torch.nn.functional.one_hot(classes, 64 if kind == "bins" else 200)
    prediction = certain.permute(0, 1, 4, 2, 3).flatten(1, 2) * 100.0
    drawn = target.to_pixels(prediction) * STD + MEAN
    gap = (drawn - (images * STD + MEAN)).abs()
    assert gap.max() <= 0.5 / 64 + 1e-6 if kind == "bins" else gap.mean() < 0.05


@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "l2"])
def test_distances_are_those_of_a_naive_loop(loss: str) -> None:
    spec, images, mask = TINY["vit"], pictures(TINY["vit"]), masks(TINY["vit"])
    prediction = torch.randn_like(images)
    naive = {
        "l1": abs,
        "l2": lambda gap: gap * gap,
        "smooth_l1": lambda gap: gap * gap / 2 if abs(gap) < 1 else abs(gap) - 0.5,
    }[loss]
    for scope in ("masked", "all"):
        hidden = at_pixels(mask, spec)
        counted = (hidden > 0) | (scope == "all")
        gaps = (prediction - images).permute(0, 2, 3, 1)[counted].flatten().tolist()
        target = target_of(loss=loss, scope=scope)
        found = target.loss(prediction, target.of(images), hidden.unsqueeze(1))
        wanted = math.fsum(naive(gap) for gap in gaps) / len(gaps)
        assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_point_that_is_half_hidden_counts_half() -> None:
    target = target_of("swin", target_size=2)  # points of 16 pixels, patches of 2
    images = pictures(TINY["swin"])
    hidden = torch.zeros(2, 1, 32, 32)
    hidden[:, :, :8, :16], hidden[:, :, 16:, 16:] = 1, 1
    prediction = torch.randn(2, 3, 2, 2)
    gap = (prediction - target.of(images)).abs().mean(1)
    wanted = (0.5 * gap[:, 0, 0] + gap[:, 1, 1]).sum() / 3
    assert target.loss(prediction, target.of(images), hidden).item() == pytest.approx(
        wanted.item(), rel=1e-4
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "l2"},
        {"loss": "smooth_l1"},
        {"target": "patch_norm", "loss": "smooth_l1"},
        {"norm_target": 7},
        {"target_size": 8, "loss": "l2"},
        {"target": "bins", "bins": 4},
        {"target": "clusters", "clusters": 3, "target_size": 16},
    ],
)
def test_no_constant_prediction_beats_the_trivial_loss(changes: dict[str, Any]) -> None:
    images = pictures(TINY["vit"], 3) * 2  # beyond where the smooth L1 is square
    target = target_of(scope="all", **changes)
    target.fit(images.split(1), seed=0)
    trivial = trivial_loss(target, images.split(1))
    wanted, hidden = target.of(images), torch.ones(3, 1, 32, 32)

    def loss_of(constant: Tensor) -> Tensor:
        shape = (3, target.channels, *wanted.shape[-2:])
        return target.loss(constant.view(1, -1, 1, 1).expand(shape), wanted, hidden)

    # The best constant by another way: it is learnt.
    constant = torch.zeros(target.channels, requires_grad=True)
    optimizer = torch.optim.Adam([constant], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of(constant).backward()
        optimizer.step()
        schedule.step()
    assert trivial == pytest.approx(loss_of(constant).item(), rel=1e-3)
    assert trivial <= loss_of(constant).item() * (1 + 1e-4)


def shaken(model: SimMIM) -> SimMIM:
    """Give every weight a value of its own: position biases and class tokens begin at zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def test_the_visible_patches_are_encoded_as_if_the_others_were_not_there() -> None:
    """Full attention in which no hidden patch is attended to gives the visible ones the same features."""
    spec = replace(TINY["vit"], img_size=(16, 24), abs_pos_embed=True)
    model = shaken(SimMIM(spec, Design(encoder_input="visible")))
    encoder, mask = model.encoder, masks(spec, 3)
    images = pictures(spec, 3).double()
    found = model(images, mask).features
    hidden = mask.flatten(1).bool()
    for b in range(3):
        kept = (~hidden[b]).nonzero()[:, 0]
        bias = encoder.rel_pos_bias(spec.grid).clone()
        bias[:, :, :, 1 + hidden[b].nonzero()[:, 0]] = -torch.inf
        x = encoder.embed(images[b : b + 1]) + sincos_position(spec.grid, spec.embed_dim)
        x = torch.cat([encoder.cls_token, x.flatten(1, 2)], dim=1) + encoder.pos_embed
        for block in encoder.blocks:
            x = block(x, spec.grid, bias)
        whole = encoder.norm(x[0, 1:]).T
        torch.testing.assert_close(found[b].flatten(1)[:, kept], whole[:, kept])
        assert (found[b].flatten(1)[:, hidden[b]] == 0).all()


def test_levels_of_visible_patches_end_in_the_features() -> None:
    model = shaken(SimMIM(TINY["vit"], Design(encoder_input="visible")))
    images, mask = pictures(model.spec).double(), masks(model.spec)
    everything = torch.arange(64).expand(2, -1)
    tokens = model.encoder.embed(images)
    maps = model.encoder.encode_visible(tokens, everything)
    for one, other in zip(maps, model.encoder.encode_levels(tokens), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(maps[-1], model.encoder.encode(tokens))
    assert torch.equal(visible_patches(mask)[1], (mask[1].flatten() == 0).nonzero()[:, 0])


@pytest.mark.parametrize("family", sorted(TINY))
def test_levels_are_the_maps_of_a_detector(family: str) -> None:
    model = shaken(SimMIM(TINY[family], Design(aggregate=True)))
    images = pictures(model.spec).double()
    levels = model.encoder.encode_levels(model.encoder.embed(images))
    assert [m.shape[1] for m in levels] == [level.channels for level in model.spec.feature_levels]
    torch.testing.assert_close(levels[-1], model.encoder.encode(model.encoder.embed(images)))
    for one, other in zip(levels[:-1], model.encoder.forward_maps(images), strict=False):
        torch.testing.assert_close(one, other)


def test_hidden_zeros_are_the_mean_colour() -> None:
    model = shaken(SimMIM(TINY["vit"], Design(encoder_input="zeros")))
    images, mask = pictures(model.spec).double(), masks(model.spec)
    grey = torch.where(at_pixels(mask, model.spec).unsqueeze(1) > 0, 0.0, images)
    torch.testing.assert_close(
        model(images, mask).features, model.encoder.encode(model.encoder.embed(grey))
    )


@pytest.mark.parametrize(
    ("head", "millions"),
    # Swin-B with its head, as recalled of SimMIM's table 2; 86.7 of them are Swin-B's.
    [("linear", 89.9), ("mlp", 90.9), ("inverse_swin_t", 115.2), ("inverse_swin_b", 174.8)],
)
def test_heads_are_as_large_as_in_the_papers_table(head: str, millions: float) -> None:
    with torch.device("meta"):
        model = SimMIM(find_spec("swin_b"), Design(head=head))
    found = sum(p.numel() for p in model.parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("factor", [1, 4, 7, 14, 32])
def test_every_head_predicts_as_many_points_as_asked(head: str, factor: int) -> None:
    shape = HeadShape(width=64, channels=5, factor=factor, grid=(2, 3), window=2)
    with torch.device("meta"):
        found = HEADS[head](shape, torch.Generator())(torch.zeros(2, 64, 2, 3))
    assert found.shape == (2, 5, 2 * factor, 3 * factor)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["target=patch_norm", "norm_target=7"], "norm_target 7 is for target pixels"),
        (["target=bins", "loss=l2"], "loss l2 is a distance; target bins"),
        (["bins=1"], "bins 1 .* use 2 to 256"),
        (["head=swin"], "head=swin is not one of the allowed values"),
    ],
)
def test_choices_that_exclude_each_other_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(POCKET, assignments)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("swin", {"encoder_input": "visible"}, "visible is for a ViT: the windows of swin_pocket"),
        ("resnet", {"encoder_input": "visible"}, "the convolutions of resnet_pocket need every"),
        ("vit", {"target_size": 7}, "target_size 7 does not divide .* use one of 32, 16, 8"),
        ("vit", {"target_size": 4}, "cells of 4 pixels; use one of 32, 16, 8"),
        ("swin", {"target": "clusters"}, "131,072 numbers .* give a smaller -o target_size"),
    ],
)
def test_a_design_that_a_backbone_cannot_have_is_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        SimMIM(TINY[family], Design(**changes))


def test_visible_patches_must_be_as_many_in_every_image() -> None:
    model = SimMIM(TINY["vit"], Design(encoder_input="visible"))
    mask = masks(model.spec)
    mask[0, 0] = 1 - mask[0, 0, 0]
    with pytest.raises(UsageError, match="as many hidden patches in every image"):
        model(pictures(model.spec), mask)


@pytest.mark.parametrize("units", [("masking=pixels",), ("img_size=32", "mask_patch_size=2")])
def test_visible_patches_are_whole(units: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="less than vit_pocket's patches of 4"):
        check_sizes(override(POCKET, [*units, "encoder_input=visible"]))


def test_a_design_of_a_newer_version_is_bad_data(tmp_path: Path) -> None:
    ckpt = save(built("paper"), tmp_path / "ckpt")
    meta = tmp_path / "ckpt" / "meta.json"
    meta.write_text(meta.read_text().replace('"scope"', '"unheard_of"'))
    with pytest.raises(DataError, match="unheard_of"):
        load_simmim(ckpt)


def test_a_run_keeps_its_design_and_its_palette(tmp_path: Path, pocket: Path) -> None:
    data = pocket / "imagenet"
    choices = ["target=clusters", "clusters=20", "encoder_input=visible", "aggregate=true"]
    first = run(tmp_path / "first", data, *choices)
    model = load_simmim(str(first))
    assert model.design == override(POCKET, choices).design
    assert isinstance(model.target, Clusters)
    assert len(model.target.palette.unique(dim=0)) == 20
    assert "predicts 20 colours of the data" in (tmp_path / "first" / "log.txt").read_text()
    # Going on from it keeps what the classes mean, whatever the data are.
    second = load_simmim(str(run(tmp_path / "second", data, *choices, init_from=str(first))))
    assert torch.equal(second.target.palette, model.target.palette)
    with pytest.raises(UsageError, match=r"other parts .* give -o aggregate=True -o target=clust"):
        run(tmp_path / "third", data, init_from=str(first))


def test_choices_left_alone_change_no_recipes_hash() -> None:
    """The hash that POCKET had before there were choices."""
    assert POCKET.sha256() == "4de96403081ffae9e59525fac0ab2d372eb44c46406c112ac1833fe5c137e800"
    assert POCKET.design == Design()
    assert override(POCKET, ["head=mlp"]).sha256() != POCKET.sha256()
