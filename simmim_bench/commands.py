"""The commands that neither pretrain nor transfer: leaderboard, pocket.

Nothing here loads torch before a command needs it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from simmim_bench.errors import UsageError
from simmim_bench.options import SEED, open_display, read_size


@click.group()
def leaderboard() -> None:
    """Build, check or show the table of all records below some folders."""


_roots = click.argument("roots", nargs=-1, type=click.Path(path_type=Path), default=(Path("runs"),))
_table_folder = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("leaderboard"),
    show_default=True,
    help="Folder of the tables.",
)


@leaderboard.command("build")
@_roots
@_table_folder
def leaderboard_build(roots: tuple[Path, ...], out: Path) -> None:
    """Write LEADERBOARD.md, leaderboard.csv and leaderboard.html from the records below ROOTS.

    ROOTS are folders with run directories; runs/ by default.
    """
    from simmim_bench.leaderboard import find_records, print_table, write_leaderboard

    rows = write_leaderboard(find_records(roots), out)
    print_table(rows)
    click.echo(str(out / "leaderboard.html"))


@leaderboard.command("check")
@_roots
@_table_folder
def leaderboard_check(roots: tuple[Path, ...], out: Path) -> None:
    """Compute every score again from its predictions, and compare the tables.

    Exit code 6 when a score, a hash or a table differs.
    """
    from simmim_bench.leaderboard import build_rows, check_record, check_tables, find_records

    records = find_records(roots)
    for path, record in records.items():
        check_record(path, record)
    check_tables(build_rows(records), out)
    click.echo(f"{len(records)} records and their tables hold.")


@leaderboard.command("show")
@_roots
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
def leaderboard_show(roots: tuple[Path, ...], as_json: bool) -> None:
    """Print the table of the records below ROOTS."""
    from simmim_bench.leaderboard import COLUMNS, build_rows, find_records, print_table

    rows = build_rows(find_records(roots))
    if not as_json:
        print_table(rows)
        return
    titles = [f"{c.task}/{c.metric}" for c in COLUMNS]
    plain = [
        {
            "label": r.label,
            "checkpoint": r.checkpoint,
            "scores": {t: c and c.mean for t, c in zip(titles, r.cells, strict=True)},
        }
        for r in rows
    ]
    click.echo(json.dumps(plain))


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Another seed, other pictures."
)
@click.option(
    "--img-size", default="64", show_default=True, metavar="H[,W]", help="Pixels, at least 32."
)
@click.option(
    "--imagenet", nargs=2, type=int, metavar="TRAIN VAL", help="Images of the ImageNet-like set."
)
@click.option("--coco", nargs=2, type=int, metavar="TRAIN VAL", help="Images of the COCO-like set.")
@click.option(
    "--ade20k", nargs=2, type=int, metavar="TRAIN VAL", help="Images of the ADE20K-like set."
)
@click.option("--overwrite", is_flag=True, help="Replace the generated data in DIR.")
def pocket(
    folder: Path,
    seed: int,
    img_size: str,
    imagenet: tuple[int, int] | None,
    coco: tuple[int, int] | None,
    ade20k: tuple[int, int] | None,
    overwrite: bool,
) -> None:
    """Write generated data in the layouts of ImageNet, COCO 2017 and ADE20K.

    The pictures show things of ten classes, told apart by shape, texture and parts, on stuff of several
    classes. The same seed gives the same bytes.

    \b
      simmim-bench pocket data/pocket
      simmim-bench pocket data/wide --img-size 96,128 --coco 1000 200
    """
    from simmim_bench.pocket import PocketCounts, write_pocket

    size = read_size(img_size)
    splits = {"imagenet": imagenet, "coco": coco, "ade20k": ade20k}
    changes = {
        f"{k}_{s}": n
        for k, pair in splits.items()
        if pair
        for s, n in zip(("train", "val"), pair, strict=True)
    }
    if any(n < 1 for n in changes.values()):
        raise UsageError("every count of images must be at least 1.")
    counts = dataclasses.replace(PocketCounts(), **changes)
    with open_display(False).task("pictures", sum(vars(counts).values())) as task:
        written = write_pocket(
            folder,
            seed=seed,
            img_size=size,
            counts=counts,
            overwrite=overwrite,
            progress=lambda done, total: task.advance(),
        )
    for split, count in written.items():
        click.echo(f"{split} {count}")
