"""One contract for every architecture of timm in the list, compared with timm's own models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.timm_archs import (
    ALL,
    NOT_RESIZED,
    REFUSED,
    SAMPLE,
    TIMM_ARCHS,
    Arch,
    create,
    create_perturbed,
    table,
)
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.external import describe_timm, import_timm_network
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.build import build_backbone
from simmim_bench.models.external import ExternalBackbone
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import MapOptions
from simmim_bench.training.compilation import compile_blocks


@dataclass(frozen=True)
class Case:
    """An architecture: what is expected, timm's own model with random weights, and its checkpoint."""

    name: str
    arch: Arch
    timms: Any
    checkpoint: Checkpoint
    spec: ExternalSpec

    def load(self, *args: Any, **kwargs: Any) -> ExternalBackbone:
        """Return the backbone in evaluation mode."""
        model = load_backbone(self.checkpoint, *args, **kwargs)
        assert isinstance(model, ExternalBackbone)
        return model.eval()

    def images(self, *size: int, count: int = 1) -> Tensor:
        """Return random images, by default of the spec's size."""
        return torch.randn(count, self.spec.in_chans, *(size or self.spec.img_size))


@pytest.fixture(
    scope="module",
    params=[name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in ALL],
)
def case(request: pytest.FixtureRequest) -> Case:
    name, arch = request.param, ALL[request.param]
    model = create_perturbed(name, arch)
    checkpoint = import_timm_network(model, name=name, label=name)
    assert isinstance(checkpoint.spec, ExternalSpec)
    return Case(name, arch, model, checkpoint, checkpoint.spec)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> bool:
    """Return whether two tensors differ by less than a fraction of their norm."""
    assert found.shape == wanted.shape
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def strides_of(case: Case) -> tuple[int, ...]:
    return case.arch.reduction or tuple(i["reduction"] for i in case.timms.feature_info)


def test_the_spec_is_the_declared_one(case: Case) -> None:
    kind = "none" if not case.spec.levels else "plain" if case.spec.is_plain else "stages"
    assert (kind, case.spec.sizing) == (case.arch.kind, case.arch.sizing)
    channels = [info["num_chs"] for info in case.timms.feature_info]
    if kind != "none":
        assert case.spec.levels == tuple(zip(channels, strides_of(case), strict=True))


def test_features_and_maps_equal_timms(case: Case) -> None:
    model, images = case.load(), case.images()
    with torch.no_grad():
        features = case.timms.forward_head(case.timms.forward_features(images), pre_logits=True)
        assert close(model.forward_features(images), features.flatten(1))
        if not case.spec.levels:
            return
        model.spec = replace(case.spec, map_norm="none")
        wanted = case.timms.forward_intermediates(images, intermediates_only=True)
        for block, found in zip(case.spec.level_blocks, model.forward_maps(images), strict=True):
            assert close(found, wanted[block - 1])


def test_layers_have_timms_learning_rates(case: Case) -> None:
    with shapes_only():
        timms = create(case.name, case.arch, num_classes=10)
        model = build_backbone(case.spec, num_classes=10)
    rates = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(timms, layer_decay=0.5)
        for p in group["params"]
    }
    wanted = {f"net.{name}": rates[id(p)] for name, p in timms.named_parameters()}
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    found = {name: 0.5 ** (model.num_layers - 1 - layer) for name, layer in ids.items()}
    assert all(found[name] == 1 for name in ("head.weight", "head.bias"))
    assert {n: wanted[n] for n in found if n.startswith("net.")} == {
        n: rate for n, rate in found.items() if n.startswith("net.")
    }
    exempt = timms.no_weight_decay() if hasattr(timms, "no_weight_decay") else set()
    assert {n for n in ids if model.no_weight_decay(n)} == {f"net.{n}" for n in exempt} & set(ids)


def test_maps_have_the_declared_sizes_at_any_size(case: Case) -> None:
    if not case.spec.levels:
        with pytest.raises(UsageError, match="no feature maps"):
            case.load(maps=MapOptions())
        return
    side, model = case.arch.side, case.load()
    sizes = [(side, side), (side - 5, side - 9)]
    larger = [(side + 3, 2 * side), (2 * side - 1, side + 17)]
    for size in sizes + (larger if case.spec.sizing != "fixed" else []):
        with torch.no_grad():
            maps = model.forward_maps(case.images(*size, count=2))
        for level, (channels, stride) in zip(maps, model.feature_levels, strict=True):
            cells = tuple(math.ceil(length / stride) for length in size)
            assert level.shape == (2, channels, *cells)
    if case.spec.sizing == "fixed":
        with pytest.raises(UsageError, match="takes images of"), torch.no_grad():
            model.forward_maps(case.images(*larger[0]))


@pytest.mark.heavy
def test_a_checkpoint_restores_at_another_size_and_in_other_channels(
    case: Case, tmp_path: Path
) -> None:
    saved = case.checkpoint
    assert saved.state is not None
    write_checkpoint(
        tmp_path / "ckpt",
        state=saved.state,
        spec=case.spec,
        form="transfer",
        mean=saved.mean,
        std=saved.std,
        provenance=saved.provenance,
    )
    back = read_checkpoint(str(tmp_path / "ckpt"))
    assert back.spec == case.spec
    images = case.images()
    with torch.no_grad():
        found = load_backbone(back).eval().forward_features(images)
        assert torch.equal(found, case.load().forward_features(images))
        size = (2 * case.arch.side, 2 * case.arch.side)
        if case.name in NOT_RESIZED:
            with pytest.raises((DataError, UsageError), match="img_size"):
                load_backbone(back, size)
        else:
            model = load_backbone(back, size, 3).eval()
            assert model.spec.img_size == size
            assert model(case.images(*size)).shape == (1, 3)
            if case.spec.levels:
                model.forward_maps(case.images(*size))
    if case.name.startswith("naflexvit"):
        with pytest.raises(DataError, match="no rule to adapt"):
            load_backbone(back, in_chans=1)
        return
    grey: Any = load_backbone(back, in_chans=1)  # kernels are summed
    assert grey.load_report.resized
    for name in grey.load_report.resized:
        wanted = saved.state[name].unflatten(1, (-1, 3)).sum(2)  # TResNet's has blocks of pixels
        torch.testing.assert_close(grey.state_dict()[name], wanted)


def test_the_parameters_without_effect_on_the_maps_are_known(case: Case) -> None:
    if not case.spec.levels:
        return
    model = case.load()
    maps = model.forward_maps(case.images(count=2))
    torch.stack([(m * torch.randn_like(m)).sum() for m in maps]).sum().backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert set(model.unused_in_maps()) == without
    assert without < {name for name, _ in model.named_parameters()}


def accepts(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Return whether a function of timm's takes the arguments."""
    try:
        with shapes_only():
            function(*args, **kwargs)
    except (AssertionError, TypeError):
        return False
    return True


def without_chance(model: ExternalBackbone) -> ExternalBackbone:
    """Return the backbone in training mode, but for its BatchNorm and dropout."""
    for module in model.train().modules():
        if isinstance(module, nn.Dropout | _BatchNorm):
            module.eval()
    return model


def test_recomputed_activations_have_the_same_gradients(case: Case) -> None:
    possible = accepts(case.timms.set_grad_checkpointing, True)
    case.timms.set_grad_checkpointing(False)
    if not possible:
        with pytest.raises(UsageError, match="cannot recompute activations"):
            case.load().set_grad_checkpointing()
        return
    images, gradients = case.images(count=2), []
    for enable in (False, True):
        model = without_chance(case.load())
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)  # of GhostNet's dropout, which is no module
        model.forward_features(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(close(one, other, 1e-5) for one, other in zip(*gradients, strict=True))


def test_paths_are_dropped_or_the_rate_is_refused(case: Case) -> None:
    torch.manual_seed(0)
    if not accepts(create, case.name, case.arch, drop_path_rate=0.9):
        with pytest.raises(UsageError, match="no stochastic depth; use -o drop_path_rate=0"):
            case.load(drop_path_rate=0.9)
        return
    model = without_chance(case.load(drop_path_rate=0.9))
    with torch.no_grad():
        first, *others = model.forward_features(case.images().expand(16, -1, -1, -1))
    assert any(not close(other, first, 1e-4) for other in others)


def test_frozen_batch_norms_keep_their_statistics(case: Case) -> None:
    model = case.load(maps=None)
    model.requires_grad_(False).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
    assert bool(norms) == case.spec.batch_normed
    assert not any(norm.training for norm in norms)
    assert case.load().train().training


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_features(case: Case) -> None:
    if case.name not in SAMPLE:
        return
    model, images = case.load(), case.images()
    with torch.no_grad():
        wanted = model.forward_features(images)
        assert model.blocks_in_order
        compile_blocks(model.blocks_in_order, backend="eager")
        assert close(model.forward_features(images), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_encoders_without_pooled_features_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} does not map images of .* to features"):
        describe_timm(name, img_size=(96, 96))


def test_the_list_covers_the_families() -> None:
    from timm.models._registry import _model_to_module

    assert {name: _model_to_module[name] for name in ALL} == {
        name: module for module, archs in TIMM_ARCHS.items() for name in archs
    }
    assert len(ALL) >= 60
    assert len(TIMM_ARCHS) >= 25


def test_the_documentation_lists_the_architectures() -> None:
    page = Path(__file__).parents[2] / "docs" / "timm-architectures.md"
    assert table() in page.read_text()
