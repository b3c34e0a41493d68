"""Plot the figures of a study's report: a panel for every column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.cli.studies.curves import LABELS, Panel
from simmim_bench.files import replacing
from simmim_bench.untrusted.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 3  # panels in a row of a figure
# Okabe and Ito's colours, which people with colour vision deficiency can distinguish (jfly.uni-koeln.de/color).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX*"
GREY = "#777777"
LOGARITHMIC = 8  # ratio of the largest and smallest place from which on the axis is logarithmic


def plot_panels(panels: Sequence[Panel], axis: str, out: Path) -> None:
    """Write the figure of an axis as PNG, with error bars of one standard error."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # of names
    }
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    down = -(-len(panels) // ACROSS)
    with matplotlib.rc_context(style):
        size = (3.2 * min(len(panels), ACROSS), 2.6 * down + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(down, min(len(panels), ACROSS), number + 1)
            _draw(axes, panel, axis, names)
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            drawn, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, drawn, strict=True))
        figure.legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            fontsize=7,
            loc="outside lower left",
            ncols=2 * min(len(panels), ACROSS),
        )
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def _draw(axes: Axes, panel: Panel, axis: str, names: Sequence[str]) -> None:
    places = [point.x for points in panel.curves.values() for point in points]
    for name, points in panel.curves.items():
        number = names.index(name)
        axes.errorbar(
            [point.x for point in points],
            [point.score for point in points],
            [point.error for point in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            ls="--" if name == "random" else "-",
            lw=1.2,
            ms=4,
            capsize=2,
            label=visible(name),
        )
    for name, level in panel.levels.items():
        axes.axhline(level, color=GREY, ls="--", lw=0.8, label=visible(name))
    if max(places) >= LOGARITHMIC * min(places) > 0:
        _scale_logarithmically(axes, max(places) / min(places))
    if axis != "cost":
        axes.set_xticks(sorted({*places}), [f"{place:g}" for place in sorted({*places})])
    axes.set_xlabel(LABELS[axis])
    axes.set_ylabel(f"{visible(panel.title)}, %")


def _scale_logarithmically(axes: Axes, ratio: float) -> None:
    """Use a logarithmic scale for the places, with plain numbers at its ticks."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 500 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
