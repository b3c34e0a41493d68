"""Name groups of equal protocols by their data, in words.

A group has a letter, which tables, files and the page use to refer to it. What it is, is said by its data sets and by
the number of images that each of them scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from simmim_bench.leaderboard.board import Board, ProtocolGroup
from simmim_bench.leaderboard.protocols import describe_recipe
from simmim_bench.results.record import Record
from simmim_bench.tasks import columns


def data_name(record: Record) -> str:
    """Return the name of a record's data set: its title where the run was given one, else the name of its folder."""
    root: str = record.data["root"]
    title: str = record.data.get("title") or Path(root).name or root
    return title


def describe_data(record: Record) -> str:
    """Return the name of a record's data set and its number of images, such as `cifar10, 5,000 images`."""
    return f"{data_name(record)}, {record.expected:,} image" + ("" if record.expected == 1 else "s")


def describe_protocol(record: Record) -> str:
    """Describe a record's protocol in a few words: recipe, deviations, data set and number of images."""
    return f"{describe_recipe(record)} on {describe_data(record)}"


def describe_protocols(group: ProtocolGroup) -> dict[str, str]:
    """Return the protocols of a group by the titles of the columns that follow them, such as `1 %, 10 %`."""
    titles: dict[str, list[str]] = {}
    for task, record in group.protocols.items():
        titles.setdefault(describe_protocol(record), []).extend(
            column.title for column in columns() if column.task == task
        )
    return {", ".join(names): protocol for protocol, names in titles.items()}


def group_titles(board: Board) -> dict[str, str]:
    """Return what every group is, by its letter: `cifar10, 5,000 images; coco_mini, 79 images`.

    Groups on the same data are distinguished by their recipes.
    """
    data = {group.name: _describe_data_sets(group.protocols) for group in board.groups}
    recipes = {g.name: _unique(map(describe_recipe, g.protocols.values())) for g in board.groups}
    titles = {}
    for name, title in data.items():
        others = [
            o for other in data if other != name and data[other] == title for o in recipes[other]
        ]
        differing = [recipe for recipe in recipes[name] if recipe not in others] if others else []
        titles[name] = title + (f" ({', '.join(differing)})" if differing else "")
    return titles


def _describe_data_sets(protocols: Mapping[str, Record]) -> str:
    extra = {column.task for column in columns() if column.extra is not None}
    # The further validation sets of shift are named by their columns.
    shown = [record for task, record in protocols.items() if task not in extra]
    return "; ".join(_unique(map(describe_data, shown or protocols.values())))


def _unique(texts: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(texts)]
