"""`simmim-bench push`: publish a checkpoint on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from simmim_bench.api.sharing import run_push
from simmim_bench.cli.options import JSON_OPTION, PATH, QUIET_OPTION
from simmim_bench.untrusted.text import visible_lines


@click.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path())
@click.argument("repository", metavar="ORG/NAME")
@click.option(
    "--records",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="Folder with runs of this checkpoint, whose scores the model card lists; may be repeated.",
)
@click.option(
    "--license",
    "licence",
    metavar="ID",
    help="The Hub's identifier of the licence, such as apache-2.0; by default that of the checkpoint's provenance.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="The Hub's name of the training data, such as ILSVRC/imagenet-1k; may be repeated.",
)
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option(
    "--branch",
    default="main",
    show_default=True,
    metavar="NAME",
    help="Branch to commit to, created if it does not exist.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace another checkpoint, or files of another origin, in the repository.",
)
@click.option("--dry-run", is_flag=True, help="Print the model card and the files; upload nothing.")
@click.option("--out", type=PATH, metavar="DIR", help="Keep a copy of the files in DIR.")
@JSON_OPTION
@QUIET_OPTION
def push(
    ckpt: str,
    repository: str,
    records: tuple[Path, ...],
    licence: str | None,
    datasets: tuple[str, ...],
    private: bool,
    branch: str,
    overwrite: bool,
    dry_run: bool,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub.

    CKPT is a checkpoint or run directory. The repository holds the checkpoint directory, which --ckpt
    hub:ORG/NAME reads, the backbone in timm's format where timm has the architecture, and a model card with a
    model-index made from records. Records of another checkpoint, or whose predictions have changed, are refused.
    A second push replaces README.md, also one that was edited on the Hub. Log in with `hf auth login`.

    \b
      simmim-bench push runs/pocket me/vit-pocket --records runs/pocket --license mit --dry-run
      simmim-bench push runs/pocket me/vit-pocket --records runs/pocket --license mit
      simmim-bench transfer linear --ckpt hub:me/vit-pocket --data imagenet
    """
    done = run_push(
        ckpt,
        repository,
        records=records,
        licence=licence,
        datasets=datasets,
        private=private,
        branch=branch,
        overwrite=overwrite,
        dry_run=dry_run,
        out=out,
        log=(lambda message: None) if quiet else (lambda message: click.echo(message, err=True)),
    )
    if as_json:
        folder = None if done.folder is None else str(done.folder)
        click.echo(json.dumps({**dataclasses.asdict(done), "folder": folder, "ckpt": done.ckpt}))
        return
    if dry_run:
        click.echo(visible_lines(done.card))
    for name, size in done.files.items():
        click.echo(f"{size / 1e6:>10,.2f} MB  {name}")
    if done.folder is not None:
        click.echo(f"wrote      {done.folder}")
    click.echo(f"{'would be' if dry_run else 'pushed':<10} {done.ckpt}")
