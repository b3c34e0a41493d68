"""An ablation: the cells of a grid, what was measured of each, and the table and figure that say it.

In: a grid, the scores and checkpoints of its finished runs. Out: `ablation.json`, `ablation.md` and
`ablation.png`. The figure is the paper's (arXiv 2111.09886, figure 3) where masks differ: the score against
AvgDist.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simmim_bench.files import replacing, write_json, write_text
from simmim_bench.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_PRETRAINING = "no pretraining"
# Of 192 pixels, the AvgDist that SimMIM finds best (section 4.1.1), in shares of the image's side.
BEST_DISTANCES = (10 / 192, 20 / 192)
BLUE, GREY = "#1f5fa8", "#777777"


class Published(NamedTuple):
    """What was published for the same choices of another model on other data: percent, and where."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class AblationCell:
    """One choice of a grid.

    Attributes:
        recipe: of its pretraining.
        changes: what differs from the recipe that the ablation starts from.
    """

    name: str
    recipe: Recipe
    changes: dict[str, Any]
    published: Published | None = None


@dataclass(frozen=True)
class Grid:
    """The cells of some axes, the recipe's own first, and those that cannot be, with the reason."""

    axes: tuple[str, ...]
    cells: tuple[AblationCell, ...]
    left_out: dict[str, str]


class Score(NamedTuple):
    """One transfer's score in percent, with the record that it is from and its predictions' hash."""

    seed: int
    value: float
    record: str
    predictions_sha256: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a cell.

    Attributes:
        scores: of each seed that is done.
        facts: of the pretraining checkpoints, by name, a figure a seed; see `FACTS`.
        above: by how many points the score is above the recipe's own cell, with a 95 % interval: (points,
            low, high); None where it cannot be said.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    facts: dict[str, list[float]] = field(default_factory=dict)
    above: tuple[float, float, float] | None = None
    published: Published | None = None

    @property
    def mean(self) -> float:
        """The mean score of the seeds."""
        return statistics.fmean(score.value for score in self.scores)

    @property
    def deviation(self) -> float:
        """The seeds' sample standard deviation; 0 for a single one."""
        values = [score.value for score in self.scores]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def fact(self, name: str) -> float | None:
        """Give the mean of a fact; None where a checkpoint does not have it."""
        values = self.facts.get(name)
        return statistics.fmean(values) if values else None


class Fact(NamedTuple):
    """A column of the table about the pretraining: its title, and how its figure is written."""

    title: str
    write: Callable[[float], str]


FACTS: dict[str, Fact] = {
    "avg_dist": Fact("AvgDist, pixels", lambda value: f"{value:.2f}"),
    "masked_l1": Fact("L1 of hidden pixels", lambda value: f"{value:.4f}"),
    "psnr": Fact("PSNR, dB", lambda value: f"{value:.2f}"),
    "ssim": Fact("SSIM", lambda value: f"{value:.3f}"),
    "effective_rank": Fact("effective rank", lambda value: f"{value:.1f}"),
    "params_m": Fact("parameters, M", lambda value: f"{value:.2f}"),
    "wall_time_s": Fact("pretraining, s", lambda value: f"{value:.0f}"),
}
OF_MASKS = {"masking", "mask_patch_size", "mask_ratio"}  # what AvgDist follows from


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """An ablation's results.

    Attributes:
        protocol: arch, recipes, both stages' images, task, metric, in words.
        own: name of the recipe's own cell, which others are compared with.
        rows: cells with a score.
        missing: cells without one.
        img_side: pixels of the pretraining images' shorter side.
    """

    axes: tuple[str, ...]
    protocol: dict[str, Any]
    own: str
    rows: tuple[Measured, ...]
    missing: tuple[str, ...]
    left_out: dict[str, str]
    img_side: int

    @property
    def metric(self) -> str:
        """What the score is, in words."""
        return f"{self.protocol['task']} {self.protocol['metric']}"

    @property
    def seeds(self) -> int:
        """How many seeds the rows have that have most."""
        return max((len(row.scores) for row in self.rows), default=0)

    @property
    def baseline(self) -> Measured | None:
        """The row of random weights."""
        return next((row for row in self.rows if row.name == NO_PRETRAINING), None)

    @property
    def pretrained(self) -> tuple[Measured, ...]:
        """All other rows."""
        return tuple(row for row in self.rows if row.name != NO_PRETRAINING)


def write_ablation(ablation: Ablation, out: Path) -> None:
    """Write the results, their table and their figure."""
    write_json(out / "ablation.json", to_json(ablation))
    write_text(out / "ablation.md", to_markdown(ablation))
    (out / "ablation.png").unlink(missing_ok=True)
    if ablation.pretrained:
        _draw(ablation, out / "ablation.png")


def to_json(ablation: Ablation) -> dict[str, Any]:
    """Give the plain form."""
    plain = asdict(ablation)
    for row, measured in zip(plain["rows"], ablation.rows, strict=True):
        row["scores"] = [score._asdict() for score in measured.scores]
        row["published"] = measured.published and measured.published._asdict()
    return plain


def from_json(plain: Mapping[str, Any]) -> Ablation:
    """Read the plain form.

    Raises:
        KeyError, TypeError: it is not one.
    """
    rows = [
        Measured(
            **{
                **row,
                "scores": tuple(Score(**score) for score in row["scores"]),
                "above": row["above"] and tuple(row["above"]),
                "published": row["published"] and Published(**row["published"]),
            }
        )
        for row in plain["rows"]
    ]
    lists = {name: tuple(plain[name]) for name in ("axes", "missing")}
    return Ablation(**{**plain, **lists, "rows": tuple(rows)})


def to_markdown(ablation: Ablation) -> str:
    """Give the table; the best score of those with all seeds is in bold."""
    protocol = ablation.protocol
    facts = [name for name in FACTS if _is_shown(name, ablation.pretrained)]
    published = any(row.published for row in ablation.rows)
    compared = any(row.above for row in ablation.rows)
    titles = [" × ".join(ablation.axes), *(FACTS[name].title for name in facts), ablation.metric]
    titles += [f"above {ablation.own}, 95 %"] if compared else []
    titles += ["SimMIM's, of Swin-B on ImageNet"] if published else []
    whole = [row.mean for row in ablation.rows if len(row.scores) == ablation.seeds]
    best = max(whole, default=0.0)
    lines = [
        f"# {' × '.join(ablation.axes).capitalize()}",
        "",
        f"{protocol['arch']}, pretrained by {protocol['pretraining']} on {protocol['images']}; "
        f"{protocol['task']} by {protocol['transfer']} on {protocol['scored']}; "
        f"{ablation.seeds} seed{'s' if ablation.seeds != 1 else ''}.",
        "",
        "| " + " | ".join(titles) + " |",
        "| --- |" + " ---: |" * (len(titles) - 1),
    ]
    for row in ablation.rows:
        texts = [row.name]
        for name in facts:
            value = row.fact(name)
            texts.append("–" if value is None else FACTS[name].write(value))
        score = f"{row.mean:.1f}" + (f" ± {row.deviation:.1f}" if len(row.scores) > 1 else "")
        is_whole = len(row.scores) == ablation.seeds
        score += "" if is_whole else f" (of {len(row.scores)})"
        texts.append(f"**{score}**" if is_whole and row.mean == best else score)
        if compared:
            texts.append("" if row.above is None else _difference(row.above))
        if published:
            texts.append(f"{row.published.value:.1f}" if row.published else "–")
        lines.append("| " + " | ".join(texts) + " |")
    lines += ["", *_remarks(ablation, facts)]
    return "\n".join(lines).rstrip() + "\n"


def _difference(above: tuple[float, float, float]) -> str:
    points, low, high = above
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f})"


def _remarks(ablation: Ablation, facts: Sequence[str]) -> list[str]:
    remarks = []
    if "psnr" in facts:
        remarks.append(
            "L1 (of pixels in [0, 1]), PSNR and SSIM are of the hidden pixels of held-out images; targets that are "
            "normalised by their surroundings or patch borrow its mean and deviation. The effective rank is "
            "of pooled features of the same images without masks."
        )
    if any(len(row.scores) != ablation.seeds for row in ablation.rows):
        remarks.append(
            "A row with fewer seeds says of how many its score is; its difference is over the seeds that both have."
        )
    sources = {row.published.source for row in ablation.rows if row.published}
    if sources:
        remarks.append(f"Published: {'; '.join(sorted(sources))}. Another score on other data.")
    if ablation.missing:
        remarks.append(f"Not done: {', '.join(ablation.missing)}.")
    remarks += left_out_texts(ablation.left_out)
    return [line for remark in remarks for line in (remark, "")]


def _is_shown(name: str, rows: Sequence[Measured]) -> bool:
    """Say whether a column tells the rows apart: seeds alone change AvgDist a little."""
    values = {row.fact(name) for row in rows} - {None}
    if name == "avg_dist":
        return bool(values) and any(row.changes.keys() & OF_MASKS for row in rows)
    return len(values) > 1 if name == "params_m" else bool(values)


def _draw(ablation: Ablation, out: Path) -> None:
    """Draw the score against AvgDist where masks differ, else of each cell."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        by_distance = _is_shown("avg_dist", ablation.pretrained)
        height = 4.2 if by_distance else 1.4 + 0.32 * len(ablation.pretrained)
        figure = Figure(figsize=(7.0, height), layout="constrained")
        axes = figure.add_subplot()
        (_draw_by_distance if by_distance else _draw_cells)(axes, ablation)
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def _draw_by_distance(axes: Axes, ablation: Ablation) -> None:
    low, high = (share * ablation.img_side for share in BEST_DISTANCES)
    axes.axvspan(low, high, color=BLUE, alpha=0.08, lw=0)
    axes.annotate(
        "SimMIM's best,\nscaled to the image",
        (low, 0.02),
        xycoords=("data", "axes fraction"),
        color=BLUE,
        fontsize=7,
    )
    for row in ablation.pretrained:
        distance = row.fact("avg_dist")
        if distance is None:
            continue
        axes.errorbar(
            distance, row.mean, row.deviation, fmt="o", color=BLUE, capsize=2, markersize=4
        )
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
    axes.set_xlabel("AvgDist: pixels from a hidden one to the nearest visible one")
    axes.set_ylabel(f"{ablation.metric}, %")


def _draw_cells(axes: Axes, ablation: Ablation) -> None:
    rows = ablation.pretrained[::-1]
    for place, row in enumerate(rows):
        axes.errorbar(
            row.mean, place, xerr=row.deviation, fmt="o", color=BLUE, capsize=2, markersize=4
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


def left_out_texts(left_out: Mapping[str, str]) -> list[str]:
    """Say which cells are left out, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    return [
        f"Left out: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}"
        for why, names in by_reason.items()
    ]


def differing(changes: Mapping[str, Any]) -> str:
    """Say what a cell changes, as the command line would."""
    return ", ".join(f"{key}={value}" for key, value in changes.items()) or "as given"
