"""Tables whose rows can be compared, and the names by which a user finds a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from simmim_bench.errors import UsageError, nearest
from simmim_bench.leaderboard.board import Board, ProtocolGroup
from simmim_bench.leaderboard.rows import Row, with_pretrainings
from simmim_bench.leaderboard.samples import ColumnSample
from simmim_bench.results.record import Record
from simmim_bench.results.row_runs import is_random
from simmim_bench.tasks import Column

HASH_DIGITS = 6  # of the shortest prefix that names a checkpoint


@dataclass(frozen=True)
class Table:
    """Rows whose scores in one column can be compared: a protocol group, or a table of named data sets.

    Attributes:
        rows: by label, with the single pretrainings of methods.
        random: labels of the rows of random weights, which are initialised anew for each seed.
    """

    name: str
    titles: tuple[str, ...]
    rows: Mapping[str, Row]
    samples: Sequence[ColumnSample | None]
    random: frozenset[str] = frozenset()


def comparable_tables(board: Board) -> list[Table]:
    """Return the protocol groups and the tables of named data sets of a board."""
    return [
        *(group_table(board, group) for group in board.groups),
        *(
            _table(
                board,
                table.title,
                tuple(f"{_short_title(table.column)}: {name}" for name in table.data_sets),
                table.rows,
                table.samples,
            )
            for table in board.small_sets
        ),
    ]


def group_table(board: Board, group: ProtocolGroup) -> Table:
    """Return the table of a protocol group of a board."""
    titles = tuple(column.title for column in board.columns)
    return _table(board, group.name, titles, group.rows, group.samples)


def _table(
    board: Board,
    name: str,
    titles: tuple[str, ...],
    rows: Sequence[Row],
    samples: Sequence[ColumnSample | None],
) -> Table:
    named = {row.label: row for row in with_pretrainings(rows)}
    random = (label for label, row in named.items() if is_random(board.records[row.records[0]]))
    return Table(name, titles, named, samples, frozenset(random))


def find_labels(
    tables: Sequence[Table], records: Mapping[Path, Record], a: str, b: str
) -> tuple[str, str]:
    """Find the labels of the two rows that two names mean.

    Where a name fits several rows, such as a baseline that is in several groups, only one pair may share a table.

    Args:
        a, b: a label, a CKPT as the records name it, the first digits of a checkpoint's hash, or a part of a label.

    Raises:
        UsageError: no row or several rows have a name.
    """
    ours, theirs = (_candidates(tables, records, name) for name in (a, b))
    pairs = [
        (one, other)
        for one, other in product(ours, theirs)
        if one != other and any(one in table.rows and other in table.rows for table in tables)
    ]
    return pairs[0] if len(pairs) == 1 else (_only(ours, a), _only(theirs, b))


def _candidates(tables: Sequence[Table], records: Mapping[Path, Record], name: str) -> list[str]:
    """Find the labels of all rows that a name may mean, at least one."""
    rows = [(label, row) for table in tables for label, row in table.rows.items()]
    labels = list(dict.fromkeys(label for label, _ in rows))
    if name in labels:
        return [name]
    of_ckpt = [label for label, row in rows if name in _ckpt_names(row, records)]
    is_hash = len(name) >= HASH_DIGITS
    of_hash = [label for label, row in rows if is_hash and row.checkpoint.startswith(name)]
    of_part = [label for label in labels if name.casefold() in label.casefold()]
    found = next(filter(None, (of_ckpt, of_hash, of_part)), [])
    found = list(dict.fromkeys(found))
    for _, row in rows:
        # A name that fits a method and nothing but its pretrainings means the method.
        if row.label in found and {*found} <= {row.label, *(p.label for p in row.pretrainings)}:
            return [row.label]
    if not found:
        raise UsageError(f"no row has the name '{name}'; {nearest(name, labels)}")
    return found


def _only(labels: Sequence[str], name: str) -> str:
    if len(labels) > 1:
        candidates = ", ".join(f"'{label}'" for label in labels)
        raise UsageError(f"'{name}' is the name of {len(labels)} rows; use one of {candidates}.")
    return labels[0]


def _short_title(column: Column) -> str:
    return column.task if column.metric == "top1" else f"{column.task} {column.metric}"


def _ckpt_names(row: Row, records: Mapping[Path, Record]) -> set[str]:
    """Return the CKPT of every record of a row; none for a method, whose records have several."""
    return set() if row.pretrainings else {records[p].checkpoint["name"] for p in row.records}
