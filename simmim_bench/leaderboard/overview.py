"""Lay out the first figure of the HTML page: a dot and an interval for each score, one panel per task.

The input is the page's data; see `page_data.py`. Every group of equal protocols has a view of its own, and so have the
published scores. A row is in the colour of its method family.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simmim_bench.leaderboard.figure_points import GROUP_STYLES

HASH = re.compile(r" \[[0-9a-f]{8}\]$")  # of a checkpoint, after a label that several share
MAX_LINES = 8  # of a panel; the table has all rows
MAX_VIEWS = 12  # groups that have a view
NORMAL_95 = 1.96  # standard errors on each side of an interval
RANDOM = "random weights"
OTHER = "other"  # of the families without a colour
STEPS = (0.5, 1, 2, 5, 10, 20, 50)  # percentage points between ticks
MAX_TICKS = 5


def family_of(method: object) -> str:
    """Return the family of a pretraining method: its name without what is in parentheses or after a comma."""
    name = str(method or "unknown").split(" (")[0].split(",")[0].strip()
    return RANDOM if name.casefold() == "random" else name


def legend_names(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the name by which the legend lists each family, by its name in small letters, in the order of the legend.

    Families of measured rows come first, then those with the most rows. Families beyond the number of colours are
    one, `OTHER`.
    """
    spelling, counts = spellings(rows), Counter[str]()
    for row in rows:
        counts[row["family"].casefold()] += 1 if row["status"] == "reported" else len(rows) + 1
    ranked = [key for key, _ in counts.most_common() if key != RANDOM]
    coloured = set(ranked[:GROUP_STYLES])
    names = {key: spelling[key] if key in coloured else OTHER for key in ranked}
    return names | ({RANDOM: RANDOM} if RANDOM in counts else {})


def spellings(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how each family is written, by its name in small letters: as in a publication, where one has it."""
    found: dict[str, str] = {}
    for row in rows:
        if row["family"].casefold() not in found or not row["family"].islower():
            found[row["family"].casefold()] = row["family"]
    return found


def build_overview(board: Mapping[str, Any]) -> dict[str, Any]:
    """Lay out the views.

    Returns:
        `families`: style by name, the CSS class `family-N`, `family-random` or `family-other`; `published`: the
        families with published rows; `styles` and `names`: the style and the family of every row by its id; `views`:
        of the groups, and one of the published scores. A view has a `name` (of its group; "" for the published ones),
        a `title`, its `rows`, and `panels`; see `_panel`.
    """
    names = legend_names(board["rows"])
    spelling = spellings(board["rows"])
    shown = list(dict.fromkeys(names.values()))
    coloured = [name for name in shown if name not in (OTHER, RANDOM)]
    families = {
        name: f"family-{coloured.index(name)}" if name in coloured else f"family-{name.split()[0]}"
        for name in shown
    }
    styles = {row["id"]: families[names[row["family"].casefold()]] for row in board["rows"]}
    written = {row["id"]: spelling[row["family"].casefold()] for row in board["rows"]}
    published = {
        names[row["family"].casefold()] for row in board["rows"] if row["status"] == "reported"
    }
    by_group: dict[str | None, list[Any]] = {}
    for row in board["rows"]:
        by_group.setdefault(row["group"], []).append(row)
    views = [
        {"name": group["name"], "title": group["title"], **_view(board, by_group[group["name"]])}
        for group in board["groups"][:MAX_VIEWS]
        if group["name"] in by_group
    ]
    if None in by_group:
        views.append({"name": "", "title": "", **_view(board, by_group[None])})
    return {
        "families": families,
        "published": published,
        "styles": styles,
        "names": written,
        "views": views,
    }


def _view(board: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    labels = short_labels(row["label"] for row in rows)
    found = ((column, _panel(rows, labels, i)) for i, column in enumerate(board["columns"]))
    panels = [{"column": column, **panel} for column, panel in found if panel is not None]
    listed = {line["row"]["id"] for panel in panels for line in panel["lines"]}
    return {"rows": [row for row in rows if row["id"] in listed][:MAX_LINES], "panels": panels}


def short_labels(labels: Iterable[str]) -> dict[str, str]:
    """Return labels without the words with which all of them begin, and without hashes where they differ without."""
    found = list(dict.fromkeys(labels))
    parts = [label.split(", ") for label in found]
    shared = 0
    while len(found) > 1 and all(
        len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts
    ):
        shared += 1
    short = [", ".join(p[shared:]) for p in parts]
    plain = [HASH.sub("", label) for label in short]
    return {
        label: bare if plain.count(bare) == 1 else full
        for label, full, bare in zip(found, short, plain, strict=True)
    }


def _panel(
    rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], index: int
) -> dict[str, Any] | None:
    """Lay out the scores of a column, the highest first, incomplete ones last.

    Returns:
        `ticks` (place and label), the number `hidden` of rows without a line, and `lines`: the `row`, its `cell`, its
        `label`, and in percent of the width the places `x` of the score, `low` and `high` of its interval (None if
        unknown) and `published` of the published score of the same recipe and checkpoint (None without one). None
        without a score.
    """
    scored = [(row, row["cells"][index]) for row in rows if row["cells"][index]]
    scored.sort(key=lambda one: (one[1]["partial"] or one[1]["dirty"], -one[1]["mean"]))
    if not scored:
        return None
    lines = scored[:MAX_LINES]
    low, high, step = _axis(value for _, cell in lines for value in _values(cell))

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return {
        "hidden": len(scored) - len(lines),
        "ticks": [
            (place(low + k * step), f"{low + k * step:g}")
            for k in range(round((high - low) / step) + 1)
        ],
        "lines": [
            {
                "row": row,
                "cell": cell,
                "label": labels[row["label"]],
                "x": place(cell["mean"]),
                "low": place(interval[0]) if (interval := _interval(cell)) else None,
                "high": place(interval[1]) if interval else None,
                "published": place(cell["published"]["value"]) if cell["published"] else None,
            }
            for row, cell in lines
        ],
    }


def _interval(cell: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval of a score, in [0, 100]; None if its standard error is unknown."""
    if cell["standard_error"] is None:
        return None
    margin = NORMAL_95 * cell["standard_error"]
    return max(0.0, cell["mean"] - margin), min(100.0, cell["mean"] + margin)


def _values(cell: Mapping[str, Any]) -> list[float]:
    published = [cell["published"]["value"]] if cell["published"] else []
    return [cell["mean"], *(_interval(cell) or ()), *published]


def _axis(values: Iterable[float]) -> tuple[float, float, float]:
    """Return the ends of an axis around some percentages and the distance of its ticks."""
    found = list(values)
    low, high = min(found), max(found)
    step = next(s for s in STEPS if (high - low) / s <= MAX_TICKS - 1 or s == STEPS[-1])
    first = max(0.0, math.floor(low / step) * step)
    last = math.ceil(high / step) * step
    return first, max(last, first + step), step
