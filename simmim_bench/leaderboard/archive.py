"""Copy the records of runs, and everything that a check and the page need, to a folder that can be committed.

The archive contains for every record its predictions, recipe, metrics and per-class scores; COCO's ground truth
once per hash, under `annotations/`; and the reconstructions of every checkpoint's pretraining, under
`checkpoints/`. Weights are not copied. Absolute paths are shortened, because they mean nothing on another machine
and may contain user names.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import (
    cannot_write,
    read_json,
    replacing,
    replacing_directory,
    sha256_file,
    write_json,
)
from simmim_bench.leaderboard.board import protocol_id
from simmim_bench.results.record import Record

ABSOLUTE_PATH = re.compile(r"(\w+=)?(/.*)")
RUN_FILES = ("recipe.json", "metrics.jsonl", "iou_by_class.json", "ap_by_class.json")


def archive_runs(records: Mapping[Path, Record], out: Path) -> None:
    """Copy the runs of some records to `OUT/ARCH-CHECKPOINT/TASK-PROTOCOL/seedN`, replacing earlier copies.

    Args:
        records: records by the path of their file.
        out: folder of the archive.

    Raises:
        UsageError: two records have the same checkpoint, protocol and seed.
        DataError: a file cannot be written.
    """
    sources: dict[Path, Path] = {}
    for path, record in records.items():
        folder = out / _archive_name(record)
        if folder in sources:
            raise UsageError(
                f"{path} and {sources[folder]} have the same checkpoint, protocol and seed; remove one of them, "
                "or pass other folders."
            )
        sources[folder] = path
    for folder, path in sources.items():
        record = records[path]
        annotations = find_annotations(path, record)
        if annotations is not None:
            _copy(annotations, out / "annotations" / f"{record.data['fingerprint'][:16]}.json")
        run = _pretraining_run(record)
        if run is not None:
            checkpoint = out / "checkpoints" / record.checkpoint["sha256"][:16]
            _copy(run / "reconstructions.png", checkpoint / "reconstructions.png")
        try:
            with replacing_directory(folder) as temporary:
                _copy_run(path, record, temporary)
        except OSError as error:
            raise cannot_write(folder, error) from error


def _archive_name(record: Record) -> Path:
    """Return the folder of a record in the archive."""
    task = record.task.replace("%", "pct")
    checkpoint = record.checkpoint["sha256"][:8]
    return Path(
        f"{record.checkpoint['arch']}-{checkpoint}",
        f"{task}-{protocol_id(record)[:8]}",
        f"seed{record.seed}",
    )


def _copy_run(path: Path, record: Record, folder: Path) -> None:
    """Copy the predictions and those of `RUN_FILES` that exist, and write the record, with shortened paths."""
    predictions = folder / record.predictions["file"]
    source = path.parent / record.predictions["file"]
    if not source.is_file():
        raise DataError(f"predictions {source} of {path} do not exist; run its task again.")
    _copy(source, predictions)
    for name in RUN_FILES:
        _copy(path.parent / name, folder / name)
    recipe = folder / "recipe.json"
    if recipe.is_file():
        write_json(recipe, shorten_paths(read_json(recipe, "run description")))
    write_json(folder / "record.json", shorten_paths(dataclasses.asdict(record)))


def shorten_paths(value: Any) -> Any:
    """Shorten every absolute path in a JSON value to its last two components, such as `data/coco`.

    A string counts as a path if it starts with `/`, or with `KEY=/`.
    """
    if isinstance(value, dict):
        return {key: shorten_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_paths(inner) for inner in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    found = ABSOLUTE_PATH.fullmatch(value)
    if found is None:
        return value
    return (found[1] or "") + "/".join(PurePosixPath(found[2]).parts[1:][-2:])


def _copy(source: Path, destination: Path) -> None:
    """Copy a file if it exists."""
    if source.is_file():
        with replacing(destination) as temporary:
            shutil.copyfile(source, temporary)


def _pretraining_run(record: Record) -> Path | None:
    """Return the run directory that wrote a record's checkpoint; None if it has no reconstructions.

    A checkpoint's name is either the run directory or `RUN/checkpoints/NAME`.
    """
    path = Path(record.checkpoint["name"])
    runs = (path, path.parent.parent)
    return next((run for run in runs if (run / "reconstructions.png").is_file()), None)


def find_archived_checkpoint(path: Path, record: Record) -> Path | None:
    """Find the archive's folder for a record's checkpoint.

    Args:
        path: the path of `record` in the archive.

    Returns:
        None if `path` is not in an archive, or the archive has no files of the checkpoint.
    """
    name = record.checkpoint["sha256"][:16]
    folders = (parent / "checkpoints" / name for parent in path.parents)
    return next((folder for folder in folders if folder.is_dir()), None)


def find_annotations(path: Path, record: Record) -> Path | None:
    """Find the ground truth that a record was scored against, in the data set or in the archive.

    Args:
        path: the path of `record`, which may be in an archive.

    Returns:
        None if the task has no annotations, or no candidate has the hash in the record.
    """
    if "annotations" not in record.data:
        return None
    fingerprint = record.data["fingerprint"]
    candidates = [Path(record.data["annotations"])]
    candidates += [parent / "annotations" / f"{fingerprint[:16]}.json" for parent in path.parents]
    return next((p for p in candidates if p.is_file() and sha256_file(p) == fingerprint), None)
