"""Claims about ablations: which cells a grid has, what the table says of them, and how they are run."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support.commands import forked_launch, two_processes

from pretrain.axes import AXES, build_grid
from pretrain.build import check_sizes
from pretrain.recipes import PretrainRecipe, default_recipe
from simmim_bench.cli import ablate as ablate_command
from simmim_bench.cli.main import cli
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.jobs import workers
from simmim_bench.results.ablation import (
    Ablation,
    CellResult,
    PublishedScore,
    SeedScore,
    from_json,
    to_json,
)
from simmim_bench.results.ablation_report import to_markdown

QUICK = ("-o", "epochs=1", "-o", "warmup_epochs=0", "-t", "epochs=2", "-t", "warmup_epochs=0")


def ablate(*words: str, data: Path, out: Path) -> Result:
    fixed = ("--arch", "vit_pocket", "--data", str(data / "imagenet"), "--out", str(out), *QUICK)
    return CliRunner().invoke(cli, ["ablate", *words, *fixed])


def refused(result: Result) -> BenchError:
    assert isinstance(result.exception, BenchError), result.output
    return result.exception


def names(recipe: PretrainRecipe, *axes: str) -> list[str]:
    return [cell.name for cell in build_grid(recipe, axes).cells]


def test_the_command_offers_every_axis() -> None:
    assert tuple(AXES) == ablate_command.AXES


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("arch", ["vit_b", "swin_b", "vit_pocket", "swin_pocket", "swinv2_b"])
def test_a_grid_has_the_recipes_own_cell_first_and_cells_that_can_be_trained(
    arch: str, axis: str
) -> None:
    recipe = default_recipe(arch)
    grid = build_grid(recipe, [axis])
    assert grid.cells[0].changes == {}
    assert grid.cells[0].recipe == recipe
    assert len({repr(cell.changes) for cell in grid.cells}) == len(grid.cells) > 1
    for cell in grid.cells:
        assert isinstance(cell.recipe, PretrainRecipe)
        assert cell.recipe == replace(recipe, **cell.changes)
        check_sizes(cell.recipe)


def test_axes_are_those_of_the_paper_at_192_pixels() -> None:
    recipe = default_recipe("swin_b")
    masking = [name for name in names(recipe, "masking") if name.startswith("random")]
    assert masking == ["random 32", "random 4", "random 8", "random 16", "random 64"]
    sizes = [name for name in names(recipe, "resolution") if name != "192 points"]
    assert sizes == [f"{n} points" for n in (6, 12, 24, 48, 96)]


def test_a_recipe_off_the_axis_gets_its_own_cell() -> None:
    recipe = replace(default_recipe("vit_pocket"), mask_ratio=0.55)
    assert names(recipe, "ratio") == ["as given", *(f"ratio 0.{n}" for n in range(1, 10))]


def test_impossible_cells_are_left_out_with_the_reason() -> None:
    grid = build_grid(default_recipe("swin_b"), ["encoder-input"])
    assert [cell.name for cell in grid.cells] == ["tokens", "zeros"]
    assert "needs a ViT" in grid.left_out["visible"]
    combined = build_grid(default_recipe("vit_pocket"), ["target", "loss"])
    assert "patch norm, l2" in [cell.name for cell in combined.cells]
    assert "8 bins, l2" in combined.left_out


def test_resolutions_are_named_by_the_points_that_are_predicted() -> None:
    recipe = default_recipe("vit_pocket")
    tokens = build_grid(replace(recipe, target="tokens"), ["resolution"])
    assert [cell.name for cell in tokens.cells] == ["8 points", "16 points"]
    assert [cell.changes for cell in tokens.cells][1] == {"target_size": 16}
    features = replace(recipe, target="teacher_features", teacher="random:vit_pocket")
    grid = build_grid(features, ["resolution"])
    assert [cell.name for cell in grid.cells] == ["8 points"]


def test_targets_of_many_numbers_are_predicted_less_finely() -> None:
    cells = {cell.name: cell for cell in build_grid(default_recipe("vit_b"), ["target"]).cells}
    # 16 x 16 pixels x 3 channels x 256 classes are 196,608 numbers a cell; a quarter of that may be.
    assert cells["256 bins"].changes == {"target": "bins", "bins": 256, "target_size": 112}
    assert cells["8 bins"].changes == {"target": "bins"}


def test_a_recipe_with_a_teacher_is_compared_with_those_that_have_none() -> None:
    changes = {"target": "teacher_features", "teacher": "random:vit_pocket", "pixel_weight": 0.5}
    recipe = replace(default_recipe("vit_pocket"), **changes)  # type: ignore[arg-type]
    grid = build_grid(recipe, ["target"])
    cells = {cell.name: cell.changes for cell in grid.cells}
    assert cells["as given"] == {}
    assert cells["teacher's features"] == {"pixel_weight": 0.0}
    assert cells["pixels"] == {"target": "pixels", "teacher": None, "pixel_weight": 0.0}
    # This one is none that could show its pixels.
    assert "teacher's pixels" not in cells
    assert "no SimMIM head" in grid.left_out["teacher's pixels"]
    assert "teacher's pixels" not in names(default_recipe("vit_pocket"), "target")


def test_published_scores_appear_only_at_the_papers_own_choices() -> None:
    def published(recipe: PretrainRecipe, axis: str) -> dict[str, float]:
        cells = build_grid(recipe, [axis]).cells
        return {cell.name: cell.published.value for cell in cells if cell.published}

    recipe = default_recipe("swin_b")
    assert published(recipe, "scope") == {"masked pixels": 82.8, "all pixels": 81.7}
    assert published(recipe, "ratio") == {"ratio 0.6": 82.8, "ratio 0.5": 83.0}
    assert published(recipe, "masking") == {"random 32": 82.8}
    assert published(replace(recipe, head="mlp"), "scope") == {}


def measured(
    name: str, *scores: float, above: tuple[float, float, float] | None = None
) -> CellResult:
    result = tuple(SeedScore(seed, value, "", "") for seed, value in enumerate(scores))
    return CellResult(
        name=name,
        changes={} if name == "own" else {"masking": "square"},
        scores=result,
        above=above,
        facts={"avg_dist": [len(name)]},
    )


def test_the_table_lists_means_deviations_and_missing_cells() -> None:
    rows = (
        measured("own", 50.0, 52.0),
        measured("other one", 60.0, 62.0, above=(10.0, 8.5, 11.5)),
        replace(measured("no pretraining", 90.0), facts={}),
    )
    protocol = dict.fromkeys(
        ("arch", "pretraining", "images", "task", "metric", "transfer", "scored"), "x"
    )
    ablation = Ablation(
        axes=("masking",),
        protocol=protocol,
        own="own",
        rows=rows,
        missing=("square 8",),
        left_out={"a": "too large", "b": "too large"},
        img_side=32,
    )
    text = to_markdown(ablation)
    assert "| own | 3.00 | 2 | 51.0, seeds ± 1.4 |  |" in text
    assert "| other one | 9.00 | 2 | 61.0, seeds ± 1.4 | +10.0 (+8.5 to +11.5) |" in text
    assert "| no pretraining | – | 1 | 90.0 |  |" in text
    assert "x; 2 seeds." in text
    assert "Not run: square 8." in text
    assert "Left out: a and 1 more: too large" in text
    with_published = replace(
        ablation, rows=(replace(rows[0], published=PublishedScore(82.8, "s")),)
    )
    for one in (ablation, with_published):
        assert from_json(json.loads(json.dumps(to_json(one)))) == one


def scores_in(table: str) -> dict[str, float]:
    rows = re.findall(r"^\| ([^|]+) \|.*?\| \**(\d+\.\d)\S*, seeds ±", table, re.MULTILINE)
    return {name: float(score) for name, score in rows}


@pytest.mark.heavy
def test_cells_run_once_are_shared_by_axes_and_match_their_records(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("pretrain.evaluation.held_out.HELD_OUT_IMAGES", 4)  # for speed
    out = tmp_path / "ablate"
    common = ("scope", "--seeds", "2")
    planned = ablate(*common, "--dry-run", "--json", data=pocket, out=out)
    assert json.loads(planned.stdout)["power"]["images_alone"] > 0
    steps = json.loads(planned.stdout)["steps"]
    assert [(s["cell"], s["seed"], s["state"]) for s in steps] == [
        (cell, seed, "to do")
        for seed in (0, 1)
        for cell in ("masked pixels", "all pixels", "no pretraining")
    ]
    assert not out.exists()
    for step in steps:
        words = ("--cell", step["cell"], "--seed", str(step["seed"]), "--quiet")
        done = ablate("scope", *words, data=pocket, out=out)
        assert done.exit_code == 0, done.output + repr(done.exception)
    torch.set_num_threads(before)
    assert not list(out.rglob("features"))  # nobody else would ask for them

    # Cells and seeds that are not asked for keep their place in the table.
    partly = ablate(
        "scope", "--seeds", "1", "--cells", "all pixels", "--only-table", data=pocket, out=out
    )
    assert "0 of 3 steps to do" in partly.stdout
    result = ablate(*common, "--quiet", data=pocket, out=out)
    assert result.exit_code == 0, result.output
    assert scores_in(partly.stdout) == scores_in(result.stdout)
    assert "0 of 6 steps to do" in result.stdout
    kept = json.loads((out / "scope" / "ablation.json").read_text())
    assert [row["name"] for row in kept["rows"]] == [
        "masked pixels",
        "all pixels",
        "no pretraining",
    ]
    table = (out / "scope" / "ablation.md").read_text()
    assert table in result.stdout
    for row in kept["rows"]:
        told_scores = [score["value"] for score in row["scores"]]
        records = [json.loads((out / score["record"]).read_text()) for score in row["scores"]]
        scores = [record["metrics"]["top1"] for record in records]
        assert told_scores == scores
        assert f"{sum(scores) / 2:.1f}" in table
    own, everything = kept["rows"][:2]
    pairs = zip(everything["scores"], own["scores"], strict=True)
    gains = [ours["value"] - theirs["value"] for ours, theirs in pairs]
    points, low, high = everything["above"]
    assert points == pytest.approx(sum(gains) / 2)
    assert low <= points <= high
    assert 0 < everything["p_value"] <= everything["adjusted_p_value"] <= 1
    assert kept["spread"]["cells"] == 2
    assert own["above"] is None
    meta = json.loads((out / "own/seed1/pretrain/checkpoints/last/meta.json").read_text())
    assert own["facts"]["psnr"][1] == meta["provenance"]["psnr"]
    with Image.open(out / "scope" / "ablation.png") as picture:
        assert picture.size[0] > 800

    # The recipe's own cell and the one of random weights are there for another axis.
    other = ablate("loss", "--seeds", "2", "--dry-run", data=pocket, out=out)
    lines = {line.split("  ")[0]: line for line in other.stdout.splitlines()}
    assert "seed 0 done, seed 1 done" in lines["l1"]
    assert "seed 0 done, seed 1 done" in lines["no pretraining"]
    assert "seed 0 to do" in lines["l2"]
    # The cells of the other axis say what difference can be shown; random weights are no pretraining.
    assert "(4 pretrainings, same recipe and data)" in lines["linear top1"]
    assert "(2 rows, same recipe and data)" in lines["linear top1"]

    # A cell that was started differently is blocked, and nothing is started.
    changed = ablate(*common, "-o", "mask_ratio=0.5", data=pocket, out=out)
    assert isinstance(refused(changed), UsageError)
    assert "mask_ratio 0.6, now 0.5" in str(changed.exception)

    # Without its score a cell is not in the table, which says so; its pretraining is not done again.
    (out / "scope=all/seed0/linear/record.json").unlink()
    (out / "scope=all/seed1/linear/record.json").unlink()
    monkeypatch.setattr(workers, "launch", forked_launch)
    (out / "scope=all/seed0/linear/predictions").rename(out / "elsewhere")
    again = ablate(*common, "--seeds", "1", "--workers", "2", data=pocket, out=out)
    assert again.exit_code == 0, again.output + repr(again.exception)
    assert list(scores_in(result.stdout)) == ["masked pixels", "all pixels", "no pretraining"]
    rows = json.loads((out / "scope" / "ablation.json").read_text())["rows"]
    assert [score["value"] for score in rows[1]["scores"]] == [everything["scores"][0]["value"]]


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (("scope", "scope"), UsageError, "axis scope is given twice"),
        (("scope", "--only-table"), UsageError, "no cell has a score yet"),
        (("scope", "--cells", "al pixels"), UsageError, "did you mean 'all pixels'"),
        (("scope", "--cell", "nothing like it"), UsageError, "known: all pixels, masked pixels"),
        (("scope", "--transfer", "coco"), UsageError, "--transfer-data DIR"),
        (("scope", "--recipe", "pockt"), UsageError, "did you mean 'pocket'"),
        (("scope", "-o", "scop=all"), UsageError, "did you mean 'scope'"),
        (("scope", "-t", "epoch=3"), UsageError, "did you mean 'epochs'"),
        (("scope", "--transfer-data", "nowhere"), DataError, "nowhere does not exist"),
        (("scope", "--data", "hfds:cifar10"), UsageError, "--transfer-data DIR"),
        (("target", "-o", "target_size=7"), UsageError, "target_size 7 does not divide"),
    ],
)
def test_invalid_requests_are_refused_before_any_work(
    words: Sequence[str], kind: type[BenchError], says: str, tmp_path: Path, pocket: Path
) -> None:
    fixed = ("--arch", "vit_pocket", "--data", str(pocket / "imagenet"), *QUICK)
    out = ("--out", str(tmp_path / "out"))
    result = CliRunner().invoke(cli, ["ablate", *fixed, *out, *words])
    assert isinstance(refused(result), kind)
    assert says in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_file_as_output_folder_is_refused(tmp_path: Path, pocket: Path) -> None:
    (tmp_path / "out").write_text("a file")
    result = ablate("scope", data=pocket, out=tmp_path / "out")
    assert "is a file; choose a directory" in str(refused(result))
    below = ablate("scope", data=pocket, out=tmp_path / "out" / "below")
    assert isinstance(refused(below), DataError)


@pytest.mark.slow
def test_two_processes_run_a_cell(tmp_path: Path, pocket: Path) -> None:
    data, out = str(pocket / "imagenet"), tmp_path / "out"
    words = ("ablate", "scope", "--arch", "vit_pocket", "--data", data, "--out", str(out))
    quick = ("-o", "epochs=1", "-o", "warmup_epochs=0", "--transfer", "knn")
    two_processes(*words, *quick, "--cell", "all pixels", "--seed", "3")
    record = json.loads((out / "scope=all" / "seed3" / "knn" / "record.json").read_text())
    assert record["cost"]["devices"] == 2
    assert record["evaluated"] == record["expected"] == 30


@pytest.mark.slow  # a suite, which runs its steps by the same function, is tested to continue
def test_an_ablation_continues_after_a_failed_cell_and_exits_with_its_code(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    out = tmp_path / "ablate"
    words = ("loss", "--seeds", "1", "--cells", "l2", "--workers", "2", "-o", "base_lr=1e30")
    result = ablate(*words, data=pocket, out=out)
    assert result.exit_code == 5, result.output
    kept = json.loads((out / "loss" / "ablation.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["no pretraining"]
    assert kept["missing"] == ["l1", "smooth l1", "l2"]
    assert "failed  l2, seed 0: pretrain: " in result.stderr
