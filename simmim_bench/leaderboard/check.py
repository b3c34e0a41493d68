"""Check that records and leaderboard files are consistent.

Scores are recomputed from the stored predictions; hashes of predictions, recipes and checkpoints are compared;
and tables are rendered again and compared with the files. Each inconsistency is reported as one sentence.

Records may be of other people: files that a record names are hashed, and no checkpoint is loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.files import escape, sha256_file, sha256_json
from simmim_bench.models.archs import ARCHS
from simmim_bench.recipe import MACHINE, Recipe, with_deviations
from simmim_bench.results.metrics import scores_from_predictions
from simmim_bench.results.record import Record, with_masks
from simmim_bench.results.run_files import find_scored_files
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.paths import is_below
from simmim_bench.untrusted.text import describe_error

# Percentage points, or the fraction of a larger value such as an NLL; a recomputed score may differ by rounding.
TOLERANCE, RELATIVE_TOLERANCE = 1e-6, 1e-8


def check_records(
    records: Mapping[Path, Record],
    recipes: Mapping[str, Recipe],
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """Check every record.

    Args:
        records: records by the path of their file.
        recipes: the transfer recipes by name.
        advance: called after each record, such as for a progress bar.

    Returns:
        One sentence per inconsistency, beginning with the record's path; empty if all records are consistent.
    """
    hash_of = functools.cache(_checkpoint_hash)
    problems = []
    for path, record in records.items():
        try:
            found = [
                *_check_scores(path, record),
                *_check_recipe(path, record, recipes),
                *_check_checkpoint(path, record, hash_of),
                *_check_status(record),
            ]
        except Exception as error:  # a record of others must not keep the rest from being checked
            found = [f"the record cannot be checked: {describe_error(error)}."]
        problems += [f"{path}: {problem}" for problem in found]
        advance()
    return problems


def check_files(expected: Mapping[Path, str]) -> list[str]:
    """Compare files with the texts that they should have.

    Returns:
        One sentence for each file that is missing or has another text.
    """
    problems = []
    for path, text in expected.items():
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != escape(text):
            problems.append(
                f"{path} does not match the records; run `simmim-bench leaderboard build`."
            )
    return problems


def _check_scores(path: Path, record: Record) -> list[str]:
    """Recompute the scores from the predictions."""
    try:
        predictions, annotations = find_scored_files(path, record)
        recomputed = scores_from_predictions(
            record.task, predictions, annotations, masks=with_masks(record.details)
        )
    except BenchError as error:
        return [str(error)]
    problems = []
    for metric in sorted({*recomputed, *record.metrics}):
        stated, score = record.metrics.get(metric), recomputed.get(metric)
        # `not <=` rather than `>`, so that a NaN on either side is reported.
        if (
            stated is None
            or score is None
            or not abs(stated - score) <= max(TOLERANCE, RELATIVE_TOLERANCE * score)
        ):
            problems.append(
                f"{metric} is {stated} in the record but {score} when recomputed from the predictions."
            )
    return problems


def _check_recipe(path: Path, record: Record, recipes: Mapping[str, Recipe]) -> list[str]:
    """Compare a record's recipe with the current recipe of that name and with the run's `recipe.json`."""
    name, sha256 = record.recipe["name"], record.recipe["sha256"]
    if name not in recipes:
        return [f"recipe '{name}' is unknown; a recipe with published scores must keep its name."]
    problems = []
    try:
        resolved = with_deviations(recipes[name], record.deviates)
    except (TypeError, UsageError) as error:
        return [f"recipe '{name}' rejects the deviations in the record: {error}"]
    if resolved.sha256() != sha256:
        problems.append(
            f"recipe '{name}' with the record's deviations is not the recipe of the run: hash mismatch."
        )
    elif record.recipe["fields"] and not _has_fields(resolved, record.recipe["fields"]):
        problems.append(f"the fields of recipe '{name}' in the record do not match its hash.")
    description = path.parent / "recipe.json"
    if description.exists() and not _describes_recipe(description, record):
        problems.append(f"{description} describes another recipe than the record.")
    return problems


def _has_fields(recipe: Recipe, stored: Mapping[str, Any]) -> bool:
    """Return whether a record's fields are those of a recipe, but for those that suit the machine.

    A field that was added to the recipe's type since may be missing in the record if the recipe has it at its default,
    which is excluded from the hash, too.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(recipe)}
    fields = {key: value for key, value in recipe.fields().items() if key not in MACHINE}
    stored = {key: value for key, value in stored.items() if key not in MACHINE}
    added = {key: value for key, value in fields.items() if key not in stored}
    kept = {key: value for key, value in fields.items() if key in stored}
    return _with_lists(kept) == stored and all(value == defaults[k] for k, value in added.items())


def _describes_recipe(description: Path, record: Record) -> bool:
    """Return whether a run's `recipe.json` agrees with its record in hash, deviations and fields."""
    recipe = record.recipe
    try:
        if not is_below(description.parent, description):
            return False
        described = read_json(description, "run description", finite=False)
        same = (described["recipe_sha256"], described["deviates"]) == (
            recipe["sha256"],
            record.deviates,
        )
        return same and all(
            described["recipe"].get(key) == value for key, value in recipe["fields"].items()
        )
    except (BenchError, KeyError, TypeError, AttributeError):
        return False


def _with_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a recipe's tuples to JSON's lists."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}


def _check_checkpoint(
    path: Path, record: Record, hash_of: Callable[[str], str | None]
) -> list[str]:
    """Compare the checkpoint's hash with the checkpoint that currently has its name, if one exists.

    An archived record is skipped: its relative checkpoint name has no known base folder.
    """
    if not (path.parent / "env.json").is_file():
        return []
    name, sha256 = record.checkpoint["name"], record.checkpoint["sha256"]
    current = hash_of(name)
    if current is None or current == sha256:
        return []
    return [f"checkpoint {name} has changed since it was transferred: hash mismatch."]


def _checkpoint_hash(name: str) -> str | None:
    """Return the hash of a checkpoint, or an error text that equals no hash; None if it does not exist.

    Files are hashed as `read_checkpoint` does, but not loaded: a record of other people may name any file.
    """
    # timm's and the Hub's weights would have to be downloaded, the code of py: would run, and a large architecture of
    # timm would have to be built. `os.path.exists` is also false for a name that no file can have.
    is_random = name.removeprefix("random:") in ARCHS and name.startswith("random:")
    if name.startswith(("timm:", "hub:", "py:")) or not (is_random or os.path.exists(name)):
        return None
    from simmim_bench.checkpoints.read import read_checkpoint

    try:
        if is_random:
            return read_checkpoint(name).sha256  # has no file
        return _hash_weights(Path(name))
    except (BenchError, OSError) as error:
        return f"damaged: {error}"


def _hash_weights(path: Path) -> str:
    """Hash the weights of a checkpoint directory, a run directory, a model folder or a file."""
    from simmim_bench.checkpoints.read import find_checkpoint_directory, is_model_folder
    from simmim_bench.checkpoints.third_party.folder import INDEX, find_shard, find_weights

    if path.is_dir() and is_model_folder(path):
        path = find_weights(path)
    elif path.is_dir():
        path = find_checkpoint_directory(path) / "model.safetensors"
    if not path.name.endswith(INDEX):
        return _hash_file(path)
    table = read_json(path, "index of weights")
    shards = table.get("weight_map") if isinstance(table, dict) else None
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    return sha256_json({name: _hash_file(find_shard(path, name)) for name in names})


def _hash_file(path: Path) -> str:
    """Hash a file; a pipe or device would not end."""
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    return sha256_file(path)


def _check_status(record: Record) -> list[str]:
    complete = record.evaluated == record.expected
    if (record.status == "reproduced") == complete:
        return []
    return [
        f"status is '{record.status}' with {record.evaluated} of {record.expected} images evaluated."
    ]
