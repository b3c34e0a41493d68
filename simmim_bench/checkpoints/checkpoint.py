"""Checkpoints: a directory from which the model rebuilds alone, and what CKPT can mean.

In: a path, `random:ARCH` or `timm:NAME`. Out: a `Checkpoint`: spec, form, weights and where they come from.
On disk: `model.safetensors` (weights) and `meta.json` (spec, form, preprocessing, provenance, hash);
a run adds `training.pt` with what is needed to go on. No pickle is ever executed.
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
from simmim_bench.files import replacing, sha256_file, write_json
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.vit import Form

FULL = 1 << 20  # bytes left, or fewer, on a disk that has just refused to take more
FORMAT = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's and SimMIM's (data/data_simmim.py)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A backbone's weights with all that is known of them.

    Attributes:
        name: as the user gave it.
        spec: the architecture they fit.
        form: "pretrain" (SimMIM model: encoder, mask token, head) or "transfer" (backbone).
        state: the weights by name; None for `random:ARCH`, whose weights a seed draws.
        sha256: hash of the weights file, or of the spec for `random:ARCH`.
        mean, std: the normalisation the weights expect, for pixels in [0, 1], a value a channel.
        provenance: recipe, data, epochs and losses of the run that made them.
        unread: entries of a foreign file that have no place in the model, by their names there.
    """

    name: str
    spec: BackboneSpec
    form: Form
    state: dict[str, Tensor] | None
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: dict[str, Any]
    unread: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The row's name in a leaderboard."""
        return str(self.provenance["label"])

    @property
    def is_random(self) -> bool:
        """Whether these are the weights of no training at all."""
        return self.state is None


def write_checkpoint(
    directory: Path,
    *,
    state: dict[str, Tensor],
    spec: BackboneSpec,
    form: Form,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    provenance: dict[str, Any],
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory whole or not at all; an older one of that name is replaced.

    Args:
        training: what `--resume` needs beyond the weights: tensors, numbers and texts only.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = temporary / "model.safetensors"
        save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, weights)
        meta = {
            "format": FORMAT,
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
            previous = _previous(directory)
            shutil.rmtree(previous, ignore_errors=True)
            directory.rename(previous)
        temporary.rename(directory)
        if training is None:
            shutil.rmtree(_previous(directory), ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save's is a RuntimeError about positions in a file.
        full = temporary.exists() and shutil.disk_usage(temporary).free < FULL
        raise DataError(
            f"cannot write checkpoint {directory}: {'No space left on device' if full else error}; free some "
            "space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def keep_checkpoint(directory: Path, name: str) -> None:
    """Keep a checkpoint's weights beside it under another name; an older one of that name is replaced.

    The files are shared, not copied, where the file system can: nobody writes into a checkpoint.
    """
    kept, temporary = directory.with_name(name), directory.with_name(f".{name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for file in ("model.safetensors", "meta.json"):
            try:
                os.link(directory / file, temporary / file)
            except OSError:  # a file system without links
                shutil.copyfile(directory / file, temporary / file)
        shutil.rmtree(kept, ignore_errors=True)
        temporary.rename(kept)
    except OSError as error:
        raise DataError(f"cannot write checkpoint {kept}: {error}; free some space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _previous(directory: Path) -> Path:
    """Say where the checkpoint before this one lies; a run keeps it, should the last be damaged."""
    return directory.with_name("previous" if directory.name == "last" else f".{directory.name}.old")
