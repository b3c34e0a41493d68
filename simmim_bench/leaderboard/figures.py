"""Plot score against cost for the HTML page, as inline SVG with one link per point.

Matplotlib draws the plots. Afterwards the SVG is adapted to the page: points link to their rows, colours become
CSS variables, and the board's texts are inserted by an XML writer.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from simmim_bench.leaderboard.figure_points import (
    COSTS,
    GROUP_STYLES,
    Point,
    Series,
    collect_series,
)
from simmim_bench.untrusted.text import visible

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_POINTS = 3  # of a group, or of the published rows; a plot of fewer shows no trade-off
MARKERS = "osD^vP"  # Matplotlib's marker of every group style

# Matplotlib cannot write CSS variables: it draws in the colours on the left, which are replaced afterwards.
INK, LINE, MUTED = "#010101", "#010102", "#010103"
GROUP_COLOURS = [f"#0102{style:02x}" for style in range(GROUP_STYLES)]
CSS_COLOURS = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    MUTED: "var(--muted)",
    **{colour: f"var(--group-{style})" for style, colour in enumerate(GROUP_COLOURS)},
}
PLOT_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def plot_scores(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Plot score against cost, for every pair of a column and a cost that enough rows of one kind have both values of.

    Args:
        board: the page's data; see `page_data.py`.

    Returns:
        For every plot its `column`, the column's `index`, the key `cost` of `COSTS`, its `series`, its
        `svg`, and its `views`: "measured", "published" or both, whose rows are enough for a plot.
    """
    import matplotlib
    from matplotlib.figure import Figure

    plots = []
    for cost, label in COSTS.items():
        with matplotlib.rc_context(PLOT_STYLE):
            figure = Figure(figsize=(5.2, 3.5), facecolor="none")
            axes = figure.add_axes((0.14, 0.165, 0.84, 0.8), facecolor="none", xscale="log")
            axes.set_xlabel(label)
            axes.set_ylabel("score, %")
        for index, column in enumerate(board["columns"]):
            series = collect_series(board, index, cost)
            enough = [one.style for one in series if len(one.points) >= MIN_POINTS]
            if not enough:
                continue
            # Matplotlib hashes ids with the salt, and the ids of two plots on one page must differ.
            with matplotlib.rc_context({**PLOT_STYLE, "svg.hashsalt": f"{cost}-{index}"}):
                svg = _draw(figure, axes, series)
            plots.append(
                {
                    "column": column,
                    "index": index,
                    "cost": cost,
                    "series": series,
                    "svg": svg,
                    "views": " ".join(
                        sorted({"published" if s == "reported" else "measured" for s in enough})
                    ),
                }
            )
    return sorted(plots, key=lambda plot: plot["index"])


def _draw(figure: Figure, axes: Axes, all_series: Sequence[Series]) -> Markup:
    """Draw one plot into existing axes, because creating axes takes most of the time."""
    for artist in (*axes.collections, *axes.lines, *axes.texts):
        artist.remove()
    _set_limits(axes, [point for series in all_series for point in series.points])
    for k, series in enumerate(all_series):
        _draw_series(axes, k, series)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return _adapt_to_page(file.getvalue(), all_series)


def _set_limits(axes: Axes, points: Sequence[Point]) -> None:
    """Fit the axes' limits and the ticks of the logarithmic cost to the points."""
    from matplotlib.ticker import LogLocator, NullLocator

    costs = [p.cost for p in points]
    low, high = min(p.score - p.error for p in points), max(p.score + p.error for p in points)
    ratio = max(max(costs) / min(costs), 1.5)
    axes.set_xlim(min(costs) / ratio**0.08, max(costs) * ratio**0.08)
    margin = max(high - low, 1) * 0.1
    axes.set_ylim(low - margin, high + margin)
    subs = (1.0,) if ratio > 500 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_series(axes: Axes, k: int, series: Series) -> None:
    """Draw the points, error bars and Pareto front of the k-th series, with ids for `_adapt_to_page`."""
    reported = series.style == "reported"
    colour, marker = MUTED, "o" if reported else "X"
    if series.style.startswith("group-"):
        style = int(series.style.removeprefix("group-"))
        colour, marker = GROUP_COLOURS[style], MARKERS[style]
    axes.scatter(
        [p.cost for p in series.points],
        [p.score for p in series.points],
        s=22 if reported else 42,
        marker=marker,
        facecolors="none" if reported else colour,
        edgecolors=colour,
        linewidths=1,
        clip_on=False,
        gid=f"points-{k}",
    )
    if barred := [p for p in series.points if p.error]:
        axes.vlines(
            [p.cost for p in barred],
            [p.score - p.error for p in barred],
            [p.score + p.error for p in barred],
            colors=colour,
            linewidth=1.2,
            alpha=0.55,
            clip_on=False,
            gid=f"bars-{k}",
        )
    if series.front:
        line = [p.cost for p in series.front], [p.score for p in series.front]
        axes.step(*line, where="post", color=colour, linewidth=1.2, gid=f"front-{k}")
    # Points of two groups often have the same cost; alternate offsets keep their numbers apart.
    offset = (-5, 6) if k % 2 == 0 else (6, -13)
    for point in series.front:
        axes.annotate(
            str(point.number),
            (point.cost, point.score),
            offset,
            textcoords="offset points",
            ha="center",
            fontsize=10,
            gid=f"number-{point.number}",
        )


def _adapt_to_page(svg: str, all_series: Sequence[Series]) -> Markup:
    """Convert Matplotlib's SVG file to an element of the page, with links and the page's colours.

    The board's texts are inserted here, through an XML writer; Matplotlib would parse `$` in them as math.
    """
    from markupsafe import Markup

    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    root = ElementTree.fromstring(svg)
    _remove_file_parts(root)
    _link_points(root, all_series)
    referenced = set(re.findall(r"#(\w+)", svg))
    for element in root.iter():
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"aria-hidden": "true", "focusable": "false"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _remove_file_parts(root: ElementTree.Element) -> None:
    """Remove metadata, style elements and XML namespaces."""
    for parent in list(root.iter()):
        for child in list(parent):
            # Inside a page, a style element of an SVG applies to the whole page.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            if "}" in name:
                element.set(name.rpartition("}")[2], element.attrib.pop(name))


def _link_points(root: ElementTree.Element, all_series: Sequence[Series]) -> None:
    """Link every point to its row, and store the row ids that the page's script filters plots by."""
    groups = {gid: g for g in root.iter("g") if (gid := g.get("id"))}
    for k, series in enumerate(all_series):
        marks = _marks(groups[f"points-{k}"])
        for point, (parent, mark) in zip(series.points, marks, strict=True):
            link = ElementTree.Element("a", {"href": f"#{point.row['id']}", "tabindex": "-1"})
            link.set("data-row", point.row["id"])
            title = ElementTree.SubElement(link, "title")
            label = visible(point.row["label"])
            title.text = f"{label}: {point.score:.1f} at {format_number(point.cost)}"
            parent[list(parent).index(mark)] = link
            link.append(mark)
        if barred := [point for point in series.points if point.error]:
            for point, (_, mark) in zip(barred, _marks(groups[f"bars-{k}"]), strict=True):
                mark.set("data-row", point.row["id"])
        for point in series.front:
            groups[f"number-{point.number}"].set("data-row", point.row["id"])
        if series.front:
            rows = [point.row["id"] for point in series.front]
            groups[f"front-{k}"].set("data-front", json.dumps(rows))


def _marks(
    holder: ElementTree.Element,
) -> list[tuple[ElementTree.Element, ElementTree.Element]]:
    """Return the marks of a collection, each with its parent, in the order of the points."""
    return [(p, m) for p in holder.iter() if p.tag != "defs" for m in p if m.tag in ("use", "path")]


def format_number(value: float | None) -> str:
    """Format a quantity with three significant digits, or a dash if it is unknown."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
