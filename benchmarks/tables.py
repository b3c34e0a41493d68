"""Generate the committed speed tables and ablation tables; the leaderboard has its own command.

results/gpu_check_*.json become the GPU checks in benchmarks/README.md, results/demo.json its table of the demo, and
other results/*.json its speed tables. results/costs.json becomes the tables of docs/hardware.md, with the peaks of
memory of a GPU check, and with the published scores that of docs/reproducing.md. The README at the root receives a
table of published scores, docs/photographs.md what the records of that study show.
ablations/*/ablation.* are rebuilt from their scores and from the predictions in ablations/records: every interval is
computed again, those in the table of ablations/README.md included. With --check nothing is written, and the exit code
is 6 if a table would change. It is also 6 if a score of an ablation differs from the record in ablations/records with
its predictions' hash.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import cards
import costs
import demo
import photographs
import published
import reproduction
from conclusions import fill_conclusions
from gpu_checks import report as gpu_check
from timing import to_markdown as speed_table

from simmim_bench.errors import DataError
from simmim_bench.leaderboard.archive import ORIGINAL
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.find import FoundRecords, find_records
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.tables import insert_table
from simmim_bench.results.ablation import Ablation, SeedScore, to_json
from simmim_bench.results.ablation_intervals import add_intervals, read_ablations
from simmim_bench.results.ablation_report import to_markdown as ablation_table
from simmim_bench.results.ablation_report import write_ablation
from simmim_bench.results.record import Record
from transfer.recipes import RECIPES

HERE = Path(__file__).resolve().parent
ABLATIONS = HERE / "ablations"
DOCS = HERE.parent / "docs"


def main() -> int:
    """Write or check the tables; return the exit code."""
    found = find_records([ABLATIONS / "records"])
    committed = dict(read_ablations(ABLATIONS))
    problems = [*found.problems, *check_records(found.records, RECIPES)]
    problems += check_scores(committed, found)
    for problem in problems:
        print(problem, file=sys.stderr)
    rebuilt = rebuild_ablations(committed, found)
    generated = dict(generate_documents(rebuilt))
    stale = [path for path, text in generated.items() if path.read_text(encoding="utf-8") != text]
    changed = [path for path, ablation in rebuilt.items() if not is_written(path, ablation)]
    if "--check" in sys.argv:
        for path in (*stale, *changed):
            name = path.relative_to(HERE.parent)
            print(
                f"{name} differs from its JSON file or records; run python benchmarks/tables.py",
                file=sys.stderr,
            )
        return 6 if stale or changed or problems else 0
    for path in stale:
        path.write_text(generated[path], encoding="utf-8")
    for path in changed:
        write_ablation(rebuilt[path], path.parent)
    return 6 if problems else 0


def generate_documents(ablations: Mapping[Path, Ablation]) -> Iterator[tuple[Path, str]]:
    """Yield every document with its generated text, but those of `write_ablation`.

    Args:
        ablations: rebuilt ones, by the path of their JSON file.
    """
    gpu_checks: list[str] = []
    speed_tables: list[str] = []
    for result in sorted((HERE / "results").glob("*.json")):
        if result.name == costs.RESULT:
            continue
        content = json.loads(result.read_text(encoding="utf-8"))
        if result.name.startswith("gpu_check_"):
            gpu_checks.append(gpu_check.markdown(content))
        elif result.name == demo.RESULT:
            speed_tables.append(demo.to_markdown(content))
        else:
            speed_tables.append(speed_table(content))
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    text = insert_table(text, "\n\n".join(speed_tables), path, "speed tables")
    yield path, insert_table(text, "\n\n".join(gpu_checks), path, "GPU checks")
    yield from generate_cost_pages()
    yield from generate_score_pages()
    path = ABLATIONS / "README.md"
    by_folder = {file.parent.name: ablation for file, ablation in ablations.items()}
    yield path, fill_conclusions(path.read_text(encoding="utf-8"), by_folder)


def generate_score_pages() -> Iterator[tuple[Path, str]]:
    """Yield the page of the study on photographs, and the README with its table of published scores."""
    path = HERE.parent / "docs" / "photographs.md"
    board = photographs.read_board()
    text = path.read_text(encoding="utf-8")
    text = insert_table(text, photographs.differences(board), path, "differences")
    yield path, insert_table(text, photographs.costs(board), path, "costs")
    path = HERE.parent / "README.md"
    text = path.read_text(encoding="utf-8")
    yield path, insert_table(text, published.markdown(), path, "published")


def generate_cost_pages() -> Iterator[tuple[Path, str]]:
    """Yield the pages of docs/ with tables of costs, each with its generated text."""
    content = json.loads((HERE / "results" / costs.RESULT).read_text(encoding="utf-8"))
    report = json.loads((HERE / "results" / "gpu_check_h200.json").read_text(encoding="utf-8"))
    path = DOCS / "hardware.md"
    text = path.read_text(encoding="utf-8")
    text = insert_table(text, cards.markdown(content["costs"], report["checks"]), path, "cards")
    text = insert_table(text, cards.memory_markdown(report), path, "memory")
    yield path, insert_table(text, costs.markdown(content), path, "costs")
    path = DOCS / "reproducing.md"
    text = path.read_text(encoding="utf-8")
    table = reproduction.markdown(read_reported(), content["costs"])
    yield path, insert_table(text, table, path, "published results")


def rebuild_ablations(
    committed: Mapping[Path, Ablation], found: FoundRecords
) -> dict[Path, Ablation]:
    """Compute all intervals of the committed ablations from their records."""
    paths = {scored_sha256(record): path for path, record in found.records.items()}

    def locate(score: SeedScore) -> Path:
        if score.predictions_sha256 not in paths:
            raise DataError(f"no record has the predictions of {score.record}")
        return paths[score.predictions_sha256]

    return {
        path: add_intervals(ablation, locate, [a for p, a in committed.items() if p != path])
        for path, ablation in committed.items()
    }


def scored_sha256(record: Record) -> str:
    """Return the hash of the predictions that the run wrote, which `keep` may have compressed or shortened."""
    found: str = record.predictions.get(ORIGINAL, record.predictions["sha256"])
    return found


def is_written(path: Path, ablation: Ablation) -> bool:
    """Return whether an ablation's files have its values; the last digits differ between machines."""

    def parse(text: str) -> object:
        return json.loads(text, parse_float=lambda number: round(float(number), 6))

    table, figure = path.with_suffix(".md"), path.with_suffix(".png")
    return (
        parse(path.read_text(encoding="utf-8")) == parse(json.dumps(to_json(ablation)))
        and table.is_file()
        and table.read_text(encoding="utf-8") == ablation_table(ablation)
        and figure.is_file()
    )


def check_scores(committed: Mapping[Path, Ablation], found: FoundRecords) -> Iterator[str]:
    """Yield every score of an ablation that differs from its record."""
    records = {scored_sha256(record): record for record in found.records.values()}
    for path, ablation in committed.items():
        metric = ablation.protocol["metric"]
        for row in ablation.rows:
            for score in row.scores:
                record = records.get(score.predictions_sha256)
                if record is None or record.metrics[metric] != score.value:
                    yield (
                        f"{path.relative_to(ABLATIONS)}: {row.name}, seed {score.seed}: no record has the score "
                        f"{score.value}"
                    )


if __name__ == "__main__":
    sys.exit(main())
