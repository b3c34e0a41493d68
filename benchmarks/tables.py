"""Derive the committed tables that the leaderboard's command does not: of speed, and of ablations.

In: results/*.json, and ablations/*/ablation.json with the records in ablations/records. Out: the tables of speed
between the markers of benchmarks/README.md, ablations/*/ablation.md; with --check, exit code 6 where one would
change, or where a score of an ablation is not that of the record which it names by its predictions' hash.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from side_by_side import markdown

from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.tables import insert_table
from simmim_bench.results.ablation import Ablation, from_json
from simmim_bench.results.ablation_report import to_markdown
from transfer.recipes import RECIPES

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Write or check; give the exit code."""
    wanted = dict(derived())
    stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    faults = list(unfounded())
    for fault in faults:
        print(fault, file=sys.stderr)
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(HERE)} does not follow from its figures", file=sys.stderr)
        return 6 if stale or faults else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 6 if faults else 0


def derived() -> Iterator[tuple[Path, str]]:
    """Give every derived document with its text."""
    results = sorted((HERE / "results").glob("*.json"))
    speed = "\n\n".join(markdown(json.loads(p.read_text(encoding="utf-8"))) for p in results)
    path = HERE / "README.md"
    yield path, insert_table(path.read_text(encoding="utf-8"), speed, path, "speed tables")
    for path, ablation in ablations():
        yield path.with_suffix(".md"), to_markdown(ablation)


def ablations() -> Iterator[tuple[Path, Ablation]]:
    """Give every committed ablation with its file."""
    for path in sorted((HERE / "ablations").glob("*/ablation.json")):
        yield path, from_json(json.loads(path.read_text(encoding="utf-8")))


def unfounded() -> Iterator[str]:
    """Name every score of an ablation that no committed record has, and what differs in those records."""
    found = find_records([HERE / "ablations" / "records"])
    yield from found.problems
    yield from check_records(found.records, RECIPES)
    kept = {record.predictions["sha256"]: record for record in found.records.values()}
    for path, ablation in ablations():
        metric = ablation.protocol["metric"]
        for row in ablation.rows:
            for score in row.scores:
                record = kept.get(score.predictions_sha256)
                if record is None or record.metrics[metric] != score.value:
                    yield (
                        f"{path.relative_to(HERE)}: {row.name}, seed {score.seed}: no record says "
                        f"{score.value}"
                    )


if __name__ == "__main__":
    sys.exit(main())
