"""Tests of published scores next to ours: which scores are compared, in every table, and the recipes they name."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.records import board_of, change, make_record, plain_cells, run_leaderboard

from pretrain.recipes import RECIPES as PRETRAIN_RECIPES
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.page import render_page
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.published import ARCHS, add_published
from simmim_bench.leaderboard.reported import ReportedRow, ReportedScore, read_reported
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from simmim_bench.models.archs import ARCHS as SPECS
from simmim_bench.recipe import Recipe
from simmim_bench.tasks import Column, columns, find_variant
from transfer.recipes import RECIPES
from transfer.tasks import TASK_RECIPES

COMPARISON = "published 83.8, here 60.0 (-23.8)"  # ViT-B after 800 epochs: SimMIM's README.md:54
PRETRAINED: dict[str, Any] = {
    "recipe": {"name": "vit_b_800ep", "sha256": "0", "deviates": {}},
    "epochs": 800.0,
    "data": {"root": "imagenet", "images": 1_281_167},
    "init_from": None,
}


def write_record(
    runs: Path, provenance: dict[str, Any] | None = None, label: str = "a", **fields: Any
) -> Path:
    """Write a record of ViT-B's published protocol, with other fields if given."""
    path = make_record(runs, task="imagenet")
    checkpoint = json.loads(path.read_text())["checkpoint"]
    checkpoint |= {"arch": fields.pop("arch", "vit_b"), "label": label}
    checkpoint["provenance"] = PRETRAINED if provenance is None else provenance
    recipe = {
        "name": fields.pop("recipe", "imagenet_vit_b_800ep"),
        "sha256": "0" * 64,
        "source": "s",
    }
    standard = {"evaluated": 50_000, "expected": 50_000}
    change(
        path,
        checkpoint=checkpoint,
        recipe=recipe | {"fields": {"epochs": 100}},
        **(standard | fields),
    )
    return path


def compare(runs: Path) -> str | None:
    """Return the comparison of the only score with a published one."""
    (row,) = compared_board(runs).rows
    (cell,) = (cell for cell in row.cells if cell is not None)
    return cell.comparison


def compared_board(runs: Path) -> Board:
    """Build the board of some runs, with the published scores."""
    return add_published(board_of(runs), read_reported())


def test_a_score_of_the_same_recipes_is_compared(tmp_path: Path) -> None:
    write_record(tmp_path)
    assert compare(tmp_path) == COMPARISON


@pytest.mark.parametrize(
    "provenance",
    [
        {"recipe": {"name": "vit_b_800ep", "sha256": "0", "deviates": {"mask_ratio": 0.5}}},
        {"recipe": {"name": "swin_b_800ep", "sha256": "0", "deviates": {}}},
        {"recipe": None},
        {"epochs": 400.0},
        {"data": {"root": "cifar10", "images": 45_000}},
        {"data": None},
        {"init_from": "timm:vit_base_patch16_224.mae"},
    ],
    ids=str,
)
def test_a_score_of_another_pretraining_is_not_compared(
    tmp_path: Path, provenance: dict[str, Any]
) -> None:
    write_record(tmp_path, PRETRAINED | provenance)
    assert compare(tmp_path) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"arch": "vit_l"},
        {"recipe": "imagenet_mae_vit_b"},
        {"deviates": {"epochs": 50}},
        {"evaluated": 49_999, "status": "partial"},
        {"evaluated": 500, "expected": 500},
        {"environment": {"dirty": True}},
    ],
    ids=str,
)
def test_a_score_of_another_protocol_is_not_compared(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    write_record(tmp_path, **fields)
    assert compare(tmp_path) is None


@pytest.mark.parametrize(
    ("provenance", "label", "expected"),
    [
        # The official file has its configuration's TAG, and the number of the last epoch, from 0.
        ({"tag": "simmim_pretrain__vit_base__img224__800ep", "epochs": 800}, "a", COMPARISON),
        ({"tag": "simmim_pretrain__vit_base__img224__800ep", "epochs": 400}, "a", None),
        ({}, "simmim_pretrain__vit_base__img224__800ep", COMPARISON),
        ({}, "mae_pretrain_vit_base", None),
    ],
)
def test_published_weights_are_known_by_their_label_or_tag(
    tmp_path: Path, provenance: dict[str, Any], label: str, expected: str | None
) -> None:
    write_record(tmp_path, provenance, label)
    assert compare(tmp_path) == expected


def test_evaluated_weights_are_compared_with_the_score_that_was_published_of_them(
    tmp_path: Path,
) -> None:
    label = "simmim_finetune__vit_base__img224__800ep"
    path = write_record(tmp_path, {"epochs": 100}, label, recipe="evaluate")
    assert compare(tmp_path) is None  # fine-tuned once more
    change(path, command=["simmim-bench", "evaluate", "imagenet", "--ckpt", label])
    assert compare(tmp_path) == COMPARISON


def test_the_mean_over_seeds_is_compared(tmp_path: Path) -> None:
    for seed, correct in enumerate((8, 9)):
        path = write_record(tmp_path / str(seed), seed=seed)
        top1 = {"top1": 10.0 * correct}
        digest = json.loads(path.read_text())["predictions"] | {"sha256": str(seed) * 64}
        change(path, metrics=top1, predictions=digest)
    assert compare(tmp_path) == "published 83.8, here 85.0 (+1.2)"


def test_a_difference_that_rounds_to_zero_has_no_minus(tmp_path: Path) -> None:
    change(write_record(tmp_path), metrics={"top1": 83.78})
    assert compare(tmp_path) == "published 83.8, here 83.8 (+0.0)"


def test_every_table_shows_the_published_score_and_the_difference(tmp_path: Path) -> None:
    write_record(tmp_path)
    board = compared_board(tmp_path)
    source = "github:microsoft/SimMIM@d3e29bca:README.md (Main Results table)"
    markdown = plain_cells(to_markdown(board))
    assert f"- a, fine-tuned top-1: {COMPARISON} ({source})\n" in markdown
    assert "| a | 60.0<br>images ± " in markdown
    assert f"a, fine-tuned top-1: {COMPARISON} ({source})\n" in to_latex(board)
    (row,) = csv.DictReader(io.StringIO(to_csv(board)))
    assert row["imagenet/top1 published"] == "83.8"
    assert row["linear/top1 published"] == ""
    score = json.loads(to_json(board))["rows"][0]["scores"]["imagenet/top1"]
    assert score["published"] == {
        "value": 83.8,
        "difference": pytest.approx(-23.8),
        "source": source,
        "confidence": "high",
    }
    page = render_page(page_data(board))
    spread = '<span class="sub spread">[^<]*</span>'
    assert re.search(f'60.0{spread} <span class="sub">published 83.8</span>', page)
    assert f"fine-tuned top-1: {COMPARISON}." in page


def test_tables_without_a_counterpart_do_not_mention_published_scores(tmp_path: Path) -> None:
    make_record(tmp_path)
    board = compared_board(tmp_path)
    assert board == board_of(tmp_path)
    assert "published" not in to_markdown(board).lower()
    assert "published" not in to_latex(board).lower()
    assert 'class="sub">published' not in render_page(page_data(board, read_reported()))


@pytest.mark.heavy
def test_published_rows_name_their_recipe(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("<!-- leaderboard: begin -->\n<!-- leaderboard: end -->\n")
    write_record(tmp_path / "runs")
    arguments = (tmp_path / "runs", "--out", tmp_path / "out", "--into", document)
    result = run_leaderboard("build", *arguments)
    assert result.exit_code == 0, result.output
    assert COMPARISON in result.output
    assert COMPARISON in document.read_text()
    markdown = (tmp_path / "out" / "LEADERBOARD.md").read_text()
    swin, *_ = (line for line in markdown.splitlines() if line.startswith("| SimMIM, Swin-L"))
    assert "| imagenet_swin_l_800ep |" in swin
    table = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").open()))
    assert {row["recipes"] for row in table if row["checkpoint"].startswith("SimMIM, Swin-L")} == {
        "imagenet_swin_l_800ep"
    }
    page = render_page(page_data(board_of(tmp_path / "runs"), read_reported()))
    assert "<dt>recipe with this protocol</dt><dd>imagenet_swin_l_800ep</dd>" in page


LINKED = [
    (column, row, score)
    for row in read_reported()
    for column, score in zip(columns(), row.scores, strict=True)
    if score is not None and (score.recipe or score.pretraining_recipe)
]
Linked = tuple[Column, ReportedRow, ReportedScore]


@pytest.mark.parametrize("linked", LINKED, ids=lambda linked: f"{linked[1].label} {linked[0].task}")
def test_a_named_recipe_exists_and_is_of_the_scores_task(linked: Linked) -> None:
    column, row, score = linked
    if score.recipe is not None:
        variant = find_variant(column.task)
        assert variant is not None
        assert isinstance(RECIPES[score.recipe], TASK_RECIPES[variant.task.name].recipe_types)
        assert column.metric in variant.task.metrics
        assert score.pretraining_recipe or score.checkpoints
        assert ARCHS[row.backbone] in SPECS
    if score.pretraining_recipe is not None:
        recipe = PRETRAIN_RECIPES[score.pretraining_recipe]
        assert recipe.arch == ARCHS[row.backbone]
        assert recipe.epochs == row.epochs
        assert recipe.img_size == (row.img_size, row.img_size)


def test_a_checkpoint_has_one_published_score_per_recipe_and_metric() -> None:
    pairs = [
        (column, score.recipe, name)
        for column, _, score in LINKED
        for name in (score.pretraining_recipe, *score.checkpoints)
        if score.recipe is not None and name is not None
    ]
    assert len(pairs) > 10
    assert len({*pairs}) == len(pairs)
    names = [name for _, _, score in LINKED for name in score.finetuned]
    assert len({*names}) == len(names)


# "box AP 53.9, mask AP 46.2 from Swin-B and 55.0, 47.2 from Swin-L": scores have a point and no unit.
NUMBER = re.compile(r"(?<![\w.:-])\d\d\.\d+(?![\w.-]*\d)")


@pytest.mark.parametrize(
    "recipe", [*RECIPES.values(), *PRETRAIN_RECIPES.values()], ids=lambda recipe: recipe.name
)
def test_a_recipes_text_agrees_with_the_published_rows(recipe: Recipe) -> None:
    scores = {
        score.value
        for _, _, score in LINKED
        if recipe.name in (score.recipe, score.pretraining_recipe)
    }
    text = (recipe.published or "").partition(";")[0].partition(" (")[0]
    if scores and recipe.published:
        assert {float(number) for number in NUMBER.findall(text)} <= scores
        assert NUMBER.search(text)


def test_the_official_scores_name_their_recipes() -> None:
    """SimMIM: README.md:41-44, 54; MAE: FINETUNE.md:26-28."""
    named = {(score.recipe, score.pretraining_recipe): score.value for _, _, score in LINKED}
    assert {
        ("imagenet_swin_b_100ep_img192", "swin_b_100ep"): 82.8,
        ("imagenet_swin_b_100ep", "swin_b_100ep"): 83.5,
        ("imagenet_swin_b_800ep", "swin_b_800ep"): 84.0,
        ("imagenet_swin_l_800ep", "swin_l_800ep"): 85.4,
        ("imagenet_vit_b_800ep", "vit_b_800ep"): 83.8,
        ("imagenet_mae_vit_b", None): 83.664,
        ("imagenet_mae_vit_l", None): 85.952,
        ("imagenet_mae_vit_h", None): 86.928,
    }.items() <= named.items()
