"""Load a checkpoint's weights into a backbone.

Weights are matched by name, position tables are resized, and a report lists the matched, resized, missing and
unused weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.data.pixel_format import PixelFormat, count_channels
from simmim_bench.errors import DataError
from simmim_bench.models.build import (
    Backbone,
    build_backbone,
    network_arguments,
    table_grids,
)
from simmim_bench.models.decomposed_position import VECTORS, resize_vectors
from simmim_bench.models.external import ExternalBackbone, size_error
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.position_bias import BIAS_TABLE, Grid, resize_table
from simmim_bench.models.spec import BackboneSpec, Form, MapOptions
from simmim_bench.models.timm_network import create_with_weights
from simmim_bench.models.vit import ViT
from simmim_bench.untrusted import text

# Weights that a pretraining checkpoint does not have; the task initialises them.
NEW_IN_TRANSFER = ("fc_norm.", "head.")
# A buffer of BatchNorm without effect on the output; older checkpoints of torchvision do not have it.
BATCHNORM_COUNTER = "num_batches_tracked"
FIRST_CONVOLUTIONS = ("patch_embed.proj.weight", "stem.0.weight", "conv1.weight")
LAYER_SCALES = (".gamma_1", ".gamma_2")  # of a ViT's block
ENCODER_PREFIX = "encoder."
NET_PREFIX = "net."  # of the weights of an `ExternalBackbone`'s network


@dataclass
class LoadReport:
    """Names of the weights that were matched, resized, missing from the checkpoint, and unused."""

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        # Records store this text.
        if not (self.matched or self.resized or self.missing or self.unused):
            return "weights: drawn from the seed"
        counts = [f"{len(self.matched)} matched"]
        for what in ("resized", "missing", "unused"):
            names = getattr(self, what)
            counts.append(f"{len(names)} {what}" + (f" ({shorten(names)})" if names else ""))
        return "weights: " + ", ".join(counts)


@dataclass
class Fit:
    """Result of matching a checkpoint's weights with a backbone.

    Attributes:
        report: names of the weights by outcome.
        weights: weights in the backbone's shapes, by the backbone's names.
        faults: one message for every reason why the checkpoint does not fit; empty if it fits.
    """

    report: LoadReport
    weights: StateDict
    faults: list[str]


def shorten(names: list[str], limit: int = 4) -> str:
    """Return the first names of a file's weights, comma-separated, with an ellipsis if there are more than `limit`."""
    shown = [text.shorten(text.visible(name), 100) for name in names[:limit]]
    return ", ".join(shown) + (", ..." if len(names) > limit else "")


def check_rgb(name: str, pixel_format: PixelFormat, reader: str) -> None:
    """Check that a model takes RGB images of 8 bits, where no others are read.

    Args:
        name: its CKPT, for the message.
        reader: what reads them, such as a task.

    Raises:
        DataError: It takes other images.
    """
    if not pixel_format.is_rgb:
        raise DataError(
            f"{name} takes {pixel_format}, but {reader} reads RGB images of 8 bits; use a model of these."
        )


def check_statistics_fit(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint has a mean and a standard deviation for each of its channels.

    Raises:
        DataError: It has another number of them.
    """
    channels, count = checkpoint.spec.in_chans, len(checkpoint.mean)
    if count != channels:
        raise DataError(
            f"{checkpoint.name} takes images of {count_channels(channels)}, but has {count} values of mean and std; "
            f"convert it with those of the images, which `simmim-bench data statistics DIR` computes: simmim-bench "
            f"convert {checkpoint.name} DST --mean ... --std ..."
        )


def restore_backbone(
    checkpoint: Checkpoint,
    img_size: tuple[int, int] | None = None,
    num_classes: int = 0,
    *,
    window_size: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    seed: int = 0,
    maps: MapOptions | None = None,
) -> Backbone:
    """Build the backbone of a checkpoint in its transfer form and load its weights.

    The arguments are those of `simmim_bench.backbones.load_backbone`, which also reads a CKPT.

    Raises:
        UsageError: The image size is not a multiple of the patch size.
        DataError: The weights do not fit.
    """
    spec = checkpoint.spec.at(
        img_size,
        window_size,
        trained=checkpoint.state is not None,
        patch_size=maps.patch_size if maps else None,
    )
    if maps is not None:
        spec = spec.with_maps(maps, checkpoint.spec)
    spec = replace(spec, in_chans=in_chans or spec.in_chans)
    if isinstance(spec, ExternalSpec):
        return _restore_external(checkpoint, spec, num_classes, drop_path_rate, seed)
    model = build_backbone(spec, num_classes=num_classes, drop_path_rate=drop_path_rate, seed=seed)
    model.load_report = LoadReport() if checkpoint.state is None else load_state(model, checkpoint)
    return model


def _restore_external(
    checkpoint: Checkpoint, spec: ExternalSpec, num_classes: int, drop_path_rate: float, seed: int
) -> Backbone:
    """Build a backbone of other code and load its weights, which timm resizes where they depend on the sizes.

    Raises:
        UsageError: The network does not take images of the spec's size.
        DataError: The weights do not fit, or a user's network would have to be resized.
    """
    try:
        model = build_backbone(
            spec, num_classes=num_classes, drop_path_rate=drop_path_rate, seed=seed
        )
    except (AssertionError, RuntimeError, ValueError) as error:
        raise size_error(spec, error) from error
    assert isinstance(model, ExternalBackbone)
    if spec.img_size != checkpoint.spec.img_size:
        model.check_size()
    if checkpoint.state is None:
        model.load_report = LoadReport()
        return model
    fit = fit_state(model, checkpoint)
    if fit.report.resized and not fit.faults:
        _check_kernels(checkpoint, spec, fit.report.resized)
        try:
            resized = _resize_external(checkpoint, spec)
        except DataError:
            if not spec.sized or spec.sizing == "fixed":
                raise
            # The network of the checkpoint's size takes this size, too: timm's ResNets of CLIP.
            size = {"img_size": checkpoint.spec.img_size}
            arguments = tuple(sorted({**dict(spec.arguments), **size}.items()))
            kept = replace(spec, sized=False, arguments=arguments)
            return _restore_external(checkpoint, kept, num_classes, drop_path_rate, seed)
        fit.weights |= {name: resized[name] for name in fit.report.resized}
    if fit.faults:
        raise DataError(fit.faults[0])
    model.load_state_dict(fit.weights, strict=False)  # `fit_state` has checked the missing weights
    model.load_report = fit.report
    return model


def _check_kernels(checkpoint: Checkpoint, spec: ExternalSpec, resized: list[str]) -> None:
    """Check that only kernels of convolutions are adapted to other channels, which is timm's rule for them.

    Raises:
        DataError: the network embeds pixels otherwise, as timm's NaFlexViT, whose weights timm would mix up.
    """
    assert checkpoint.state is not None
    if spec.in_chans == checkpoint.spec.in_chans or spec.img_size != checkpoint.spec.img_size:
        return
    for name in resized:
        if checkpoint.state[name].ndim != 4:
            raise DataError(
                f"{checkpoint.name} takes images of {checkpoint.spec.in_chans} channels, and timm has no rule to adapt "
                f"{name} of {spec.arch} to {spec.in_chans}; use images of its channels."
            )


def _resize_external(checkpoint: Checkpoint, spec: ExternalSpec) -> StateDict:
    """Return the weights of a timm network for other sizes or channels, converted by timm.

    Raises:
        DataError: timm cannot convert them.
    """
    assert checkpoint.state is not None
    state = {
        key.removeprefix(NET_PREFIX): value
        for key, value in checkpoint.state.items()
        if key.startswith(NET_PREFIX)
    }
    # timm adapts the first convolution from the channels of this size.
    size = (checkpoint.spec.in_chans, *checkpoint.spec.img_size)
    try:
        net = create_with_weights(
            spec.source,
            state,
            num_classes=0,
            pretrained_cfg_overlay={"input_size": size},
            **network_arguments(spec),
        )
    except Exception as error:  # timm raises many types for weights that do not fit
        raise DataError(
            f"timm cannot resize {checkpoint.name} to {spec.img_size} pixels and {spec.in_chans} channels "
            f"({type(error).__name__}: {text.shorten(text.visible(' '.join(str(error).split())))}); use its own size, "
            f"-o img_size={','.join(map(str, checkpoint.spec.img_size))}."
        ) from error
    return {f"{NET_PREFIX}{key}": value for key, value in net.state_dict().items()}


def _fit_external(model: ExternalBackbone, checkpoint: Checkpoint) -> Fit:
    """Match a checkpoint's weights with a backbone of other code; resized ones are missing in the result's weights."""
    assert checkpoint.state is not None
    source = dict(checkpoint.state)
    fit = Fit(LoadReport(), {}, [])
    for name, current in model.state_dict().items():
        value = source.pop(name, None)
        if value is None:
            fit.report.missing.append(name)
        elif value.shape == current.shape:
            fit.report.matched.append(name)
            fit.weights[name] = value
        elif name.startswith("head."):
            fit.report.unused.append(name)  # a fine-tuned head for other classes
        elif model.spec.family == "timm":
            fit.report.resized.append(name)
        else:
            fit.faults.append(
                f"checkpoint {checkpoint.name}: {name} has shape {tuple(value.shape)}, but {model.spec.arch} has "
                f"{tuple(current.shape)}."
            )
    fit.report.unused += [*sorted(source), *checkpoint.unread]
    _check_missing(fit, f"checkpoint {checkpoint.name}", model.spec, checkpoint.spec)
    return fit


def load_state(model: Backbone, checkpoint: Checkpoint) -> LoadReport:
    """Load a checkpoint's weights into a backbone in transfer or pretraining form.

    Raises:
        DataError: A weight of the encoder is missing or has a shape that resizing cannot explain.
    """
    fit = fit_state(model, checkpoint)
    if fit.faults:
        raise DataError(fit.faults[0])
    model.load_state_dict(fit.weights, strict=False)  # `fit_state` has checked the missing weights
    return fit.report


def fit_state(model: Backbone, checkpoint: Checkpoint) -> Fit:
    """Match a checkpoint's weights with a backbone, which may be on the "meta" device."""
    assert checkpoint.state is not None
    if isinstance(model, ExternalBackbone):
        return _fit_external(model, checkpoint)
    source = dict(checkpoint.state)
    if checkpoint.form == "pretrain":
        source = encoder_state(source)
    form: Form = model.form if isinstance(model, ViT) else "transfer"
    grids, new_grids = table_grids(checkpoint.spec, checkpoint.form), table_grids(model.spec, form)
    # In the pretraining form all blocks share one table; in the transfer form every block has a copy.
    shared = None
    if checkpoint.form == "pretrain" and form == "transfer":
        shared = source.pop(f"rel_pos_bias.{BIAS_TABLE}", None)

    fit = Fit(LoadReport(), {}, [])
    old_grid: Grid | None
    for name, current in model.state_dict().items():
        table = name.removesuffix(f".{BIAS_TABLE}")
        if shared is not None and name.endswith(f"rel_pos_bias.{BIAS_TABLE}"):
            value, old_grid = shared, grids["rel_pos_bias"]
        elif name in source:
            value, old_grid = source.pop(name), grids.get(table)
        else:
            fit.report.missing.append(name)
            continue
        if name.startswith("head.") and value.shape != current.shape:
            fit.report.unused.append(name)  # a fine-tuned head for other classes
            continue
        if name.endswith(BIAS_TABLE) and old_grid is not None:
            fitted = resize_table(value, old_grid, new_grids[table])
        else:
            fitted = _resize_weight(name, value, current, model.spec, checkpoint.spec)
        if fitted.shape != current.shape:
            fit.faults.append(
                f"checkpoint {checkpoint.name}: {name} has shape {tuple(value.shape)}, "
                f"but {model.spec.arch} needs {tuple(current.shape)}."
            )
            continue
        (fit.report.matched if fitted is value else fit.report.resized).append(name)
        fit.weights[name] = fitted
    fit.report.unused += [*sorted(source), *checkpoint.unread]
    _check_missing(fit, f"checkpoint {checkpoint.name}", model.spec, checkpoint.spec)
    return fit


def _resize_weight(
    name: str, value: Tensor, current: Tensor, spec: BackboneSpec, old: BackboneSpec
) -> Tensor:
    """Resize a position embedding, patches or the channels of the first convolution; return others unchanged."""
    if name == "pos_embed" and value.shape != current.shape:
        resized: Tensor = resample_abs_pos_embed(
            value,
            list(spec.absolute_grid),
            list(old.absolute_grid),
            antialias=spec.antialias_position,
        )
        return resized
    if name.endswith(VECTORS) and value.shape[1:] == current.shape[1:]:
        return value if value.shape == current.shape else resize_vectors(value, len(current))
    if name in FIRST_CONVOLUTIONS:
        if value.shape[1] != current.shape[1] and value.shape[1] == 3:  # as timm's rule is for
            value = adapt_input_conv(current.shape[1], value, value.shape[1])
        if spec.family == "vit" and spec.patch_size != old.patch_size:
            value = F.interpolate(value, size=current.shape[2:], mode="bicubic")
    return value


def _check_missing(fit: Fit, title: str, spec: BackboneSpec, old: BackboneSpec) -> None:
    """Add a fault if weights of the encoder are missing, except those that `MapOptions` adds."""
    missing = [
        name
        for name in fit.report.missing
        if not name.startswith(NEW_IN_TRANSFER)
        and not name.endswith(BATCHNORM_COUNTER)
        and not _is_new(name, old)
    ]
    if missing:
        fit.faults.append(
            f"{title} lacks {len(missing)} weights of {spec.arch}'s encoder: {shorten(missing)}"
        )


def _is_new(name: str, old: BackboneSpec) -> bool:
    """Return whether a backbone of the spec `old` has no weight of this name, but `MapOptions` can add it."""
    return (
        (name.startswith("map_norms.") and old.map_norm != "affine")
        or (name.endswith(f"rel_pos_bias.{BIAS_TABLE}") and not old.rel_pos_bias)
        or (name.endswith(VECTORS) and not old.decomposed_rel_pos)
        or (name.endswith(LAYER_SCALES) and old.init_values is None)
    )


def encoder_state(state: StateDict) -> StateDict:
    """Return the encoder's weights from a SimMIM model's weights, without mask token and head."""
    return {
        k.removeprefix(ENCODER_PREFIX): v for k, v in state.items() if k.startswith(ENCODER_PREFIX)
    }
