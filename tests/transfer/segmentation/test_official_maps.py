"""Our maps, and weights resized at load, equal those of MMSegmentation's MAE, BEiT and Swin with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from support.mmseg_models import PLAIN_VIT, build_official, checkpoint_of, official_state
from torch import Tensor

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.models.build import Backbone, build_backbone
from transfer.recipes import RECIPES
from transfer.segmentation.recipes import Ade20kRecipe

pytestmark = [
    pytest.mark.usefixtures("mmseg"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
]

SMALL_VIT = {"embed_dim": 48, "num_heads": (3,)}
SMALL_SWIN = {"embed_dim": 16, "num_heads": (1, 2, 4, 8)}


def recipe_of(name: str) -> Ade20kRecipe:
    recipe = RECIPES[name]
    assert isinstance(recipe, Ade20kRecipe)
    return recipe


def randomised(model: Backbone, scale: float = 0.5) -> Backbone:
    """Set every parameter, such as relative positions and layer scales, to a random value away from its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (scale if "table" in name or "gamma" in name else 0.05))
    return model.eval()


def assert_maps_equal(ours: Backbone, theirs: Any, size: tuple[int, int]) -> None:
    theirs.eval()  # returns nothing there
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = ours.forward_maps(images), theirs(images)
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def official_vit(kind: str, recipe: Ade20kRecipe, size: tuple[int, int], depth: int) -> Any:
    return build_official(
        {
            "type": kind,
            "img_size": size,
            "embed_dims": 48,
            "num_layers": depth,
            "num_heads": 3,
            "out_indices": [block - 1 for block in recipe.map_blocks],
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "init_values": 1.0,
        }
    )


@pytest.mark.parametrize("size", [(64, 64), (80, 48)])
@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("ade20k_mae_vit_b", "MAE", PLAIN_VIT),
        ("ade20k_beit_vit_b_640", "BEiT", {}),
        ("ade20k_beit_vit_b_512_pt", "BEiT", {}),
    ],
)
def test_the_maps_of_a_vit_are_those_of_mmsegs(
    name: str, kind: str, changes: dict[str, Any], size: tuple[int, int]
) -> None:
    recipe = recipe_of(name)
    checkpoint = checkpoint_of("vit_b", **SMALL_VIT, **changes)
    ours = randomised(load_backbone(checkpoint, size, maps=recipe.maps))
    theirs = official_vit(kind, recipe, size, depth=12)
    state = official_state(ours, key_bias=kind == "MAE")
    missing = theirs.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert all(key.endswith("relative_position_index") for key in missing.missing_keys)
    assert_maps_equal(ours, theirs, size)


@pytest.mark.parametrize("size", [(112, 112), (128, 128), (100, 150), (90, 61)])
@pytest.mark.parametrize("name", ["ade20k_swin_w7", "ade20k_swin_w12"])
def test_the_maps_of_a_swin_are_those_of_mmsegs(name: str, size: tuple[int, int]) -> None:
    recipe = recipe_of(name)
    checkpoint = checkpoint_of("swin_t", **SMALL_SWIN)
    ours = randomised(
        load_backbone(checkpoint, (512, 512), window_size=recipe.window_size, maps=recipe.maps)
    )
    theirs = build_official(
        {
            "type": "SwinTransformer",
            "embed_dims": 16,
            "depths": [2, 2, 6, 2],
            "num_heads": [1, 2, 4, 8],
            "window_size": recipe.window_size,
        }
    )
    missing = theirs.load_state_dict(official_state(ours), strict=False)
    assert missing.unexpected_keys == []
    assert all(key.endswith("relative_position_index") for key in missing.missing_keys)
    assert_maps_equal(ours, theirs, size)


def trained(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a small ViT with random weights at 224 pixels."""
    state = randomised(build_backbone(checkpoint.spec)).state_dict()
    return replace(checkpoint, state={name: value.clone() for name, value in state.items()})


def resized(theirs: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resize weights with the functions by which MMSegmentation loads a checkpoint."""
    state = theirs.resize_rel_pos_embed(dict(state))
    done: dict[str, Tensor] = (
        theirs.resize_abs_pos_embed(state) if hasattr(theirs, "resize_abs_pos_embed") else state
    )
    return done


def test_a_position_embedding_is_resized_at_load_as_by_mmsegs_mae() -> None:
    recipe = recipe_of("ade20k_mae_vit_b")
    checkpoint = trained(checkpoint_of("vit_b", **SMALL_VIT, **PLAIN_VIT))
    assert checkpoint.state is not None
    for side in (512, 128):
        ours = load_backbone(checkpoint, (side, side), maps=recipe.maps)
        theirs = official_vit("MAE", recipe, (side, side), depth=12)
        wanted = resized(theirs, {"pos_embed": checkpoint.state["pos_embed"]})["pos_embed"]
        torch.testing.assert_close(ours.state_dict()["pos_embed"], wanted)
        # The tables and layer scales that the recipe adds leave the pretrained function as it is.
        tables = [p for n, p in ours.named_parameters() if n.endswith("bias_table")]
        gammas = [p for n, p in ours.named_parameters() if "gamma" in n]
        assert (len(tables), len(gammas)) == (12, 24)
        assert not any(table.any() for table in tables)
        assert all((gamma == 1).all() for gamma in gammas)


@pytest.mark.heavy
def test_a_bias_table_is_resized_at_load_as_by_mmsegs_beit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # SciPy has removed interp2d and names RectBivariateSpline, of the same FITPACK routine, for regular grids.
    def interp2d(x: Any, y: Any, z: np.ndarray, kind: str) -> Any:
        assert kind == "cubic"
        spline = RectBivariateSpline(y, x, z, s=0)
        return lambda new_x, new_y: spline(new_y, new_x)

    from mmseg.models.backbones import beit

    monkeypatch.setattr(beit.interpolate, "interp2d", interp2d)
    recipe = recipe_of("ade20k_beit_vit_b_640")
    checkpoint = trained(checkpoint_of("vit_b", **SMALL_VIT))
    for side in (512, 640):
        ours = load_backbone(checkpoint, (side, side), maps=recipe.maps)
        theirs = official_vit("BEiT", recipe, (side, side), depth=12)
        state = official_state(build_and_load(checkpoint))
        name = "layers.3.attn.relative_position_bias_table"
        wanted = resized(theirs, {name: state[name]})[name]
        found = ours.state_dict()["blocks.3.rel_pos_bias.relative_position_bias_table"]
        assert found.shape == wanted.shape == ((2 * side // 16 - 1) ** 2 + 3, 3)
        # Both find the ratio of the geometric positions by bisection to 1e-6.
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def build_and_load(checkpoint: Checkpoint) -> Backbone:
    model = build_backbone(checkpoint.spec)
    assert checkpoint.state is not None
    model.load_state_dict(checkpoint.state)
    return model
