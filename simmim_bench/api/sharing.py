"""Publish a checkpoint on the Hugging Face Hub: `simmim_bench.push` and `simmim-bench push`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from simmim_bench.api.arguments import SCHEMES
from simmim_bench.api.display import open_display
from simmim_bench.api.options import AnyPath, names_of, read_ckpt, read_path
from simmim_bench.checkpoints.hub_names import is_repository
from simmim_bench.errors import DataError, UsageError
from simmim_bench.imports import without_collection
from simmim_bench.library import as_library


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The result of `push`.

    Attributes:
        repository: ORG/NAME.
        commit: the commit; empty for a dry run.
        files: sizes in bytes by path in the repository.
        card: the model card.
        without_timm: why timm cannot load the repository; empty where it can.
        folder: the local copy; None where none was kept.
    """

    repository: str
    commit: str
    files: dict[str, int] = field(repr=False)
    card: str = field(repr=False)
    without_timm: str = ""
    folder: Path | None = None

    @property
    def ckpt(self) -> str:
        """The checkpoint as `--ckpt` takes it, at this commit."""
        return f"hub:{self.repository}" + (f"@{self.commit}" if self.commit else "")


@as_library()
def push(
    ckpt: AnyPath,
    repository: str,
    *,
    records: AnyPath | Iterable[AnyPath] = (),
    license: str | None = None,
    datasets: str | Iterable[str] = (),
    private: bool = False,
    branch: str = "main",
    overwrite: bool = False,
    dry_run: bool = False,
    out: AnyPath | None = None,
    quiet: bool = False,
) -> Pushed:
    """Publish a checkpoint on the Hugging Face Hub, with a model card made from its records.

    A second push replaces the files of the first, also a model card that was edited on the Hub.

    Args:
        ckpt: a checkpoint or run directory.
        repository: ORG/NAME; created if it does not exist.
        records: folders of runs of this checkpoint, whose scores the model card and its `model-index` list.
        license: the Hub's identifier of the licence, such as "apache-2.0".
        datasets: the Hub's names of the training data, such as "ILSVRC/imagenet-1k".
        private: create a private repository.
        branch: branch to commit to, created if it does not exist.
        overwrite: replace another checkpoint, or files of another origin, in the repository.
        dry_run: write the files and upload nothing.
        out: folder that keeps a copy of the files.
        quiet: no log.

    Returns:
        The result; `result.ckpt` is a CKPT.

    Raises:
        UsageError: no token, an invalid name, or a repository that holds something else.
        DataError: the checkpoint cannot be read, a record is of another checkpoint, or its predictions have changed.
        BenchError: the Hub cannot be reached or refuses the upload.

    Example:
        >>> sb.push("runs/pocket", "me/vit-pocket", records="runs/pocket", license="mit", dry_run=True)
    """
    roots = [records] if isinstance(records, str | PathLike) else [*records]
    return run_push(
        read_ckpt(ckpt),
        repository,
        records=[read_path(root) for root in roots],
        licence=license,
        datasets=names_of(datasets),
        private=private,
        branch=branch,
        overwrite=overwrite,
        dry_run=dry_run,
        out=None if out is None else read_path(out),
        log=open_display(quiet).log,
    )


def run_push(
    ckpt: str,
    repository: str,
    *,
    records: Sequence[Path] = (),
    licence: str | None = None,
    datasets: tuple[str, ...] = (),
    private: bool = False,
    branch: str = "main",
    overwrite: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> Pushed:
    """Publish a checkpoint with the options of a command line; see `push`."""
    if not is_repository(repository):
        raise UsageError(
            f"{repository} is not the name of a repository; use ORG/NAME of letters, digits, '-', '_' and '.', without "
            "'--', '..' and '.git' at its end, and --branch for a branch."
        )
    _check_directory(ckpt)
    if out is not None and out.exists():
        raise UsageError(f"--out {out} exists; choose another folder.")
    with without_collection():
        from simmim_bench.files import replacing_directory
        from simmim_bench.publish.folder import (
            CARD,
            Publication,
            list_files,
            read_to_publish,
            write_folder,
        )
        from simmim_bench.publish.scores import select_records, summarise_records
        from simmim_bench.publish.upload import Destination, check_access, check_destination, upload

    to = Destination(repository=repository, private=private, branch=branch, overwrite=overwrite)
    checkpoint, directory = read_to_publish(ckpt)
    scores = summarise_records(select_records(records, checkpoint, directory))
    if not dry_run:
        check_access()
        check_destination(to, checkpoint.sha256)
    publication = Publication(checkpoint, directory, repository, scores, licence, datasets)
    with tempfile.TemporaryDirectory(prefix="simmim-bench-push-") as scratch:
        try:
            # A kept folder is renamed last, so that the same command is not refused after a failed upload.
            with replacing_directory(out or Path(scratch, "repository")) as folder:
                facts = write_folder(publication, folder, linked=out is None)
                files = list_files(folder)
                card = (folder / CARD).read_text(encoding="utf-8")
                if facts.without_timm:
                    log(f"push: timm cannot load it: {facts.without_timm}")
                if not licence and facts.licence is None:
                    log("push: the model card names no licence; set one with --license")
                message = f"Upload {checkpoint.label}"
                commit = "" if dry_run else upload(folder, to, checkpoint.sha256, message)
        except OSError as error:
            raise DataError(
                f"cannot write the files of {repository}: {error.strerror or error}; free some space or choose another "
                "--out."
            ) from error
    return Pushed(
        repository=repository,
        commit=commit,
        files=files,
        card=card,
        without_timm=facts.without_timm,
        folder=out,
    )


def _check_directory(ckpt: str) -> None:
    """Check that a CKPT is a path that exists, before torch is imported.

    Raises:
        UsageError: it names another kind of checkpoint.
        DataError: it does not exist.
    """
    if ckpt.startswith(SCHEMES):
        raise UsageError(
            f"push takes a checkpoint or run directory, not {ckpt}; convert third-party weights first: `simmim-bench "
            "convert SRC DST`."
        )
    if not Path(ckpt).exists():
        raise DataError(f"{ckpt} does not exist; push takes a checkpoint or run directory.")
