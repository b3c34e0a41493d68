"""Read a CKPT: a checkpoint or run directory, a third-party checkpoint, or `random:`, `timm:`, `hub:` or `py:` a name.

Also reads and recovers the training state that a run resumes from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from simmim_bench.checkpoints.checkpoint import (
    FAULTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Checkpoint,
    previous_checkpoint,
)
from simmim_bench.checkpoints.torch_file import check_weights
from simmim_bench.data.pixel_format import VALUE_RANGES, ValueRange
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.files import remove_directory, sha256_file, sha256_json
from simmim_bench.methods import ListedCheckpoint, find_listed
from simmim_bench.models.archs import ARCHS, find_spec, suggest_arch
from simmim_bench.models.external_spec import ExternalSpec, spec_from_json
from simmim_bench.models.spec import LARGEST_GRID, LARGEST_MAP
from simmim_bench.models.user_network import is_permitted, permit, refuse_unnamed
from simmim_bench.untrusted import text
from simmim_bench.untrusted.json_text import read_json
from simmim_bench.untrusted.tensors import read_safetensors, read_torch

if TYPE_CHECKING:
    from simmim_bench.checkpoints.third_party.hints import Hints


FORMS = ("pretrain", "transfer")
WEIGHTS_SUFFIXES = (".safetensors.index.json", ".safetensors", ".bin", ".pth", ".pt", ".ckpt")


def read_checkpoint(ckpt: str, hints: Hints | None = None) -> Checkpoint:
    """Read the checkpoint that a CKPT argument names.

    Args:
        ckpt: a checkpoint directory, a run directory, a third-party checkpoint (`checkpoints/third_party/`),
            `random:ARCH`, `timm:NAME` or `hub:ORG/NAME[@REVISION]`, which are downloaded, or
            `py:package.module:factory[@CHECKPOINT]`, which runs a function of the user's; CHECKPOINT is a checkpoint
            or run directory with weights of its network.
        hints: what a third-party checkpoint does not show.

    Returns:
        The checkpoint. The provenance of one of `simmim_bench.methods` has the method, data, licence and paper.

    Raises:
        UsageError: The architecture or timm model is unknown, or the hints apply to no such checkpoint.
        DataError: The path does not exist, is not a checkpoint, or is damaged.
    """
    checkpoint = _read_any(ckpt, hints)
    listed = find_listed(ckpt)
    if listed is None or not _fits_listed(checkpoint, listed):
        return checkpoint
    return replace(checkpoint, provenance={**checkpoint.provenance, **listed.provenance()})


def _fits_listed(checkpoint: Checkpoint, listed: ListedCheckpoint) -> bool:
    """Return whether a checkpoint is as large as the listed one, whose path alone could be another file's."""
    if listed.ckpt.startswith("timm:"):
        return True
    from simmim_bench.models.build import build_backbone
    from simmim_bench.models.shapes import shapes_only

    spec = checkpoint.spec
    with shapes_only():
        model = build_backbone(spec)
    params_m = sum(weight.numel() for weight in model.parameters()) / 1e6
    # Patches of 32 instead of 16 pixels change a ViT-B by 2 %, the position tables of a method by 0.3 %.
    return (
        listed.arch.lower().startswith(spec.family)
        and abs(params_m / listed.params_m - 1) < 0.01
        and (spec.family != "vit" or spec.img_size == (listed.img_size, listed.img_size))
    )


def _read_any(ckpt: str, hints: Hints | None) -> Checkpoint:
    """Read a checkpoint; see `read_checkpoint`."""
    if ckpt.startswith(("timm:", "hub:")):
        from simmim_bench.checkpoints.download import check_download

        check_download(ckpt)
    if ckpt.startswith("hub:"):
        from simmim_bench.checkpoints.hub import NATIVE, download, read_downloaded

        folder = download(ckpt)
        if not (folder / NATIVE / "meta.json").is_file():
            return read_downloaded(ckpt, folder, hints)
        _refuse_hints(ckpt, hints)
        pushed = _read_directory(folder / NATIVE, ckpt)
        return replace(pushed, provenance={**pushed.provenance, "revision": folder.name})
    path = Path(ckpt)
    named = ckpt.startswith(("random:", "timm:", "py:"))
    third_party = not named and (path.is_file() or is_model_folder(path))
    if not third_party:
        _refuse_hints(ckpt, hints)
    if ckpt.startswith("random:"):
        return _random_checkpoint(ckpt)
    if ckpt.startswith("py:"):
        return _read_python(ckpt)
    # Imported here: these modules import timm and every model, which other checkpoints do not need.
    from simmim_bench.checkpoints.third_party.hints import NO_HINTS
    from simmim_bench.checkpoints.third_party.read import read_third_party
    from simmim_bench.checkpoints.third_party.timm import read_timm

    if ckpt.startswith("timm:"):
        return read_timm(ckpt)
    if third_party:
        return read_third_party(path, hints or NO_HINTS)
    return _read_directory(find_checkpoint_directory(path), ckpt)


def _refuse_hints(ckpt: str, hints: Hints | None) -> None:
    """Check that there are no hints for a checkpoint that is no third-party one.

    Raises:
        UsageError: there are.
    """
    if hints is not None and hints.options():
        raise UsageError(
            f"{hints.options()[0]} applies to a third-party weights file, which {ckpt} is not; remove it."
        )


def is_model_folder(path: Path) -> bool:
    """Return whether a path is a folder of timm or transformers, rather than a checkpoint of simmim-bench."""
    return (path / "config.json").is_file() and not (path / "meta.json").is_file()


def checkpoint_path(ckpt: str) -> Path:
    """Return the path that a CKPT of the command names; of `py:package.module:factory@CHECKPOINT`, that of CHECKPOINT.

    The function may run afterwards, because the command names it: do not pass what a file names.
    """
    if not ckpt.startswith("py:") or "@" not in ckpt:
        return Path(ckpt)
    named, path = _split_python(ckpt)
    permit(named.removeprefix("py:"))
    return Path(path)


def _split_python(ckpt: str) -> tuple[str, str]:
    """Split `py:package.module:factory[@CHECKPOINT]` at "@"; CHECKPOINT is empty if there is none.

    Raises:
        UsageError: nothing follows "@".
    """
    named, at, directory = ckpt.partition("@")
    if at and not directory:
        raise UsageError(
            f"{ckpt} names no checkpoint after @; use {named}, or {named}@CHECKPOINT with a checkpoint or run "
            "directory."
        )
    return named, directory


def read_recorded(name: str, holder: Path) -> Checkpoint:
    """Read the checkpoint that a file names, such as a record, which may be a stranger's.

    Args:
        name: a CKPT; a function that it names runs only if the command names it, too.
        holder: the run of the file, for messages.

    Raises:
        DataError: the checkpoint cannot be read.
    """
    if name.startswith("py:"):
        source = name.removeprefix("py:").partition("@")[0]
        if not is_permitted(source):
            raise refuse_unnamed(source, str(holder))
    return read_checkpoint(name)


def _random_checkpoint(ckpt: str) -> Checkpoint:
    """Return the checkpoint of `random:ARCH`, which has no weights; ARCH is one of ours or of timm's."""
    arch = ckpt.removeprefix("random:")
    if arch not in ARCHS and is_timm_arch(arch.removeprefix("timm.")):
        from simmim_bench.checkpoints.third_party.external import random_timm

        return random_timm(ckpt, arch.removeprefix("timm."))
    if arch not in ARCHS:
        import timm

        suggested = suggest_arch(arch)
        hint = (
            f"did you mean '{suggested}'?"
            if suggested
            else nearest(arch, [*ARCHS, *timm.list_models()])[:300]
        )
        raise UsageError(f"unknown arch '{arch}'; {hint}")
    spec = find_spec(arch)
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


def _read_python(ckpt: str) -> Checkpoint:
    """Read `py:package.module:factory[@CHECKPOINT]`; CHECKPOINT is a directory with weights of the function's network.

    Raises:
        UsageError: see `read_python`.
        DataError: the checkpoint is of another network.
    """
    from simmim_bench.checkpoints.third_party.user_code import read_python

    named, directory = _split_python(ckpt)
    source = named.removeprefix("py:")
    permit(source)
    if not directory:
        return read_python(ckpt)
    path = Path(directory)
    if path.is_file() or is_model_folder(path):
        raise UsageError(
            f"{directory} is no checkpoint or run directory; load other weights in the function: --ckpt {named}."
        )
    checkpoint = _read_directory(find_checkpoint_directory(path), ckpt)
    spec = checkpoint.spec
    if not isinstance(spec, ExternalSpec) or (spec.family, spec.source) != ("python", source):
        raise DataError(f"{directory} does not hold weights of {named}; use --ckpt {directory}.")
    return checkpoint


def is_timm_arch(name: str) -> bool:
    """Return whether timm has an architecture of this name."""
    import timm

    return bool(timm.is_model(name))


def _read_directory(directory: Path, ckpt: str) -> Checkpoint:
    """Read a checkpoint directory and verify the hash of its weights."""
    meta = read_json(directory / "meta.json", "checkpoint file", finite=False)
    weights = directory / "model.safetensors"
    try:
        with open(weights, "rb") as file:
            check_weights(weights, file.read(64))
        if sha256_file(weights) != meta["sha256"]:
            raise DataError(
                f"checkpoint {weights} is damaged: its SHA-256 differs from the one in meta.json; use another copy."
            )
        state, _ = read_safetensors(weights)
        if meta["form"] not in FORMS:
            raise ValueError(f"form is {ascii(meta['form'])[:80]}")
        checkpoint = Checkpoint(
            name=ckpt,
            spec=spec_from_json(meta["spec"]),
            form=meta["form"],
            state=state,
            sha256=meta["sha256"],
            mean=tuple(meta["preprocessing"]["mean"]),
            std=tuple(meta["preprocessing"]["std"]),
            value_range=_value_range(meta["preprocessing"]),
            provenance={**meta["provenance"], "label": str(meta["provenance"]["label"])},
        )
        _check_sizes(checkpoint)
    except OSError as error:
        raise DataError(
            f"checkpoint {weights} cannot be read: {error}; use another copy."
        ) from error
    except FAULTS as error:
        raise DataError(
            f"checkpoint file {directory / 'meta.json'} is damaged or was not written by simmim-bench "
            f"({text.describe_error(error)}); use another copy."
        ) from error
    spec = checkpoint.spec
    if isinstance(spec, ExternalSpec) and spec.family == "python" and not is_permitted(spec.source):
        raise refuse_unnamed(spec.source, str(directory))
    return checkpoint


def _value_range(preprocessing: dict[str, Any]) -> ValueRange:
    """Return the value range of the input; checkpoints of earlier versions do not have it.

    Raises:
        ValueError: it is not known.
    """
    value = preprocessing.get("value_range", "uint8")
    if value not in VALUE_RANGES:
        raise ValueError(f"value_range is {ascii(value)[:80]}")
    known: ValueRange = value
    return known


def _check_sizes(checkpoint: Checkpoint) -> None:
    """Check that the sizes of a checkpoint are those of its weights, before anything is built from them.

    Raises:
        ValueError: they are not.
    """
    spec, state = checkpoint.spec, checkpoint.state or {}
    if isinstance(spec, ExternalSpec):
        if spec.family == "timm":
            from simmim_bench.checkpoints.third_party.timm import check_network

            try:
                check_network(spec, state)
            except DataError as error:  # which names no file
                raise ValueError(str(error).rpartition(";")[0]) from error
        return
    if spec.num_blocks > len(state):
        raise ValueError(f"its {len(state):,} weights are not those of {spec.num_blocks:,} blocks")
    if not any(spec.num_features in value.shape for value in state.values()):
        raise ValueError(f"no weight has its {spec.num_features:,} features")
    sides = spec.grid if spec.rel_pos_bias and spec.family == "vit" else spec.stage_windows[0]
    if not spec.is_convolutional and max(sides) > LARGEST_GRID:
        raise ValueError(f"a position table of {max(sides):,} tokens on a side")
    if max(spec.grid) > LARGEST_MAP:
        raise ValueError(f"a map of {max(spec.grid):,} tokens on a side")


def find_checkpoint_directory(path: Path) -> Path:
    """Find the checkpoint directory of a path: the path itself, or the last checkpoint of a run directory."""
    if not path.exists():
        raise DataError(
            f"checkpoint {path} does not exist; use a checkpoint or run directory, a weights file, "
            "random:ARCH, timm:NAME, hub:ORG/NAME or py:package.module:factory."
        )
    # While a run replaces checkpoints/last, for a moment only checkpoints/previous exists.
    for directory in (path, path / "checkpoints" / "last", path / "checkpoints" / "previous"):
        if (directory / "meta.json").is_file():
            return directory
    files = sorted(f for s in WEIGHTS_SUFFIXES for f in path.glob(f"*{s}"))
    use = f"pass the file, such as {files[0]}" if files else "use a checkpoint or run directory"
    raise DataError(
        f"{path} holds no checkpoint: neither meta.json nor checkpoints/last/meta.json exists; {use}."
    )


def recover_checkpoint(directory: Path) -> str | None:
    """Restore the previous checkpoint if the last one is missing or damaged, as after a kill or a disk error.

    Returns:
        A log message; None if nothing was done.
    """
    problem = None
    if not directory.exists():
        problem = "does not exist"
    else:
        try:
            read_checkpoint(str(directory))
            if (directory / "training.pt").exists():
                read_training_state(directory)
        except DataError as error:
            problem = f"is damaged ({error})"
    previous = previous_checkpoint(directory)
    if problem is None or not previous.is_dir():
        return None
    remove_directory(directory)
    previous.rename(directory)
    return f"{directory} {problem}; restored the previous checkpoint"


def read_training_state(directory: Path, *, resuming: bool = True) -> dict[str, Any]:
    """Read the training state, `training.pt`, that a run resumes from.

    Args:
        resuming: False to read a run that may be a stranger's, without the state of its optimizer.

    Raises:
        DataError: The checkpoint has no training state, or the state is damaged.
    """
    path = directory / "training.pt"
    if not path.is_file():
        raise DataError(
            f"{directory} cannot be resumed: it has no training.pt; start a new run with another --out."
        )
    try:
        wanted = read_json(directory / "meta.json", "checkpoint file", finite=False).get(
            "training_sha256"
        )
        if wanted is not None and sha256_file(path) != wanted:
            raise DataError(
                f"{path} is damaged: its SHA-256 differs from the one in meta.json; start a new run with "
                "another --out."
            )
        if not resuming:
            state = read_torch(path)
            if not isinstance(state, dict):
                raise DataError(f"{path} holds no training state; use another run.")
            return state
        resumed: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch.load raises many types for a damaged archive
        raise DataError(
            f"{path} is damaged ({type(error).__name__}); start a new run with another --out."
        ) from error
    return resumed
