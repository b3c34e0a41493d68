"""Find the files that a record was scored from: its predictions, and COCO's annotations.

Records may be of other people, and in an archive: predictions are read below the record's folder only.
"""

from __future__ import annotations

import os
from pathlib import Path

from simmim_bench.errors import DataError
from simmim_bench.files import sha256_file
from simmim_bench.results.record import Record
from simmim_bench.untrusted.paths import path_below


class MissingFileError(DataError):
    """A file that a record was scored from does not exist, which damages nothing."""


def find_scored_files(path: Path, record: Record) -> tuple[Path, Path | None]:
    """Find the predictions of a record, and the annotations that they were scored against, if there are any.

    Args:
        path: the path of `record`.

    Raises:
        MissingFileError: a file does not exist, or the annotations have changed.
        DataError: the record names a file outside of its folder, or the predictions have changed.
    """
    predictions, annotations = find_predictions(path, record), find_annotations(path, record)
    if annotations is None and "annotations" in record.data:
        raise MissingFileError(
            f"annotations {record.data['annotations']} do not exist, or have changed since the predictions were "
            "scored."
        )
    return predictions, annotations


def find_predictions(path: Path, record: Record) -> Path:
    """Find the predictions of a record.

    Args:
        path: the path of `record`.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the record names a file outside of its folder, or the file has changed.
    """
    predictions = path_below(path.parent, record.predictions["file"], "the record")
    if not os.path.isfile(predictions):  # also false for a name that no file can have
        raise MissingFileError(f"predictions {predictions} do not exist; run the task again.")
    if sha256_file(predictions) != record.predictions["sha256"]:
        raise DataError(
            f"predictions {predictions} have changed since they were scored: hash mismatch."
        )
    return predictions


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
    return next(
        (p for p in candidates if os.path.isfile(p) and sha256_file(p) == fingerprint), None
    )
