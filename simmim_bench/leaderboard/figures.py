"""The page's figures: score against cost, as inline SVG."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

COSTS = {"device_hours": "device-hours", "params_m": "parameters, millions"}


KINDS = 6  # colours and markers before they repeat; leaderboard.css has as many --group-N


# Matplotlib knows no CSS variables: it draws in these colours, which are then replaced.
_COLOURS = {
    "#010101": "var(--ink)",
    "#010102": "var(--line)",
    "#010103": "var(--muted)",
    **{f"#0102{k:02x}": f"var(--group-{k})" for k in range(KINDS)},
}


class Point(NamedTuple):
    """One row in a plot: its cost, its score in percent, and its number where it is on a front."""

    row: Mapping[str, Any]
    cost: float
    score: float
    number: int | None = None


class Series(NamedTuple):
    """Points that share a marker; `front` holds the numbered ones, cheapest first."""

    name: str
    kind: str
    points: list[Point]
    front: list[Point]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[int]:
    """Give the indices of the (cost, score) points than which none is cheaper and as good, or as cheap
    and better; cheapest first."""
    front: list[int] = []
    last = (math.nan, -math.inf)
    for cost, minus_score, index in sorted((c, -s, i) for i, (c, s) in enumerate(points)):
        if -minus_score > last[1] or (cost, -minus_score) == last:
            front.append(index)
            last = (cost, -minus_score)
    return front


def _series(board: Mapping[str, Any], column: int, cost: str) -> list[Series]:
    """Collect the points of one plot. A front is within a group: other protocols are not compared."""
    kinds = {group["name"]: k % KINDS for k, group in enumerate(board["groups"])}
    by_name: dict[str | None, list[Point]] = {name: [] for name in (*kinds, None, "reported")}
    for row in board["rows"]:
        cell, price = row["cells"][column], row["cost"][cost]
        reported = row["status"] == "reported"
        if cell is None or not price or price <= 0 or (reported and cost == "device_hours"):
            continue
        point = Point(row, price, cell["mean"])
        by_name["reported" if reported else row["group"]].append(point)
    numbers = count(1)
    found = []
    for name, points in by_name.items():
        if name in kinds:
            whole = [p for p in points if not p.row["cells"][column]["partial"]]
            front = [
                whole[i]._replace(number=next(numbers))
                for i in pareto_front((p.cost, p.score) for p in whole)
            ]
            found.append(Series(f"group {name}", f"group-{kinds[name]}", points, front))
        else:
            label = "reported" if name else "not ranked"
            found.append(Series(label, label.replace(" ", "-"), points, []))
    return [series for series in found if series.points]


def _plots(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw score against cost for every column and cost that some row has both of."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, line = "#010101", "#010102"
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": 11,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": line,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
    }
    plots = []
    for cost, label in COSTS.items():
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(5.2, 3.5), facecolor="none")
            axes = figure.add_axes((0.14, 0.165, 0.84, 0.8), facecolor="none", xscale="log")
            axes.set_xlabel(label)
            axes.set_ylabel("score, %")
        for index, column in enumerate(board["columns"]):
            series = _series(board, index, cost)
            if not series:
                continue
            # Ids are hashed with the salt, and those of two plots on a page must differ.
            with matplotlib.rc_context({**style, "svg.hashsalt": f"{cost}-{index}"}):
                svg = _draw(figure, axes, series)
            plots.append(
                {"column": column, "index": index, "cost": cost, "series": series, "svg": svg}
            )
    return sorted(plots, key=lambda plot: plot["index"])


def _draw(figure: Figure, axes: Axes, series: Sequence[Series]) -> Markup:
    """Draw one plot into axes that are used again: making axes anew is most of the time."""
    from matplotlib.ticker import LogLocator, NullLocator

    for artist in (*axes.collections, *axes.lines, *axes.texts):
        artist.remove()
    points = [point for one in series for point in one.points]
    costs, scores = [p.cost for p in points], [p.score for p in points]
    ratio = max(max(costs) / min(costs), 1.5)
    axes.set_xlim(min(costs) / ratio**0.08, max(costs) * ratio**0.08)
    margin = max(max(scores) - min(scores), 1) * 0.1
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    subs = (1.0,) if ratio > 500 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for k, one in enumerate(series):
        colour, marker = "#010103", "o" if one.kind == "reported" else "X"
        if one.kind.startswith("group-"):
            colour = f"#0102{int(one.kind[6:]):02x}"
            marker = "osD^vP"[int(one.kind[6:])]
        axes.scatter(
            [p.cost for p in one.points],
            [p.score for p in one.points],
            s=22 if one.kind == "reported" else 42,
            marker=marker,
            facecolors="none" if one.kind == "reported" else colour,
            edgecolors=colour,
            linewidths=1,
            clip_on=False,
            gid=f"points-{k}",
        )
        if one.front:
            line = [p.cost for p in one.front], [p.score for p in one.front]
            axes.step(*line, where="post", color=colour, linewidth=1.2, gid=f"front-{k}")
        # Two groups often have points at one cost, and with them numbers in one place.
        beside = (-5, 6) if k % 2 == 0 else (6, -13)
        for point in one.front:
            axes.annotate(
                str(point.number),
                (point.cost, point.score),
                beside,
                textcoords="offset points",
                ha="center",
                fontsize=10,
                gid=f"number-{point.number}",
            )
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return _inlined(file.getvalue(), series)


def _inlined(svg: str, series: Sequence[Series]) -> Markup:
    """Make Matplotlib's file a part of the page: points link to their rows, colours follow the page.

    The board's texts enter here, through an XML writer, and never pass Matplotlib's math syntax.
    """
    from markupsafe import Markup

    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style element would hold for the whole page.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = set(re.findall(r"#(\w+)", svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            if "}" in name:
                element.set(name.rpartition("}")[2], element.attrib.pop(name))
    groups = {gid: g for g in root.iter("g") if (gid := g.get("id"))}
    for k, one in enumerate(series):
        holder = groups[f"points-{k}"]
        marks = [
            (p, m) for p in holder.iter() if p.tag != "defs" for m in p if m.tag in ("use", "path")
        ]
        for point, (parent, mark) in zip(one.points, marks, strict=True):
            link = ElementTree.Element("a", {"href": f"#{point.row['id']}", "tabindex": "-1"})
            link.set("data-row", point.row["id"])
            title = ElementTree.SubElement(link, "title")
            title.text = f"{point.row['label']}: {point.score:.1f} at {number(point.cost)}"
            parent[list(parent).index(mark)] = link
            link.append(mark)
        for point in one.front:
            groups[f"number-{point.number}"].set("data-row", point.row["id"])
        if one.front:
            groups[f"front-{k}"].set("data-front", json.dumps([p.row["id"] for p in one.front]))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"aria-hidden": "true", "focusable": "false"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def number(value: float | None) -> str:
    """Write a quantity with three digits, or a dash where it is not known."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
