"""Show the comparison of two rows: a table with a forest plot on the terminal, or a forest plot as SVG or PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.errors import UsageError
from simmim_bench.files import replacing
from simmim_bench.leaderboard.compare import IMAGES_ALONE, ColumnDifference, Comparison
from simmim_bench.leaderboard.text_tables import table_console
from simmim_bench.untrusted.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 31  # characters of a textual forest plot
FORMATS = (".svg", ".png")
# Okabe and Ito's colours, which people with colour vision deficiency can distinguish (jfly.uni-koeln.de/color).
COLOURS = {"higher": "#0072b2", "lower": "#d55e00", "not distinguishable": "#666666"}


def format_interval(one: ColumnDifference) -> str:
    """Format a difference as `+1.5 (-9.4 to +12.5)`."""
    found = one.difference
    return f"{found.points:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def format_p(value: float | None) -> str:
    """Format a p-value with three decimals, small ones as `<0.001`."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def describe_units(one: ColumnDifference) -> str:
    """Return the numbers of units of A and B, such as `3 and 2 seeds`."""
    a, b = one.difference.units
    return (
        f"{a} {one.difference.unit}{'s' * (a != 1)}"
        if a == b
        else f"{a} and {b} {one.difference.unit}s"
    )


def draw_interval(one: ColumnDifference, limits: tuple[float, float], width: int = WIDTH) -> str:
    """Draw an interval as text, with `│` at 0 and `●` or, if the interval includes 0, `○` at the difference.

    Args:
        limits: percentage points at both ends of the text; 0 is between them.
    """
    low, high = limits

    def place(points: float) -> int:
        return round((points - low) / (high - low) * (width - 1))

    found = one.difference
    first, last = place(found.low), place(found.high)
    text = ["─" if first <= i <= last else " " for i in range(width)]
    text[place(0.0)] = "┼" if first <= place(0.0) <= last else "│"
    text[place(found.points)] = "○" if found.includes_zero else "●"
    return "".join(text)


def limits_of(comparison: Comparison) -> tuple[float, float]:
    """Return limits in percentage points that contain 0 and all intervals."""
    low = min(0.0, *(one.difference.low for one in comparison.differences))
    high = max(0.0, *(one.difference.high for one in comparison.differences))
    return (low, high) if high > low else (-1.0, 1.0)


def print_comparison(comparison: Comparison) -> None:
    """Print a table of the differences on stdout, and what could not be compared."""
    from rich.markup import escape
    from rich.table import Table

    console = table_console()
    limits = limits_of(comparison)
    several = len({one.table for one in comparison.differences}) > 1
    console.print(
        f"A: {escape(visible(comparison.ours))}\nB: {escape(visible(comparison.theirs))}\n"
    )
    table = Table(box=None, pad_edge=False)
    if several:
        table.add_column("protocols")
    table.add_column("column")
    for title in ("A", "B", "A - B (95 % interval)"):
        table.add_column(title, justify="right", no_wrap=True)
    low, high = (f"{limit:+.1f}" if limit else "0" for limit in limits)
    table.add_column(low + high.rjust(WIDTH - len(low)), no_wrap=True)
    for title in ("p", "p (Holm)"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("over", "images", "A is"):
        table.add_column(title, justify="right" if title == "images" else "left")
    for one in comparison.differences:
        found, verdict = one.difference, one.verdict
        colour = {"higher": "green", "lower": "red"}.get(verdict, "dim")
        alone = found.without_units
        table.add_row(
            *([escape(visible(one.table))] if several else []),
            escape(visible(one.title)),
            *(cell.lines[0] for cell in one.cells),
            format_interval(one),
            f"[{colour}]{draw_interval(one, limits)}[/]",
            "–" if alone else format_p(found.p_value),
            format_p(one.p_adjusted),
            IMAGES_ALONE if alone else describe_units(one),
            f"{found.images:,}",
            f"[{colour}]{verdict}[/]",
        )
    console.print(table)
    console.print(f"\n{comparison.claim}", soft_wrap=True)
    for line in explain(comparison):
        console.print(line, soft_wrap=True)
    if comparison.missing:
        console.print("\nNot compared:")
    for missing in comparison.missing:
        console.print(escape(visible(f"  {missing.title}: {missing.reason}")), soft_wrap=True)


def explain(comparison: Comparison) -> list[str]:
    """Return sentences on the words and numbers of a comparison."""
    count = sum(one.p_adjusted is not None for one in comparison.differences)
    lines = ["Higher or lower: the 95 % interval of A - B excludes 0."]
    if count > 1:
        lines.append(
            f"Of {count} comparisons, one in twenty excludes 0 by chance alone; p (Holm) is adjusted for their number."
        )
    cells = [cell for one in comparison.differences for cell in one.cells]
    if any(cell.deviates for cell in cells):
        lines.append("* Some settings differ from the named recipe; both rows have the same.")
    if any(cell.partial for cell in cells):
        lines.append("† Partial: not every image of the split was evaluated.")
    if any(cell.dirty for cell in cells):
        lines.append("‡ The code had uncommitted changes.")
    if any(one.difference.without_units for one in comparison.differences):
        lines.append(
            f"{IMAGES_ALONE.capitalize()}: another seed may reverse the difference. Run A and B with --seeds 3."
        )
    return lines


def check_plot_path(path: Path) -> None:
    """Raise UsageError for a file that a plot cannot be written as."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--plot {path} has an unknown format; use a name that ends in .svg or .png."
        )


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Write a forest plot of the differences, as SVG or PNG by the file's name."""
    import matplotlib
    from matplotlib.figure import Figure

    check_plot_path(path)
    style: Any = {
        **{"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "forest"},
        **{f"axes.spines.{side}": False for side in ("top", "left", "right")},
        "text.parse_math": False,  # of labels
    }
    with matplotlib.rc_context(style):
        figure = Figure(
            figsize=(7.5, 1.5 + 0.36 * len(comparison.differences)), layout="constrained"
        )
        _draw(figure.add_subplot(), comparison)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            kind = path.suffix.lower().removeprefix(".")
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(temporary, format=kind, dpi=200, metadata=metadata)


def _draw(axes: Axes, comparison: Comparison) -> None:
    several = len({one.table for one in comparison.differences}) > 1
    axes.axvline(0, color="#333333", linewidth=0.8)
    for y, one in enumerate(comparison.differences):
        found = one.difference
        colour = COLOURS.get(one.verdict, COLOURS["not distinguishable"])
        axes.plot(
            [found.low, found.high],
            [y, y],
            color=colour,
            linewidth=1.6,
            linestyle=":" if found.without_units else "-",
        )
        axes.plot(
            [found.points],
            [y],
            marker="o",
            color=colour,
            markerfacecolor="white" if found.includes_zero or found.without_units else colour,
        )
        note = f", {IMAGES_ALONE}" if found.without_units else ""
        axes.annotate(
            f"{format_interval(one)}{note}",
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            annotation_clip=False,
        )
    axes.set_yticks(
        range(len(comparison.differences)),
        [
            visible(f"{one.title} ({one.table})" if several else one.title)
            for one in comparison.differences
        ],
    )
    axes.tick_params(left=False)
    axes.set_ylim(len(comparison.differences) - 0.5, -0.5)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("A - B, percentage points, with 95 % interval")
    axes.set_title(
        f"A: {visible(comparison.ours)}\nB: {visible(comparison.theirs)}", loc="left", fontsize=9
    )
