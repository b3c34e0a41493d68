"""Load a checkpoint's weights into a backbone: match by name, resize position tables, report the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import DataError
from simmim_bench.models.build import TABLE, Backbone, build_backbone, table_grids
from simmim_bench.models.position_bias import Grid, resize_table
from simmim_bench.models.vit import Form, ViT

# A pretraining checkpoint has none of these: they are drawn anew for the task.
NEW_IN_TRANSFER = ("fc_norm.", "head.")


# Of BatchNorm, and without effect; older files of torchvision do not have it.
COUNTER = "num_batches_tracked"


FIRST_CONVOLUTIONS = ("patch_embed.proj.weight", "stem.0.weight", "conv1.weight")


@dataclass
class LoadReport:
    """Say which weights of a checkpoint went where, by name."""

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not (self.matched or self.resized or self.missing or self.unused):
            return "weights: drawn from the seed"
        parts = [f"{len(self.matched)} matched"]
        for what in ("resized", "missing", "unused"):
            names = getattr(self, what)
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            parts.append(f"{len(names)} {what}" + (f" ({shown})" if names else ""))
        return "weights: " + ", ".join(parts)


def restore_backbone(
    checkpoint: Checkpoint,
    img_size: tuple[int, int] | None = None,
    num_classes: int = 0,
    *,
    window_size: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    seed: int = 0,
) -> Backbone:
    """Build the backbone of a checkpoint in its transfer form and load its weights.

    See `simmim_bench.backbones.load_backbone`, which also reads CKPT, for the arguments.

    Raises:
        UsageError: a size that the patches do not divide.
        DataError: weights that do not fit.
    """
    spec = checkpoint.spec.at(img_size, window_size, trained=checkpoint.state is not None)
    spec = replace(spec, in_chans=in_chans or spec.in_chans)
    model = build_backbone(spec, num_classes=num_classes, drop_path_rate=drop_path_rate, seed=seed)
    model.load_report = LoadReport() if checkpoint.state is None else load_state(model, checkpoint)  # type: ignore[assignment]
    return model


def load_state(model: Backbone, checkpoint: Checkpoint) -> LoadReport:
    """Put a checkpoint's weights into a backbone, in transfer or in pretraining form.

    Raises:
        DataError: a weight of the encoder is missing or has a shape that no resizing explains.
    """
    fit = fit_state(model, checkpoint)
    if fit.faults:
        raise DataError(fit.faults[0])
    model.load_state_dict(fit.weights, strict=False)  # what is missing was judged
    return fit.report


@dataclass
class Fit:
    """How a checkpoint's weights fit a backbone.

    Attributes:
        weights: in the backbone's shapes, by its names.
        faults: why it does not fit, a message each; none where it does.
    """

    report: LoadReport
    weights: dict[str, Tensor]
    faults: list[str]


def fit_state(model: Backbone, checkpoint: Checkpoint) -> Fit:
    """Find the place of each of a checkpoint's weights in a backbone, which may be without memory (meta)."""
    assert checkpoint.state is not None
    source = dict(checkpoint.state)
    if checkpoint.form == "pretrain":
        source = encoder_state(source)
    form: Form = model.form if isinstance(model, ViT) else "transfer"
    grids, new_grids = table_grids(checkpoint.spec, checkpoint.form), table_grids(model.spec, form)
    # One table for all blocks while pretraining becomes one a block.
    shared = None
    if checkpoint.form == "pretrain" and form == "transfer":
        shared = source.pop(f"rel_pos_bias.{TABLE}", None)

    report = LoadReport()
    faults: list[str] = []
    loaded: dict[str, Tensor] = {}
    old_grid: Grid | None
    for name, current in model.state_dict().items():
        if shared is not None and name.endswith(f"rel_pos_bias.{TABLE}"):
            value, old_grid = shared, grids["rel_pos_bias"]
        elif name in source:
            value, old_grid = source.pop(name), grids.get(name.removesuffix(f".{TABLE}"))
        else:
            report.missing.append(name)
            continue
        if name.startswith("head.") and value.shape != current.shape:
            report.unused.append(name)  # a fine-tuned head for other classes
            continue
        fitted = value
        if name.endswith(TABLE) and old_grid is not None:
            fitted = resize_table(value, old_grid, new_grids[name.removesuffix(f".{TABLE}")])
        elif name == "pos_embed" and value.shape != current.shape:
            fitted = resample_abs_pos_embed(
                value, list(model.spec.grid), list(checkpoint.spec.grid)
            )
        elif name in FIRST_CONVOLUTIONS and value.shape[1] != current.shape[1]:
            fitted = adapt_input_conv(current.shape[1], value, value.shape[1])
        if fitted.shape != current.shape:
            faults.append(
                f"checkpoint {checkpoint.name}: {name} has shape {tuple(value.shape)}, "
                f"{model.spec.arch} wants {tuple(current.shape)}."
            )
            continue
        (report.matched if fitted is value else report.resized).append(name)
        loaded[name] = fitted
    report.unused += [*sorted(source), *checkpoint.unread]

    lost = [n for n in report.missing if not n.startswith(NEW_IN_TRANSFER)]
    lost = [n for n in lost if not n.endswith(COUNTER)]
    if lost:
        faults.append(
            f"checkpoint {checkpoint.name} lacks {len(lost)} weights of {model.spec.arch}'s encoder: "
            f"{', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}"
        )
    return Fit(report, loaded, faults)


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the encoder out of a SimMIM model's weights; mask token and head stay behind."""
    prefix = "encoder."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
