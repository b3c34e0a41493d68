"""The committed ablations: rebuilt from their records, and what their README concludes from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from simmim_bench.results.ablation_intervals import read_ablations

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABLATIONS = BENCHMARKS / "ablations"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_changed_interval_is_found(tmp_path: Path) -> None:
    import tables

    for name in ("ablation.json", "ablation.md", "ablation.png"):
        (tmp_path / name).write_bytes((ABLATIONS / "head" / name).read_bytes())
    path = tmp_path / "ablation.json"
    ablation = dict(read_ablations(ABLATIONS))[ABLATIONS / "head" / "ablation.json"]
    assert tables.is_written(path, ablation)
    plain = json.loads(path.read_text(encoding="utf-8"))
    plain["rows"][1]["above"][1] += 0.001
    path.write_text(json.dumps(plain), encoding="utf-8")
    assert not tables.is_written(path, ablation)


def test_single_seeds_have_intervals_over_pretrainings() -> None:
    single = 0
    for _, ablation in read_ablations(ABLATIONS):
        for row in ablation.pretrained:
            if row.above is not None and len(row.scores) == 1:
                single += 1
                # Of the images alone, the margin is 2.4 points.
                assert 6 < (row.above[2] - row.above[1]) / 2 < 9
    assert single == 9
    head = dict(read_ablations(ABLATIONS))[ABLATIONS / "head" / "ablation.json"]
    # The best cell has a single seed.
    assert not any(row.best for row in head.rows)


def test_the_readme_cites_intervals_of_the_tables() -> None:
    text = (ABLATIONS / "README.md").read_text(encoding="utf-8")
    axes = dict(
        re.findall(r"^\| \[(\w+)\]\(\w+/ablation\.md\) \|.*?\| (.*) \|$", text, re.MULTILINE)
    )
    assert len(axes) == 5
    cited = 0
    for path, ablation in read_ablations(ABLATIONS):
        known = set()
        for row in ablation.pretrained:
            points, low, high = row.above or (0.0, 0.0, 0.0)
            known |= {f"{points:+.1f} ({low:+.1f} to {high:+.1f})"}
            low, high = sorted((abs(low), abs(high)))
            known |= {f"{abs(points):.1f} points ({low:.1f} to {high:.1f})"}
        claims = axes[path.parent.name].replace("points more", "points")
        interval = r"[-+]?\d+\.\d(?: points)? \([-+\d.]+ to [-+\d.]+\)"
        for claim in re.findall(interval, claims):
            cited += 1
            assert claim in known
    assert cited == 5
