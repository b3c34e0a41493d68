"""Write the files of a repository on the Hub: checkpoint directory, timm's files, model card."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.convert import TOLERANCE
from simmim_bench.checkpoints.formats import count_classes, write_timm
from simmim_bench.checkpoints.hub import NATIVE
from simmim_bench.checkpoints.read import find_checkpoint_directory, read_checkpoint
from simmim_bench.errors import UsageError
from simmim_bench.files import sync, write_json, write_text
from simmim_bench.publish.card import CardFacts, write_card
from simmim_bench.publish.scores import CardScore
from simmim_bench.untrusted.json_text import read_json

TIMM_FILES = ("config.json", "model.safetensors")
CARD = "README.md"
LOCAL_PATH = re.compile(r"(/|~|[A-Za-z]:[\\/]|\\\\).*")


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
    """Read a checkpoint or run directory, whose files are published unchanged: its hash is that of its records.

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
    spec = read_json(directory / "meta.json", "checkpoint file", finite=False).get("spec")
    if isinstance(spec, dict) and spec.get("family") == "python":
        raise UsageError(
            f"{ckpt} holds weights of a network of your own code, which a repository of weights cannot load; publish "
            "it beside the code."
        )
    return read_checkpoint(str(directory)), directory


def write_folder(publication: Publication, folder: Path) -> CardFacts:
    """Write the files of the repository into a new folder.

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
    _copy(publication.directory / "model.safetensors", native / "model.safetensors")
    meta = read_json(publication.directory / "meta.json", "checkpoint file", finite=False)
    meta.pop("training_sha256", None)  # of training.pt, which is not published
    write_json(native / "meta.json", without_local_paths(meta))
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


def without_local_paths(value: Any) -> Any:
    """Return a JSON value with absolute paths shortened to their last part: folders of a machine are not published."""
    if isinstance(value, dict):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str) and LOCAL_PATH.fullmatch(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


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


def _copy(source: Path, destination: Path) -> None:
    """Link a file, which is never modified, or copy it to another file system."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
        sync(destination)
