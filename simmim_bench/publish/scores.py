"""Select the records of a checkpoint, and summarise them by task, data and protocol for its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import DataError
from simmim_bench.leaderboard.find import find_records
from simmim_bench.leaderboard.protocols import protocol_id
from simmim_bench.leaderboard.rows import ScoreCell, build_cell
from simmim_bench.local_paths import shorten_paths
from simmim_bench.results.record import Record
from simmim_bench.results.score_text import MEANINGS
from simmim_bench.results.scored_runs import Score, ScoredRuns, read_scored_runs
from simmim_bench.tasks import Column, columns

MISSING = "§"  # mark after a score
MARKS = {
    **MEANINGS,
    MISSING: "The predictions do not exist any more: the score is that of the record",
}
METRIC_NAMES = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU"}


@dataclass(frozen=True)
class CardScore:
    """One metric of a checkpoint under one protocol.

    Attributes:
        title: task and metric in words, such as `linear top-1`.
        score: percent, with its uncertainty over seeds and images.
        runs: the records, one per seed, with shortened paths.
        cell: the score as the leaderboard has it.
    """

    title: str
    score: Score
    runs: ScoredRuns
    cell: ScoreCell

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [record.seed for record in self.runs.records.values()]

    @property
    def marks(self) -> list[str]:
        """The marks of the score; see `MARKS`."""
        return [*self.cell.marks, *([MISSING] if self.runs.unknown else [])]

    @property
    def is_sound(self) -> bool:
        """Whether every image was scored, by committed code, and the predictions exist."""
        return self.cell.is_sound and not self.runs.unknown


def select_records(
    roots: Sequence[Path], checkpoint: Checkpoint, directory: Path
) -> dict[Path, Record]:
    """Read the records below some folders, all of which have to be of one checkpoint.

    Args:
        directory: the checkpoint directory. A run that trained a classifier has the record of its score, which names
            the checkpoint that it started from.

    Raises:
        DataError: a folder has no record, or a record that is damaged or of another checkpoint.
    """
    if not roots:
        return {}
    found = find_records(roots)
    for problem in found.problems:
        raise DataError(problem)
    for path, record in found.records.items():
        if not _is_of(record, path, checkpoint, directory):
            other = record.checkpoint
            raise DataError(
                f"{path} is the record of another checkpoint, '{other['label']}' (SHA-256 {other['sha256'][:12]}), not "
                f"of {checkpoint.name}, '{checkpoint.label}' (SHA-256 {checkpoint.sha256[:12]}); pass --records the "
                "folders of its runs alone."
            )
    return found.records


def _is_of(record: Record, path: Path, checkpoint: Checkpoint, directory: Path) -> bool:
    """Return whether a record is of a checkpoint, or of the training that ended in it."""
    if record.checkpoint["sha256"] == checkpoint.sha256:
        return True
    source = checkpoint.provenance.get("from")
    if not isinstance(source, Mapping) or source.get("sha256") != record.checkpoint["sha256"]:
        return False
    return path.parent.resolve() / "checkpoints" / "last" == directory.resolve()


def summarise_records(records: Mapping[Path, Record]) -> list[CardScore]:
    """Compute the scores of every task, data set and protocol, in the order of the leaderboard's columns.

    Predictions that do not exist leave the uncertainty from the number of images unknown.

    Raises:
        DataError: predictions have changed, are not those of the scores, or are two different ones of a seed.
    """
    groups: dict[tuple[str, str, str], dict[int, Path]] = {}
    for path, record in records.items():
        key = (record.task, str(record.data.get("name")), protocol_id(record))
        other = groups.setdefault(key, {}).setdefault(record.seed, path)
        if records[other].predictions["sha256"] != record.predictions["sha256"]:
            raise DataError(
                f"{other} and {path} have the same protocol and seed but different predictions; pass --records one of "
                "them."
            )
    order = [column.task for column in columns()]
    scores = []
    for key in sorted(
        groups, key=lambda k: (order.index(k[0]) if k[0] in order else len(order), k)
    ):
        seeds = groups[key]
        runs = read_scored_runs([seeds[seed].parent for seed in sorted(seeds)], strict=True)
        computed = runs.scores()
        shown = replace(runs, records={p: _shorten(r) for p, r in runs.records.items()})
        of_task = [c for c in columns() if c.task == key[0]]
        for column in of_task or [Column(key[0], key[0], "top1")]:
            cell = build_cell(column, [*shown.records], shown.records)
            if column.metric in computed and cell is not None:
                scores.append(CardScore(_title(column), computed[column.metric], shown, cell))
    return scores


def _shorten(record: Record) -> Record:
    """Return a record without the folders of this machine in what a model card says."""
    return replace(record, deviates=shorten_paths(record.deviates), data=shorten_paths(record.data))


def _title(column: Column) -> str:
    """Return task and metric in words: `fine-tuned top-1`, `few-shot 1 % top-1`."""
    few = column.task.startswith("fewshot")
    named = f"few-shot {column.title}" if few else column.title
    name = METRIC_NAMES.get(column.metric, column.metric)
    return named if name in named else f"{named} {name}"
