"""Does a leaderboard still say what was measured? Every score again, every hash, every table.

In: records, the recipes that the program knows, folders with tables. Out: a sentence for each thing that
does not hold; none where all does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simmim_bench.errors import BenchError, UsageError
from simmim_bench.files import read_json, sha256_file
from simmim_bench.leaderboard.archive import find_annotations
from simmim_bench.recipe import Recipe
from simmim_bench.results.metrics import scores_from_predictions
from simmim_bench.results.record import Record, with_masks

TOLERANCE = 1e-6  # percent: a recomputed score may differ by rounding alone


def check_records(
    records: Mapping[Path, Record],
    recipes: Mapping[str, Recipe],
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Check all records; say what does not hold, each with the record's name.

    Args:
        recipes: the named recipes of the transfers.
        advance: called after each.
    """
    hash_of = functools.cache(_hash_of_checkpoint)
    problems = []
    for path, record in records.items():
        found = [
            *_scores(path, record),
            *_recipe(path, record, recipes),
            *_checkpoint(path, record, hash_of),
            *_status(record),
        ]
        problems += [f"{path}: {problem}" for problem in found]
        advance()
    return problems


def _scores(path: Path, record: Record) -> list[str]:
    """Compute the scores again from the predictions."""
    predictions = path.parent / record.predictions["file"]
    if not predictions.is_file():
        return [f"predictions {predictions} are not there."]
    if sha256_file(predictions) != record.predictions["sha256"]:
        return [f"predictions {predictions} are not the ones that were scored."]
    annotations = find_annotations(path, record)
    if "annotations" in record.data and annotations is None:
        return [
            f"the annotations that were scored against are not there, or are others: "
            f"{record.data['annotations']}."
        ]
    try:
        again = scores_from_predictions(
            record.task, predictions, annotations, masks=with_masks(record.details)
        )
    except BenchError as error:
        return [str(error)]
    problems = []
    for metric in sorted({*again, *record.metrics}):
        stated, found = record.metrics.get(metric), again.get(metric)
        # Written so that a NaN on either side does not pass.
        if stated is None or found is None or not abs(stated - found) <= TOLERANCE:
            problems.append(f"{metric} is {stated} in the record, {found} from the predictions.")
    return problems


def _recipe(path: Path, record: Record, recipes: Mapping[str, Recipe]) -> list[str]:
    """Compare the protocol with what its name stands for now, and with what the run was described by."""
    name, sha256 = record.recipe["name"], record.recipe["sha256"]
    if name not in recipes:
        return [f"recipe '{name}' is not known; a recipe that has scored keeps its name."]
    problems = []
    try:
        resolved = dataclasses.replace(recipes[name], **_as_fields(record.deviates))
    except (TypeError, UsageError) as error:
        return [f"recipe '{name}' does not take what the record says of it ({error})."]
    if resolved.sha256() != sha256:
        problems.append(f"recipe '{name}' with what deviates is not what was run: another hash.")
    elif record.recipe["fields"] and _plain(resolved.fields()) != record.recipe["fields"]:
        problems.append(f"the fields of recipe '{name}' in the record are not those of its hash.")
    description = path.parent / "recipe.json"
    if description.is_file():
        try:
            described = read_json(description, "run description")
            same = (described["recipe_sha256"], described["deviates"]) == (sha256, record.deviates)
            same = same and all(
                described["recipe"].get(key) == value
                for key, value in record.recipe["fields"].items()
            )
        except (BenchError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            problems.append(f"{description} describes another recipe.")
    return problems


def _as_fields(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Give JSON's lists as the tuples that recipes have."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give a recipe's tuples as JSON's lists."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def _checkpoint(path: Path, record: Record, hash_of: Callable[[str], str | None]) -> list[str]:
    """Compare the checkpoint with what is now under its name; one that is gone cannot be.

    Of a record that was kept elsewhere than in its run, nobody knows from which folder the name counts.
    """
    if not (path.parent / "env.json").is_file():
        return []
    name, sha256 = record.checkpoint["name"], record.checkpoint["sha256"]
    found = hash_of(name)
    if found is None or found == sha256:
        return []
    return [f"checkpoint {name} is another than the one that was transferred: its hash differs."]


def _hash_of_checkpoint(name: str) -> str | None:
    from simmim_bench.checkpoints.read import read_checkpoint

    # What timm offers would have to be downloaded.
    if name.startswith("timm:") or not (name.startswith("random:") or Path(name).exists()):
        return None
    try:
        return read_checkpoint(name).sha256
    except BenchError as error:
        return f"damaged: {error}"


def _status(record: Record) -> list[str]:
    whole = record.evaluated == record.expected
    if (record.status == "reproduced") == whole:
        return []
    return [
        f"status is '{record.status}' with {record.evaluated} of {record.expected} images evaluated."
    ]


def check_files(wanted: Mapping[Path, str]) -> list[str]:
    """Compare texts with what is on disk; say which file is missing or differs."""
    problems = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            problems.append(
                f"{path} is not what the records give; run `simmim-bench leaderboard build`."
            )
    return problems
