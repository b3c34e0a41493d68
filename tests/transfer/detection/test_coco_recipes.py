"""Tests of the COCO recipes' names, sources and defaults."""

from __future__ import annotations

import dataclasses
import re

import pytest

from simmim_bench.models.archs import find_spec
from transfer.detection import own_recipes, swin_recipes, vitdet_recipes
from transfer.detection.recipes import CocoRecipe
from transfer.recipes import choose_recipe

PUBLISHED = [
    recipe
    for module in (vitdet_recipes, swin_recipes)
    for recipe in vars(module).values()
    if isinstance(recipe, CocoRecipe)
]
# Box and mask AP: detectron2, projects/ViTDet/README.md:35-36, 46-47, 57-58, 142-143, 153-154, 164-165, 85-86, 96-97;
# Swin-OD, README.md:17-19, 25-28.
SCORES = {
    "coco_vitdet_b": ("51.6", "45.9"),
    "coco_vitdet_l": ("55.5", "49.2"),
    "coco_vitdet_h": ("56.7", "50.2"),
    "coco_vitdet_cascade_b": ("54.0", "46.7"),
    "coco_vitdet_cascade_l": ("57.6", "50.0"),
    "coco_vitdet_cascade_h": ("58.7", "51.0"),
    "coco_swin_lsj_50ep": ("53.9", "46.2", "55.0", "47.2"),
    "coco_swin_od_1x": ("43.7", "39.8"),
    "coco_swin_od_3x": ("46.0", "41.6", "48.5", "43.3"),
    "coco_swin_od_cascade_1x": ("48.1", "41.7"),
    "coco_swin_od_cascade_3x": ("50.4", "43.7", "51.9", "45.0"),
    "coco_swin_od_cascade_b_3x": ("51.9", "45.0"),
}
# The recipes' hashes in records: those of version 0.1, and of recipes since.
RECORDED = {
    "coco_vit_100ep": "a5132683eea5a501",
    "coco_vit_l_100ep": "e619608b7385ee70",
    "coco_vit_cascade_100ep": "5527769f2b7de9ee",
    "coco_swin_3x": "5adea1d7246bf256",
    "coco_swin_1x": "c1e774b055265d3a",
    "coco_swin_cascade_3x": "4082bbc8faf6444b",
    "coco_convnext_3x": "2167f127b6988050",
    "coco_resnet50_1x": "15cf74f0dbfacd53",
    "coco_small": "0a2a3f6b22cbda77",
    "coco_pocket": "90c922bf41204e53",
    "coco_144px": "bf267d0d13a73ed7",
    "coco_demo": "0e79773bb51f7fec",
}


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda recipe: recipe.name)
def test_every_number_of_a_published_protocol_has_its_source(recipe: CocoRecipe) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(recipe)}
    numbers = {key for key, value in recipe.fields().items() if value != defaults[key]}
    assert numbers <= set(recipe.sources)
    assert set(recipe.sources) <= set(recipe.fields())


def test_the_published_scores_are_those_of_the_repositories() -> None:
    found = {r.name: r.published for r in PUBLISHED if r.published is not None}
    assert set(found) == set(SCORES)
    for name, text in found.items():
        assert tuple(re.findall(r"\b\d\d\.\d\b", text)) == SCORES[name], name


def test_recipes_that_do_not_follow_a_config_quote_no_score() -> None:
    own = [r for r in vars(own_recipes).values() if isinstance(r, CocoRecipe)]
    assert {r.name for r in own} == set(RECORDED)
    assert all(r.published is None for r in own)


def test_recorded_recipes_keep_their_hashes() -> None:
    own = [r for r in vars(own_recipes).values() if isinstance(r, CocoRecipe)]
    assert {r.name: r.sha256()[:16] for r in own} == RECORDED


@pytest.mark.parametrize(
    ("arch", "recipe"),
    [
        ("vit_b", "coco_vitdet_b"),
        ("vit_s", "coco_vitdet_b"),
        ("vit_l", "coco_vitdet_l"),
        ("vit_h", "coco_vitdet_h"),
        ("swin_t", "coco_swin_od_3x"),
        ("swin_b", "coco_swin_od_3x"),
        ("swin_l", "coco_swin_od_3x_own_window"),
        ("swinv2_b", "coco_swin_od_3x_own_window"),
        ("vit_pocket", "coco_pocket"),
    ],
)
def test_the_default_is_the_published_protocol_of_the_architecture(arch: str, recipe: str) -> None:
    assert choose_recipe("coco", find_spec(arch), None).recipe.name == recipe
