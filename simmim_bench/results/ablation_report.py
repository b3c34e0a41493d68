"""Render an ablation as `ablation.json`, the table `ablation.md` and the figure `ablation.png`.

If masks differ, the figure plots the score against AvgDist, as the paper's figure 3 does (arXiv 2111.09886);
otherwise it plots the score of each cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simmim_bench.files import replacing, write_json, write_text
from simmim_bench.results.ablation import (
    NO_PRETRAINING,
    Ablation,
    CellResult,
    describe_left_out,
    to_json,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# SimMIM's best AvgDist, 10 to 20 of 192 pixels (section 4.1.1), as fractions of the image's side.
BEST_DISTANCES = (10 / 192, 20 / 192)
BLUE, GREY = "#1f5fa8", "#777777"


class FactColumn(NamedTuple):
    """A column of the table on the pretraining: its title, and the format of its values."""

    title: str
    format: Callable[[float], str]


FACT_COLUMNS: dict[str, FactColumn] = {
    "avg_dist": FactColumn("AvgDist, pixels", lambda value: f"{value:.2f}"),
    "masked_l1": FactColumn("L1 of masked pixels", lambda value: f"{value:.4f}"),
    "psnr": FactColumn("PSNR, dB", lambda value: f"{value:.2f}"),
    "ssim": FactColumn("SSIM", lambda value: f"{value:.3f}"),
    "effective_rank": FactColumn("effective rank", lambda value: f"{value:.1f}"),
    "params_m": FactColumn("parameters, M", lambda value: f"{value:.2f}"),
    "wall_time_s": FactColumn("pretraining, s", lambda value: f"{value:.0f}"),
}
MASK_FIELDS = {"masking", "mask_patch_size", "mask_ratio"}  # recipe fields that determine AvgDist


def write_ablation(ablation: Ablation, out: Path) -> None:
    """Write the results, their table and their figure."""
    write_json(out / "ablation.json", to_json(ablation))
    write_text(out / "ablation.md", to_markdown(ablation))
    (out / "ablation.png").unlink(missing_ok=True)
    if ablation.pretrained:
        _plot(ablation, out / "ablation.png")


def to_markdown(ablation: Ablation) -> str:
    """Render the table; the best score among the rows with all seeds is bold."""
    facts = [name for name in FACT_COLUMNS if _is_shown(name, ablation.pretrained)]
    compared = any(row.above for row in ablation.rows)
    published = any(row.published for row in ablation.rows)
    titles = [" × ".join(ablation.axes), *(FACT_COLUMNS[name].title for name in facts)]
    titles += [ablation.metric]
    titles += [f"difference to {ablation.own}, 95 % interval"] if compared else []
    titles += ["SimMIM, Swin-B on ImageNet"] if published else []
    complete = [row.mean for row in ablation.rows if len(row.scores) == ablation.seeds]
    best = max(complete, default=0.0)
    lines = [
        f"# {' × '.join(ablation.axes).capitalize()}",
        "",
        _protocol_line(ablation),
        "",
        "| " + " | ".join(titles) + " |",
        "| --- |" + " ---: |" * (len(titles) - 1),
    ]
    for row in ablation.rows:
        texts = [row.name, *(_format_fact(row, name) for name in facts)]
        texts += [_format_score(row, ablation.seeds, best)]
        texts += [_format_difference(row)] if compared else []
        texts += [_format_published(row)] if published else []
        lines.append("| " + " | ".join(texts) + " |")
    lines += ["", *_remarks(ablation, facts)]
    return "\n".join(lines).rstrip() + "\n"


def _protocol_line(ablation: Ablation) -> str:
    protocol = ablation.protocol
    return (
        f"{protocol['arch']}, pretrained by {protocol['pretraining']} on {protocol['images']}; "
        f"{protocol['task']} by {protocol['transfer']} on {protocol['scored']}; "
        f"{ablation.seeds} seed{'s' if ablation.seeds != 1 else ''}."
    )


def _format_fact(row: CellResult, name: str) -> str:
    value = row.mean_fact(name)
    return "–" if value is None else FACT_COLUMNS[name].format(value)


def _format_score(row: CellResult, seeds: int, best: float) -> str:
    """Format mean and deviation, with the number of seeds if it is smaller than other rows'."""
    score = f"{row.mean:.1f}" + (f" ± {row.std:.1f}" if len(row.scores) > 1 else "")
    if len(row.scores) != seeds:
        return f"{score} (of {len(row.scores)})"
    return f"**{score}**" if row.mean == best else score


def _format_difference(row: CellResult) -> str:
    if row.above is None:
        return ""
    points, low, high = row.above
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f})"


def _format_published(row: CellResult) -> str:
    return f"{row.published.value:.1f}" if row.published else "–"


def _remarks(ablation: Ablation, facts: Sequence[str]) -> list[str]:
    """Return the paragraphs below the table, each followed by an empty line."""
    remarks = []
    if "psnr" in facts:
        remarks.append(
            "L1 (of pixels in [0, 1]), PSNR and SSIM are computed on the masked pixels of held-out images; a target "
            "normalised by its patch or its surroundings is denormalised with their mean and deviation. The "
            "effective rank is that of the pooled features of the same images without masks."
        )
    if any(len(row.scores) != ablation.seeds for row in ablation.rows):
        remarks.append(
            "A row with fewer seeds shows their number in parentheses; its difference is over the common seeds."
        )
    sources = {row.published.source for row in ablation.rows if row.published}
    if sources:
        remarks.append(f"Published: {'; '.join(sorted(sources))}. Another score on other data.")
    if ablation.missing:
        remarks.append(f"Not run: {', '.join(ablation.missing)}.")
    remarks += describe_left_out(ablation.left_out)
    return [line for remark in remarks for line in (remark, "")]


def _is_shown(name: str, rows: Sequence[CellResult]) -> bool:
    """Return whether a column distinguishes the rows; AvgDist also varies slightly between seeds."""
    values = {row.mean_fact(name) for row in rows} - {None}
    if name == "avg_dist":
        return bool(values) and any(row.changes.keys() & MASK_FIELDS for row in rows)
    return len(values) > 1 if name == "params_m" else bool(values)


def _plot(ablation: Ablation, out: Path) -> None:
    """Plot the score against AvgDist if masks differ, otherwise the score of each cell."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        by_distance = _is_shown("avg_dist", ablation.pretrained)
        height = 4.2 if by_distance else 1.4 + 0.32 * len(ablation.pretrained)
        figure = Figure(figsize=(7.0, height), layout="constrained")
        axes = figure.add_subplot()
        (_plot_by_distance if by_distance else _plot_cells)(axes, ablation)
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


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
        axes.errorbar(distance, row.mean, row.std, fmt="o", color=BLUE, capsize=2, markersize=4)
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
            row.mean, position, xerr=row.std, fmt="o", color=BLUE, capsize=2, markersize=4
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for row in ablation.pretrained:
        if row.name == ablation.own:
            axes.axvline(row.mean, color=BLUE, lw=0.6, alpha=0.4)
    if ablation.baseline is not None:
        axes.axvline(ablation.baseline.mean, color=GREY, ls="--", lw=0.8, label=NO_PRETRAINING)
        axes.legend(frameon=False, fontsize=7, loc="lower right")
    axes.set_xlabel(f"{ablation.metric}, %")
