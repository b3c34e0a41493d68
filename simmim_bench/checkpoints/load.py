"""Load a checkpoint's weights into a backbone.

Weights are matched by name, position tables are resized, and a report lists the matched, resized, missing and
unused weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.checkpoints.fit import Fit, LoadReport, check_missing
from simmim_bench.checkpoints.load_external import fit_external, restore_external
from simmim_bench.data.pixel_format import PixelFormat, count_channels
from simmim_bench.errors import DataError
from simmim_bench.models.build import Backbone, build_backbone, table_grids
from simmim_bench.models.decomposed_position import VECTORS, resize_vectors
from simmim_bench.models.external import ExternalBackbone
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.position_bias import BIAS_TABLE, Grid, resize_table
from simmim_bench.models.spec import BackboneSpec, Form, MapOptions
from simmim_bench.models.vit import ViT

FIRST_CONVOLUTIONS = ("patch_embed.proj.weight", "stem.0.weight", "conv1.weight")
ENCODER_PREFIX = "encoder."


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
        return restore_external(checkpoint, spec, num_classes, drop_path_rate, seed)
    model = build_backbone(spec, num_classes=num_classes, drop_path_rate=drop_path_rate, seed=seed)
    model.load_report = LoadReport() if checkpoint.state is None else load_state(model, checkpoint)
    return model


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
        return fit_external(model, checkpoint)
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
    check_missing(fit, f"checkpoint {checkpoint.name}", model.spec, checkpoint.spec)
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


def encoder_state(state: StateDict) -> StateDict:
    """Return the encoder's weights from a SimMIM model's weights, without mask token and head."""
    return {
        k.removeprefix(ENCODER_PREFIX): v for k, v in state.items() if k.startswith(ENCODER_PREFIX)
    }
