"""What two comparable scores must share, and groups of scores that share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_bench.files import sha256_json
from simmim_bench.results.record import Record

TaskProtocol = tuple[str, str]  # record name of a task, protocol id


def protocol_id(record: Record) -> str:
    """Return the hash of everything that two comparable scores must share.

    Hashed are the recipe, its deviations, the fingerprints of the data, a listed split, the size of a sampled
    split of unequal classes, and of a score of shift the task that trained the classifier.
    """
    return sha256_json([record.recipe["sha256"], record.deviates, data_identity(record)])


def checkpoint_key(record: Record) -> tuple[str, str]:
    """Return the label and the hash of a record's checkpoint, which a row of the leaderboard is of."""
    return record.checkpoint["label"], record.checkpoint["sha256"]


def data_identity(record: Record) -> list[Any]:
    """Return what distinguishes the data of a record from other data, whatever their names are."""
    keys = ("train_fingerprint", "listed_split_sha256")
    data = [record.data["fingerprint"], *(record.data.get(key) for key in keys)]
    if "sampled_images" in record.data:
        data.append(record.data["sampled_images"])
    if "classifier" in record.data:
        data.append(record.data["classifier"])
    return data


def describe_recipe(record: Record) -> str:
    """Return the recipe of a record and its deviations, and of a score of shift the task of the classifier."""
    changed = ", ".join(f"{key}={value}" for key, value in record.deviates.items())
    recipe: str = record.recipe["name"] + (f" with {changed}" if changed else "")
    if "classifier" in record.data:
        recipe = f"classifier of {record.data['classifier']} by {recipe}"
    return recipe


def find_contradictions(records: Mapping[Path, Record]) -> dict[Path, str]:
    """Find the records of the same checkpoint, protocol and seed with different predictions.

    Returns:
        One sentence for each such record, by its path. None of them can be preferred.
    """
    paths_of: dict[tuple[object, ...], list[Path]] = {}
    for path, record in records.items():
        name = record.data.get("name")
        run = (*checkpoint_key(record), record.task, name, protocol_id(record), record.seed)
        paths_of.setdefault(run, []).append(path)
    return {
        path: f"{path} and {paths[path == paths[0]]} have the same checkpoint, protocol and seed but different "
        "predictions; remove one of them, or pass other folders."
        for paths in paths_of.values()
        if len({records[path].predictions["sha256"] for path in paths}) > 1
        for path in paths
    }


def group_protocols(evaluated: Sequence[Sequence[TaskProtocol]]) -> list[dict[str, str]]:
    """Combine protocols into groups with at most one protocol per task.

    Checkpoints with a single protocol per task come first; each joins a fitting group or starts a new one.
    Checkpoints with several protocols of a task, such as random weights on two data sets, follow and have a row
    in several groups. A protocol belongs to one group only.

    Args:
        evaluated: the (task, protocol) pairs of every checkpoint.

    Returns:
        For every group, its protocols by task.
    """

    def most_protocols(pairs: Sequence[TaskProtocol]) -> int:
        tasks = [task for task, _ in pairs]
        return max(tasks.count(task) for task in tasks)

    groups: list[dict[str, str]] = []
    for pairs in sorted(evaluated, key=lambda pairs: (most_protocols(pairs), -len(pairs))):
        joined = [g for g in groups if any(g.get(task) == protocol for task, protocol in pairs)]
        for task, protocol in pairs:
            if any(group.get(task) == protocol for group in groups):
                continue
            group = next((g for g in joined if task not in g), None)
            if group is None:
                group = {}
                groups.append(group)
                joined.append(group)
            group[task] = protocol
    return groups


def checkpoint_names(records: Mapping[Path, Record]) -> dict[tuple[str, str], str]:
    """Return a name for every (label, hash); the hash is added where several checkpoints share a label."""
    checkpoints = dict.fromkeys(map(checkpoint_key, records.values()))
    labels = [label for label, _ in checkpoints]
    return {
        (label, sha256): label if labels.count(label) == 1 else f"{label} [{sha256[:8]}]"
        for label, sha256 in checkpoints
    }


def group_name(number: int) -> str:
    """Return A to Z, AA, AB, ... for 0, 1, 2, ..."""
    head, tail = divmod(number, 26)
    return (group_name(head - 1) if head else "") + chr(ord("A") + tail)
