"""Render an ablation as `ablation.json`, the table `ablation.md` and the figure `ablation.png`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from simmim_bench.files import write_json, write_text
from simmim_bench.results.ablation import (
    FEW_SEEDS,
    Ablation,
    CellResult,
    describe_left_out,
    describe_not_compared,
    to_json,
)
from simmim_bench.results.ablation_figure import plot_ablation
from simmim_bench.results.score_text import (
    DIRTY,
    MEANINGS,
    PARTIAL,
    describe_uncertainty,
    format_p,
)


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
MARKS = {"partial": PARTIAL, "changed sources": DIRTY}  # the leaderboard's


def write_ablation(ablation: Ablation, out: Path) -> None:
    """Write the results, their table and their figure."""
    write_json(out / "ablation.json", to_json(ablation))
    write_text(out / "ablation.md", to_markdown(ablation))
    (out / "ablation.png").unlink(missing_ok=True)
    if ablation.pretrained:
        by_distance = _is_shown("avg_dist", ablation.pretrained)
        plot_ablation(ablation, out / "ablation.png", by_distance=by_distance)


def to_markdown(ablation: Ablation) -> str:
    """Render the table; a score that cannot be distinguished from the best one is bold."""
    facts = [name for name in FACT_COLUMNS if _is_shown(name, ablation.pretrained)]
    compared = any(row.above for row in ablation.rows)
    tested = any(row.adjusted_p_value is not None for row in ablation.rows)
    counted = len({len(row.scores) for row in ablation.rows}) > 1
    published = any(row.published for row in ablation.rows)
    titles = [" × ".join(ablation.axes), *(FACT_COLUMNS[name].title for name in facts)]
    titles += ["seeds"] if counted else []
    titles += [ablation.metric]
    titles += [f"difference to {ablation.own}, 95 % interval"] if compared else []
    titles += ["p (Holm)"] if tested else []
    titles += ["SimMIM, Swin-B on ImageNet"] if published else []
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
        texts += [str(len(row.scores))] if counted else []
        texts += [_format_score(row)]
        texts += [format_difference(row)] if compared else []
        texts += [format_p_value(row)] if tested else []
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


def _format_score(row: CellResult) -> str:
    """Format the mean, its standard deviation over seeds and its standard error from the images."""
    mean = f"{row.mean:.1f}" + "".join(MARKS[caveat] for caveat in row.caveats)
    known = describe_uncertainty(row.std if len(row.scores) > 1 else None, row.image_error)
    score = f"**{mean}**" if row.best else mean
    return ", ".join([score, *(f"{name} {text}" for name, text in known.items())])


def format_difference(row: CellResult) -> str:
    """Format the difference to the recipe's own cell with its interval."""
    if row.above is None:
        return ""
    points, low, high = row.above
    of = "images alone: " if row.images_alone else ""
    return f"{points:+.1f} ({of}{low:+.1f} to {high:+.1f})"


def format_p_value(row: CellResult) -> str:
    """Format the adjusted p-value; a dash if the spread over seeds is unknown."""
    return "" if row.above is None else format_p(row.adjusted_p_value)


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
    remarks += _remarks_on_intervals(ablation)
    sources = {row.published.source for row in ablation.rows if row.published}
    if sources:
        remarks.append(f"Published: {'; '.join(sorted(sources))}. Another score on other data.")
    if ablation.missing:
        remarks.append(f"Not run: {', '.join(ablation.missing)}.")
    remarks += describe_left_out(ablation.left_out)
    return [line for remark in remarks for line in (remark, "")]


def _remarks_on_intervals(ablation: Ablation) -> list[str]:
    """Return what the uncertainties, intervals, p-values and marks mean."""
    rows, remarks = ablation.rows, []
    if any(row.image_error is not None for row in rows):
        remarks.append(
            "Seeds ±: standard deviation over seeds, each of which pretrains and transfers anew. Images ±: standard "
            "error from the finite number of scored images."
        )
    if any(row.best for row in rows):
        remarks.append(
            "Bold: cannot be distinguished from the best score; the 95 % interval of their difference includes 0. A "
            "single seed is never bold."
        )
    if ablation.spread is not None and any(len(row.scores) <= FEW_SEEDS for row in rows):
        deviation, freedom, cells = ablation.spread
        remarks.append(
            "One or two seeds of a cell cannot show the spread between pretrainings. Their intervals take "
            f"± {deviation:.1f}, pooled over {cells} cell{'s' if cells > 1 else ''} with several seeds, on any axis of "
            f"the same study ({freedom:.0f} degree{'s' if freedom > 1 else ''} of freedom)."
        )
    if any(row.images_alone for row in rows):
        remarks.append(
            "No pretrained cell has two seeds, so the spread between pretrainings is unknown. An interval of the "
            "images alone compares these checkpoints; it does not show an effect of the choice. Nothing is bold."
        )
    tested = sum(row.adjusted_p_value is not None for row in rows)
    if tested:
        remarks.append(
            f"The p-values are adjusted by Holm's method for the {tested} differences of the table; the intervals are "
            "not adjusted."
        )
    caveats = dict.fromkeys(caveat for row in rows for caveat in row.caveats)
    remarks += [f"{MARKS[caveat]} {MEANINGS[MARKS[caveat]]}. Never bold." for caveat in caveats]
    return remarks + describe_not_compared(ablation.not_compared)


def _is_shown(name: str, rows: Sequence[CellResult]) -> bool:
    """Return whether a column distinguishes the rows; AvgDist also varies slightly between seeds."""
    values = {row.mean_fact(name) for row in rows} - {None}
    if name == "avg_dist":
        return bool(values) and any(row.changes.keys() & MASK_FIELDS for row in rows)
    return len(values) > 1 if name == "params_m" else bool(values)
