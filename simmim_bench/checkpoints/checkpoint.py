"""Define a `Checkpoint` and write checkpoint directories, from which the model can be rebuilt alone.

A checkpoint directory holds `model.safetensors` (weights) and `meta.json` (spec, form, preprocessing,
provenance, hash). A run adds `training.pt` with the state that is needed to resume. No pickle is executed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from simmim_bench.errors import DataError
from simmim_bench.files import replacing, sha256_file, use_default_mode, write_json
from simmim_bench.models.archs import BackboneSpec, Form

StateDict = dict[str, Tensor]

FORMAT_VERSION = 1
FULL_DISK_BYTES = 1 << 20  # with less free space, a failed write means that the disk is full
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's and SimMIM's (data/data_simmim.py)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A backbone's weights, spec, preprocessing and provenance.

    Attributes:
        name: the CKPT argument of the user.
        spec: architecture of the weights.
        form: "pretrain" (SimMIM model: encoder, mask token, head) or "transfer" (backbone).
        state: weights by name; None for `random:ARCH`, whose weights are initialised from a seed.
        sha256: hash of the weights file, or of the spec for `random:ARCH`.
        mean, std: normalisation of the input, for pixels in [0, 1], one value per channel.
        provenance: label, method, recipe, data, epochs and losses of the run that trained the weights.
        unread: names of entries of a third-party file that the model does not have.
        warning: what a third-party file leaves open, such as its preprocessing, and how to settle it; else empty.
    """

    name: str
    spec: BackboneSpec
    form: Form
    state: StateDict | None
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: dict[str, Any]
    unread: tuple[str, ...] = ()
    warning: str = ""

    @property
    def label(self) -> str:
        """Name of the checkpoint's row in a leaderboard."""
        return str(self.provenance["label"])

    @property
    def is_random(self) -> bool:
        """Whether the checkpoint is `random:ARCH`, without trained weights."""
        return self.state is None


def write_checkpoint(
    directory: Path,
    *,
    state: StateDict,
    spec: BackboneSpec,
    form: Form,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    provenance: dict[str, Any],
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory atomically, replacing an existing one.

    Args:
        directory: the checkpoint directory.
        mean, std: normalisation of the input, for pixels in [0, 1], one value per channel.
        provenance: must contain "label".
        training: state that `--resume` needs beyond the weights; tensors, numbers and strings only. With
            it, the replaced checkpoint is kept (`previous_checkpoint`), in case the new one is damaged.

    Raises:
        DataError: The directory cannot be written.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = temporary / "model.safetensors"
        save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, weights)
        use_default_mode(weights)
        meta = {
            "format": FORMAT_VERSION,
            "spec": spec.to_json(),
            "form": form,
            "preprocessing": {"mean": mean, "std": std},
            "provenance": provenance,
            "sha256": sha256_file(weights),
        }
        if training is not None:
            with replacing(temporary / "training.pt") as path:
                torch.save(training, path)
            meta["training_sha256"] = sha256_file(temporary / "training.pt")
        write_json(temporary / "meta.json", meta)
        if directory.exists():
            previous = previous_checkpoint(directory)
            shutil.rmtree(previous, ignore_errors=True)
            directory.rename(previous)
        temporary.rename(directory)
        if training is None:
            shutil.rmtree(previous_checkpoint(directory), ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        # On a full disk, torch.save raises a RuntimeError that mentions only file positions.
        full = temporary.exists() and shutil.disk_usage(temporary).free < FULL_DISK_BYTES
        raise DataError(
            f"cannot write checkpoint {directory}: {'No space left on device' if full else error}; free some "
            "space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def keep_checkpoint(directory: Path, name: str) -> None:
    """Keep a checkpoint's weights in a sibling directory, replacing an existing one of that name.

    The files are hard links where the file system supports them: checkpoint files are never modified.

    Raises:
        DataError: The directory cannot be written.
    """
    kept, temporary = directory.with_name(name), directory.with_name(f".{name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for file in ("model.safetensors", "meta.json"):
            try:
                os.link(directory / file, temporary / file)
            except OSError:  # a file system without hard links
                shutil.copyfile(directory / file, temporary / file)
        shutil.rmtree(kept, ignore_errors=True)
        temporary.rename(kept)
    except OSError as error:
        raise DataError(f"cannot write checkpoint {kept}: {error}; free some space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def previous_checkpoint(directory: Path) -> Path:
    """Return the path of the checkpoint that was replaced by the one in `directory`."""
    return directory.with_name("previous" if directory.name == "last" else f".{directory.name}.old")
