"""The classifier that a task fits on a frozen backbone, kept in the run for images other than those it was scored on.

`classifier/` in the run directory holds `head.safetensors`, the fitted tensors, and `classifier.json`: the kind of
classifier, the settings that build it, the names of the classes, and the hash of the tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, save_weights
from simmim_bench.checkpoints.read import read_recorded
from simmim_bench.errors import DataError
from simmim_bench.files import cannot_write, replacing_directory, sha256_file, write_json
from simmim_bench.results.record import Record
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.tensors import read_safetensors

FOLDER = "classifier"  # in the run directory
KEYS = {"kind": str, "settings": dict, "classes": list, "sha256": str}

# Builders by kind: `(FittedClassifier, Checkpoint) -> nn.Module`. The module maps normalised images (B, 3, H, W) to
# logits (B, K), backbone included.
BUILDERS: dict[str, str] = {
    "attentive": "transfer.attentive.classifier:build_classifier",
    "linear": "transfer.frozen.fitted_linear:build_linear",
}


@dataclass(frozen=True, kw_only=True)
class FittedClassifier:
    """A classifier without its backbone.

    Attributes:
        kind: key of `BUILDERS`.
        settings: all that is needed to build the classifier besides the checkpoint and the tensors, such as the feature
            set, the norm and the image size; plain JSON.
        state: the fitted tensors by name.
        classes: names of the classes in the order of the logits.
    """

    kind: str
    settings: Mapping[str, Any]
    state: Mapping[str, Tensor]
    classes: tuple[str, ...]


def write_fitted(run: Path, fitted: FittedClassifier) -> None:
    """Write a fitted classifier into a run directory.

    Raises:
        DataError: the directory cannot be written.
    """
    folder = run / FOLDER
    try:
        with replacing_directory(folder) as temporary:
            temporary.mkdir()
            tensors = temporary / "head.safetensors"
            save_weights(
                {k: v.detach().contiguous().cpu() for k, v in fitted.state.items()}, tensors
            )
            description = {
                "kind": fitted.kind,
                "settings": dict(fitted.settings),
                "classes": list(fitted.classes),
                "sha256": sha256_file(tensors),
            }
            write_json(temporary / "classifier.json", description)
    except OSError as error:
        raise cannot_write(folder, error, "classifier") from error


def read_fitted(run: Path) -> FittedClassifier:
    """Read the fitted classifier of a run directory.

    Raises:
        DataError: the run keeps none, or it is damaged.
    """
    folder = run / FOLDER
    if not (folder / "classifier.json").is_file():
        raise DataError(
            f"{run} keeps no fitted classifier; use a run of `simmim-bench transfer` linear, attentive or fewshot, "
            "and repeat one of an older version with --overwrite."
        )
    description = read_json(folder / "classifier.json", "classifier")
    if not isinstance(description, dict) or any(
        not isinstance(description.get(key), kind) for key, kind in KEYS.items()
    ):
        raise DataError(f"classifier {folder / 'classifier.json'} is damaged; run its task again.")
    tensors = folder / "head.safetensors"
    state, _ = read_safetensors(tensors)
    if sha256_file(tensors) != description["sha256"]:
        raise DataError(f"{tensors} differs from its hash in classifier.json; run its task again.")
    return FittedClassifier(
        kind=description["kind"],
        settings=description["settings"],
        state=state,
        classes=tuple(map(str, description["classes"])),
    )


def read_backbone(run: Path, record: Record) -> Checkpoint:
    """Read the checkpoint that the classifier of a run was fitted on.

    Raises:
        DataError: the checkpoint cannot be read, or has changed since.
    """
    checkpoint = read_recorded(record.checkpoint["name"], run)
    if checkpoint.sha256 != record.checkpoint["sha256"]:
        raise DataError(
            f"checkpoint {checkpoint.name} has changed since {run} was fitted on it: hash mismatch; run the task "
            "again."
        )
    return checkpoint


def build_fitted(fitted: FittedClassifier, checkpoint: Checkpoint) -> nn.Module:
    """Build the module from normalised images (B, 3, H, W) to logits (B, K) of a fitted classifier and its backbone.

    Raises:
        DataError: the kind of classifier is unknown, or the checkpoint does not fit.
    """
    if fitted.kind not in BUILDERS:
        raise DataError(
            f"a classifier of the kind '{fitted.kind}' is unknown to this version of simmim-bench; use "
            "the version that fitted it."
        )
    module, _, name = BUILDERS[fitted.kind].partition(":")
    build: Callable[[FittedClassifier, Checkpoint], nn.Module]
    build = getattr(importlib.import_module(module), name)
    return build(fitted, checkpoint)
