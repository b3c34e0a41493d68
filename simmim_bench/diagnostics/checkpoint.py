"""Look at a checkpoint before a run does: can it be read, what is it, does it fit an architecture.

In: a CKPT, and perhaps the name of an architecture. Out: findings; and the checkpoint, where it can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import LoadReport, fit_state
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.diagnostics.findings import Finding, Severity
from simmim_bench.errors import DataError
from simmim_bench.models.archs import ARCHS, BackboneSpec, find_spec
from simmim_bench.models.build import build_backbone

REPORTED = ("matched", "resized", "missing", "unused")


def _finding(name: str, state: Severity, said: str, **more: Any) -> Finding:
    return Finding(group="checkpoint", name=name, state=state, said=said, **more)


def examine_checkpoint(
    ckpt: str, arch: str | None = None
) -> tuple[Checkpoint | None, list[Finding]]:
    """Look at what CKPT names.

    Args:
        arch: that it should fit; None for the one that it says it is of.

    Raises:
        UsageError: an unknown arch.
    """
    if arch is not None:
        find_spec(arch)
    try:
        checkpoint = read_checkpoint(ckpt)
    except DataError as error:
        return None, [_finding("file", "problem", str(error))]
    return checkpoint, [_what(checkpoint), *_weights(checkpoint), *_fit(checkpoint, arch)]


def _what(checkpoint: Checkpoint) -> Finding:
    spec = checkpoint.spec
    size = " x ".join(map(str, spec.img_size))
    window = f", window {spec.window_size}" if spec.window_size else ""
    said = f"{spec.arch} for {size} pixels{window}, {checkpoint.form} form: {checkpoint.label}"
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
        },
    )


def _weights(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Look at the numbers themselves."""
    if checkpoint.state is None:
        yield _finding("weights", "ok", "drawn from the seed of a run")
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
            f"{len(broken)} of {len(numbers)} tensors have a number that is not finite",
            remedy="the training that made it diverged, or the file is damaged; use an earlier checkpoint",
            items=broken,
            facts=facts,
        )
        return
    yield _finding(
        "weights", "ok", f"{count / 1e6:.1f} M numbers, all finite, of norm {norm:.4g}", facts=facts
    )


def _fit(checkpoint: Checkpoint, arch: str | None) -> Iterator[Finding]:
    """Say which weights would go where, without taking memory for them."""
    own = checkpoint.spec
    if checkpoint.state is None and arch in (None, own.arch):
        return
    if checkpoint.state is None:
        yield _finding("fit", "problem", f"{checkpoint.name} is a {own.arch}, not a {arch}")
        return
    spec = own if arch in (None, own.arch) else find_spec(arch)
    with torch.device("meta"):
        model = build_backbone(spec)
    fit = fit_state(model, checkpoint)
    facts = {what: getattr(fit.report, what) for what in REPORTED}
    if fit.faults:
        yield _finding(
            "fit",
            "problem",
            f"it does not fit {spec.arch}: {_counts(fit.report)}, {len(fit.faults)} faults",
            remedy=f"use --arch {own.arch}, which it is" if spec is not own else None,
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
            f"it differs from this project's own {own.arch}, and is built as it is: {', '.join(odd)}",
        )


def _counts(report: LoadReport) -> str:
    return ", ".join(f"{len(getattr(report, what))} {what}" for what in REPORTED)


def _differences(spec: BackboneSpec) -> list[str]:
    """Say in what an architecture of others differs from ours of that name, its sizes aside."""
    ours = ARCHS.get(spec.arch)
    if ours is None:
        return []
    own, usual = asdict(spec), asdict(ours)
    sizes = ("img_size", "window_size", "pretrained_windows")
    return [f"{key} {own[key]}" for key in own if own[key] != usual[key] and key not in sizes]
