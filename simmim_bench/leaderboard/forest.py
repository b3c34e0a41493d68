"""Show the comparison of two rows: a table with a forest plot on the terminal, or a forest plot as SVG or PNG."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench.errors import UsageError
from simmim_bench.files import replacing
from simmim_bench.leaderboard.compare import IMAGES_ALONE, ColumnDifference, Comparison
from simmim_bench.leaderboard.text_tables import table_console
from simmim_bench.results.score_text import DEVIATES, DIRTY, MEANINGS, PARTIAL, format_p
from simmim_bench.untrusted.text import visible, visible_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

# Columns that a table on a narrow terminal lacks, the first ones first.
OPTIONAL = (("images",), ("p",), ("plot",), ("A", "B"))
WIDTH = 31  # characters of a textual forest plot
FORMATS = (".svg", ".png")
# Okabe and Ito's colours, which people with colour vision deficiency can distinguish (jfly.uni-koeln.de/color).
COLOURS = {"higher": "#0072b2", "lower": "#d55e00", "not distinguishable": "#666666"}


def format_interval(one: ColumnDifference) -> str:
    """Format a difference as `+1.5 (-9.4 to +12.5)`."""
    found = one.difference
    points, low, high = map(_signed, (found.points, found.low, found.high))
    return f"{points} ({low} to {high})"


def _signed(points: float) -> str:
    rounded = round(points, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def describe_units(one: ColumnDifference) -> str:
    """Return the numbers of units of A and B, such as `3 and 2 seeds`."""
    if one.difference.without_units:
        return IMAGES_ALONE
    counts, units = one.difference.units, [cell.unit for cell in one.cells]
    a, b = (f"{n} {unit}{'s' * (n != 1)}" for n, unit in zip(counts, units, strict=True))
    if a == b:
        return a
    return f"{counts[0]} and {counts[1]} {units[0]}s" if units[0] == units[1] else f"{a} and {b}"


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

    console = table_console()
    console.print(
        escape(visible_lines(f"A: {comparison.ours}\nB: {comparison.theirs}\n")), highlight=False
    )
    # A narrow terminal has the first table that fits, without the columns that matter least.
    tables = (
        _table(comparison, [*chain.from_iterable(OPTIONAL[:dropped])])
        for dropped in range(len(OPTIONAL) + 1)
    )
    unlimited = console.options.update(max_width=1000)
    for table in tables:
        if console.measure(table, options=unlimited).maximum <= console.width:
            break
    console.print(table)
    lines = ["", comparison.claim, *explain(comparison)]
    if comparison.missing:
        lines += ["", "Not compared:"]
        lines += [visible(f"  {one.title}: {one.reason}") for one in comparison.missing]
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)


def _table(comparison: Comparison, without: Collection[str]) -> Table:
    """Build the table of the differences without some of the `OPTIONAL` columns."""
    from rich.markup import escape
    from rich.table import Table

    limits = limits_of(comparison)
    low, high = map(_signed, limits)
    right = {"justify": "right", "no_wrap": True}
    columns: dict[str, dict[str, Any]] = {
        "protocols": {},
        "column": {},
        "A": right,
        "B": right,
        "A - B (95 % interval)": right,
        "plot": {"no_wrap": True, "header": low + high.rjust(WIDTH - len(low))},
        "p": right,
        "p (Holm)": right,
        "over": {},
        "images": right,
        "A is": {},
    }
    left_out = set(without)
    if len({one.table for one in comparison.differences}) == 1:
        left_out.add("protocols")
    table = Table(box=None, pad_edge=False)
    for title, options in columns.items():
        if title not in left_out:
            table.add_column(**{"header": title, **options})
    for one in comparison.differences:
        found, verdict = one.difference, one.verdict
        colour = {"higher": "green", "lower": "red"}.get(verdict, "dim")
        texts = {
            "protocols": escape(visible(one.table)),
            "column": escape(visible(one.title)),
            "A": one.cells[0].lines[0],
            "B": one.cells[1].lines[0],
            "A - B (95 % interval)": format_interval(one),
            "plot": f"[{colour}]{draw_interval(one, limits)}[/]",
            "p": format_p(None if found.without_units else found.p_value),
            "p (Holm)": format_p(one.p_adjusted),
            "over": describe_units(one),
            "images": f"{found.images:,}",
            "A is": f"[{colour}]{verdict}[/]",
        }
        table.add_row(*(text for title, text in texts.items() if title not in left_out))
    return table


def explain(comparison: Comparison) -> list[str]:
    """Return sentences on the words and numbers of a comparison."""
    count = sum(one.p_adjusted is not None for one in comparison.differences)
    lines = ["Higher or lower: the 95 % interval of A - B excludes 0."]
    if count > 1:
        lines.append(
            f"p (Holm) is adjusted for the number of comparisons, {count}: without any true difference, one interval "
            "in twenty excludes 0."
        )
    used = {m for one in comparison.differences for cell in one.cells for m in cell.marks}
    remarks = {DEVIATES: "; both rows have the same.", PARTIAL: ".", DIRTY: "."}
    lines += [f"{m} {MEANINGS[m]}{remark}" for m, remark in remarks.items() if m in used]
    if any(one.is_pooled for one in comparison.differences):
        lines.append("A row with one seed takes its variance over seeds from rows with several.")
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
        with replacing(path, "--plot") as temporary:
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
