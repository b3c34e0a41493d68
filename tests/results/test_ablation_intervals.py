"""Tests of an ablation's intervals, p-values and bold scores, on made-up runs whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from scipy import stats
from support.records import change, make_record, set_answers

from simmim_bench.errors import DataError
from simmim_bench.files import write_json
from simmim_bench.results.ablation import (
    NO_PRETRAINING,
    Ablation,
    CellResult,
    SeedScore,
    from_json,
    to_json,
)
from simmim_bench.results.ablation_figure import describe_bars
from simmim_bench.results.ablation_intervals import add_intervals, read_ablations
from simmim_bench.results.ablation_report import to_markdown, write_ablation
from simmim_bench.results.metrics import write_logits

IMAGES = 2000
KEYS = ("arch", "pretraining", "images", "transfer", "scored")
PROTOCOL = dict.fromkeys(KEYS, "x") | {"task": "linear", "metric": "top1"}


def write_run(root: Path, name: str, seed: int, correct: np.ndarray) -> SeedScore:
    """Write a run that classifies the given images correctly, (N,) bool."""
    path = make_record(root, label=name, seed=seed)
    digest = set_answers(path, correct)
    score = 100 * float(correct.mean())
    return SeedScore(seed, score, path.relative_to(root).as_posix(), digest)


def answers(score: float, images: int = IMAGES, shift: int = 0) -> np.ndarray:
    """Return answers with a score; those of another shift are correct for other images."""
    correct = np.arange(images) < round(images * score / 100)
    return np.random.default_rng(shift).permutation(correct)


def ablation_of(root: Path, cells: Mapping[str, Sequence[float] | Mapping[int, float]]) -> Ablation:
    """Write the runs of cells, given by the scores of their seeds; the first cell is the recipe's own."""
    rows = []
    for name, given in cells.items():
        by_seed = given if isinstance(given, Mapping) else dict(enumerate(given))
        scores = tuple(
            write_run(root, name, seed, answers(score, shift=crc32(f"{name} {seed}".encode())))
            for seed, score in by_seed.items()
        )
        rows.append(CellResult(name=name, scores=scores))
    return Ablation(
        axes=("head",),
        protocol=PROTOCOL,
        own=rows[0].name,
        rows=tuple(rows),
        missing=(),
        left_out={},
        img_side=32,
    )


def with_intervals(root: Path, ablation: Ablation, *others: Ablation) -> dict[str, CellResult]:
    full = add_intervals(ablation, lambda score: root / score.record, others)
    return {row.name: row for row in full.rows}


def margin(row: CellResult) -> float:
    assert row.above is not None
    return (row.above[2] - row.above[1]) / 2


def test_one_seed_has_the_spread_of_the_cells_with_several(tmp_path: Path) -> None:
    cells = {"own": (60.0, 66.0), "b": (50.0, 56.0), "c": (71.0, 65.0), "one": (68.0,)}
    rows = with_intervals(tmp_path, ablation_of(tmp_path, cells))
    # Each pair has a variance of 18, with one degree of freedom each; the images' standard error is about 1.
    seeds = stats.t.ppf(0.975, 3) * (18 * (1 + 1 / 2)) ** 0.5
    assert margin(rows["one"]) == pytest.approx(seeds, rel=0.05)
    assert rows["one"].above is not None
    assert rows["one"].above[0] == pytest.approx(68.0 - 63.0)
    # Two seeds take it as well, so that more seeds give narrower intervals.
    assert margin(rows["b"]) == pytest.approx(stats.t.ppf(0.975, 3) * 18**0.5, rel=0.05)
    # What is known of the cell alone: 18 for one seed, and 18 / 2.
    assert rows["one"].error == pytest.approx((18 + 1.1) ** 0.5, rel=0.05)
    assert rows["own"].error == pytest.approx((9 + 0.6) ** 0.5, rel=0.05)
    assert not any(row.images_alone for row in rows.values())


def test_three_seeds_are_judged_by_their_own_spread(tmp_path: Path) -> None:
    cells = {"own": (60.0, 60.5, 61.0), "steady": (70.0, 70.5, 71.0), "wild": (20.0, 50.0, 80.0)}
    rows = with_intervals(tmp_path, ablation_of(tmp_path, cells))
    assert margin(rows["steady"]) < 4
    assert margin(rows["wild"]) > 40


def test_a_difference_is_over_all_seeds_and_not_over_common_ones(tmp_path: Path) -> None:
    cells = {"own": {0: 50.0, 1: 54.0}, "other": {1: 60.0, 2: 61.0, 7: 65.0}}
    other = with_intervals(tmp_path, ablation_of(tmp_path, cells))["other"]
    assert other.above is not None
    assert other.above[0] == pytest.approx(62.0 - 52.0)


def test_one_seed_everywhere_compares_checkpoints_and_not_choices(tmp_path: Path) -> None:
    cells = {"own": (60.0,), "b": (70.0,), NO_PRETRAINING: (20.0, 20.1, 20.2)}
    ablation = ablation_of(tmp_path, cells)
    full = add_intervals(ablation, lambda score: tmp_path / score.record)
    rows = {row.name: row for row in full.rows}
    # Random weights, which agree, must not stand for the spread of pretrainings.
    for name in ("b", NO_PRETRAINING):
        assert rows[name].images_alone
        assert rows[name].adjusted_p_value is None
        assert margin(rows[name]) < 4
    assert not any(row.best for row in full.rows)
    text = to_markdown(full)
    assert "| +10.0 (images alone: +7." in text
    assert "does not show an effect of the choice" in text
    assert "p (Holm)" not in text
    assert "**" not in text


def test_bold_is_what_cannot_be_distinguished_from_the_best_but_no_single_seed(
    tmp_path: Path,
) -> None:
    cells = {"linear": (59.0, 62.4), "mlp": (64.0,), "x": (55.0, 58.0)}
    more = {"c": (61.0, 64.0), "d": (64.0, 67.0)}
    rows = with_intervals(tmp_path / "a", ablation_of(tmp_path / "a", {**cells, **more}))
    assert [name for name, row in rows.items() if row.best] == ["linear", "c", "d"]
    assert rows["mlp"].std == 0
    # Nothing is bold beside a higher score that may not be bold.
    single = {**cells, "conv": (72.2,)}
    rows = with_intervals(tmp_path / "b", ablation_of(tmp_path / "b", single))
    assert not any(row.best for row in rows.values())


def holm(p_values: list[float]) -> list[float]:
    """Adjust by the definition: p(i) becomes the largest (m - j + 1) p(j) of all j up to i, and at most 1."""
    ordered = sorted(p_values)
    count = len(ordered)
    return [
        min(1.0, max((count - j) * ordered[j] for j in range(ordered.index(p) + 1)))
        for p in p_values
    ]


def test_p_values_are_adjusted_for_the_differences_of_the_table(tmp_path: Path) -> None:
    cells = {"own": (60.0, 61.0, 62.0), "a": (63.0, 65.0, 64.0), "b": (66.5, 68.0, 67.0)}
    cells |= {"c": (60.0, 63.0, 61.0), NO_PRETRAINING: (20.0, 21.0, 20.5)}
    full = add_intervals(ablation_of(tmp_path, cells), lambda score: tmp_path / score.record)
    others = full.rows[1:]
    raw = [row.p_value for row in others if row.p_value is not None]
    assert len(raw) == 4
    assert [row.adjusted_p_value for row in others] == pytest.approx(holm(raw))
    # The interval says the same as the p-value that is not adjusted.
    for row in others:
        assert row.above is not None
        assert row.p_value is not None
        assert (row.p_value < 0.05) == (not row.above[1] <= 0 <= row.above[2])
    text = to_markdown(full)
    assert "adjusted by Holm's method for the 4 differences" in text
    assert "| < 0.001 |" in text
    assert f"| {max(holm(raw)):.3f} |" in text


def test_the_spread_is_pooled_over_other_axes_of_the_same_study_once(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path / "a", {"own": (60.0,), "one": (70.0,)})
    other = ablation_of(tmp_path / "b", {"x": (60.0, 66.0), "y": (50.0, 56.0)})
    hashes = {
        score.predictions_sha256: tmp_path / "b" / score.record
        for row in other.rows
        for score in row.scores
    }

    def locate(score: SeedScore) -> Path:
        return hashes.get(score.predictions_sha256, tmp_path / "a" / score.record)

    assert add_intervals(ablation, locate).spread is None
    full = add_intervals(ablation, locate, [other, other])
    assert full.spread is not None
    assert full.spread == pytest.approx((18**0.5, 2, 2))
    assert margin(full.rows[1]) == pytest.approx(stats.t.ppf(0.975, 2) * 36**0.5, rel=0.05)
    elsewhere = replace(other, protocol={**PROTOCOL, "pretraining": "longer"})
    assert add_intervals(ablation, locate, [elsewhere]).spread is None


def test_rows_that_are_not_sound_are_marked_and_never_bold(tmp_path: Path) -> None:
    cells = {"own": (60.0, 61.0), "dirty": (70.0, 71.0), "partial": (90.0,), "b": (60.5, 62.0)}
    ablation = ablation_of(tmp_path, cells)
    for score in ablation.rows[1].scores:
        change(tmp_path / score.record, environment={"simmim_bench": "0.1.0", "dirty": True})
    fewer = write_run(tmp_path, "partial", 0, answers(90.0, 500))
    change(tmp_path / fewer.record, status="partial", expected=IMAGES)
    partial = replace(ablation.rows[2], scores=(fewer,))
    ablation = replace(ablation, rows=(*ablation.rows[:2], partial, ablation.rows[3]))
    full = add_intervals(ablation, lambda score: tmp_path / score.record)
    assert [row.name for row in full.rows if row.best] == ["own", "b"]
    assert full.spread is not None
    assert full.spread.cells == 2
    assert full.not_compared == {"partial": "scored on other images than own"}
    text = to_markdown(full)
    assert "| 90.0† |" in text
    assert "70.5‡, seeds ± 0.7, images ± " in text
    assert "No interval: partial: scored on other images than own" in text


def test_predictions_that_changed_leave_a_row_without_an_interval(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path, {"own": (60.0, 61.0), "a": (70.0, 71.0), "b": (50.0, 51.0)})
    changed = tmp_path / ablation.rows[1].scores[0].record
    write_logits(changed.parent / "predictions" / "logits.npz", np.eye(6), np.arange(6))
    full = add_intervals(ablation, lambda score: tmp_path / score.record)
    assert [row.above is None for row in full.rows] == [True, True, False]
    assert "have changed since they were scored: hash mismatch." in full.not_compared["a"]
    whole = replace(ablation, protocol={**PROTOCOL, "metric": "ece"})
    full = add_intervals(whole, lambda score: tmp_path / score.record)
    assert full.not_compared["own"] == "linear ece is not stored image by image"
    assert "images ±" not in to_markdown(full)


def test_few_shot_differences_are_paired_by_their_labelled_images(tmp_path: Path) -> None:
    cells = {"own": (40.0, 50.0, 60.0), "a": (42.0, 52.5, 62.0)}
    ablation = ablation_of(tmp_path, cells)
    paired = replace(ablation, protocol={**PROTOCOL, "task": "fewshot-1%"})
    assert margin(with_intervals(tmp_path, paired)["a"]) < 4
    assert margin(with_intervals(tmp_path, ablation)["a"]) > 15


def test_results_of_older_versions_are_read(tmp_path: Path) -> None:
    full = add_intervals(
        ablation_of(tmp_path, {"own": (60.0, 61.0), "a": (70.0,)}),
        lambda score: tmp_path / score.record,
    )
    plain = json.loads(json.dumps(to_json(full)))
    assert from_json(plain) == full
    old_keys = {"name", "changes", "scores", "facts", "above", "published"}
    plain["rows"] = [{k: v for k, v in row.items() if k in old_keys} for row in plain["rows"]]
    del plain["spread"], plain["not_compared"]
    old = from_json(plain)
    assert [row.above for row in old.rows] == [row.above for row in full.rows]
    assert "| a | 1 | 70.0 | +9.5 (" in to_markdown(old)


def test_a_damaged_table_of_another_axis_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "scope" / "ablation.json", {"rows": [{}]})
    with pytest.raises(DataError, match=r"scope/ablation.json is damaged; remove it, or write it"):
        list(read_ablations(tmp_path))


def test_the_figure_says_what_its_bars_are(tmp_path: Path) -> None:
    ablation = ablation_of(tmp_path, {"own": (60.0, 61.0), "a": (70.0,)})
    full = add_intervals(ablation, lambda score: tmp_path / score.record)
    assert describe_bars(full).startswith("± 1 standard error, images and seeds; at most 2 seeds")
    single = replace(ablation, rows=tuple(replace(r, scores=r.scores[:1]) for r in ablation.rows))
    alone = add_intervals(single, lambda score: tmp_path / score.record)
    assert "of the images alone" in describe_bars(alone)
    write_ablation(full, tmp_path / "out")
    assert (tmp_path / "out" / "ablation.png").is_file()


def coverage(root: Path, trials: int, cells: Sequence[int], images: int) -> float:
    """Return how often intervals of differences that are zero contain zero, with seeds of a deviation of 3 points."""
    generator = np.random.default_rng(0)
    hits: list[bool] = []
    for _ in range(trials):
        ease = generator.normal(size=images)
        rows = []
        for number, seeds in enumerate(cells):
            scores = [
                write_run(
                    root,
                    str(number),
                    seed,
                    ease + generator.normal(size=images) + 0.11 * generator.normal() > 0,
                )
                for seed in range(seeds)
            ]
            rows.append(CellResult(name=str(number), scores=tuple(scores)))
        ablation = Ablation(
            axes=("head",),
            protocol=PROTOCOL,
            own="0",
            rows=tuple(rows),
            missing=(),
            left_out={},
            img_side=32,
        )
        for row in with_intervals(root, ablation).values():
            if row.above is not None:
                hits.append(row.above[1] <= 0 <= row.above[2])
    return 100 * float(np.mean(hits))


def test_intervals_of_one_and_two_seeds_cover_the_truth(tmp_path: Path) -> None:
    # Intervals of the images alone cover 57 % here.
    assert coverage(tmp_path, trials=12, cells=(2, 1, 2, 2, 1), images=1000) > 85


@pytest.mark.slow
@pytest.mark.parametrize("cells", [(2, 1, 2, 2, 1), (1, 1, 3, 3), (2, 2, 2, 2), (3, 3, 3, 1)])
def test_coverage_is_nominal(tmp_path: Path, cells: Sequence[int]) -> None:
    assert 92 < coverage(tmp_path, trials=500, cells=cells, images=1000) < 98.5
