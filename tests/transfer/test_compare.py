"""Only comparable runs are compared, and what is printed has the interval and names what it is about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pycocotools import mask as masks
from support.records import change, make_record, set_answers

from simmim_bench.api.transfer_result import TransferResult, summarise, summarise_data_sets
from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file
from simmim_bench.leaderboard.find import find_records
from simmim_bench.models.archs import ARCHS, find_spec
from simmim_bench.results.metrics import scores_from_predictions, write_confusion, write_logits
from simmim_bench.results.scored_runs import read_scored_runs
from simmim_bench.uncertainty.interval import Difference
from transfer.compare import compare_runs, describe_difference, plain_difference


def compare(ours: list[Path], theirs: list[Path]) -> dict[str, Difference]:
    return compare_runs(read_scored_runs(ours), read_scored_runs(theirs))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["transfer", *arguments, "--quiet"])


def test_a_baseline_is_run_once_and_the_difference_is_reported(
    tmp_path: Path, pocket: Path
) -> None:
    common = ["knn", "--ckpt", "random:vit_pocket", "--data", str(pocket / "imagenet")]
    common += ["--seed", "1", "--baseline", "random:swin_pocket"]
    done = invoke(*common, "--out", str(tmp_path / "knn"))
    assert done.exception is None
    other = tmp_path / "knn-from-random-swin_pocket"
    scores = [
        json.loads((p / "record.json").read_text())["metrics"]["top1"]
        for p in (tmp_path / "knn", other)
    ]
    # Another seed samples other random weights, whose spread one seed does not show.
    assert (
        f"above random:swin_pocket: {scores[0] - scores[1]:+.2f} points of top1, 95 % interval of the images alone"
        in done.stdout
    )
    assert "over 30 images; one seed: --seeds 3 adds the variance of the seeds\n" in done.stdout
    before = (other / "record.json").stat().st_mtime_ns
    done = invoke(*common, "--out", str(tmp_path / "knn"), "--overwrite", "--json")
    above = json.loads(done.stdout)["above_baseline"]
    assert above.pop("by_metric") == {
        "top1": {key: above[key] for key in above if key not in ("baseline", "metric")}
    }
    assert (above["baseline"], above["metric"]) == ("random:swin_pocket", "top1")
    assert (above["images"], above["seeds"], above["images_alone"]) == (30, 1, True)
    assert above["low"] < above["points"] < above["high"]
    assert (above["p_value"] > 0.05) == (above["low"] < 0 < above["high"])
    assert (other / "record.json").stat().st_mtime_ns == before


@pytest.mark.heavy
def test_seeds_give_mean_and_deviation_and_are_not_run_twice(tmp_path: Path, pocket: Path) -> None:
    out = tmp_path / "knn"
    common = ["knn", "--ckpt", "random:vit_pocket", "--data", str(pocket / "imagenet")]
    common += ["--seed", "4", "--baseline", "random:swin_pocket", "--out", str(out)]
    done = invoke(*common, "--seeds", "2")
    assert done.exception is None
    folders = [out, tmp_path / "knn-from-random-swin_pocket"]
    top1 = [
        [
            json.loads((f / f"seed{n}" / "record.json").read_text())["metrics"]["top1"]
            for n in (4, 5)
        ]
        for f in folders
    ]
    ours, theirs = (np.array(x) for x in top1)
    assert f"top1 {ours.mean():.2f}, seeds ± {ours.std(ddof=1):.2f}, images ± " in done.stdout
    assert f"{(ours - theirs).mean():+.2f} points of top1, 95 % interval " in done.stdout
    assert "over 30 images and 2 seeds\n" in done.stdout
    before = (out / "seed4" / "record.json").stat().st_mtime_ns
    more = invoke(*common, "--seeds", "3", "--resume", "--json")
    reported = json.loads(more.stdout)
    assert [record["seed"] for record in reported["seeds"]] == [4, 5, 6]
    assert reported["metrics"]["top1"]["std"] > 0
    assert (out / "seed4" / "record.json").stat().st_mtime_ns == before
    refused = invoke(*common, "--seeds", "2")
    assert "is not empty" in str(refused.exception)


@pytest.mark.heavy
def test_runs_have_one_directory_each_and_checkpoints_share_a_baseline(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["knn", "--data", str(pocket / "imagenet"), "--baseline", "random:swin_pocket"]
    common += ["--recipe", "knn_pocket"]
    assert invoke(*common, "--ckpt", "random:vit_pocket").exception is None
    shared = Path("runs", "random-swin_pocket", "knn", "seed0", "record.json")
    before = shared.stat().st_mtime_ns
    more = invoke(*common, "--ckpt", "random:vit_pocket", "--seeds", "2", "--resume")
    assert more.exception is None
    spec = replace(find_spec("vit_pocket"), embed_dim=64)
    monkeypatch.setitem(ARCHS, "vit_other", replace(spec, arch="vit_other"))
    assert invoke(*common, "--ckpt", "random:vit_other").exception is None
    assert shared.stat().st_mtime_ns == before
    run_dirs = sorted(path.parent.as_posix() for path in Path("runs").rglob("record.json"))
    assert run_dirs == [
        "runs/random-swin_pocket/knn/seed0",
        "runs/random-swin_pocket/knn/seed1",
        "runs/random-vit_other/knn/seed0",
        "runs/random-vit_pocket/knn/seed0",
        "runs/random-vit_pocket/knn/seed1",
    ]
    assert {path.parent.name for path in Path("runs").glob("*/features")} == {
        "random-swin_pocket",
        "random-vit_other",
        "random-vit_pocket",
    }
    assert len(find_records([Path("runs")]).board().rows) == 3


def test_several_seeds_are_refused_in_the_directory_of_a_run(tmp_path: Path, pocket: Path) -> None:
    common = ["knn", "--ckpt", "random:vit_pocket", "--data", str(pocket / "imagenet")]
    common += ["--out", str(tmp_path / "knn")]
    assert invoke(*common).exception is None
    refused = invoke(*common, "--seeds", "2")
    assert isinstance(refused.exception, UsageError)
    assert "is itself a run and cannot hold the runs of several seeds" in str(refused.exception)
    assert not list(tmp_path.glob("knn/seed*"))


@pytest.mark.parametrize("obstacle", ["seed1", "baseline"])
def test_an_occupied_run_directory_is_refused_before_any_run_starts(
    tmp_path: Path, pocket: Path, obstacle: str
) -> None:
    data = ["knn", "--data", str(pocket / "imagenet")]
    common = [*data, "--ckpt", "random:vit_pocket", "--out", str(tmp_path / "knn"), "--seeds", "2"]
    if obstacle == "seed1":
        (tmp_path / "knn" / "seed1").mkdir(parents=True)
        (tmp_path / "knn" / "seed1" / "thesis.txt").touch()
        message = "seed1 is not empty"
    else:
        run_dir = tmp_path / "knn-from-random-swin_pocket" / "seed0"
        other = ["--ckpt", "random:swin_pocket", "--out", str(run_dir), "-o", "k=3"]
        assert invoke(*data, *other).exception is None
        message = r"seed0 was started with another recipe (k [3], now [10, 20, 100])"
    refused = invoke(*common, "--baseline", "random:swin_pocket")
    assert isinstance(refused.exception, UsageError)
    assert message in str(refused.exception)
    assert not (tmp_path / "knn" / "seed0").exists()


@pytest.mark.parametrize("more", [["--split", "split.txt"], ["--fraction", "1%"]])
def test_options_of_fewshot_are_refused_for_other_tasks(
    tmp_path: Path, pocket: Path, more: list[str]
) -> None:
    common = ["knn", "--ckpt", "random:vit_pocket", "--data", str(pocket / "imagenet")]
    refused = invoke(*common, "--out", str(tmp_path / "knn"), *more)
    assert isinstance(refused.exception, UsageError)
    assert f"{more[0]} is only for fewshot, not for knn; remove it." in str(refused.exception)
    assert not (tmp_path / "knn").exists()


def test_incomparable_runs_are_refused(tmp_path: Path, pocket: Path) -> None:
    data = ["--data", str(pocket / "imagenet"), "--ckpt", "random:vit_pocket"]
    for name, more in (("a", []), ("b", ["-o", "k=3"]), ("c", ["--seed", "2"])):
        assert invoke("knn", *data, *more, "--out", str(tmp_path / name)).exception is None
    with pytest.raises(
        UsageError, match=r"cannot serve as the baseline .* different recipe, deviates"
    ):
        compare([tmp_path / "a"], [tmp_path / "b"])
    with pytest.raises(UsageError, match="different seed"):
        compare([tmp_path / "a"], [tmp_path / "c"])
    for path in (tmp_path / "a" / "predictions").iterdir():
        write_logits(path, np.zeros((30, 10)), np.zeros(30, int))
    with pytest.raises(DataError, match=r"a/predictions/.* have changed since they were scored"):
        compare([tmp_path / "a"], [tmp_path / "a"])


TOP1 = [[1, 1, 1, 1, 0, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1, 1, 1, 1, 1]]  # two seeds, ten images
LOWER = [[1, 0, 1, 1, 0, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1, 0, 1, 0, 0]]


def runs_of(
    root: Path, answers: list[list[int]], label: str, *, task: str = "linear", **provenance: object
) -> list[Path]:
    """Write a run for each seed, with the images that it classifies correctly."""
    run_dirs = []
    for seed, row in enumerate(answers):
        path = make_record(root, task=task, label=label, seed=seed)
        set_answers(path, np.array(row, bool))
        checkpoint = json.loads(path.read_text())["checkpoint"] | {"provenance": provenance}
        change(path, checkpoint=checkpoint)
        run_dirs.append(path.parent)
    return run_dirs


def test_a_score_has_the_spread_of_its_seeds_and_the_error_of_its_images(tmp_path: Path) -> None:
    scores = read_scored_runs(runs_of(tmp_path, TOP1, "a")).scores()
    # The mean over seeds of each image, with two correct and two wrong images added (Agresti and Coull 1998).
    by_image = [*np.mean(TOP1, 0) * 100, 100, 100, 0, 0]
    expected = np.std(by_image) / len(by_image) ** 0.5
    assert scores["top1"].images == pytest.approx(expected)
    assert str(scores["top1"]) == f"75.00, seeds ± 7.07, images ± {expected:.2f}"
    one = read_scored_runs(runs_of(tmp_path / "one", TOP1[:1], "a")).scores()
    assert str(one["top1"]).startswith("70.00, images ± ")


def test_only_shared_labelled_images_pair_the_seeds(tmp_path: Path) -> None:
    widths = {}
    for task in ("linear", "fewshot-1%"):
        # Both lose as many points from seed to seed: unpaired seeds vary, paired differences do not.
        ours = runs_of(tmp_path, [[1] * 8 + [0] * 2, [1] * 5 + [0] * 5], "a", task=task)
        theirs = runs_of(tmp_path, [[1] * 7 + [0] * 3, [1] * 4 + [0] * 6], "b", task=task)
        found = compare(ours, theirs)["top1"]
        assert found.points == pytest.approx(10)
        widths[task] = found.high - found.low
    assert widths["fewshot-1%"] < 0.5 * widths["linear"]


@pytest.mark.parametrize(
    ("task", "method", "alone"),
    [
        ("linear", "simmim", True),
        ("knn", "simmim", False),  # another seed gives its checkpoint the same score
        ("knn", "random", True),
    ],
)
def test_one_seed_of_what_varies_has_an_interval_of_the_images_alone(
    tmp_path: Path, task: str, method: str, alone: bool
) -> None:
    ours = runs_of(tmp_path, TOP1[:1], "a", task=task, method="simmim")
    theirs = runs_of(tmp_path, LOWER[:1], "b", task=task, method=method)
    found = compare(ours, theirs)["top1"]
    text = describe_difference("top1", found)
    assert text.startswith("+30.00 points of top1, 95 % interval ")
    assert found.without_units == alone
    assert ("of the images alone" in text, "--seeds 3" in text) == (alone, alone)
    assert plain_difference(found)["images_alone"] == alone


def test_the_interval_of_a_pretrained_checkpoint_names_what_it_is_about(tmp_path: Path) -> None:
    theirs = runs_of(tmp_path, LOWER, "b", method="random")
    for method in ("simmim", "random"):
        ours = runs_of(tmp_path / method, TOP1, "a", method=method)
        runs = read_scored_runs(ours)
        result = TransferResult(None, runs, "random", compare(ours, theirs))
        lines, plain = summarise(result)
        assert lines[-1 - (method == "simmim")].startswith("above random: +35.00 points of top1")
        assert ("not about its method" in lines[-1]) == (method == "simmim")
        assert plain["above_baseline"]["seeds"] == 2
        assert plain["metrics"]["top1"]["images_se"] == pytest.approx(runs.scores()["top1"].images)


def test_several_comparisons_have_adjusted_p_values(tmp_path: Path) -> None:
    results = []
    for name in ("pets", "cars"):
        ours, theirs = (runs_of(tmp_path / name, a, str(a)) for a in (TOP1, LOWER))
        runs = read_scored_runs(ours)
        results.append(TransferResult(name, runs, "b", compare(ours, theirs)))
    p_value = results[0].above["top1"].p_value
    lines, _ = summarise_data_sets(results)
    shown = f"{min(1, 2 * p_value):.2g}"
    assert lines[-2] == (
        f"p-values, adjusted for 2 comparisons (Holm): pets top1 {shown}, cars top1 {shown}"
    )


def test_scores_are_printed_without_the_predictions_of_a_finished_run(tmp_path: Path) -> None:
    (run_dir,) = runs_of(tmp_path, TOP1[:1], "a")
    (run_dir / "predictions" / "logits.npz").unlink()
    lines, plain = summarise(TransferResult(None, read_scored_runs([run_dir])))
    assert lines[0] == "top1 70.00"
    assert lines[1].startswith("without images ±: predictions ")
    assert plain["images_se"] == {}


def scored_with(path: Path, task: str, predictions: Path, annotations: Path | None = None) -> Path:
    """Make a record one of another task, whose scores are those of its predictions."""
    metrics = scores_from_predictions(task, predictions, annotations)
    data = json.loads(path.read_text())["data"]
    stored = {"file": f"predictions/{predictions.name}", "sha256": sha256_file(predictions)}
    if annotations is not None:
        data |= {"annotations": str(annotations), "fingerprint": sha256_file(annotations)}
    change(path, task=task, metrics=metrics, predictions=stored, data=data)
    return path.parent


def detections(images: int, shift: float) -> list[dict[str, Any]]:
    """Return a detection per image, whose box is shifted to the right; with shift 0 it is the object's."""
    found = []
    for image in range(1, images + 1):
        x = 5.0 + shift * image / images
        corners = [x, 5, x + 20, 5, x + 20, 25, x, 25]
        (mask,) = masks.frPyObjects([corners], 64, 64)
        mask["counts"] = mask["counts"].decode()
        box = {"bbox": [x, 5, 20, 20], "area": 400, "segmentation": mask}
        found.append({"image_id": image, "category_id": 1, "score": image / 100, **box})
    return found


def test_average_precisions_and_mious_are_compared_as_well(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 64} for n in range(1, 13)]
    objects = [
        {"id": number, "iscrowd": 0, **one} for number, one in enumerate(detections(12, 0), 1)
    ]
    annotations = tmp_path / "instances.json"
    categories = [{"id": 1, "name": "box"}]
    annotations.write_text(
        json.dumps({"images": images, "annotations": objects, "categories": categories})
    )
    runs: dict[str, list[list[Path]]] = {"coco": [], "ade20k": []}
    for label, shift, right in (("a", 4.0, 30), ("b", 12.0, 10)):
        path = make_record(tmp_path / "coco", label=label)
        file = path.parent / "predictions" / "results.json"
        file.write_text(json.dumps(detections(12, shift)))
        runs["coco"].append([scored_with(path, "coco", file, annotations)])
        path = make_record(tmp_path / "ade20k", label=label)
        file = path.parent / "predictions" / "confusion.npz"
        confusions = [np.array([[right + n, 40 - right], [40 - right, right]]) for n in range(8)]
        write_confusion(file, confusions, ["wall", "sky"])
        change(path, evaluated=8, expected=8)
        runs["ade20k"].append([scored_with(path, "ade20k", file)])
    for task, metrics in (("coco", ["box_ap", "mask_ap"]), ("ade20k", ["miou"])):
        ours, theirs = map(read_scored_runs, runs[task])
        found = compare_runs(ours, theirs)
        assert [*found] == metrics
        for metric, one in found.items():
            scores = [r.first.metrics[metric] for r in (ours, theirs)]
            assert one.points == pytest.approx(scores[0] - scores[1]) != 0
            assert 0 < one.low < one.points < one.high
            assert (one.images, one.without_units) == (12 if task == "coco" else 8, True)
        lines, plain = summarise(TransferResult(None, ours, "b", found))
        for metric in metrics:
            assert f"points of {metric}, 95 % interval of the images alone" in "\n".join(lines)
        assert plain["above_baseline"]["metric"] == metrics[0]
        assert [*plain["above_baseline"]["by_metric"]] == metrics
        assert {*metrics} <= {*plain["images_se"]}
