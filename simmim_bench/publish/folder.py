"""Write the files of a repository on the Hub: checkpoint directory, timm's files, model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.convert import TOLERANCE
from simmim_bench.checkpoints.formats import count_classes, write_timm
from simmim_bench.checkpoints.hub import NATIVE
from simmim_bench.checkpoints.read import find_checkpoint_directory, read_checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.files import sync, write_json, write_text
from simmim_bench.local_paths import shorten_paths
from simmim_bench.publish.card import CardFacts, write_card
from simmim_bench.publish.scores import CardScore
from simmim_bench.untrusted.json_text import read_json

TIMM_FILES = ("config.json", "model.safetensors")
CARD = "README.md"


@dataclass(frozen=True)
class Publication:
    """A checkpoint directory to publish, and what its model card says.

    Attributes:
        directory: the checkpoint directory that is copied.
        licence: the Hub's identifier of a licence; None for that of the checkpoint's provenance.
    """

    checkpoint: Checkpoint
    directory: Path
    repository: str
    scores: Sequence[CardScore] = ()
    licence: str | None = None
    datasets: tuple[str, ...] = ()


def read_to_publish(ckpt: str) -> tuple[Checkpoint, Path]:
    """Read a checkpoint or run directory, whose weights are published unchanged: its hash is that of its records.

    Returns:
        The checkpoint, with shortened paths in its provenance, and the checkpoint directory.

    Raises:
        UsageError: the CKPT is something else, such as a third-party checkpoint.
        DataError: it does not exist or is damaged.
    """
    path = Path(ckpt)
    is_directory = path.is_dir() and not (path / "config.json").is_file()
    if path.exists() and not is_directory:
        raise UsageError(
            f"{ckpt} is not a checkpoint or run directory; convert it first: `simmim-bench convert {ckpt} DST`, and "
            "run the tasks of its records on DST."
        )
    directory = find_checkpoint_directory(path)
    meta = read_json(directory / "meta.json", "checkpoint file", finite=False)
    spec = meta.get("spec") if isinstance(meta, dict) else None
    if isinstance(spec, dict) and spec.get("family") == "python":
        raise UsageError(
            f"{ckpt} holds weights of a network of your own code, which a repository of weights cannot load; publish "
            "it beside the code."
        )
    checkpoint = read_checkpoint(str(directory))
    return replace(checkpoint, provenance=shorten_paths(checkpoint.provenance)), directory


def write_folder(publication: Publication, folder: Path, *, linked: bool) -> CardFacts:
    """Write the files of the repository into a new folder.

    Args:
        linked: whether the weights may be a hard link to those of the checkpoint; False where the folder is kept.

    Returns:
        What the model card says, among it why timm cannot load the repository.

    Raises:
        OSError: the folder cannot be written.
    """
    checkpoint = publication.checkpoint
    folder.mkdir(parents=True)
    # First, because timm reads the folder back.
    without_timm, note = _write_timm_files(checkpoint, folder)
    native = folder / NATIVE
    native.mkdir()
    _copy(publication.directory / "model.safetensors", native / "model.safetensors", linked=linked)
    meta = read_json(publication.directory / "meta.json", "checkpoint file", finite=False)
    meta.pop("training_sha256", None)  # of training.pt, which is not published
    write_json(native / "meta.json", shorten_paths(meta))
    licence = publication.licence or checkpoint.provenance.get("licence")
    facts = CardFacts(
        repository=publication.repository,
        classes=count_classes(checkpoint),
        scores=publication.scores,
        licence=licence if isinstance(licence, str) else None,
        datasets=publication.datasets,
        without_timm=without_timm,
        timm_note=note,
    )
    write_text(folder / CARD, str(write_card(checkpoint, facts)))
    return facts


def list_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path in the repository."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _write_timm_files(checkpoint: Checkpoint, folder: Path) -> tuple[str, str]:
    """Write timm's configuration and weights where timm computes the same features.

    Returns:
        Why there are none, and how the features of timm's model differ; both empty for an exact export.
    """
    try:
        result = write_timm(checkpoint, folder)
    except UsageError as error:
        reason = str(error).partition(";")[0]
    else:
        if result.difference <= TOLERANCE:
            return "", result.usage.partition("  # ")[2]
        reason = f"its features would differ by {result.difference:.1e} of their size"
    for name in TIMM_FILES:
        (folder / name).unlink(missing_ok=True)
    return reason.replace(checkpoint.name, checkpoint.label), ""


def _copy(source: Path, destination: Path, *, linked: bool) -> None:
    """Copy a file, or link the file that the name leads to; one of another file system is copied."""
    if linked:
        with suppress(OSError):
            os.link(source.resolve(), destination)
            return
    shutil.copyfile(source, destination)
    sync(destination)
