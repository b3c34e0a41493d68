"""Plot an ablation: the score against AvgDist if masks differ, otherwise the score of each cell.

The former is the paper's figure 3 (arXiv 2111.09886).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.files import replacing
from simmim_bench.results.ablation import FEW_SEEDS, NO_PRETRAINING, Ablation, CellResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# SimMIM's best AvgDist, 10 to 20 of 192 pixels (section 4.1.1), as fractions of the image's side.
BEST_DISTANCES = (10 / 192, 20 / 192)
BLUE, GREY = "#1f5fa8", "#777777"


def plot_ablation(ablation: Ablation, out: Path, *, by_distance: bool) -> None:
    """Plot the scores of all cells with their standard errors.

    Args:
        by_distance: whether to plot against AvgDist.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        height = 4.4 if by_distance else 1.6 + 0.32 * len(ablation.pretrained)
        figure = Figure(figsize=(7.0, height), layout="constrained")
        axes = figure.add_subplot()
        (_plot_by_distance if by_distance else _plot_cells)(axes, ablation)
        axes.plot([], [], color=BLUE, marker="|", ms=6, label=describe_bars(ablation))
        figure.legend(frameon=False, fontsize=7, loc="outside upper left", ncols=2)
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def describe_bars(ablation: Ablation) -> str:
    """Return what the error bars are, for the legend."""
    few = any(len(row.scores) <= FEW_SEEDS for row in ablation.pretrained)
    if ablation.spread is None:
        return "± 1 standard error of the images alone; no cell has two seeds"
    pooled = f"; at most {FEW_SEEDS} seeds: spread pooled over cells" if few else ""
    return f"± 1 standard error, images and seeds{pooled}"


def _error(row: CellResult) -> float:
    """Return the length of an error bar; 0 if nothing is known."""
    return row.error or row.image_error or 0.0


def _plot_by_distance(axes: Axes, ablation: Ablation) -> None:
    low, high = (fraction * ablation.img_side for fraction in BEST_DISTANCES)
    axes.axvspan(low, high, color=BLUE, alpha=0.08, lw=0)
    axes.annotate(
        "SimMIM's best,\nscaled to the image",
        (low, 0.02),
        xycoords=("data", "axes fraction"),
        color=BLUE,
        fontsize=7,
    )
    for row in ablation.pretrained:
        distance = row.mean_fact("avg_dist")
        if distance is None:
            continue
        axes.errorbar(distance, row.mean, _error(row), fmt="o", color=BLUE, capsize=2, markersize=4)
        axes.annotate(
            row.name, (distance, row.mean), xytext=(4, 4), textcoords="offset points", fontsize=7
        )
    if ablation.baseline is not None:
        axes.axhline(ablation.baseline.mean, color=GREY, ls="--", lw=0.8)
        axes.annotate(
            NO_PRETRAINING,
            (1.0, ablation.baseline.mean),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=GREY,
            fontsize=7,
        )
    axes.margins(x=0.12)
    axes.set_xlabel("AvgDist: distance of masked pixels to the nearest visible pixel, in pixels")
    axes.set_ylabel(f"{ablation.metric}, %")


def _plot_cells(axes: Axes, ablation: Ablation) -> None:
    rows = ablation.pretrained[::-1]
    for position, row in enumerate(rows):
        axes.errorbar(
            row.mean, position, xerr=_error(row), fmt="o", color=BLUE, capsize=2, markersize=4
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for row in ablation.pretrained:
        if row.name == ablation.own:
            axes.axvline(row.mean, color=BLUE, lw=0.6, alpha=0.4)
    if ablation.baseline is not None:
        axes.axvline(ablation.baseline.mean, color=GREY, ls="--", lw=0.8, label=NO_PRETRAINING)
    axes.set_xlabel(f"{ablation.metric}, %")
