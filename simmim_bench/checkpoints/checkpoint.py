"""Define a `Checkpoint` and write checkpoint directories, from which the model can be rebuilt alone.

A checkpoint directory holds `model.safetensors` (weights) and `meta.json` (spec, form, preprocessing,
provenance, hash). A run adds `training.pt` with the state that is needed to resume. No pickle is executed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from simmim_bench.data.pixel_format import PixelFormat, ValueRange, check_statistics
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import (
    cannot_write,
    replacing,
    replacing_directory,
    sha256_file,
    sha256_json,
    sync,
    use_default_mode,
    write_json,
)
from simmim_bench.models.spec import BackboneSpec, Form

StateDict = dict[str, Tensor]

FORMAT_VERSION = 1
# What wrong types, values and shapes of a stranger's file raise where its spec is read or inferred.
FAULTS = (
    *(KeyError, IndexError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, MemoryError, UsageError),
)
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
        mean, std: normalisation of the input, one value per channel, for pixels in [0, 1] or values as stored.
        value_range: what the values of the input are; see `PixelFormat`.
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
    value_range: ValueRange = "uint8"

    def __post_init__(self) -> None:
        check_statistics(self.mean, self.std)

    @property
    def pixel_format(self) -> PixelFormat:
        """What the images are like that the model takes."""
        return PixelFormat(self.spec.in_chans, self.value_range)

    def for_images_of(self, other: Checkpoint) -> Checkpoint:
        """Return this checkpoint of random weights for the images of another one; unchanged for RGB of 8 bits."""
        assert self.is_random
        if other.pixel_format.is_rgb:
            return self
        spec = replace(self.spec, in_chans=other.spec.in_chans)
        return replace(
            self,
            spec=spec,
            sha256=sha256_json({"random": spec.to_json()}),
            mean=other.mean,
            std=other.std,
            value_range=other.value_range,
        )

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
    value_range: ValueRange = "uint8",
) -> None:
    """Write a checkpoint directory atomically, replacing an existing one.

    Args:
        directory: the checkpoint directory.
        mean, std, value_range: normalisation of the input; see `Checkpoint`.
        provenance: must contain "label".
        training: state that `--resume` needs beyond the weights; tensors, numbers and strings only. With
            it, the replaced checkpoint is kept (`previous_checkpoint`), in case the new one is damaged.

    Raises:
        DataError: The directory cannot be written.
    """
    previous = None if training is None else previous_checkpoint(directory)
    try:
        with replacing_directory(directory, previous) as temporary:
            temporary.mkdir()
            weights = temporary / "model.safetensors"
            save_weights(state, weights)
            meta = {
                "format": FORMAT_VERSION,
                "spec": spec.to_json(),
                "form": form,
                "preprocessing": {
                    "mean": mean,
                    "std": std,
                    # Absent from checkpoints of earlier versions.
                    **({} if value_range == "uint8" else {"value_range": value_range}),
                },
                "provenance": provenance,
                "sha256": sha256_file(weights),
            }
            if training is not None:
                save_pickle(training, temporary / "training.pt")
                meta["training_sha256"] = sha256_file(temporary / "training.pt")
            write_json(temporary / "meta.json", meta)
    except (OSError, DataError) as error:
        # The file's own error names the temporary folder.
        reason = error.__cause__ if isinstance(error, DataError) else error
        cause = reason if isinstance(reason, OSError) else error
        raise cannot_write(directory, cause, "checkpoint") from error


def _separate(state: StateDict) -> StateDict:
    """Return contiguous tensors on the CPU, of which no two share memory, as safetensors writes them.

    A network that has one module under two names, as timm's CoaT, has its weights twice.
    """
    separate: StateDict = {}
    storages: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().contiguous().cpu()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return separate


def save_weights(state: StateDict, path: Path) -> None:
    """Write and flush a safetensors file; weights that share memory are written once for each name.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(_separate(state), path)
    except SafetensorError as error:
        raise _system_error(error) from error
    use_default_mode(path)
    sync(path)


def save_pickle(content: Any, path: Path) -> None:
    """Write a file with `torch.save`, atomically.

    Raises:
        DataError: the file cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of file positions, raised after the system's error
            raise (
                _system_error(error) if error.__context__ is None else error.__context__
            ) from error


def _system_error(error: Exception) -> OSError:
    """Convert an error of safetensors' or torch's writer to the system's error that it describes."""
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    if found is not None:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return OSError(errno.EIO, str(error).splitlines()[0])


def keep_checkpoint(directory: Path, name: str) -> None:
    """Keep a checkpoint's weights in a sibling directory, replacing an existing one of that name.

    The files are hard links where the file system supports them: checkpoint files are never modified.

    Raises:
        DataError: The directory cannot be written.
    """
    kept = directory.with_name(name)
    try:
        with replacing_directory(kept) as temporary:
            temporary.mkdir()
            for file in ("model.safetensors", "meta.json"):
                try:
                    os.link(directory / file, temporary / file)
                except OSError:  # a file system without hard links
                    shutil.copyfile(directory / file, temporary / file)
                    sync(temporary / file)
    except OSError as error:
        raise cannot_write(kept, error, "checkpoint") from error


def previous_checkpoint(directory: Path) -> Path:
    """Return the path of the checkpoint that was replaced by the one in `directory`."""
    return directory.with_name("previous" if directory.name == "last" else f".{directory.name}.old")
