"""Claims about a study's report: its curves, differences and costs are those of the records."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from support.records import change, make_record, pretrained, set_answers

from pretrain.cost import expect_cost, read_finished
from pretrain.step import PretrainStep
from simmim_bench.cli.studies.curves import collect_panels
from simmim_bench.cli.studies.differences import compare_with
from simmim_bench.cli.studies.read import read_study
from simmim_bench.cli.studies.report import write_report
from simmim_bench.cli.studies.results import StudyResults, collect_results
from simmim_bench.cli.studies.rows import StudySteps, list_study
from simmim_bench.leaderboard.find import find_records

IMAGES = 60
STUDY = """
out: out
data: {few: {images: a, imagenet: a}, many: {imagenet: b}}
checkpoints:
  ours: {arch: vit_s, data: few, seeds: 2, vary: {epochs: [100, 200, 800]}}
  narrow: {arch: vit_ti, data: few, seeds: 2, overrides: {epochs: 100}}
  more: {arch: vit_s, data: many, overrides: {epochs: 100, limit: 5000}}
  short: {arch: vit_s, data: many, overrides: {epochs: 20, limit: 5000}}
  other: {arch: vit_s, data: few, overrides: {epochs: 100, mask_ratio: 0.5}}
baselines: [random]
tasks: {linear: {data: few}, knn: {data: few}}
"""
SECONDS = {20: 2.0, 100: 10.0, 200: 20.0, 800: 80.0}


@pytest.fixture
def listed(tmp_path: Path) -> StudySteps:
    """The steps of a study, none of which is done."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return list_study(read_study(path), download=False, log=lambda message: None)


def finish(listed: StudySteps, correct: dict[str, float]) -> dict[tuple[str, str], list[float]]:
    """Write the records of all steps, with answers that are correct with the probability of a row.

    Returns:
        The scores of every row and task.
    """
    generator = np.random.default_rng(0)
    scores: dict[tuple[str, str], list[float]] = {}
    by_ckpt = {member.ckpt: row.name for row in listed.rows for member in row.members}
    pretrainings = {str(step.out): step for step in listed.pretrainings}
    for step in listed.transfers:
        row = by_ckpt[step.ckpt]
        for seed, run_dir in zip(step.seeds, step.run_dirs, strict=True):
            path = make_record(run_dir.parent, task=step.name, label="x", seed=seed)
            run_dir.parent.joinpath(f"x-{step.name}-{seed}").rename(run_dir)
            path = run_dir / "record.json"
            answers = generator.random(IMAGES) < correct[row]
            set_answers(path, answers)
            scores.setdefault((row, step.name), []).append(100 * float(answers.mean()))
            if step.ckpt in pretrainings:
                pretrained(path, row, pretrainings[step.ckpt].seed)
                note_images(path, 5000 if row in ("more", "short") else 1000)
            else:
                checkpoint = json.loads(path.read_text())["checkpoint"]
                change(path, checkpoint=checkpoint | {"name": step.ckpt, "label": step.ckpt})
    for one in listed.pretrainings:
        write_costs(one)
    return scores


def note_images(path: Path, images: int) -> None:
    """Note the number of images that the checkpoint of a record was pretrained on."""
    checkpoint = json.loads(path.read_text())["checkpoint"]
    checkpoint["provenance"]["data"]["images"] = images
    change(path, checkpoint=checkpoint)


def write_costs(step: PretrainStep) -> None:
    meta = step.out / "checkpoints" / "last" / "meta.json"
    meta.parent.mkdir(parents=True)
    seconds = SECONDS[step.recipe.epochs] + step.seed
    meta.write_text(json.dumps({"provenance": {"wall_time_s": seconds, "devices": 2}}))
    (step.out / "env.json").write_text(json.dumps({"device": "H100"}))


def test_a_run_of_an_earlier_version_tells_the_cost_of_a_pretraining(listed: StudySteps) -> None:
    step, similar, *_, other = listed.pretrainings
    write_costs(step)
    settings = {**step.recipe.to_json(), "epochs": 50}
    del settings["val_fraction"]
    description = {"recipe": settings, "arguments": {"data": str(step.data)}}
    (step.out / "recipe.json").write_text(json.dumps(description))
    finished = read_finished([step.out])
    assert expect_cost(similar, finished, "H100", 2).seconds == 2 * SECONDS[100]
    assert expect_cost(other, finished, "H100", 2).seconds is None


def results_of(listed: StudySteps, tmp_path: Path) -> StudyResults:
    return collect_results(listed, find_records([tmp_path / "out" / "rows"]))


def test_curves_join_the_rows_that_differ_in_one_setting(
    listed: StudySteps, tmp_path: Path
) -> None:
    correct = {"ours-epochs-100": 0.3, "ours-epochs-200": 0.5, "ours-epochs-800": 0.6}
    correct |= {"narrow": 0.2, "more": 0.7, "short": 0.65, "other": 0.4}
    correct |= {"random vit_s": 0.1, "random vit_ti": 0.15}
    scores = finish(listed, correct)
    results = results_of(listed, tmp_path)

    def mean(row: str) -> Any:
        return pytest.approx(fmean(scores[row, "linear"]))

    by_axis = {}
    for axis in ("epochs", "width", "images", "cost"):
        linear, knn = collect_panels(results, axis)
        assert (linear.title, knn.title) == ("linear", "k-NN")
        by_axis[axis] = {
            name: [(point.x, point.score) for point in points]
            for name, points in linear.curves.items()
        }
        assert all(point.error > 0 for points in linear.curves.values() for point in points)
    epochs = [(number, mean(f"ours-epochs-{number}")) for number in (100, 200, 800)]
    assert by_axis["epochs"] == {
        "ours": epochs,
        "short to more": [(20, mean("short")), (100, mean("more"))],
    }
    assert by_axis["width"] == {
        "narrow to ours-epochs-100": [(192, mean("narrow")), (384, mean("ours-epochs-100"))],
        "random": [(192, mean("random vit_ti")), (384, mean("random vit_s"))],
    }
    assert by_axis["images"] == {
        # As many epochs, and as many images seen.
        "ours-epochs-100 to more": [(1000, mean("ours-epochs-100")), (5000, mean("more"))],
        "ours-epochs-100 to short": [(1000, mean("ours-epochs-100")), (5000, mean("short"))],
    }
    # Two devices each, a seed more a second more, and half an hour of the record.
    cost = by_axis["cost"]
    assert cost["ours (H100 and unknown device)"] == [
        (2 * (seconds + 0.5) + 1800, mean(f"ours-epochs-{epochs}"))
        for epochs, seconds in SECONDS.items()
        if epochs > 20
    ]
    assert cost["random vit_s (unknown device)"] == [(1800, mean("random vit_s"))]


@pytest.mark.heavy
def test_differences_are_those_of_the_means_to_the_reference(
    listed: StudySteps, tmp_path: Path
) -> None:
    names = [row.name for row in listed.rows]
    scores = finish(listed, {name: 0.1 + 0.1 * number for number, name in enumerate(names)})
    results = results_of(listed, tmp_path)
    (rows,) = compare_with(results, "ours-epochs-200").values()
    assert set(rows) == {*names} - {"ours-epochs-200"}
    for row, differences in rows.items():
        for one, task in zip(differences, ("linear", "knn"), strict=True):
            points = fmean(scores[row, task]) - fmean(scores["ours-epochs-200", task])
            assert one.difference.points == pytest.approx(points)
            # A single pretraining has no spread of its own, and k-NN none over seeds.
            alone = task == "linear" and row in ("more", "short", "other")
            assert one.difference.without_units == alone
    (rows,) = compare_with(results, "random").values()
    assert "random vit_ti" not in rows
    (of_narrow, _), (of_other, _) = rows["narrow"], rows["other"]
    for one, row, arch in ((of_narrow, "narrow", "vit_ti"), (of_other, "other", "vit_s")):
        points = fmean(scores[row, "linear"]) - fmean(scores[f"random {arch}", "linear"])
        assert one.difference.points == pytest.approx(points)
    study = read_study(tmp_path / "study.yaml")
    text = write_report(study, results, "All is done.").read_text()
    assert "## Differences to ours-epochs-100" in text
    assert "A row of one pretraining is about its checkpoint, not about its method." in text
    assert "| ours-epochs-800 | 2 min 41 s (H100) | 30 min 00 s (unknown device) |" in text
    assert "images alone: " in text
    for axis in ("epochs", "width", "images", "cost"):
        assert f"figures/{axis}.png" in text
        assert (tmp_path / "out" / "figures" / f"{axis}.png").is_file()


def test_records_of_other_rows_are_left_out(listed: StudySteps, tmp_path: Path) -> None:
    names = [row.name for row in listed.rows]
    finish(listed, dict.fromkeys(names, 0.5))
    make_record(tmp_path / "out" / "rows" / "former", label="former")
    results = results_of(listed, tmp_path)
    assert {results.row_name(row) for row in results.board.rows} == {*names}
    assert [column.title for column in results.board.columns] == ["linear", "k-NN"]
