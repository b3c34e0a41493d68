"""Copy the records of runs, and everything that a check and the page need, to a folder that can be committed.

The archive contains for every record its predictions (COCO's results compressed), recipe, metrics and per-class
scores; COCO's ground truth once per hash, under `annotations/`; and the reconstructions of every checkpoint's
pretraining, under `checkpoints/`. Weights are not copied. Absolute paths are shortened, because they mean nothing on
another machine and may contain user names.

Records may be of other people: what they name is read below their folder only, and written below the archive only.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import (
    cannot_write,
    replacing,
    replacing_directory,
    sha256_file,
    write_json,
)
from simmim_bench.leaderboard.protocols import protocol_id
from simmim_bench.local_paths import shorten_paths
from simmim_bench.results.metrics import read_ranking, shorten_ranking, write_ranking
from simmim_bench.results.record import Record
from simmim_bench.results.run_files import find_scored_files
from simmim_bench.tasks import CALIBRATION_METRICS, predictions_of
from simmim_bench.untrusted.gzips import SUFFIX
from simmim_bench.untrusted.images import read_png
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.paths import check_below, is_below, path_below
from simmim_bench.untrusted.text import describe_error

RECONSTRUCTIONS = "reconstructions.png"
# Key of a copied record's predictions: the hash of the file that the run wrote.
ORIGINAL = "original_sha256"
RUN_FILES = ("recipe.json", "metrics.jsonl", "iou_by_class.json", "ap_by_class.json")
# What `_copy_run` writes; a folder with other files is not replaced.
WRITTEN = re.compile(rf"record\.json|predictions(/[^/]+)?|{'|'.join(map(re.escape, RUN_FILES))}")
TEMPORARY = re.compile(r"\.([^/]+)\.\d+\.tmp$")  # `files.replacing`, left by a killed process


def archive_runs(records: Mapping[Path, Record], out: Path, *, compact: bool = False) -> list[str]:
    """Copy the runs of some records to `OUT/ARCH-CHECKPOINT/TASK-PROTOCOL/seedN`, replacing earlier copies.

    The folder of a named data set is `TASK-NAME-PROTOCOL`.

    Args:
        records: records by the path of their file.
        out: folder of the archive.
        compact: keep of classifications the five best classes of every image alone. The copied records lack the
            calibration metrics, which cannot be computed from these.

    Returns:
        One sentence for each record that could not be copied.

    Raises:
        UsageError: two records have the same checkpoint, protocol, name of the data set and seed.
    """
    sources: dict[Path, Path] = {}
    for path, record in records.items():
        name = _archive_name(record)
        if name in sources:
            raise UsageError(
                f"{path} and {sources[name]} have the same checkpoint, protocol and seed; remove one of them, "
                "or pass other folders."
            )
        sources[name] = path
    problems: list[str] = []
    for name, path in sources.items():
        try:
            problems += _archive_run(path, records[path], out, name, compact)
        except DataError as error:
            problems.append(f"{path} was not kept: {error}")
        except Exception as error:  # a record of others must not keep the rest from being copied
            problems.append(f"{path} was not kept: {describe_error(error)}.")
    return problems


def _archive_name(record: Record) -> Path:
    """Return the folder of a record in the archive."""
    task = record.task.replace("%", "pct")
    if "name" in record.data:
        task = f"{task}-{record.data['name']}"
    checkpoint = record.checkpoint["sha256"][:8]
    return Path(
        f"{record.checkpoint['arch']}-{checkpoint}",
        f"{task}-{protocol_id(record)[:8]}",
        f"seed{record.seed}",
    )


def _archive_run(path: Path, record: Record, out: Path, name: Path, compact: bool) -> list[str]:
    """Copy one run.

    Returns:
        A sentence if the reconstructions of its checkpoint could not be copied.

    Raises:
        DataError: the predictions or annotations are not those that were scored, another file of the run cannot be
            used, or the archive cannot be written.
    """
    predictions, annotations = find_scored_files(path, record)
    folder = path_below(out, name, "keep")
    for existing in (folder, *(folder.with_name(f".{folder.name}.{e}") for e in ("tmp", "old"))):
        _check_written(existing)
    if annotations is not None:
        name = Path("annotations", f"{record.data['fingerprint'][:16]}.json")
        _copy(annotations, path_below(out, name, "keep"))
    problems = []
    try:
        image = find_reconstructions(record)
        if image is not None:
            read_png(image, "image")
            name = Path("checkpoints", record.checkpoint["sha256"][:16], RECONSTRUCTIONS)
            _copy(image, path_below(out, name, "keep"))
    except DataError as error:
        problems.append(f"the reconstructions of {path} were not kept: {error}")
    try:
        with replacing_directory(folder) as temporary:
            _copy_run(path, record, predictions, temporary, compact)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return problems


def _check_written(folder: Path) -> None:
    """Check that a folder that is going to be replaced has no files but those that `_copy_run` writes.

    Raises:
        DataError: it has others.
    """
    if folder.is_symlink() or not folder.is_dir():
        if folder.is_symlink() or folder.exists():
            raise DataError(f"{folder} is not a folder that `keep` wrote; move it elsewhere.")
        return
    for file in sorted(folder.rglob("*")):
        name = TEMPORARY.sub(r"\1", file.relative_to(folder).as_posix())
        if file.is_symlink() or not WRITTEN.fullmatch(name):
            raise DataError(
                f"{folder} would be replaced, but `keep` did not write its {file.name}; move the file elsewhere, or "
                "pass another --out."
            )


def _copy_run(path: Path, record: Record, predictions: Path, folder: Path, compact: bool) -> None:
    """Copy the predictions and those of `RUN_FILES` that exist, and write the record, with shortened paths."""
    changed = _copy_predictions(predictions, record, folder, compact)
    for name in RUN_FILES:
        source = path_below(path.parent, name, f"run {path.parent}")
        if name == "recipe.json" and source.is_file():
            description = read_json(source, "run description", finite=False)
            write_json(folder / name, shorten_paths(description))
        else:
            _copy(source, folder / name)
    write_json(folder / "record.json", shorten_paths(dataclasses.asdict(record) | changed))


def _copy_predictions(
    predictions: Path, record: Record, folder: Path, compact: bool
) -> dict[str, Any]:
    """Copy the predictions; JSON is compressed, to a quarter of its bytes, and a ranking shortened on request.

    Returns:
        The fields of the copied record that differ: the name and hash of the copy, and the metrics.
    """
    name = record.predictions["file"]
    changed: dict[str, Any] = {}
    if predictions.suffix == ".json":
        name += SUFFIX
        with replacing(folder / name) as temporary:
            # Equal files have equal archives: neither name nor time is stored.
            temporary.write_bytes(gzip.compress(predictions.read_bytes(), mtime=0))
    elif compact and predictions_of(record.task) == "ranking":
        ranking, labels = read_ranking(predictions)
        write_ranking(folder / name, shorten_ranking(ranking), labels)
        metrics = record.metrics.items()
        changed["metrics"] = {k: v for k, v in metrics if k not in CALIBRATION_METRICS}
    else:
        _copy(predictions, folder / name)
        return {}
    original = record.predictions.get(ORIGINAL, record.predictions["sha256"])
    copied = {"file": name, "sha256": sha256_file(folder / name), ORIGINAL: original}
    return changed | {"predictions": copied}


def _copy(source: Path, destination: Path) -> None:
    """Copy a file if it exists."""
    if source.is_file():
        with replacing(destination) as temporary:
            shutil.copyfile(source, temporary)


def find_reconstructions(record: Record) -> Path | None:
    """Find the reconstructions in the run directory that wrote a record's checkpoint.

    A checkpoint's name is either the run directory or `RUN/checkpoints/NAME`.

    Returns:
        None if there are none.

    Raises:
        DataError: the file is a symbolic link that leads out of the run directory.
    """
    path = Path(record.checkpoint["name"])
    runs = [path, *([path.parent.parent] if path.parent.name == "checkpoints" else [])]
    run = next((run for run in runs if os.path.isfile(run / RECONSTRUCTIONS)), None)
    if run is None:
        return None
    check_below(run, run / RECONSTRUCTIONS, "reconstructions")
    return run / RECONSTRUCTIONS


def find_archived_checkpoint(path: Path, record: Record) -> Path | None:
    """Find the archive's folder for a record's checkpoint.

    Args:
        path: the path of `record` in the archive.

    Returns:
        None if `path` is not in an archive, or the archive has no files of the checkpoint.
    """
    name = record.checkpoint["sha256"][:16]
    folders = (parent / "checkpoints" / name for parent in path.parents)
    return next((f for f in folders if f.is_dir() and is_below(f.parent.parent, f)), None)
