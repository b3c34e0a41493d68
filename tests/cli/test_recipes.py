"""Tests of `simmim-bench recipes`: published scores, defaults, and the list."""

from __future__ import annotations

import json
import re

from support.cli import run

from transfer.recipes import RECIPES


def test_a_recipe_shows_the_published_scores_that_it_aims_at() -> None:
    code, out, _ = run("recipes", "show", "imagenet_swin_b_100ep")
    assert code == 0
    _, _, scores = out.partition("published scores that the recipe aims at\n")
    # SimMIM: README.md:42
    assert scores.startswith(
        "83.5  fine-tuned top-1, SimMIM, Swin-B (IN1K, 100 epochs), with swin_b_100ep\n"
    )
    assert "high confidence: github:microsoft/SimMIM@d3e29bca:README.md" in scores
    _, out, _ = run("recipes", "show", "swin_b_100ep")
    _, _, scores = out.partition("published scores that the recipe aims at\n")
    assert re.findall(r"^(\d\S+) .*, with (\w+)$", scores, re.MULTILINE) == [
        ("82.8", "imagenet_swin_b_100ep_img192"),
        ("83.5", "imagenet_swin_b_100ep"),
    ]
    assert "published scores" not in run("recipes", "show", "knn_pocket")[1]


def test_a_recipe_shows_what_it_is_the_default_of() -> None:
    def default_of(name: str) -> str:
        found = re.search(r"^default of (.*)$", run("recipes", "show", name)[1], re.MULTILINE)
        assert found is not None
        return found[1]

    assert default_of("imagenet_swin_b_100ep") == "imagenet after swin_b_100ep"
    assert default_of("imagenet_swin_l_800ep") == "imagenet for swin_l, and after swin_l_800ep"
    assert default_of("swin_l_800ep") == "pretrain for swin_l"
    assert default_of("imagenet_cifar") == "nothing"


def test_a_recipe_is_printed_as_json_with_its_scores_and_defaults() -> None:
    plain = json.loads(run("recipes", "show", "imagenet_vit_b_800ep", "--json")[1])
    assert plain["layer_decay"] == 0.65
    assert plain["default_of"]["imagenet"]["after"] == ["vit_b_800ep"]
    assert "vit_b" in plain["default_of"]["imagenet"]["archs"]
    (score,) = plain["published_scores"]
    assert (score["value"], score["task"], score["metric"]) == (83.8, "imagenet", "top1")
    assert score["pretraining_recipe"] == "vit_b_800ep"


def test_the_list_is_printed_as_json() -> None:
    listed = {recipe["name"]: recipe for recipe in json.loads(run("recipes", "--json")[1])}
    assert {"vit_b_800ep", *RECIPES} <= {*listed}
    assert listed["knn"]["type"] == "KnnRecipe"
    assert listed["knn"]["source"] == RECIPES["knn"].source


def test_every_recipe_is_listed_once_under_the_tasks_that_take_it() -> None:
    listed = json.loads(run("recipes", "--json")[1])
    groups = run("recipes")[1].strip().split("\n\n")
    shown = {
        line.split()[0]: tasks.split(", ")
        for tasks, *lines in map(str.splitlines, groups)
        for line in lines
    }
    assert shown == {one["name"]: one["tasks"] for one in listed}
    assert len(groups) == len({group.splitlines()[0] for group in groups})
    names = ("vit_b_800ep", "imagenet_swin_b_100ep", "linear", "logistic", "knn", "coco_vitdet_b")
    assert [shown[name] for name in names] == [
        *(["pretrain"], ["imagenet", "fewshot"]),
        *(["linear", "fewshot"], ["linear", "fewshot"], ["knn"], ["coco"]),
    ]
