"""Convert a checkpoint to another format, and verify that the result computes the same features.

The source is a CKPT, optionally resized to another image or window size. The result is a native checkpoint
directory, a folder for `timm.create_model("local-dir:DIR", pretrained=True)`, or, by the writers of
`transfer/export.py`, a file for Detectron2 or MMSegmentation. Every writer loads its result with the target's own
code and compares features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from simmim_bench.checkpoints.channels import adapt_channels, describe_adaptation
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.fit import LoadReport
from simmim_bench.checkpoints.formats import ExportResult, Writer, count_classes
from simmim_bench.checkpoints.load import (
    ENCODER_PREFIX,
    load_state,
    restore_backbone,
)
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import NO_HINTS, Hints
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics
from simmim_bench.data.pixel_format import ValueRange, count_channels
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.files import replacing_directory
from simmim_bench.models.build import build_backbone
from simmim_bench.models.external_spec import ExternalSpec

TOLERANCE = 1e-4  # relative to the features' largest value, in float32


@dataclass(frozen=True)
class Conversion:
    """Report of `convert`; its JSON is the command's output."""

    source: str
    destination: str
    to: str
    arch: str
    method: str
    img_size: tuple[int, int]
    window_size: int
    matched: list[str]
    resized: list[str]
    missing: list[str]
    unused: list[str]
    feature_difference: float
    usage: str = field(default="")
    warning: str = field(default="")
    read: dict[str, Any] = field(default_factory=dict)


def convert(
    source: str,
    destination: Path,
    *,
    write: Writer,
    to: str,
    img_size: tuple[int, int] | None = None,
    window_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    in_chans: int | None = None,
    value_range: ValueRange | None = None,
    label: str | None = None,
    overwrite: bool = False,
    hints: Hints = NO_HINTS,
) -> Conversion:
    """Convert a checkpoint: read, resize, write and compare features.

    Args:
        source: a CKPT with weights.
        destination: the file or folder to write.
        write: writer of the format.
        to: name of the format, for messages.
        img_size, window_size: sizes that position tables are resized to; None keeps the checkpoint's.
        mean, std: normalisation of the input, if the source does not specify it.
        in_chans: channels that the first convolution is adapted to; None for the source's.
        value_range: what the values of the input are; None for the source's.
        label: name of the row in a leaderboard.
        overwrite: replace an existing destination.
        hints: what a third-party source does not show.

    Raises:
        UsageError: The source is `random:ARCH`, the destination exists, or only one of mean and std is given.
        DataError: The source cannot be read or is incomplete, or the destination cannot be written.
        BenchError: The written file computes other features; the file is removed.
    """
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; set both or neither.")
    if (in_chans or value_range) and mean is None:
        raise UsageError(
            "--in-chans and --value-range need the --mean and --std of the images; `simmim-bench data statistics DIR` "
            "computes them."
        )
    if mean and std:
        hints = replace(hints, statistics=PixelStatistics(mean, std))
    checkpoint = _read_source(source, destination, overwrite=overwrite, hints=hints)
    adapted = describe_adaptation(checkpoint, in_chans)
    provenance = {
        **checkpoint.provenance,
        "label": label or ", ".join([checkpoint.label, *adapted.values()]),
        "converted_from": checkpoint.sha256,
        **adapted,
    }
    described = replace(
        checkpoint,
        mean=mean or checkpoint.mean,
        std=std or checkpoint.std,
        value_range=value_range or checkpoint.value_range,
        provenance=provenance,
    )
    channels = in_chans or checkpoint.spec.in_chans
    if mean and len(mean) != channels:
        raise UsageError(
            f"--mean has {len(mean)} values, but the model takes {count_channels(channels)}; use one per channel."
        )
    resized, report = resize(described, img_size, window_size, in_chans)
    result = _write_verified(resized, destination, write=write, to=to, source=source)
    spec = resized.spec
    return Conversion(
        source=source,
        destination=str(destination),
        to=to,
        arch=spec.arch,
        method=str(checkpoint.provenance.get("method", "")),
        img_size=spec.img_size,
        window_size=spec.window_size,
        matched=report.matched,
        resized=report.resized,
        missing=report.missing,
        unused=report.unused,
        feature_difference=result.difference,
        usage=result.usage,
        warning=checkpoint.warning,
        read=checkpoint.provenance.get("read", {}),
    )


def _read_source(source: str, destination: Path, *, overwrite: bool, hints: Hints) -> Checkpoint:
    """Read the checkpoint to convert and check that the destination may be written."""
    if destination.exists() and not overwrite:
        raise UsageError(f"{destination} exists; choose another DST or add --overwrite.")
    checkpoint = read_checkpoint(source, hints)
    if checkpoint.is_random:
        raise UsageError(f"{source} has no weights to convert; use a checkpoint or a weights file.")
    if destination.exists() and destination.resolve() == Path(source).resolve():
        raise UsageError(f"SRC and DST are both {destination}; choose another DST.")
    return checkpoint


def _write_verified(
    checkpoint: Checkpoint, destination: Path, *, write: Writer, to: str, source: str
) -> ExportResult:
    """Write to a temporary path and rename it to the destination if the features are equal."""
    try:
        with replacing_directory(destination) as temporary:
            result = write(checkpoint, temporary)
            if not result.difference <= TOLERANCE:
                raise BenchError(
                    f"the features of {to} differ from those of {source} by {result.difference:.1e} of their "
                    f"largest value; at most {TOLERANCE:.0e} is allowed. Nothing was written. Please report it."
                )
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write {destination}: {error}; free some space or choose another DST."
        ) from error
    return replace(result, usage=result.usage.replace(str(temporary), str(destination)))


def resize(
    checkpoint: Checkpoint,
    img_size: tuple[int, int] | None,
    window_size: int | None,
    in_chans: int | None = None,
) -> tuple[Checkpoint, LoadReport]:
    """Resize a checkpoint's position tables to another (H, W) or window, keeping the form.

    With `in_chans` for another number of channels, the first convolution is adapted as in timm, and a pretraining
    checkpoint becomes one of its encoder, whose head predicts the old channels.

    Raises:
        UsageError: the network takes no other size.
        DataError: the weights do not fit.
    """
    assert checkpoint.state is not None
    if in_chans is not None and in_chans != checkpoint.spec.in_chans:
        classes = count_classes(checkpoint)
        return adapt_channels(checkpoint, img_size, window_size, in_chans, num_classes=classes)
    spec = checkpoint.spec.at(img_size, window_size, trained=True)
    if isinstance(spec, ExternalSpec):
        classes = count_classes(checkpoint)
        restored: Any = restore_backbone(checkpoint, img_size, classes, window_size=window_size)
        return replace(checkpoint, spec=spec, state=restored.state_dict()), restored.load_report
    model = build_backbone(spec, form=checkpoint.form, num_classes=count_classes(checkpoint))
    report = load_state(model, checkpoint)
    prefix = ENCODER_PREFIX if checkpoint.form == "pretrain" else ""
    loaded = model.state_dict()
    outside = {k: v for k, v in checkpoint.state.items() if prefix and not k.startswith(prefix)}
    state = {prefix + k: loaded[k] for k in report.matched + report.resized} | outside
    return replace(checkpoint, spec=spec, state=state), report
