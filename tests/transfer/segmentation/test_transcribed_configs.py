"""What BEiT's and DINOv2's recipes resolve to equals their published configs, transcribed, field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.mmseg_models import checkpoint_of
from support.official_segmentation import BEIT, DINOV2_LINEAR, poly_lr
from torch import nn

from simmim_bench.models.shapes import shapes_only
from transfer.recipes import RECIPES
from transfer.segmentation.recipes import Ade20kRecipe

pytestmark = pytest.mark.usefixtures("mmseg")

CONFIGS = {**BEIT, "ade20k_dinov2_linear": DINOV2_LINEAR}
every_config = pytest.mark.parametrize("name", CONFIGS)
GPUS = 8


def recipe_of(name: str) -> Ade20kRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, Ade20kRecipe)
    return recipe


def segmentor_of(name: str) -> Any:
    from transfer.segmentation.model import build_segmentor

    arch = "vit_l" if "vit_l" in name else "vit_b"
    with shapes_only():
        return build_segmentor(checkpoint_of(arch), recipe_of(name), 150, 0, synced=True)


@every_config
def test_the_model_is_the_configs(name: str) -> None:
    config, model = CONFIGS[name], segmentor_of(name)
    head, spec = model.decode_head, model.backbone.backbone.spec
    assert dict(model.test_cfg) == config["test_cfg"]
    assert (head.channels, head.dropout_ratio) == (config["channels"], config["dropout_ratio"])
    assert (head.loss_decode.loss_weight, head.align_corners) == (1.0, False)
    assert recipe_of(name).drop_path_rate == config.get("drop_path_rate", 0.0)
    if name in BEIT:
        assert [block - 1 for block in spec.level_blocks] == config["out_indices"]
        assert spec.rel_pos_bias == config["use_rel_pos_bias"]
        auxiliary = model.auxiliary_head
        assert auxiliary.channels == config["aux_channels"]
        assert auxiliary.loss_decode.loss_weight == config["aux_loss_weight"]
        assert (auxiliary.dropout_ratio, auxiliary.in_index) == (config["dropout_ratio"], 2)
        # fpn1 to fpn4 of beit/semantic_segmentation/backbone/beit.py:336-350
        assert [type(m).__name__ for m in model.neck.upsample_4x] == [
            "ConvTranspose2d",
            "SyncBatchNorm",
            "GELU",
            "ConvTranspose2d",
        ]


@every_config
def test_the_training_is_the_configs(name: str) -> None:
    from transfer.segmentation.data import eval_pipeline, train_pipeline

    config, recipe = CONFIGS[name], recipe_of(name)
    assert recipe.batch_size == config["samples_per_gpu"] * GPUS * config["update_interval"]
    assert recipe.precision == ("auto" if config["use_fp16"] else "fp32")
    assert config["grad_clip"] is None
    assert recipe.clip_grad == 0.0
    _, _, resize, crop, flip, colour, _ = train_pipeline(recipe, 150)
    assert type(resize).__name__ == "RandomResize"
    assert (resize.scale, resize.ratio_range, resize.resize.keep_ratio) == (
        config["img_scale"],
        config["ratio_range"],
        True,
    )
    assert (crop.crop_size, crop.cat_max_ratio) == (config["crop_size"], config["cat_max_ratio"])
    assert flip.prob == config["flip_prob"]
    assert type(colour).__name__ == "PhotoMetricDistortion"
    test_resize = eval_pipeline(recipe, 150)[1]
    assert (test_resize.scale, test_resize.keep_ratio) == (config["img_scale"], True)


@every_config
def test_the_rate_of_every_step_is_the_configs(name: str) -> None:
    from transfer.segmentation.hooks import lr_factor

    config, recipe = CONFIGS[name], recipe_of(name)
    parts = config["update_interval"]
    assert recipe.max_iters * parts == config["max_iters"]
    for step in range(recipe.max_iters):
        # An optimizer step has the rate of the last of its iterations; ours counts steps.
        wanted = poly_lr(config, step * parts + parts - 1)
        rate = lr_factor(step, recipe.warmup_iters, recipe.max_iters, recipe.lr_rule)
        slack = 0.5 * (parts - 1) / recipe.warmup_iters
        assert abs(rate * recipe.base_lr - wanted) <= recipe.base_lr * (slack + 1e-12), step


@every_config
def test_rate_and_weight_decay_of_every_parameter_follow_the_config(name: str) -> None:
    """unilm: mmcv_custom/layer_decay_optimizer_constructor.py:6-56. DINOv2's optimizer has one group."""
    from transfer.segmentation.loop import _build_optimizer
    from transfer.segmentation.model import build_segmentor

    config = CONFIGS[name]
    recipe = replace(recipe_of(name), head_channels=16, auxiliary_channels=8)
    arch = "vit_l" if "vit_l" in name else "vit_b"
    model = build_segmentor(
        checkpoint_of(arch, embed_dim=32, num_heads=(2,)), recipe, 150, 0, synced=True
    )
    optimizer = _build_optimizer(model, recipe)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    layers = model.backbone.backbone.spec.depths[0] + 2
    count = 0
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter_name.startswith("backbone.")
            continue
        count += 1
        inner = parameter_name.removeprefix("backbone.backbone.")
        if not parameter_name.startswith("backbone."):
            layer = layers - 1
        elif inner.startswith("blocks."):
            layer = int(inner.split(".")[1]) + 1
        else:
            assert inner.split(".")[0] in ("cls_token", "patch_embed")
            layer = 0
        scale = config.get("layer_decay_rate", 1.0) ** (layers - 1 - layer)
        vector = parameter.ndim == 1 or parameter_name.endswith(".bias")
        exempt = vector and name in BEIT
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx(config["lr"] * scale)
        assert group["weight_decay"] == (0.0 if exempt else config["weight_decay"])
        assert tuple(group["betas"]) == config["betas"]
    assert count == len(found)


@pytest.mark.heavy
def test_dinov2s_head_is_a_batch_norm_and_a_linear_layer_on_the_last_block() -> None:
    from transfer.segmentation.model import build_segmentor

    model = build_segmentor(
        checkpoint_of("vit_pocket"), recipe_of("ade20k_dinov2_linear"), classes=5, seed=0
    )
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    wanted = ["conv_seg.weight", "conv_seg.bias", "norm.weight", "norm.bias"]
    assert trained == [f"decode_head.{n}" for n in wanted]
    images = torch.randn(3, 3, 64, 64)
    model.train()
    logits = model.decode_head(model.backbone(images))
    # The last block's tokens after a LayerNorm with any weights: the batch norm removes them.
    tokens = model.backbone.backbone._run(model.backbone.backbone.embed(images))[-1]
    scale, shift = torch.rand(tokens.shape[-1]) + 0.5, torch.randn(tokens.shape[-1])
    features = nn.functional.layer_norm(tokens, tokens.shape[-1:], scale, shift, 1e-6)
    flat = features.flatten(0, 2)
    normed = (features - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    weight, bias = model.decode_head.conv_seg.weight[:, :, 0, 0], model.decode_head.conv_seg.bias
    expected = (normed @ weight.T + bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
