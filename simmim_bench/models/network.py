"""What simmim-bench asks of a network of other code: maps, class tokens, pooled features, layers.

A `Network` is a model of timm, whose `forward_intermediates` and `group_matcher` answer, or a user's module that
follows the contract of `UserModule`.

Legend: B batch, C channels, (H, W) image, (h, w) cells of a map.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from timm.models import group_parameters
from timm.optim import auto_group_layers
from torch import Tensor, nn

from simmim_bench.errors import UsageError


@runtime_checkable
class UserModule(Protocol):
    """A user's module: what it must have, and in the docstring what it may have.

    `feature_levels` lists channels and stride, in pixels, of every map that `forward_maps` returns; all strides are
    equal, as in a ViT, or every stride is at least the previous one. Images are (B, C, H, W), normalised; a map is
    (B, channels, ceil(H / stride), ceil(W / stride)).

    Optional attributes: `forward_features(images) -> (B, D)`, its pooled features, by default the mean of the last
    map; `layer_id(parameter name) -> int`, from 0 for the stem, for layer decay, by default timm's
    `auto_group_layers`; `no_weight_decay() -> set` of parameter names; `set_grad_checkpointing(enable)`; `img_size`
    (H, W), by default (224, 224); `in_chans`, by default 3; `mean` and `std` per channel, by default ImageNet's;
    `label`, the name of its row in a leaderboard.
    """

    feature_levels: Sequence[tuple[int, int]]

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return one map (B, C, h, w) per feature level."""


class Outputs(NamedTuple):
    """What a network computes of a batch.

    Attributes:
        maps: (B, C, h, w) after the blocks or stages.
        class_tokens: (B, C) after each of them; empty for a network without class token.
    """

    maps: list[Tensor]
    class_tokens: list[Tensor]


def is_timm_model(net: nn.Module) -> bool:
    """Return whether a module has timm's interface."""
    return hasattr(net, "forward_intermediates") and hasattr(net, "forward_head")


def declared_levels(net: Any) -> tuple[tuple[int, int], ...]:
    """Return channels and stride of every output, as the network declares them."""
    if not is_timm_model(net):
        return tuple((int(channels), int(stride)) for channels, stride in net.feature_levels)
    return tuple((info["num_chs"], info["reduction"]) for info in net.feature_info)


def has_class_token(net: Any) -> bool:
    """Return whether a timm model's first prefix token is a class token."""
    return _returns_prefix(net) and getattr(net, "cls_token", None) is not None


def _returns_prefix(net: Any) -> bool:
    # Without prefix tokens, timm's ViT with relative positions fails if asked for them.
    if not is_timm_model(net) or not getattr(net, "num_prefix_tokens", 1):
        return False
    return "return_prefix_tokens" in inspect.signature(net.forward_intermediates).parameters


def run_network(net: Any, images: Tensor, indices: Sequence[int]) -> Outputs:
    """Compute the outputs of some blocks or stages, without the network's last norm.

    Args:
        indices: of the outputs, from 0, increasing.
    """
    if not is_timm_model(net):
        maps = list(net.forward_maps(images))
        return Outputs([maps[index] for index in indices], [])
    options: dict[str, Any] = {"indices": list(indices), "intermediates_only": True}
    if not _returns_prefix(net):
        return Outputs(list(net.forward_intermediates(images, **options)), [])
    outputs = net.forward_intermediates(images, return_prefix_tokens=True, **options)
    if not all(isinstance(output, tuple | list) for output in outputs):  # without prefix tokens
        return Outputs(list(outputs), [])
    tokens = [prefix[:, 0] for _, prefix in outputs] if has_class_token(net) else []
    return Outputs([output[0] for output in outputs], tokens)


def pool_features(net: Any, images: Tensor) -> Tensor:
    """Return the network's own pooled features (B, D): timm's pre-logits, or a user's `forward_features`."""
    if is_timm_model(net):
        pooled: Tensor = net.forward_head(net.forward_features(images), pre_logits=True)
        return pooled.flatten(1)
    if hasattr(net, "forward_features"):
        return net.forward_features(images)
    return net.forward_maps(images)[-1].mean((2, 3))


def layers_of(net: Any) -> tuple[dict[str, int], int]:
    """Return the layer of every parameter, from 0 for the stem, and the number of layers with the classifier's.

    timm's own grouping for layer decay (timm/optim/_param_groups.py, param_groups_layer_decay), which the classifier
    takes part in.

    Raises:
        UsageError: a user's `layer_id` returns no layer for a parameter.
    """
    if not is_timm_model(net) and hasattr(net, "layer_id"):
        layers = {name: net.layer_id(name) for name, _ in net.named_parameters()}
        wrong = [name for name, layer in layers.items() if type(layer) is not int or layer < 0]
        if wrong:
            raise UsageError(
                f"layer_id('{wrong[0]}') of {type(net).__name__} is {layers[wrong[0]]!r}; return an integer from 0."
            )
        return layers, max(layers.values(), default=0) + 2
    if not hasattr(net, "group_matcher"):
        layers = auto_group_layers(net)
        return layers, max(layers.values(), default=0) + 2
    classifier = _classifier_name(net)
    matcher = net.group_matcher(coarse=False)
    layers = dict(group_parameters(_WithClassifier(net, classifier), matcher, reverse=True))
    last = layers.pop(classifier)
    return layers, max(last, *layers.values()) + 1


class _WithClassifier:
    """The parameters of a network without classifier, and the name of the classifier's weight."""

    def __init__(self, net: nn.Module, classifier: str) -> None:
        self.net, self.classifier = net, classifier

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter | None]]:
        """Yield names as timm's `group_parameters` takes them from a module."""
        yield from self.net.named_parameters()
        yield self.classifier, None


def _classifier_name(net: Any) -> str:
    """Return the name that the weight of a timm model's classifier has."""
    names = net.pretrained_cfg.get("classifier") or "head"
    return f"{names if isinstance(names, str) else names[0]}.weight"


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """Return the blocks or stages of a network in order, which can be compiled one by one.

    These are the children of the network's lists and sequences of modules, without single layers.
    """
    blocks: list[nn.Module] = []
    for child in net.children():
        if type(child) in (
            nn.Sequential,
            nn.ModuleList,
            nn.ModuleDict,
        ):  # not those with a forward of their own
            blocks += blocks_of(child)
        elif any(True for _ in child.children()):
            blocks.append(child)
    return list(dict.fromkeys(blocks))


def exempt_from_decay(net: Any) -> frozenset[str]:
    """Return the names of parameters that the network exempts from weight decay."""
    return frozenset(net.no_weight_decay()) if hasattr(net, "no_weight_decay") else frozenset()
