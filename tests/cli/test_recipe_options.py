"""Short options of recipe keys, --config and --help-recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.cli import fails, run

from pretrain.recipes import POCKET, PretrainRecipe
from simmim_bench.cli.config_file import read_config
from simmim_bench.cli.recipe_options import KEY_OPTIONS, pop_overrides
from simmim_bench.cli.recipe_table import meanings
from simmim_bench.models.archs import suggest_arch
from simmim_bench.overrides import override
from simmim_bench.recipe import ABOUT
from simmim_bench.training.few_images import suggest_batch_size
from transfer.evaluate.recipes import EvaluateRecipe
from transfer.tasks import RUNNERS


@pytest.mark.parametrize(
    "kind", [PretrainRecipe, EvaluateRecipe, *RUNNERS], ids=lambda k: k.__name__
)
def test_every_key_of_every_recipe_is_explained(kind: type[PretrainRecipe]) -> None:
    described = meanings(kind)
    names = {field.name for field in dataclasses.fields(kind)} - {*ABOUT}
    assert [name for name in names if not described.get(name)] == []


def test_a_short_option_is_its_key_and_contradictions_are_refused(tmp_path: Path) -> None:
    given = {"overrides": ("base_lr=0.1",), "config": None, "key_epochs": 3, "key_base_lr": "1e-1"}
    assert pop_overrides(given)[0] == ("base_lr=0.1", "epochs=3")
    data = ("pretrain", "--arch", "vit_b", "--data", tmp_path)
    assert "contradict" in fails(2, *data, "--epochs", 3, "-o", "epochs=4")
    assert "use -o max_iters=N" in fails(
        2, "transfer", "coco", "--ckpt", "random:vit_b", "--data", tmp_path, "--epochs", 3
    )
    assert "Use -o TASK.epochs=VALUE" in fails(2, "suite", "--epochs", 3)


def test_a_recipe_that_a_run_has_written_is_given_back(tmp_path: Path) -> None:
    changed = override(POCKET, ["epochs=3", "img_size=64,32", "base_lr=1e-5", "aggregate=true"])
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"recipe": changed.to_json()}))
    config = read_config(path)
    assert (config.recipe, config.arch) == ("pocket", "vit_pocket")
    assert override(POCKET, config.overrides) == changed
    path.write_text("epochs: 3\nimg_size: [64, 32]\nbase_lr: 1e-5\nlinear: {epochs: 2}\n")
    given = {"overrides": ("epochs=9",), "config": path}
    assert pop_overrides(given)[0] == (
        *("img_size=64,32", "base_lr=1e-5", "linear.epochs=2", "epochs=9"),
    )


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ("epochs: 3\nepochs: 4\n", 4, "key 'epochs' is given twice"),
        ("epochs: {of: {all: 3}}\n", 2, "epochs.of is not a number, a text"),
        ("- 3\n", 2, "holds no settings"),
        ("arch: [\n", 4, "cannot be read as YAML"),
        ("{epoch: 3}", 2, "did you mean 'epochs'"),
        (None, 4, "does not exist"),
    ],
)
def test_a_wrong_config_is_refused(
    content: str | None, code: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    arguments = ("pretrain", "--arch", "vit_pocket", "--data", tmp_path, "--config", path)
    assert says in fails(code, *arguments)


def test_help_recipe_needs_no_other_option() -> None:
    code, out, _ = run("transfer", "coco", "--help-recipe", "-o", "max_iters=90000")
    assert code == 0
    assert "coco_vitdet_b: " in out
    assert all(option.help for option in KEY_OPTIONS.values())


def test_sizes_in_full_suggest_the_architecture() -> None:
    found = [
        suggest_arch(name) for name in ("vit_base", "swin-large", "ViT_tiny", "swin_tiny", "x")
    ]
    assert found == ["vit_b", "swin_l", "vit_ti", "swin_t", None]


def test_a_suggested_batch_has_eight_steps() -> None:
    assert [suggest_batch_size(images) for images in (3, 300, 5000)] == [1, 32, 512]
