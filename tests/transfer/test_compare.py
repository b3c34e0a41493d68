"""The interval of a difference has its nominal coverage, and only comparable runs are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from simmim_bench.cli.main import cli
from simmim_bench.errors import DataError, UsageError
from simmim_bench.leaderboard.find import find_records
from simmim_bench.models.archs import ARCHS, find_spec
from simmim_bench.results.metrics import write_logits
from transfer.compare import compare_runs, paired_difference


def test_the_interval_has_its_nominal_coverage() -> None:
    # Images of varying hardness, the same for both models; ours is correct 10 points more often.
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        hardness = generator.uniform(0.0, 0.9, 300)
        samples = generator.uniform(size=(2, 1, 300))
        found = paired_difference(samples[0] < hardness + 0.1, samples[1] < hardness)
        covered += found.low <= 10 <= found.high
    assert 0.92 < covered / 400 < 0.98


def test_pairing_narrows_the_interval_and_seed_variance_widens_it() -> None:
    generator = np.random.default_rng(0)
    ours = generator.uniform(size=(3, 500)) < 0.7
    theirs = ours & (generator.uniform(size=(3, 500)) < 0.9)
    paired = paired_difference(ours, theirs)
    shuffled = paired_difference(ours, generator.permuted(theirs, axis=1))
    assert (
        paired.points
        == pytest.approx(shuffled.points)
        == pytest.approx(100 * (ours.mean() - theirs.mean()))
    )
    assert paired.high - paired.low < 0.6 * (shuffled.high - shuffled.low)
    assert (paired.images, paired.seeds) == (500, 3)
    # With few seeds that differ, the interval still has its nominal coverage.
    covered = 0
    for _ in range(400):
        seed_effect = generator.normal(0.0, 0.05, (2, 3, 1))
        samples = generator.uniform(size=(2, 3, 300))
        found = paired_difference(
            samples[0] < 0.6 + seed_effect[0], samples[1] < 0.5 + seed_effect[1]
        )
        covered += found.low <= 10 <= found.high
    assert 0.90 < covered / 400 < 0.98
    # Seeds that disagree give a wide interval, whatever the number of images.
    gains = np.zeros((2, 100_000), bool)
    gains[0, :20_000] = True
    wide = paired_difference(gains, np.zeros_like(gains))
    assert wide.high - wide.low > 20


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
    assert (
        f"above random:swin_pocket: {scores[0] - scores[1]:+.2f} points of top1, 95% from"
        in done.stdout
    )
    assert done.stdout.rstrip().endswith("over 30 images")
    before = (other / "record.json").stat().st_mtime_ns
    done = invoke(*common, "--out", str(tmp_path / "knn"), "--overwrite", "--json")
    assert json.loads(done.stdout)["above_baseline"]["images"] == 30
    assert (other / "record.json").stat().st_mtime_ns == before


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
    assert f"top1 {ours.mean():.2f} ± {ours.std(ddof=1):.2f} over 2 seeds" in done.stdout
    assert f"{(ours - theirs).mean():+.2f} points of top1, 95% from" in done.stdout
    assert done.stdout.rstrip().endswith("over 30 images and 2 seeds")
    before = (out / "seed4" / "record.json").stat().st_mtime_ns
    more = invoke(*common, "--seeds", "3", "--resume", "--json")
    reported = json.loads(more.stdout)
    assert [record["seed"] for record in reported["seeds"]] == [4, 5, 6]
    assert reported["metrics"]["top1"]["std"] > 0
    assert (out / "seed4" / "record.json").stat().st_mtime_ns == before
    refused = invoke(*common, "--seeds", "2")
    assert "is not empty" in str(refused.exception)


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
        compare_runs([tmp_path / "a"], [tmp_path / "b"])
    with pytest.raises(UsageError, match="different seed"):
        compare_runs([tmp_path / "a"], [tmp_path / "c"])
    for path in (tmp_path / "a" / "predictions").iterdir():
        write_logits(path, np.zeros((30, 10)), np.zeros(30, int))
    with pytest.raises(DataError, match=r"are not the ones that were scored; run .*a again"):
        compare_runs([tmp_path / "a"], [tmp_path / "a"])
    refused = invoke("coco", *data, "--baseline", "random", "--out", str(tmp_path / "coco"))
    assert "--baseline needs top-1 predictions, and coco has none" in str(refused.exception)
    assert not (tmp_path / "coco").exists()
