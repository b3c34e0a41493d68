"""The leaderboard: a table derived from records, never typed by hand.

In: folders with `record.json` files below them. Out: rows (a checkpoint) by columns (a metric), as
Markdown, CSV, a terminal table and one self-contained HTML page. Several seeds of a cell become mean ±
standard deviation. Rows whose records follow different protocols are told apart by name and never
share a cell. A missing cell is "–", one that the data cannot give "n/a".
"""

from __future__ import annotations

import csv
import html
import io
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from simmim_bench.errors import DataError, DriftError
from simmim_bench.files import sha256_file, sha256_json, write_text
from simmim_bench.metrics import scores_from_predictions
from simmim_bench.record import Record, read_record, with_masks

TOLERANCE = 1e-6  # percent: a recomputed score may differ by rounding alone


@dataclass(frozen=True)
class Column:
    """One metric of one task, as the table shows it."""

    title: str
    task: str
    metric: str


COLUMNS = (
    Column("ImageNet top-1", "imagenet", "top1"),
    Column("linear", "linear", "top1"),
    Column("k-NN", "knn", "top1"),
    Column("1 %", "fewshot-1%", "top1"),
    Column("10 %", "fewshot-10%", "top1"),
    Column("COCO box AP", "coco", "box_ap"),
    Column("mask AP", "coco", "mask_ap"),
    Column("ADE20K mIoU", "ade20k", "miou"),
)


@dataclass(frozen=True)
class Cell:
    """One score with the records behind it."""

    values: tuple[float, ...]
    records: tuple[Path, ...]
    protocol: str
    deviates: bool
    partial: bool

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    def __str__(self) -> str:
        text = f"{self.mean:.1f}"
        if len(self.values) > 1:
            text += f" ± {statistics.stdev(self.values):.1f}"
        return text + ("*" if self.deviates else "") + ("†" if self.partial else "")


@dataclass(frozen=True)
class Row:
    """One checkpoint with its cells, in the order of `COLUMNS`.

    Attributes:
        inapplicable: columns whose task was done on data that cannot give the metric, such as boxes without
            masks.
    """

    label: str
    checkpoint: str
    cells: tuple[Cell | None, ...]
    inapplicable: frozenset[int] = frozenset()


def find_records(roots: Iterable[Path]) -> dict[Path, Record]:
    """Read every `record.json` below some folders.

    Raises:
        DataError: a folder is missing, none holds a record, or a record is damaged.
    """
    found: dict[Path, Record] = {}
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise DataError(
                f"results folder {root} is not there; give a folder with run directories."
            )
        for folder, _, files in sorted(os.walk(root)):
            if "record.json" in files:
                path = Path(folder, "record.json")
                if path.resolve() not in seen:  # roots may lie in one another
                    seen.add(path.resolve())
                    found[path] = read_record(path)
    if not found:
        raise DataError(f"no record.json below {', '.join(map(str, roots))}; run a transfer first.")
    return found


def protocol_id(record: Record) -> str:
    """Give what must agree for two scores to be compared: recipe, deviations, data, a listed split."""
    data = [
        record.data["fingerprint"],
        *(record.data.get(key) for key in ("train_fingerprint", "listed_split_sha256")),
    ]
    return sha256_json([record.recipe["sha256"], record.deviates, data])


def build_rows(records: dict[Path, Record]) -> list[Row]:
    """Derive rows from records, best first by the mean of the cells that all rows have.

    Scores of one checkpoint and task are averaged over seeds where their protocol agrees; where it does
    not, each protocol makes a row of its own.
    """
    # `random:ARCH` is drawn anew by every seed, so its records share the spec's hash and one row.
    by_row: dict[tuple[str, str], dict[str, dict[str, list[Path]]]] = {}
    for path, record in records.items():
        key = (record.checkpoint["label"], record.checkpoint["sha256"])
        protocols = by_row.setdefault(key, {}).setdefault(record.task, {})
        protocols.setdefault(protocol_id(record), []).append(path)

    rows = []
    for (label, sha256), tasks in by_row.items():
        variants = max(len(protocols) for protocols in tasks.values())
        for variant in range(variants):
            chosen = {
                task: list(protocols.items())[variant]
                for task, protocols in tasks.items()
                if variant < len(protocols)
            }
            cells = tuple(_cell(column, chosen, records) for column in COLUMNS)
            name = label if variant == 0 else f"{label} (protocol {variant + 1})"
            inapplicable = frozenset(
                i for i, c in enumerate(COLUMNS) if c.task in chosen and cells[i] is None
            )
            rows.append(Row(name, sha256[:12], cells, inapplicable))
    return _ranked(rows)


def _cell(
    column: Column, chosen: dict[str, tuple[str, list[Path]]], records: dict[Path, Record]
) -> Cell | None:
    if column.task not in chosen:
        return None
    protocol, paths = chosen[column.task]
    paths = [p for p in paths if column.metric in records[p].metrics]
    if not paths:
        return None
    by_seed: dict[int, Path] = {}
    for path in paths:
        # A baseline that was run beside each of several checkpoints is one result.
        first = by_seed.setdefault(records[path].seed, path)
        if records[first].predictions["sha256"] != records[path].predictions["sha256"]:
            raise DataError(
                f"{path} and {first} are of one checkpoint, task and seed, and would count twice, with "
                "different predictions; remove one, or name other folders."
            )
    behind = [records[path] for path in by_seed.values()]
    return Cell(
        values=tuple(r.metrics[column.metric] for r in behind),
        records=tuple(by_seed.values()),
        protocol=protocol,
        deviates=any(r.deviates for r in behind),
        partial=any(r.evaluated != r.expected for r in behind),
    )


def _ranked(rows: list[Row]) -> list[Row]:
    shared = [i for i in range(len(COLUMNS)) if all(row.cells[i] is not None for row in rows)]

    def score(row: Row) -> float:
        cells = [row.cells[i] for i in shared]
        return -statistics.fmean([c.mean for c in cells if c is not None] or [0.0])

    return sorted(rows, key=lambda row: (score(row), row.label))


def best_in_column(rows: Sequence[Row], index: int) -> Row | None:
    """Give the row with the highest mean in a column; none where the protocols differ."""
    present = [(row, cell) for row in rows if (cell := row.cells[index]) is not None]
    if len(present) < 2 or len({cell.protocol for _, cell in present}) > 1:
        return None
    return max(present, key=lambda pair: pair[1].mean)[0]


def _texts(row: Row) -> list[str]:
    texts = [
        str(cell) if cell is not None else "n/a" if i in row.inapplicable else "–"
        for i, cell in enumerate(row.cells)
    ]
    return [row.label, *texts]


def notes(rows: Sequence[Row]) -> list[str]:
    """Explain the marks that the table uses."""
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    explained = []
    if any(cell.deviates for cell in cells):
        explained.append("* differs from the named recipe; the record says in what.")
    if any(cell.partial for cell in cells):
        explained.append("† not every image of the split was evaluated.")
    if any(len(cell.values) > 1 for cell in cells):
        explained.append(
            "± is the standard deviation over seeds; a checkpoint is one training, whatever the seed of "
            "its transfers, while random weights are drawn anew by each."
        )
    return explained


def to_markdown(rows: Sequence[Row]) -> str:
    """Give the table as Markdown, the best of a column in bold."""
    lines = [
        "| checkpoint | " + " | ".join(column.title for column in COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    best = [best_in_column(rows, i) for i in range(len(COLUMNS))]
    for row in rows:
        label, *texts = _texts(row)
        marked = [f"**{t}**" if best[i] is row else t for i, t in enumerate(texts)]
        lines.append("| " + " | ".join([label.replace("|", "\\|"), *marked]) + " |")
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes(rows))


def to_csv(rows: Sequence[Row]) -> str:
    """Give the table as CSV: means in full precision, an empty cell for a missing one."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["checkpoint", "sha256", *(f"{c.task}/{c.metric}" for c in COLUMNS)])
    for row in rows:
        values = ["" if cell is None else repr(cell.mean) for cell in row.cells]
        writer.writerow([row.label, row.checkpoint, *values])
    return out.getvalue()


def print_table(rows: Sequence[Row]) -> None:
    """Print the table on stdout, drawn for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=" ".join(notes(rows)) or None, caption_justify="left")
    table.add_column("checkpoint")
    for column in COLUMNS:
        table.add_column(column.title, justify="right")
    best = [best_in_column(rows, i) for i in range(len(COLUMNS))]
    for row in rows:
        label, *texts = _texts(row)
        table.add_row(
            label, *(f"[bold]{t}[/]" if best[i] is row else t for i, t in enumerate(texts))
        )
    # A pipe has no width of its own; a table cut in words would be of no use there.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>simmim-bench leaderboard</title>
<style>
:root { color-scheme: light dark; --line: #8884; --best: #2a7d4f; }
@media (prefers-color-scheme: dark) { :root { --best: #6fd39b; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.best { color: var(--best); font-weight: 600; }
details { margin: .5rem 0; }
code { font-size: .85em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>simmim-bench leaderboard</h1>
<p>How well does each backbone transfer? Scores in percent, higher is better. Every number is computed
from stored predictions; the records behind a row are listed below the table.</p>
<div class="wide" tabindex="0" role="region" aria-label="Leaderboard">
<table>
<thead><tr><th scope="col">checkpoint</th>$heads</tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
$notes
<h2>Records</h2>
$records
</body>
</html>
""")


def to_html(rows: Sequence[Row], records: dict[Path, Record]) -> str:
    """Give one self-contained page; every text from a record is escaped."""
    best = [best_in_column(rows, i) for i in range(len(COLUMNS))]
    body, behind = [], []
    for row in rows:
        label, *texts = (html.escape(text) for text in _texts(row))
        cells = "".join(
            f'<td class="best">{text}</td>' if best[i] is row else f"<td>{text}</td>"
            for i, text in enumerate(texts)
        )
        body.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
        paths = dict.fromkeys(p for cell in row.cells if cell is not None for p in cell.records)
        items = "".join(_record_item(path, records[path]) for path in paths)
        behind.append(
            f"<details><summary>{label} <code>{row.checkpoint}</code></summary><ul>{items}</ul></details>"
        )
    return _PAGE.substitute(
        heads="".join(f'<th scope="col">{html.escape(column.title)}</th>' for column in COLUMNS),
        rows="\n".join(body),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in notes(rows)),
        records="\n".join(behind),
    )


def _record_item(path: Path, record: Record) -> str:
    differs = ", ".join(f"{key}={value}" for key, value in record.deviates.items()) or "nothing"
    scores = ", ".join(f"{key} {value:.2f}" for key, value in record.metrics.items())
    facts = (
        f"{record.task}: {scores}; recipe {record.recipe['name']}, differs in {differs}; "
        f"seed {record.seed}; {record.evaluated} of {record.expected} images; "
        f"{record.wall_time_s:.0f} s; {record.date}; "
    )
    return f"<li>{html.escape(facts)}<code>{html.escape(str(path))}</code></li>"


def write_leaderboard(records: dict[Path, Record], out: Path) -> list[Row]:
    """Write LEADERBOARD.md, leaderboard.csv and leaderboard.html into a folder."""
    rows = build_rows(records)
    write_text(out / "LEADERBOARD.md", to_markdown(rows))
    write_text(out / "leaderboard.csv", to_csv(rows))
    write_text(out / "leaderboard.html", to_html(rows, records))
    return rows


def check_record(path: Path, record: Record) -> None:
    """Compute a record's scores again from its predictions.

    Raises:
        DriftError: the predictions are not those of the record, or do not give its scores.
    """
    predictions = path.parent / record.predictions["file"]
    if not predictions.is_file():
        raise DriftError(f"{path}: predictions {predictions} are not there.")
    if sha256_file(predictions) != record.predictions["sha256"]:
        raise DriftError(f"{path}: predictions {predictions} are not the ones that were scored.")
    annotations = None
    if "annotations" in record.data:
        annotations = Path(record.data["annotations"])
        if annotations.is_file() and sha256_file(annotations) != record.data["fingerprint"]:
            raise DriftError(
                f"{path}: {annotations} are not the annotations that were scored against."
            )
    again = scores_from_predictions(
        record.task, predictions, annotations, masks=with_masks(record.details)
    )
    for metric in sorted(set(again) | set(record.metrics)):
        stated, found = record.metrics.get(metric), again.get(metric)
        # Written so that a NaN on either side does not pass.
        if stated is None or found is None or not abs(stated - found) <= TOLERANCE:
            raise DriftError(
                f"{path}: {metric} is {stated} in the record, {found} from the predictions."
            )


def check_tables(rows: Sequence[Row], out: Path) -> None:
    """Compare the written tables with what the records give.

    Raises:
        DriftError: a table is missing or differs.
    """
    for name, text in (("LEADERBOARD.md", to_markdown(rows)), ("leaderboard.csv", to_csv(rows))):
        path = out / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise DriftError(
                f"{path} is not what the records give; run `simmim-bench leaderboard build`."
            )
