"""The recipe that a task takes where none is named: by the pretraining recipe, the architecture or the family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import official
from support.tiny import TINY

from pretrain.recipes import RECIPES as PRETRAIN
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.cli.ablation.request import make_study
from simmim_bench.cli.main import cli
from simmim_bench.models.archs import find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.recipe import deviations
from simmim_bench.runs.options import RunOptions
from transfer.finetune.recipes import FinetuneRecipe
from transfer.launch import TransferRequest, plan_baseline, plan_transfer
from transfer.recipes import OFFICIAL_TAGS, RECIPES, choose_recipe, pretraining_recipe
from transfer.tasks import TASK_RECIPES


@pytest.mark.parametrize(
    ("arch", "pretraining", "recipe", "reason"),
    [
        ("swin_b", "swin_b_100ep", "imagenet_swin_b_100ep", "published after swin_b_100ep"),
        ("swin_b", "swin_b_800ep", "imagenet_swin_b_800ep", "published after swin_b_800ep"),
        ("swin_b", None, "imagenet_swin_b_800ep", "default of swin_b"),
        ("swin_l", "swin_b_100ep@swin_l", "imagenet_swin_l_800ep", "default of swin_l"),
        ("swinv2_b", "swinv2_b_800ep", "imagenet_swinv2_b_800ep_prefix", "published after"),
        ("vit_b", "multimodal_masks", "imagenet_vit_b_800ep", "default of vit_b"),
        ("vit_l", "vit_b_800ep@vit_l", "imagenet_vit_l_800ep", "default of vit_l"),
        ("vit_h", None, "imagenet_mae_vit_h", "default of vit_h"),
        ("vit_s", None, "imagenet_vit_b_800ep", "the family vit; none is for vit_s alone"),
        ("vit_ti", None, "imagenet_vit_b_800ep", "the family vit; none is for vit_ti alone"),
        ("vit_pocket", "pocket", "imagenet_pocket", "the family pocket"),
    ],
)
def test_the_default_follows_the_pretraining_recipe_then_the_architecture_then_the_family(
    arch: str, pretraining: str | None, recipe: str, reason: str
) -> None:
    chosen = choose_recipe("imagenet", find_spec(arch), pretraining)
    assert chosen.recipe.name == recipe
    assert reason in chosen.reason


def test_the_pretraining_recipe_is_read_from_our_checkpoints_and_official_files() -> None:
    ours = {"recipe": {"name": "swin_b_100ep", "sha256": "0", "deviates": {}}}
    assert pretraining_recipe(ours) == "swin_b_100ep"
    tag = "simmim_pretrain__swin_base__img192_window6__100ep"
    assert pretraining_recipe({"method": "SimMIM", "tag": tag}) == "swin_b_100ep"
    for other in ({}, {"tag": "default"}, {"recipe": "a1_in1k"}, {"recipe": None}):
        assert pretraining_recipe(other) is None


def test_recipes_that_follow_each_other_are_those_that_are_published_together() -> None:
    after = TASK_RECIPES["imagenet"].after
    a2mim = {"resnet50_300ep"}  # of A2MIM's authors, without a tag
    assert set(after) - a2mim == set(official.PRETRAIN) == set(OFFICIAL_TAGS.values())
    for pretraining in a2mim:
        assert f"after {after[pretraining]} (A2MIM" in (PRETRAIN[pretraining].published or "")
    for tag, pretraining in OFFICIAL_TAGS.items():  # the TAG is the file's name
        assert Path(PRETRAIN[pretraining].source.split()[-1]).stem == tag
    for pretraining, recipe in after.items():
        # No score is published for the pair of Swin V2.
        if pretraining not in {"swinv2_b_800ep", *a2mim}:
            assert (pretraining, recipe) in official.SCORES


def test_the_recipe_of_vit_l_states_what_is_ours() -> None:
    large, base = RECIPES["imagenet_vit_l_800ep"], RECIPES["imagenet_vit_b_800ep"]
    assert deviations(large, base) == {"layer_decay": 0.75, "drop_path_rate": 0.2}
    assert large.source.startswith("ours")
    assert large.published is None
    assert all("MAE: FINETUNE.md" in large.source_of(k) for k in ("layer_decay", "drop_path_rate"))


@pytest.fixture
def swin_b(tmp_path: Path) -> Path:
    """A tiny checkpoint that says it is a Swin-B of the 100-epoch recipe."""
    spec = replace(TINY["swin"], arch="swin_b")
    write_checkpoint(
        tmp_path / "swin_b",
        state=dict(build_backbone(spec).state_dict()),
        spec=spec,
        form="transfer",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "swin_b", "recipe": {"name": "swin_b_100ep", "sha256": "0"}},
    )
    return tmp_path / "swin_b"


def test_random_weights_as_a_baseline_have_the_recipe_of_the_checkpoint(
    swin_b: Path, tmp_path: Path
) -> None:
    request = TransferRequest(task="imagenet", options=RunOptions(data=tmp_path))
    plan = plan_transfer(request, str(swin_b), [0])
    assert plan.transfer.recipe.name == "imagenet_swin_b_100ep"
    assert plan_baseline(request, plan, "random").transfer.recipe == plan.transfer.recipe
    assert plan_transfer(request, "random:swin_b", [0]).transfer.recipe.name.endswith("800ep")

    words = ("suite", "--ckpt", swin_b, "--baseline", "random", "--imagenet", tmp_path)
    more = ("--tasks", "imagenet,knn", "--out", tmp_path / "runs", "--dry-run", "--json")
    done = CliRunner().invoke(cli, [str(word) for word in (*words, *more)])
    steps: list[dict[str, Any]] = json.loads(done.stdout)
    shown = [(s["ckpt"], s["recipe"], "--recipe" in s["command"]) for s in steps]
    # The step of the baseline names its recipe, because its command does not name the checkpoint.
    assert shown == [
        ("random:swin_b", "knn", False),
        ("random:swin_b", "imagenet_swin_b_100ep", True),
        (str(swin_b), "knn", False),
        (str(swin_b), "imagenet_swin_b_100ep", False),
    ]


def test_all_cells_of_an_ablation_have_one_transfer_recipe(tmp_path: Path) -> None:
    study = make_study(
        axes=("ratio",),
        arch="swin_b",
        data=tmp_path,
        task="imagenet",
        transfer_data=tmp_path,
        recipe=None,
        overrides=(),
        transfer_recipe=None,
        transfer_overrides=(),
        seeds=1,
        seed=0,
        out=tmp_path / "out",
    )
    assert study.named.name == "swin_b_100ep"
    assert study.request().options.recipe == "imagenet_swin_b_100ep"


def test_a_run_logs_its_recipe_and_why(tmp_path: Path, pocket: Path) -> None:
    words = ["transfer", "knn", "--ckpt", "random:vit_pocket", "--data", str(pocket / "imagenet")]
    for name, more, reason in (
        ("default", [], "default of the family pocket; none is for vit_pocket alone"),
        ("named", ["--recipe", "knn_pocket"], "as requested"),
    ):
        out = tmp_path / name
        done = CliRunner().invoke(cli, [*words, *more, "--out", str(out), "--quiet"])
        assert done.exception is None, done.output
        log = (out / "log.txt").read_text()
        assert log.count(f"knn: recipe=knn_pocket ({reason})\n") == 1


def test_only_fine_tuning_depends_on_the_pretraining_recipe() -> None:
    for task, recipes in TASK_RECIPES.items():
        assert bool(recipes.after) == (task == "imagenet")
        assert all(isinstance(RECIPES[name], FinetuneRecipe) for name in recipes.after.values())
