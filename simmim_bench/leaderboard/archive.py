"""Keep records where they can be committed: all that a check and the page need, and nothing else.

Absolute paths are cut to their ends: they say nothing to others, and may tell names.

In: folders with run directories. Out: a folder of the same runs, each with its record, its predictions,
its description, metrics and figures by class; COCO's ground truth once a hash, under `annotations/`; and of
every checkpoint, under `checkpoints/`, the pictures that its pretraining left. Weights are not kept.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from simmim_bench.errors import UsageError
from simmim_bench.files import read_json, sha256_file, write_json
from simmim_bench.leaderboard.board import protocol_id
from simmim_bench.results.record import Record

ABSOLUTE = re.compile(r"(\w+=)?(/.*)")
BESIDE = ("recipe.json", "metrics.jsonl", "iou_by_class.json", "ap_by_class.json")


def archive_runs(records: Mapping[Path, Record], out: Path) -> None:
    """Copy what belongs to records into a folder, each under the name of its checkpoint, task and seed.

    Raises:
        UsageError: two records have one name, or one would replace another's.
    """
    kept: dict[Path, Path] = {}
    for path, record in records.items():
        task = record.task.replace("%", "pct")
        checkpoint = record.checkpoint["sha256"][:8]
        protocol = protocol_id(record)[:8]
        folder = (
            out
            / f"{record.checkpoint['arch']}-{checkpoint}"
            / f"{task}-{protocol}"
            / f"seed{record.seed}"
        )
        if folder in kept:
            raise UsageError(
                f"{path} and {kept[folder]} are of one checkpoint, protocol and seed; keep one."
            )
        kept[folder] = path
    for folder, path in kept.items():
        record = records[path]
        shutil.rmtree(folder, ignore_errors=True)
        predictions = folder / record.predictions["file"]
        predictions.parent.mkdir(parents=True)
        shutil.copyfile(path.parent / record.predictions["file"], predictions)
        for name in BESIDE:
            _copy(path.parent / name, folder / name)
        description = folder / "recipe.json"
        if description.is_file():
            write_json(description, without_machine(read_json(description, "run description")))
        annotations = find_annotations(path, record)
        if annotations is not None:
            _copy(annotations, out / "annotations" / f"{record.data['fingerprint'][:16]}.json")
        run = _pretraining(record)
        if run is not None:
            kept_of_it = out / "checkpoints" / record.checkpoint["sha256"][:16]
            _copy(run / "reconstructions.png", kept_of_it / "reconstructions.png")
        # The last: what has one is whole.
        write_json(folder / "record.json", without_machine(dataclasses.asdict(record)))


def without_machine(value: Any) -> Any:
    """Cut every absolute path in a JSON value, or after KEY= in it, to its last two parts, such as data/coco."""
    if isinstance(value, dict):
        return {key: without_machine(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_machine(inner) for inner in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    found = ABSOLUTE.fullmatch(value)
    if found is None:
        return value
    return (found[1] or "") + "/".join(PurePosixPath(found[2]).parts[1:][-2:])


def _copy(source: Path, destination: Path) -> None:
    if source.is_file():
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)


def _pretraining(record: Record) -> Path | None:
    """Give the run directory that a record's checkpoint was made in, where it is still there."""
    path = Path(record.checkpoint["name"])
    runs = (path, path.parent.parent)
    return next((run for run in runs if (run / "reconstructions.png").is_file()), None)


def checkpoint_folder(path: Path, record: Record) -> Path | None:
    """Give what was kept of a record's checkpoint, in the folder that the record was kept in."""
    name = record.checkpoint["sha256"][:16]
    folders = (parent / "checkpoints" / name for parent in path.parents)
    return next((folder for folder in folders if folder.is_dir()), None)


def find_annotations(path: Path, record: Record) -> Path | None:
    """Give the ground truth that a record was scored against: where it was, or where it was kept.

    Returns:
        None where neither has a file with the hash that the record names, or the task has no annotations.
    """
    if "annotations" not in record.data:
        return None
    fingerprint = record.data["fingerprint"]
    places = [Path(record.data["annotations"])]
    places += [parent / "annotations" / f"{fingerprint[:16]}.json" for parent in path.parents]
    return next((p for p in places if p.is_file() and sha256_file(p) == fingerprint), None)
