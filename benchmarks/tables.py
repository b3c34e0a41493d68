"""Generate the committed speed tables and ablation tables; the leaderboard has its own command.

results/gpu_check_*.json become the GPU checks in benchmarks/README.md, results/costs.json its table of costs, and other
results/*.json its speed tables.
ablations/*/ablation.json become ablations/*/ablation.md. With --check nothing is written, and the exit code is 6 if
a table would change. It is also 6 if a score of an ablation differs from the record in ablations/records with its
predictions' hash.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import costs
from gpu_checks import report as gpu_check
from timing import to_markdown as speed_table

from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.tables import insert_table
from simmim_bench.results.ablation import Ablation, from_json
from simmim_bench.results.ablation_report import to_markdown as ablation_table
from transfer.recipes import RECIPES

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Write or check the tables; return the exit code."""
    generated = dict(generate_documents())
    stale = [path for path, text in generated.items() if path.read_text(encoding="utf-8") != text]
    problems = list(check_ablations())
    for problem in problems:
        print(problem, file=sys.stderr)
    if "--check" in sys.argv:
        for path in stale:
            print(
                f"{path.relative_to(HERE)} differs from its JSON file; run python benchmarks/tables.py",
                file=sys.stderr,
            )
        return 6 if stale or problems else 0
    for path in stale:
        path.write_text(generated[path], encoding="utf-8")
    return 6 if problems else 0


def generate_documents() -> Iterator[tuple[Path, str]]:
    """Yield every document with its generated text."""
    gpu_checks: list[str] = []
    speed_tables: list[str] = []
    for result in sorted((HERE / "results").glob("*.json")):
        if result.name == costs.RESULT:
            continue
        content = json.loads(result.read_text(encoding="utf-8"))
        if result.name.startswith("gpu_check_"):
            gpu_checks.append(gpu_check.markdown(content))
        else:
            speed_tables.append(speed_table(content))
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    text = insert_table(text, "\n\n".join(speed_tables), path, "speed tables")
    content = json.loads((HERE / "results" / costs.RESULT).read_text(encoding="utf-8"))
    text = insert_table(text, costs.markdown(content), path, "costs")
    yield path, insert_table(text, "\n\n".join(gpu_checks), path, "GPU checks")
    for path, ablation in read_ablations():
        yield path.with_suffix(".md"), ablation_table(ablation)


def read_ablations() -> Iterator[tuple[Path, Ablation]]:
    """Yield every committed ablation with its file."""
    for path in sorted((HERE / "ablations").glob("*/ablation.json")):
        yield path, from_json(json.loads(path.read_text(encoding="utf-8")))


def check_ablations() -> Iterator[str]:
    """Yield the problems of the ablations' records, and every score that differs from its record."""
    found = find_records([HERE / "ablations" / "records"])
    yield from found.problems
    yield from check_records(found.records, RECIPES)
    records = {record.predictions["sha256"]: record for record in found.records.values()}
    for path, ablation in read_ablations():
        metric = ablation.protocol["metric"]
        for row in ablation.rows:
            for score in row.scores:
                record = records.get(score.predictions_sha256)
                if record is None or record.metrics[metric] != score.value:
                    yield (
                        f"{path.relative_to(HERE)}: {row.name}, seed {score.seed}: no record has the score "
                        f"{score.value}"
                    )


if __name__ == "__main__":
    sys.exit(main())
