"""Check a checkpoint: whether it can be read, what it is, and whether it fits an architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.fit import LoadReport
from simmim_bench.checkpoints.load import check_statistics_fit, fit_state
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.diagnostics.findings import Finding, Severity
from simmim_bench.errors import DataError
from simmim_bench.models.archs import ARCHS, find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec

REPORTED = ("matched", "resized", "missing", "unused")


def _finding(name: str, state: Severity, said: str, **more: Any) -> Finding:
    return Finding(group="checkpoint", name=name, state=state, said=said, **more)


def check_checkpoint(ckpt: str, arch: str | None = None) -> tuple[Checkpoint | None, list[Finding]]:
    """Check the checkpoint that CKPT names.

    Args:
        arch: the architecture that it should fit; None for the checkpoint's own.

    Returns:
        The checkpoint, or None if it cannot be read; and the findings.

    Raises:
        UsageError: an unknown architecture.
    """
    if arch is not None:
        find_spec(arch)
    try:
        checkpoint = read_checkpoint(ckpt)
    except DataError as error:
        return None, [_finding("file", "problem", str(error))]
    uncertain = [_finding("file", "warning", checkpoint.warning)] if checkpoint.warning else []
    try:
        check_statistics_fit(checkpoint)
    except DataError as error:
        uncertain.append(_finding("channels", "problem", str(error)))
    findings = [_describe(checkpoint), *uncertain, *_weights(checkpoint)]
    return checkpoint, [*findings, *_fit(checkpoint, arch)]


def _describe(checkpoint: Checkpoint) -> Finding:
    spec = checkpoint.spec
    size = " x ".join(map(str, spec.img_size))
    window = f", window {spec.window_size}" if spec.window_size else ""
    said = f"{spec.arch} for {size} pixels{window}, {checkpoint.form} form: {checkpoint.label}"
    if not checkpoint.pixel_format.is_rgb:
        said += f"; takes {checkpoint.pixel_format}"
    if isinstance(spec, ExternalSpec):
        said += f"; {_describe_network(spec)}"
    read = checkpoint.provenance.get("read", {})
    if read.get("others"):  # a third-party file with several encoders
        read_from = [f"{k} {read[k]}" for k in ("entry", "prefix") if read[k]]
        said += f"; read from {', '.join(read_from)}, not {', '.join(read['others'])}"
    return _finding(
        "file",
        "ok",
        said,
        facts={
            "label": checkpoint.label,
            "arch": spec.arch,
            "img_size": spec.img_size,
            "window_size": spec.window_size,
            "form": checkpoint.form,
            "method": checkpoint.provenance.get("method"),
            "sha256": checkpoint.sha256,
            "mean": checkpoint.mean,
            "std": checkpoint.std,
            "value_range": checkpoint.value_range,
        },
    )


def _describe_network(spec: ExternalSpec) -> str:
    """Return the maps and the image sizes of a network of other code."""
    levels = ", ".join(
        f"{level.channels} at stride {level.stride}" for level in spec.feature_levels
    )
    sizes = {
        "any": "any size",
        "multiple": f"multiples of {spec.stride} pixels, others padded",
        "fixed": "the size it is built for, smaller ones padded",
    }
    return f"{spec.origin}'s network, maps of {levels or 'no constant stride'}, images of {sizes[spec.sizing]}"


def _weights(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Check that all weights are finite."""
    if checkpoint.state is None:
        yield _finding("weights", "ok", "initialised from a run's seed")
        return
    numbers = {n: t for n, t in checkpoint.state.items() if t.is_floating_point()}
    norms = {name: float(tensor.double().norm()) for name, tensor in numbers.items()}
    broken = [name for name, tensor in numbers.items() if not bool(tensor.isfinite().all())]
    count = sum(tensor.numel() for tensor in numbers.values())
    norm = sum(value**2 for value in norms.values()) ** 0.5
    facts = {"weights": count, "norm": None if broken else norm, "not_finite": broken}
    if broken:
        yield _finding(
            "weights",
            "problem",
            f"{len(broken)} of {len(numbers)} tensors contain a value that is not finite",
            remedy="the training diverged, or the file is damaged; use an earlier checkpoint",
            items=broken,
            facts=facts,
        )
        return
    yield _finding(
        "weights", "ok", f"{count / 1e6:.1f} M weights, all finite, norm {norm:.4g}", facts=facts
    )


def _fit(checkpoint: Checkpoint, arch: str | None) -> Iterator[Finding]:
    """Match the weights with the architecture's, on the meta device."""
    own = checkpoint.spec
    if checkpoint.state is None and arch in (None, own.arch):
        return
    if checkpoint.state is None:
        yield _finding("fit", "problem", f"{checkpoint.name} is a {own.arch}, not a {arch}")
        return
    spec = own if arch in (None, own.arch) else find_spec(arch)
    with shapes_only():
        model = build_backbone(spec)
    fit = fit_state(model, checkpoint)
    facts = {what: getattr(fit.report, what) for what in REPORTED}
    if fit.faults:
        yield _finding(
            "fit",
            "problem",
            f"does not fit {spec.arch}: {_counts(fit.report)}, {len(fit.faults)} faults",
            remedy=f"use --arch {own.arch}, its own architecture" if spec is not own else None,
            items=fit.faults,
            facts=facts,
        )
        return
    yield _finding("fit", "ok", f"{spec.arch}: {fit.report}", facts=facts)
    odd = _differences(own)
    if odd:
        yield _finding(
            "fit",
            "ok",
            f"differs from {own.arch} as defined here, and is built as it is: {', '.join(odd)}",
        )


def _counts(report: LoadReport) -> str:
    return ", ".join(f"{len(getattr(report, what))} {what}" for what in REPORTED)


def _differences(spec: BackboneSpec) -> list[str]:
    """List the fields in which a spec differs from the architecture of that name, except sizes."""
    ours = ARCHS.get(spec.arch)
    if ours is None:
        return []
    own, usual = asdict(spec), asdict(ours)
    sizes = ("img_size", "window_size", "pretrained_windows")
    return [f"{key} {own[key]}" for key in own if own[key] != usual[key] and key not in sizes]
