"""Write a checkpoint as a native checkpoint directory or as timm's folder, and compare the features of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint, write_checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.timm_format import timm_arguments, to_timm
from simmim_bench.errors import UsageError
from simmim_bench.files import sync, use_default_mode
from simmim_bench.models.build import Backbone, network_arguments
from simmim_bench.models.external import ExternalBackbone
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.network import pool_features
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.models.swin import pad_before_shift


@dataclass(frozen=True)
class ExportResult:
    """Result of a writer.

    Attributes:
        difference: largest difference of the features, relative to their largest value.
        usage: how to use the written file: a shell command or a line of Python.
    """

    difference: float
    usage: str


Writer = Callable[[Checkpoint, Path], ExportResult]


def count_classes(checkpoint: Checkpoint) -> int:
    """Return the number of outputs of a checkpoint's classification head; 0 without head."""
    assert checkpoint.state is not None
    return len(checkpoint.state["head.weight"]) if "head.weight" in checkpoint.state else 0


def probe_images(spec: BackboneSpec, img_size: tuple[int, int] | None = None) -> Tensor:
    """Return the two noise images (2, C, H, W) that features are compared on, of the spec's size by default."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, spec.in_chans, *(img_size or spec.img_size), generator=generator)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference divided by the largest absolute value of `wanted`."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def maps_difference(
    theirs: nn.Module | Callable[[Tensor], Any],
    ours: Backbone,
    img_size: tuple[int, int] | None = None,
) -> float:
    """Return the largest relative difference of feature maps.

    Args:
        theirs: maps images to feature maps that are layer-normalised as `forward_maps` does, so that a
            fine-tuned scale has no effect.
        ours: the backbone that was exported.
        img_size: (H, W) of the images in pixels; None for the backbone's own.
    """
    images = probe_images(ours.spec, img_size)
    with torch.no_grad():
        found, wanted = list(theirs(images)), ours.eval().forward_maps(images)
    assert len(found) == len(wanted)
    return max(map(relative_difference, found, wanted))


def write_native(checkpoint: Checkpoint, path: Path) -> ExportResult:
    """Write a checkpoint directory."""
    assert checkpoint.state is not None
    write_checkpoint(
        path,
        state=checkpoint.state,
        spec=checkpoint.spec,
        form=checkpoint.form,
        mean=checkpoint.mean,
        std=checkpoint.std,
        value_range=checkpoint.value_range,
        provenance=checkpoint.provenance,
    )
    images = probe_images(checkpoint.spec)
    with torch.no_grad():
        wanted = restore_backbone(checkpoint).eval().forward_features(images)
        found = restore_backbone(read_checkpoint(str(path))).eval().forward_features(images)
    spec = checkpoint.spec
    ckpt = str(path)
    if isinstance(spec, ExternalSpec) and spec.family == "python":
        ckpt = f"py:{spec.source}@{path}"
    usage = f"simmim-bench transfer linear --ckpt {ckpt} --data DIR"
    return ExportResult(relative_difference(found, wanted), usage)


def write_timm(checkpoint: Checkpoint, path: Path) -> ExportResult:
    """Write the backbone in its transfer form as timm's `config.json` and `model.safetensors`.

    A Swin whose windows do not divide its maps computes other features in timm, which shifts such a map before
    padding it. The weights are then compared in timm's model with `pad_before_shift`, and the usage states the
    difference of timm's model without it.

    Raises:
        UsageError: timm does not implement the architecture, or has no images of these values.
    """
    if checkpoint.value_range != "uint8":
        raise UsageError(
            f"timm's config.json has no entry for the {checkpoint.value_range} values of the images that "
            f"{checkpoint.name} takes; use --to native."
        )
    classes = count_classes(checkpoint)
    ours = restore_backbone(checkpoint, num_classes=classes).eval()
    if ours.spec.windowed_blocks:
        raise UsageError(
            f"timm has no ViT with attention windows, as {checkpoint.name} is; use --to detectron2 or mmseg."
        )
    if isinstance(ours, ExternalBackbone):
        model, arguments = _timm_network(checkpoint, ours, classes)
    else:
        arch, arguments = timm_arguments(ours.spec)
        model = timm.create_model(arch, num_classes=classes, **arguments)
        model.load_state_dict(to_timm(ours))
    height, width = ours.spec.img_size
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (ours.spec.in_chans, height, width),
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "tag": "simmim_bench",
    }
    save_for_hf(model, str(path), model_args=arguments, safe_serialization=True)
    use_default_mode(path / "model.safetensors")
    sync(path / "model.safetensors")
    images = probe_images(ours.spec)
    with torch.no_grad():
        theirs: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        wanted = ours.forward_features(images)
        difference = relative_difference(pool_features(theirs, images), wanted)
        usage = f'timm.create_model("local-dir:{path}", pretrained=True)'
        if ours.spec.pads_windows:
            usage += (
                f"  # its features differ by {difference:.1e} of their size: windows of {ours.spec.window_size} do "
                f"not divide the maps of {height}x{width} pixels, and timm shifts a map before padding it; "
                "simmim_bench.models.swin.pad_before_shift(model) makes them equal"
            )
            pad_before_shift(theirs)
            difference = relative_difference(pool_features(theirs, images), wanted)
    return ExportResult(difference, usage)


def _timm_network(
    checkpoint: Checkpoint, ours: ExternalBackbone, classes: int
) -> tuple[Any, dict[str, Any]]:
    """Return a network of timm's with its weights, the head as its classifier, and its arguments.

    Raises:
        UsageError: timm does not have the network, or its classifier is not a linear layer.
    """
    spec = ours.spec
    if spec.family != "timm":
        raise UsageError(
            f"{checkpoint.name} is a network of {spec.origin}, which timm does not have; use --to native, detectron2 "
            "or mmseg."
        )
    arguments = network_arguments(spec)
    model: Any = timm.create_model(spec.source, num_classes=classes, **arguments)
    fit = model.load_state_dict(ours.net.state_dict(), strict=False)
    classifier = model.get_classifier() if classes else None
    is_linear = classifier is None or isinstance(classifier, nn.Linear)
    of_classifier = 0 if classifier is None else len(ours.head.state_dict())
    if not is_linear or fit.unexpected_keys or len(fit.missing_keys) != of_classifier:
        raise UsageError(
            f"the classifier of timm's {spec.source} is not one linear layer, as the head of {checkpoint.name} is; use "
            "--to native."
        )
    if classifier is not None:
        classifier.load_state_dict(ours.head.state_dict())
    return model, arguments


WRITERS: dict[str, Writer] = {"native": write_native, "timm": write_timm}
