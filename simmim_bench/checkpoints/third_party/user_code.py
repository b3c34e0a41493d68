"""Read `py:package.module:factory`, and check that the function's network follows the contract of `UserModule`.

The weights are stored under `net.` with the network's own names; the network is rebuilt only by a command that names
its function (`models/user_network.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.checkpoints.fit import NET_PREFIX, shorten
from simmim_bench.checkpoints.third_party.external import UNMEASURED, hash_sums, input_of
from simmim_bench.data.pixel_format import check_statistics
from simmim_bench.errors import DataError, UsageError
from simmim_bench.files import sha256_file, sha256_json
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.measure import measure
from simmim_bench.models.network import is_timm_model, layers_of, pool_features
from simmim_bench.models.user_network import call_factory, run_user_code


def read_python(ckpt: str) -> Checkpoint:
    """Read `py:package.module:factory`, a network of the user's code with the weights that the function loads.

    Raises:
        UsageError: the function does not exist, or its network does not follow the contract of `UserModule`.
        DataError: the function fails, or its network does.
    """
    source = ckpt.removeprefix("py:")
    net: Any = call_factory(source)
    declared = _declared(net, ckpt)
    module = sys.modules[source.partition(":")[0]]
    code = sha256_file(Path(module.__file__)) if module.__file__ else ""
    unmeasured = ExternalSpec(
        arch=_arch_of(source),
        family="python",
        source=source,
        img_size=declared["img_size"],
        in_chans=declared["in_chans"],
        **UNMEASURED,
    )
    what = f"the network of {ckpt}, for one image of {unmeasured.img_size} pixels,"
    run_user_code(_check_outputs, net, unmeasured, ckpt, what=what)
    spec: ExternalSpec = run_user_code(measure, unmeasured, net, what=what)
    _check_levels(net, spec)
    state = {
        f"{NET_PREFIX}{key}": value.detach().cpu().contiguous()
        for key, value in net.state_dict().items()
    }
    return Checkpoint(
        name=ckpt,
        spec=spec,
        form="transfer",
        state=state,
        # Features that were stored under this hash are those of this code.
        sha256=sha256_json({"weights": hash_sums(state), "code": code}),
        mean=declared["mean"],
        std=declared["std"],
        provenance={
            "method": "python",
            "label": str(getattr(net, "label", source)),
            "source": source,
            "code_sha256": code,
        },
    )


def _arch_of(source: str) -> str:
    """Return the name of a user's architecture: the end of the function's full name, if that is long."""
    return source.replace(":", ".")[-100:]


def _declared(net: Any, ckpt: str) -> dict[str, Any]:
    """Return size, channels and normalisation that a user's network declares, or timm's of a timm model.

    Raises:
        UsageError: an attribute has another type.
    """
    if is_timm_model(net) and not hasattr(net, "feature_levels"):
        size, channels = input_of(net)
        cfg = net.pretrained_cfg
        usual = {"img_size": size, "in_chans": channels, "mean": cfg["mean"], "std": cfg["std"]}
    else:
        usual = {"img_size": (224, 224), "in_chans": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    found = {key: getattr(net, key, value) for key, value in usual.items()}
    size = found["img_size"]
    found["img_size"] = (size, size) if type(size) is int else size
    for key in ("img_size", "mean", "std"):
        value = found[key]
        kinds = int if key == "img_size" else (int, float)
        length = 2 if key == "img_size" else found["in_chans"]
        if (
            not isinstance(value, list | tuple)
            or not all(isinstance(v, kinds) and v == v for v in value)
            or len(value) != length
        ):
            raise UsageError(
                f"{ckpt}: {key} of {type(net).__name__} is {ascii(value)[:80]}; use {length} numbers."
            )
        found[key] = tuple(value)
    if type(found["in_chans"]) is not int or min(*found["img_size"], found["in_chans"]) < 1:
        raise UsageError(
            f"{ckpt}: img_size {found['img_size']} and in_chans {found['in_chans']!r} of {type(net).__name__} must be "
            "positive integers."
        )
    check_statistics(found["mean"], found["std"])
    return found


@torch.no_grad()
def _check_outputs(net: Any, spec: ExternalSpec, ckpt: str) -> None:
    """Check the types, devices and values of a user's outputs on one image, and its layers and weights.

    Raises:
        UsageError: an output is no tensor of this kind.
        DataError: an output is not finite.
    """
    odd = [key for key, value in net.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise UsageError(
            f"{ckpt}: the state_dict of {type(net).__name__} holds {shorten(odd)}, which are no tensors; remove them."
        )
    layers_of(net)
    device = next((value.device for value in net.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, spec.in_chans, *spec.img_size, generator=generator).to(device)
    was_training = net.training
    net.eval()
    outputs: dict[str, Any] = {}
    if not is_timm_model(net):
        maps = net.forward_maps(images)
        if not isinstance(maps, list | tuple):
            raise UsageError(
                f"{ckpt}: forward_maps returns {type(maps).__name__}; return a list of maps."
            )
        outputs = {f"map {number} of forward_maps": x for number, x in enumerate(maps)}
    for name, value in outputs.items():
        _check_output(value, 4, images, f"{ckpt}: {name}")
    _check_output(pool_features(net, images), 2, images, f"{ckpt}: forward_features")
    net.train(was_training)


def _check_output(value: Any, dims: int, images: Tensor, what: str) -> None:
    """Check an output of one image: its type, dimensions, device and values.

    Raises:
        UsageError: it is no tensor of this kind.
        DataError: it is not finite.
    """
    if not isinstance(value, Tensor):
        raise UsageError(f"{what} is {type(value).__name__}; return a tensor.")
    if value.ndim != dims or len(value) != 1 or not value.is_floating_point():
        wanted = "(B, D)" if dims == 2 else "(B, channels, h, w)"
        raise UsageError(
            f"{what} has shape {tuple(value.shape)} and type {value.dtype} for one image; return {wanted} of "
            "floating-point numbers."
        )
    if value.device != images.device:
        raise UsageError(
            f"{what} is on {value.device}, but the images are on {images.device}; create tensors on the device of the "
            "images."
        )
    if not bool(value.isfinite().all()):
        raise DataError(f"{what} contains a value that is not finite; check the weights.")


def _check_levels(net: Any, spec: ExternalSpec) -> None:
    """Check that a user's maps are those that the module declares.

    Raises:
        UsageError: they are not.
    """
    declared = getattr(net, "feature_levels", None)
    if declared is None:  # a timm model
        return
    try:
        wanted = tuple((int(channels), int(stride)) for channels, stride in declared)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"py:{spec.source} declares feature_levels {ascii(declared)[:80]}; use pairs of channels and stride."
        ) from error
    strides = [stride for _, stride in wanted]
    if strides != sorted(strides):
        raise UsageError(
            f"py:{spec.source} declares feature_levels {wanted}, whose strides decrease; order them from the finest to "
            "the coarsest."
        )
    if wanted != spec.levels:
        raise UsageError(
            f"py:{spec.source} declares feature_levels {wanted}, but for images of {spec.img_size} pixels forward_maps "
            f"returns maps of {spec.levels or 'other sizes'}; a map has ceil(H / stride) x ceil(W / stride) cells."
        )
