"""What the recipes resolve to equals what MMSegmentation builds from its own configs, part by part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.mmseg_models import (
    PLAIN_VIT,
    build_official,
    checkpoint_of,
    mmseg_scope,
    module_with,
    official_config,
    official_name,
    on,
)
from torch import nn

from simmim_bench.backbones import load_backbone
from transfer.recipes import RECIPES
from transfer.segmentation.optim import segmentor_groups
from transfer.segmentation.recipes import Ade20kRecipe

pytestmark = pytest.mark.usefixtures("mmseg")

GPUS = 8  # of every published run: "8xb2" in the names of the files
SWIN = "swin/swin-{}_upernet_8xb2-160k_ade20k-512x512.py"
CONVNEXT = "convnext/convnext-{}_upernet_8xb2-amp-160k_ade20k-512x512.py"
# Recipe, file, architecture, and changes of its spec.
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    (
        "ade20k_mae_vit_b",
        "mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
        "vit_b",
        PLAIN_VIT,
    ),
    ("ade20k_beit_vit_b_640", "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py", "vit_b", {}),
    (
        "ade20k_beit_vit_l_640",
        "beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py",
        "vit_l",
        {},
    ),
    ("ade20k_swin_w7", SWIN.format("base-patch4-window7-in1k-pre"), "swin_b", {}),
    ("ade20k_swin_w12", SWIN.format("base-patch4-window12-in1k-384x384-pre"), "swin_b", {}),
    ("ade20k_swin_w12", SWIN.format("large-patch4-window12-in22k-384x384-pre"), "swin_l", {}),
    ("ade20k_convnext_512", CONVNEXT.format("base"), "convnext_b", {}),
    ("ade20k_convnext_s_512", CONVNEXT.format("small"), "convnext_s", {}),
    ("ade20k_convnext_t_512", CONVNEXT.format("tiny"), "convnext_t", {}),
]
IDS = [f"{case[0]}-{case[2]}" for case in CASES]
every_config = pytest.mark.parametrize(("name", "file", "arch", "changes"), CASES, ids=IDS)


def recipe_of(name: str) -> Ade20kRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, Ade20kRecipe)
    return recipe


def segmentor_of(recipe: Ade20kRecipe, arch: str, changes: dict[str, Any], device: str) -> Any:
    from transfer.segmentation.model import build_segmentor

    with on(device):
        return build_segmentor(checkpoint_of(arch, **changes), recipe, 150, 0, synced=True)


@every_config
def test_heads_pixels_and_windows_are_those_of_the_config(
    name: str, file: str, arch: str, changes: dict[str, Any]
) -> None:
    config = official_config(file).model
    ours = segmentor_of(recipe_of(name), arch, changes, "meta")
    for part in ("neck", "decode_head", "auxiliary_head"):
        if part not in config:
            assert not hasattr(ours, part)
            continue
        theirs, found = build_official(config[part], "meta"), getattr(ours, part)
        assert str(found) == str(theirs)  # every module with its sizes, norm, dropout and in_index
        assert [(n, p.shape) for n, p in found.named_parameters()] == [
            (n, p.shape) for n, p in theirs.named_parameters()
        ]
        for key in ("loss_weight", "use_sigmoid", "avg_non_ignore", "class_weight"):
            if part != "neck":
                assert getattr(found.loss_decode, key) == getattr(theirs.loss_decode, key)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in ours.decode_head.modules())
    assert dict(ours.test_cfg) == dict(config.test_cfg)
    theirs, found = build_official(config.data_preprocessor), ours.data_preprocessor
    for key in ("size", "pad_val", "seg_pad_val", "size_divisor", "test_cfg"):
        assert getattr(found, key) == getattr(theirs, key), key


@every_config
def test_the_backbone_has_the_configs_levels_rates_and_options(
    name: str, file: str, arch: str, changes: dict[str, Any]
) -> None:
    config = official_config(file).model.backbone
    spec = segmentor_of(recipe_of(name), arch, changes, "meta").backbone.backbone.spec
    assert recipe_of(name).drop_path_rate == config.drop_path_rate
    if spec.family == "vit":
        assert [block - 1 for block in spec.level_blocks] == list(config.out_indices)
        assert (spec.embed_dim, *spec.depths) == (config.embed_dims, config.num_layers)
        assert spec.rel_pos_bias  # MAE's and BEiT's attention always have a table
        assert spec.img_size == tuple(config.img_size)
        if config.type == "MAE":  # a BEiT's checkpoint has its own
            assert spec.init_values == config.init_values
    if spec.family == "swin":
        assert (spec.window_size, list(spec.depths), list(spec.num_heads), spec.embed_dim) == (
            config.window_size,
            config.depths,
            config.num_heads,
            config.embed_dims,
        )
    assert spec.map_norm == ("none" if spec.family == "vit" else "affine")


@every_config
def test_batches_precision_and_clipping_are_those_of_the_config(
    name: str, file: str, arch: str, changes: dict[str, Any]
) -> None:
    config, recipe = official_config(file), recipe_of(name)
    parts = config.optim_wrapper.get("accumulative_counts", 1)
    assert recipe.batch_size == config.train_dataloader.batch_size * GPUS * parts
    assert recipe.max_iters == config.train_cfg.max_iters // parts
    amp = config.optim_wrapper.type == "AmpOptimWrapper" or "fp16" in config
    assert recipe.precision == ("auto" if amp else "fp32")
    assert config.optim_wrapper.get("clip_grad") is None
    assert recipe.clip_grad == 0.0


# BEiT's ViT-L follows microsoft/unilm (test_transcribed_configs.py): this config's rate is 0 from the middle on.
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "file", "arch", "changes"), [case for case in CASES if case[2] != "vit_l"]
)
def test_the_learning_rate_of_every_step_is_that_of_the_configs_schedulers(
    name: str, file: str, arch: str, changes: dict[str, Any]
) -> None:
    from mmengine.registry import PARAM_SCHEDULERS

    from transfer.segmentation.hooks import lr_factor

    config, recipe = official_config(file), recipe_of(name)
    optimizer = torch.optim.SGD(
        [nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr
    )
    schedulers = [
        PARAM_SCHEDULERS.build({**one, "optimizer": optimizer}) for one in config.param_scheduler
    ]
    optimizer.step()
    worst = 0.0
    for iteration in range(recipe.max_iters):
        factor = lr_factor(iteration, recipe.warmup_iters, recipe.max_iters, recipe.lr_rule)
        worst = max(worst, abs(recipe.base_lr * factor - optimizer.param_groups[0]["lr"]))
        for scheduler in schedulers:
            scheduler.step()
    assert worst < 1e-12 * recipe.max_iters * recipe.base_lr


NARROW: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 48, "num_heads": (3,)},
    "swin": {"embed_dim": 16, "num_heads": (1, 2, 4, 8)},
    "convnext": {"embed_dim": 16},
}


class ConvNeXt(nn.Module):
    """The name by which MMSegmentation's optimizer constructor knows MMPretrain's backbone."""


def official_groups(config: Any, ours: Any) -> Any:
    """Build a config's optimizer for its own, narrow backbone and for heads of the same shapes as ours."""
    from mmengine.optim import build_optim_wrapper

    model, backbone, spec = nn.Module(), config.model.backbone, ours.backbone.backbone.spec
    if spec.family == "convnext":
        parameters = {
            official_name(spec, name): p.detach()
            for name, p in ours.backbone.backbone.named_parameters()
            if p.requires_grad
        }
        model.backbone = module_with(parameters, ConvNeXt)
    else:
        heads = list(spec.num_heads) if spec.family == "swin" else spec.num_heads[0]
        backbone.update(embed_dims=spec.embed_dim, num_heads=heads, init_cfg=None)
        model.backbone = build_official(backbone)
    for part in ("neck", "decode_head", "auxiliary_head"):
        if part in config.model:
            model.add_module(part, getattr(ours, part))
    wrapper = {**config.optim_wrapper, "type": "OptimWrapper"}  # AmpOptimWrapper needs a GPU
    wrapper.pop("loss_scale", None)
    with mmseg_scope():
        return model, build_optim_wrapper(model, wrapper).optimizer


@pytest.mark.heavy
@every_config
@pytest.mark.filterwarnings("ignore:DeprecationWarning")
def test_rate_and_weight_decay_of_every_parameter_are_those_of_the_configs_optimizer(
    name: str, file: str, arch: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from transfer.segmentation.loop import _build_optimizer

    config = official_config(file)
    recipe = replace(recipe_of(name), head_channels=16, auxiliary_channels=8)
    family = arch.split("_")[0]
    ours = segmentor_of(recipe, arch, {**changes, **NARROW[family]}, "meta")
    model, theirs = official_groups(config, ours)
    optimizer = _build_optimizer(ours, recipe)
    capsys.readouterr()  # the constructor prints its groups

    def settings(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, ...]]:
        names = {id(p): n for n, p in module.named_parameters()}
        return {
            names[id(p)]: (group["lr"], group["weight_decay"], *group["betas"], group["eps"])
            for group in groups
            for p in group["params"]
        }

    spec, wanted = ours.backbone.backbone.spec, settings(model, theirs.param_groups)
    # There one bias of queries, keys and values; ours has none of the keys, which has no effect.
    if config.model.backbone.type == "MAE":
        for one in [n for n in wanted if n.endswith("attn.qkv.bias")]:
            value = wanted.pop(one)
            wanted |= {one.replace("qkv.bias", f"{kind}_bias"): value for kind in "qv"}
    found = {
        "backbone." + official_name(spec, n.removeprefix("backbone.backbone."))
        if n.startswith("backbone.")
        else n: value
        for n, value in settings(ours, optimizer.param_groups).items()
    }
    assert set(found) == set(wanted)
    for one, value in wanted.items():
        assert found[one] == pytest.approx(value, rel=1e-12), one


def test_decay_by_stage_is_refused_for_other_networks() -> None:
    from simmim_bench.errors import UsageError

    backbone = load_backbone("random:swin_pocket")
    with pytest.raises(UsageError, match="stage_decay_layers=12 does not apply to swin_pocket"):
        segmentor_groups(backbone, backbone, recipe_of("ade20k_convnext_512"))
