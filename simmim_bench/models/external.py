"""A backbone whose network is built by other code: by timm, or by a function of the user's.

The network's outputs are those of its own code (`network.py`); this module pads images to a size that the network
takes, normalises maps, adds a head, and measures what an `ExternalSpec` lists.

Legend: B batch, C channels, (H, W) image, (h, w) cells of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from simmim_bench.errors import UsageError
from simmim_bench.models.convnet import freeze_statistics
from simmim_bench.models.external_spec import ExternalSpec, Sizing
from simmim_bench.models.map_norms import build_map_norms, normalise_maps
from simmim_bench.models.network import (
    Outputs,
    blocks_of,
    count_outputs,
    exempt_from_decay,
    has_class_token,
    layers_of,
    pool_features,
    run_network,
)
from simmim_bench.models.spec import FeatureLevel

EPSILON = 1e-6  # of the norms of maps, as in `vit.py`


class ExternalBackbone(nn.Module):
    """A network with a head and normalised maps; the parameters of the network are named `net.`."""

    def __init__(self, spec: ExternalSpec, net: nn.Module, *, num_classes: int = 0) -> None:
        super().__init__()
        self.spec, self.net = spec, net
        self.map_norms = build_map_norms(spec, eps=EPSILON)
        self.head = nn.Linear(spec.own_width, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self._layers, self._num_layers = layers_of(net)
        self._exempt = exempt_from_decay(net)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a BatchNorm with frozen weights stays in evaluation mode."""
        super().train(mode)
        freeze_statistics(self)
        return self

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """The blocks or stages that can be compiled one by one, from the first to the last."""
        return blocks_of(self.net)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of blocks in the backward pass instead of storing them.

        Raises:
            UsageError: the network cannot.
        """
        net: Any = self.net
        try:
            net.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            if enable:
                raise UsageError(
                    f"{self.spec.arch} cannot recompute activations; use a smaller batch_size without "
                    "--grad-checkpointing."
                ) from error

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """Channels and stride of every map that `forward_maps` returns."""
        return self.spec.feature_levels

    @property
    def num_layers(self) -> int:
        """Number of values of `layer_id`."""
        return self._num_layers

    def layer_id(self, name: str) -> int:
        """Return the layer of a parameter by timm's grouping, 0 for the stem; the last is the head's."""
        if not name.startswith("net."):
            return self.num_layers - 1
        return self._layers[name.removeprefix("net.")]

    def no_weight_decay(self, name: str, *, pretraining: bool = False) -> bool:
        """Return whether the network exempts a parameter from weight decay beyond the rule for vectors and biases."""
        return name.removeprefix("net.") in self._exempt

    def unused_in_maps(self, last_level: int = -1) -> list[str]:
        """Return the names of the parameters that no map up to a level depends on, which a detector freezes."""
        twin = copy.deepcopy(self).to("meta").train()
        twin.set_grad_checkpointing(False)
        size = self.spec.img_size
        maps = twin.forward_maps(torch.zeros(1, self.spec.in_chans, *size, device="meta"))
        count = len(maps)
        sum(level.sum() for level in maps[: range(count)[last_level] + 1]).backward()  # type: ignore[union-attr]
        return [name for name, parameter in twin.named_parameters() if parameter.grad is None]

    def _run(self, images: Tensor, indices: Sequence[int], *, norm: bool = False) -> Outputs:
        """Return the outputs of some blocks, without the cells that lie beyond the image."""
        outputs = run_network(self.net, self._pad(images), sorted(set(indices)), norm=norm)
        found = dict(zip(sorted(set(indices)), outputs.maps, strict=True))
        maps = [self._crop(found[index], index, images) for index in indices]
        return Outputs(maps, outputs.class_tokens)

    def _crop(self, cells: Tensor, index: int, images: Tensor) -> Tensor:
        stride = self.spec.levels[index][1]
        height, width = (-(-side // stride) for side in images.shape[-2:])
        return cells[..., :height, :width]

    def _pad(self, images: Tensor) -> Tensor:
        """Pad (B, C, H, W) with zeros at the right and bottom to a size that the network takes.

        Raises:
            UsageError: the network takes one size alone, and the images are larger.
        """
        height, width = images.shape[-2:]
        if self.spec.sizing == "any":
            return images
        unit = max((stride for _, stride in self.spec.levels), default=1)
        rows, columns = -height % unit, -width % unit
        if self.spec.sizing == "fixed":
            rows, columns = (
                wanted - side
                for wanted, side in zip(self.spec.img_size, images.shape[-2:], strict=True)
            )
            if min(rows, columns) < 0:
                raise UsageError(
                    f"{self.spec.arch} takes images of {self.spec.img_size} pixels alone, but one has "
                    f"({height}, {width}); use -o img_size={max(height, width)}, or images of that size."
                )
        return F.pad(images, (0, columns, 0, rows))

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return one map (B, C, h, w) per feature level, h = ceil(H / stride), normalised by the spec's `map_norm`.

        "plain" is a LayerNorm without weights, or no norm for a network with BatchNorm.
        """
        maps = self._run(images, [block - 1 for block in self.spec.level_blocks]).maps
        if self.spec.map_norm == "none" or (
            self.spec.map_norm == "plain" and self.spec.batch_normed
        ):
            return [x.contiguous() for x in maps]
        cells = [x.permute(0, 2, 3, 1) for x in maps]
        if self.spec.map_norm == "plain":
            cells = [F.layer_norm(x, x.shape[-1:], eps=EPSILON) for x in cells]
        return normalise_maps(self.map_norms, cells)

    def forward_pooled(self, images: Tensor, token_norm: nn.Module | None = None) -> Tensor:
        """Return the spec's `poolings` after every block: (B, blocks, poolings, C), for probing.

        Args:
            token_norm: applied to the cells and class tokens after every block, before they are pooled.
        """
        spec, width = self.spec, self.spec.probed_width
        own = pool_features(self.net, self._pad(images))
        pooled = own.new_zeros(len(own), spec.probed_blocks, len(spec.poolings), width)
        pooled[:, -1, -1, : own.shape[1]] = own
        if not spec.levels:
            return pooled
        outputs = self._run(images, range(len(spec.levels)))
        for block, cells in enumerate(outputs.maps):
            tokens = cells.flatten(2).mT
            tokens = tokens if token_norm is None else token_norm(tokens)
            pooled[:, block, 0, : tokens.shape[2]] = tokens.mean(1)
        for block, token in enumerate(outputs.class_tokens):
            token = token if token_norm is None else token_norm(token)
            pooled[:, block, 1, : token.shape[1]] = token
        return pooled

    def forward_tokens(self, images: Tensor) -> list[Tensor]:
        """Return the cells (B, h, w, C) after every block or stage, not normalised."""
        maps = self._run(images, range(len(self.spec.levels))).maps
        return [x.permute(0, 2, 3, 1) for x in maps]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the network's own pooled features (B, D): timm's pre-logits."""
        return pool_features(self.net, self._pad(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes), or pooled features if the backbone has no head."""
        return self.head(self.forward_features(images))


def measure(spec: ExternalSpec, net: nn.Module) -> ExternalSpec:
    """Return a spec with what is measured on its network: levels, class token, width, sizes.

    The network is run on the "meta" device, which computes shapes only; where it cannot be, on its own device.

    Raises:
        UsageError: the network does not map images of the spec's size to features.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    try:
        twin = copy.deepcopy(net).to("meta")
        with torch.device("meta"):
            own = _own_width(twin, spec)
            net = twin
    except Exception:  # a network that keeps tensors outside of its buffers, or reads values
        own = _own_width(net, spec)
    levels = _levels(net, spec)
    found = replace(
        spec,
        own_width=own,
        levels=levels,
        class_token=bool(levels) and has_class_token(net),
        batch_normed=any(isinstance(module, _BatchNorm) for module in net.modules()),
    )
    if levels:
        found = replace(
            found, patch_size=levels[0][1], embed_dim=levels[0][0], depths=(len(levels),)
        )
    return replace(found, sizing=_sizing(net, found))


def _images(net: nn.Module, spec: ExternalSpec, size: tuple[int, int]) -> Tensor:
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    return torch.zeros(1, spec.in_chans, *size, device=device)


@torch.no_grad()
def _own_width(net: nn.Module, spec: ExternalSpec) -> int:
    """Return the channels of the pooled features."""
    pooled = pool_features(net, _images(net, spec, spec.img_size))
    if pooled.ndim != 2 or len(pooled) != 1:
        raise UsageError(
            f"the features of {spec.arch} have shape {tuple(pooled.shape)} for one image; a backbone has (1, D)."
        )
    return pooled.shape[1]


@torch.no_grad()
def _map_shapes(
    net: nn.Module, spec: ExternalSpec, size: tuple[int, int]
) -> list[tuple[int, ...]] | None:
    """Return (C, h, w) of every output for an image size; None if the network does not take it."""
    try:
        maps = run_network(net, _images(net, spec, size), range(count_outputs(net))).maps
    except Exception:  # every network has its own error for a size that it does not take
        return None
    return [tuple(x.shape[1:]) for x in maps]


def _levels(net: nn.Module, spec: ExternalSpec) -> tuple[tuple[int, int], ...]:
    """Return channels and stride of every output; () if the outputs are no maps of constant stride."""
    shapes = _map_shapes(net, spec, spec.img_size)
    if not shapes or any(len(shape) != 3 for shape in shapes):
        return ()
    strides = [-(-spec.img_size[0] // height) for _, height, _ in shapes]
    levels = tuple((shape[0], stride) for shape, stride in zip(shapes, strides, strict=True))
    return levels if _fits(shapes, levels, spec.img_size) else ()


def _fits(
    shapes: Sequence[tuple[int, ...]] | None,
    levels: Sequence[tuple[int, int]],
    size: tuple[int, int],
) -> bool:
    """Return whether maps have ceil(H / stride) x ceil(W / stride) cells."""
    wanted = [(channels, -(-size[0] // s), -(-size[1] // s)) for channels, s in levels]
    return shapes is not None and list(shapes) == wanted


def _sizing(net: nn.Module, spec: ExternalSpec) -> Sizing:
    """Return which sizes a network takes, by trying some."""
    height, width = spec.img_size
    unit = max((stride for _, stride in spec.levels), default=32)
    trials: dict[Sizing, list[tuple[int, int]]] = {
        "any": [(height + 1, width), (height + unit, width + 2 * unit - 1)],
        "multiple": [(height + unit, width), (height + unit, width + 2 * unit)],
    }
    for sizing, sizes in trials.items():
        if all(_fits(_map_shapes(net, spec, size), spec.levels, size) for size in sizes):
            return sizing
    return "fixed"
