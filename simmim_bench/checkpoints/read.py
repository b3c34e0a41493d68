"""Read what CKPT names: a checkpoint directory, a run, a third-party file, `random:ARCH` or `timm:NAME`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint, _previous
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import read_json, sha256_file, sha256_json
from simmim_bench.models.archs import BackboneSpec, find_spec


def read_checkpoint(ckpt: str) -> Checkpoint:
    """Read what CKPT names.

    Args:
        ckpt: a checkpoint directory, a run directory, a foreign file (`foreign.py` says which),
            `random:ARCH`, or `timm:NAME`, which timm downloads.

    Raises:
        UsageError: an unknown arch.
        DataError: a path that is not there, is not a checkpoint, or is damaged.
    """
    if ckpt.startswith("random:"):
        spec = find_spec(ckpt.removeprefix("random:"))
        return Checkpoint(
            name=ckpt,
            spec=spec,
            form="transfer",
            state=None,
            sha256=sha256_json({"random": spec.to_json()}),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            provenance={"label": f"{spec.arch}, random", "method": "random"},
        )
    # A foreign file is recognised by building the model that it seems to be for.
    from simmim_bench.checkpoints.foreign.read import read_foreign
    from simmim_bench.checkpoints.foreign.timm import read_timm

    if ckpt.startswith("timm:"):
        return read_timm(ckpt)
    path = Path(ckpt)
    if path.is_file() or (path / "config.json").is_file():
        return read_foreign(path)
    directory = _find_directory(path)
    meta = read_json(directory / "meta.json", "checkpoint file")
    weights = directory / "model.safetensors"
    try:
        if sha256_file(weights) != meta["sha256"]:
            raise DataError(
                f"checkpoint {weights} is damaged: its hash is not the one in meta.json; use another copy."
            )
        state = load_file(weights)
        return Checkpoint(
            name=ckpt,
            spec=BackboneSpec.from_json(meta["spec"]),
            form=meta["form"],
            state=state,
            sha256=meta["sha256"],
            mean=tuple(meta["preprocessing"]["mean"]),
            std=tuple(meta["preprocessing"]["std"]),
            provenance={**meta["provenance"], "label": str(meta["provenance"]["label"])},
        )
    except (OSError, SafetensorError) as error:
        raise DataError(f"checkpoint {weights} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError, UsageError) as error:
        raise DataError(
            f"checkpoint file {directory / 'meta.json'} is damaged or not simmim-bench's "
            f"({type(error).__name__}: {error}); use another copy."
        ) from error


def _find_directory(path: Path) -> Path:
    """Find the checkpoint directory that a path means: itself, or a run directory's last one."""
    if not path.exists():
        raise DataError(
            f"checkpoint {path} is not there; give a checkpoint or run directory, a weights file, "
            "random:ARCH or timm:NAME."
        )
    # The one before the last is there alone for the moment in which they change places.
    for directory in (path, path / "checkpoints" / "last", path / "checkpoints" / "previous"):
        if (directory / "meta.json").is_file():
            return directory
    raise DataError(
        f"{path} holds no checkpoint: neither meta.json nor checkpoints/last/meta.json is there."
    )


def recover(directory: Path) -> str | None:
    """Put the checkpoint before the last in its place where a kill or a bad disk took the last.

    Returns:
        What was done, for the log; None for nothing.
    """
    problem = None
    if not directory.exists():
        problem = "is not there"
    else:
        try:
            read_checkpoint(str(directory))
            if (directory / "training.pt").exists():
                read_training_state(directory)
        except DataError as error:
            problem = f"is damaged ({error})"
    previous = _previous(directory)
    if problem is None or not previous.is_dir():
        return None
    shutil.rmtree(directory, ignore_errors=True)
    previous.rename(directory)
    return f"{directory} {problem}; the checkpoint before it takes its place"


def read_training_state(directory: Path) -> dict[str, Any]:
    """Read what a run saved beside its weights to go on from.

    Raises:
        DataError: the checkpoint has none, or it is damaged.
    """
    path = directory / "training.pt"
    if not path.is_file():
        raise DataError(
            f"{directory} cannot be resumed: it has no training.pt; start anew with another --out."
        )
    try:
        wanted = read_json(directory / "meta.json", "checkpoint file").get("training_sha256")
        if wanted is not None and sha256_file(path) != wanted:
            raise DataError(f"{path} is damaged: its hash is not the one in meta.json.")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch.load raises whatever the damaged archive makes it raise
        raise DataError(
            f"{path} is damaged ({type(error).__name__}); start anew with another --out."
        ) from error
    return state
