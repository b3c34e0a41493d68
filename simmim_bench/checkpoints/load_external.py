"""Load weights into a backbone whose network is built by other code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models import adapt_input_conv, get_model_traits

from simmim_bench.checkpoints.checkpoint import Checkpoint, StateDict
from simmim_bench.checkpoints.fit import NET_PREFIX, Fit, LoadReport, check_missing
from simmim_bench.errors import DataError
from simmim_bench.models.build import Backbone, build_backbone, network_arguments
from simmim_bench.models.external import ExternalBackbone, size_error
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.timm_network import create_with_weights
from simmim_bench.untrusted import text


def restore_external(
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
    fit = fit_external(model, checkpoint)
    if fit.report.resized and not fit.faults:
        _check_kernels(checkpoint, spec, model)
        try:
            resized = _resize_external(checkpoint, spec)
        except DataError:
            if not spec.sized or spec.sizing == "fixed":
                raise
            # The network of the checkpoint's size takes this size, too: timm's ResNets of CLIP.
            size = {"img_size": checkpoint.spec.img_size}
            arguments = tuple(sorted({**dict(spec.arguments), **size}.items()))
            kept = replace(spec, sized=False, arguments=arguments)
            return restore_external(checkpoint, kept, num_classes, drop_path_rate, seed)
        fit.weights |= {name: resized[name] for name in fit.report.resized}
    if fit.faults:
        raise DataError(fit.faults[0])
    model.load_state_dict(fit.weights, strict=False)  # `fit_state` has checked the missing weights
    model.load_report = fit.report
    return model


def _check_kernels(checkpoint: Checkpoint, spec: ExternalSpec, model: ExternalBackbone) -> None:
    """Check that timm adapts the first layers to other channels; it initialises at random those that it cannot.

    Raises:
        DataError: timm has no rule, as for NaFlexViT, which embeds pixels with a linear layer.
    """
    assert checkpoint.state is not None
    own = checkpoint.spec.in_chans
    if spec.in_chans == own:
        return
    net: Any = model.net
    first = get_model_traits(net).get("first_conv", net.pretrained_cfg.get("first_conv")) or ()
    for name in (first,) if isinstance(first, str) else first:
        weight = checkpoint.state.get(f"{NET_PREFIX}{name}.weight")
        if weight is None:
            continue
        try:
            adapt_input_conv(spec.in_chans, weight, base_chans=own)
        except NotImplementedError as error:
            raise DataError(
                f"{checkpoint.name} takes images of {own} channels, and timm has no rule to adapt {name} of "
                f"{spec.arch} to {spec.in_chans}; use images of its channels."
            ) from error


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
            f"({text.describe_error(error)}); use its own size, "
            f"-o img_size={','.join(map(str, checkpoint.spec.img_size))}."
        ) from error
    return {f"{NET_PREFIX}{key}": value for key, value in net.state_dict().items()}


def fit_external(model: ExternalBackbone, checkpoint: Checkpoint) -> Fit:
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
    check_missing(fit, f"checkpoint {checkpoint.name}", model.spec, checkpoint.spec)
    return fit
