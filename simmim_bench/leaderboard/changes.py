"""Compare the leaderboard with an earlier one, as a comment on a pull request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_json
from simmim_bench.leaderboard.board import Board
from simmim_bench.leaderboard.tables import to_json
from simmim_bench.leaderboard.text_tables import MISSING, escape_markdown


def changes_to_markdown(before: Mapping[str, Any], board: Board, path: Path) -> str:
    """Return a Markdown table of the scores that were added, removed or changed.

    Args:
        before: the content of an earlier `leaderboard.json`.
        path: that file, for the error message.

    Raises:
        DataError: `before` is not the content of a `leaderboard.json`.
    """
    try:
        old, new = _scores(before), _scores(json.loads(to_json(board)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} is not a leaderboard.json ({type(error).__name__}: {error}); pass one that "
            "`simmim-bench leaderboard build` wrote."
        ) from error
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if not changed:
        return "The leaderboard has not changed.\n"
    lines = ["| checkpoint | score | recipe | before | now |", "| --- | --- | --- | ---: | ---: |"]
    for key in changed:
        label, _, score, recipe, _ = key
        was, now = (scores.get(key, MISSING) for scores in (old, new))
        lines.append(
            "| " + " | ".join([*map(escape_markdown, (label, score, recipe)), was, now]) + " |"
        )
    count = len({key[:2] for key in changed})
    rows = "1 row" if count == 1 else f"{count} rows"
    return f"The leaderboard has changed in {rows}.\n\n" + "\n".join(lines) + "\n"


def _scores(leaderboard: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """Return the text of every score by label, checkpoint hash, column, recipe and protocol id."""
    scores: dict[tuple[str, ...], str] = {}
    for row in leaderboard["rows"]:
        protocols = leaderboard["groups"][row["group"]]
        for one in _with_pretrainings(row):
            for column, score in one["scores"].items():
                if score is not None:
                    protocol = protocols[column.partition("/")[0]]
                    followed = (protocol["recipe"], protocol["id"])
                    key = (one["label"], one["checkpoint"], column, *followed)
                    scores[_check_text(key)] = _describe(score)
    for table in leaderboard.get("small_sets", []):
        recipe = sha256_json([table["recipe_sha256"], table["deviates"], table.get("classifier")])
        for row in table["rows"]:
            for one in _with_pretrainings(row):
                for name, score in one["scores"].items():
                    if score is not None:
                        column = f"{table['task']}/{table['metric']} on {name}"
                        key = (one["label"], one["checkpoint"], column, table["recipe"], recipe)
                        scores[_check_text(key)] = _describe(score)
    return scores


def _check_text(key: tuple[str, ...]) -> tuple[str, ...]:
    """Return a key, whose parts are read from a file; raise TypeError if one is not text."""
    if not all(isinstance(part, str) for part in key):
        raise TypeError("a name is not text")
    return key


def _with_pretrainings(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a row and those of its pretrainings, which the files of older versions lack."""
    return [row, *row.get("pretrainings", [])]


def _describe(score: Mapping[str, Any]) -> str:
    spread = "" if score["std"] is None else f" ± {score['std']:.2f}"
    units = "" if score.get("unit", "seed") == "seed" else " pretrainings"
    return f"{score['mean']:.2f}{spread} ({score['seeds']:d}{units})"
