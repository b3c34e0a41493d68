"""Claims about differences: their interval is honest, and only what can be compared is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from simmim_bench.cli import cli
from simmim_bench.errors import UsageError
from transfer.baseline import compare_runs, paired_difference


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    # Images of differing hardness, known to both starts; ours is right a tenth more often.
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        hardness = generator.uniform(0.0, 0.9, 300)
        draws = generator.uniform(size=(2, 1, 300))
        found = paired_difference(draws[0] < hardness + 0.1, draws[1] < hardness)
        held += found.low <= 10 <= found.high
    assert 0.92 < held / 400 < 0.98


def test_pairing_narrows_the_interval_and_seeds_count() -> None:
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
    # The interval of few seeds that differ holds the truth as often as it says.
    held = 0
    for _ in range(400):
        luck = generator.normal(0.0, 0.05, (2, 3, 1))
        draws = generator.uniform(size=(2, 3, 300))
        found = paired_difference(draws[0] < 0.6 + luck[0], draws[1] < 0.5 + luck[1])
        held += found.low <= 10 <= found.high
    assert 0.90 < held / 400 < 0.98
    # Seeds that disagree leave a wide interval, however many images there are.
    gains = np.zeros((2, 100_000), bool)
    gains[0, :20_000] = True
    wide = paired_difference(gains, np.zeros_like(gains))
    assert wide.high - wide.low > 20


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["transfer", *arguments, "--quiet"])


def test_a_baseline_is_run_once_and_the_difference_is_told(tmp_path: Path, pocket: Path) -> None:
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
    told = json.loads(more.stdout)
    assert [record["seed"] for record in told["seeds"]] == [4, 5, 6]
    assert told["metrics"]["top1"]["std"] > 0
    assert (out / "seed4" / "record.json").stat().st_mtime_ns == before
    refused = invoke(*common, "--seeds", "2")
    assert "is not empty" in str(refused.exception)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, pocket: Path) -> None:
    data = ["--data", str(pocket / "imagenet"), "--ckpt", "random:vit_pocket"]
    for name, more in (("a", []), ("b", ["-o", "k=3"]), ("c", ["--seed", "2"])):
        assert invoke("knn", *data, *more, "--out", str(tmp_path / name)).exception is None
    with pytest.raises(UsageError, match="no baseline for this run: another recipe, deviates"):
        compare_runs([tmp_path / "a"], [tmp_path / "b"])
    with pytest.raises(UsageError, match="another seed"):
        compare_runs([tmp_path / "a"], [tmp_path / "c"])
    refused = invoke("coco", *data, "--baseline", "random", "--out", str(tmp_path / "coco"))
    assert "--baseline compares top1, which coco does not give" in str(refused.exception)
    assert not (tmp_path / "coco").exists()
