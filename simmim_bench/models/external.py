"""A backbone whose network is built by other code: by timm, or by a function of the user's.

The network's outputs are those of its own code (`network.py`); this module pads images to a size that the network
takes, normalises maps, and adds a head.

Legend: B batch, C channels, (H, W) image, (h, w) cells of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from simmim_bench.errors import UsageError
from simmim_bench.models.convnet import freeze_statistics
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.map_norms import build_map_norms, normalise_maps
from simmim_bench.models.measure import zero_images
from simmim_bench.models.network import (
    Outputs,
    blocks_of,
    exempt_from_decay,
    layers_of,
    pool_features,
    run_network,
)
from simmim_bench.models.spec import FeatureLevel
from simmim_bench.untrusted import text

EPSILON = 1e-6  # of the norms of maps, as in `vit.py`
T = TypeVar("T")


class ExternalBackbone(nn.Module):
    """A network with a head and normalised maps; the parameters of the network are named `net.`.

    Attributes:
        load_report: the `LoadReport` of a restored backbone (`checkpoints/load.py`).
    """

    load_report: Any

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

        def without_gradient(twin: Self) -> list[str]:
            twin.requires_grad_().set_grad_checkpointing(False)
            maps = twin.forward_maps(twin._zeros())
            wanted = maps[: range(len(maps))[last_level] + 1]
            torch.stack([level.sum() for level in wanted]).sum().backward()
            return [name for name, weight in twin.named_parameters() if weight.grad is None]

        return self._try_out(without_gradient)

    def check_size(self) -> None:
        """Check that the network maps an image of the spec's size to features and to the spec's maps.

        Raises:
            UsageError: it does not.
        """

        @torch.no_grad()
        def run(twin: Self) -> None:
            twin.forward_features(twin._zeros())
            if twin.spec.levels:
                twin.forward_tokens(twin._zeros())

        try:
            self._try_out(run)
        except (
            Exception
        ) as error:  # every network has its own error for a size that it does not take
            raise size_error(self.spec, error) from error

    def _try_out(self, function: Callable[[Self], T]) -> T:
        """Call a function with a copy of the backbone in evaluation mode.

        The copy is on the "meta" device, which computes shapes and graphs without memory; if the function fails
        there, on the backbone's own.
        """
        memo: dict[int, Any] = {
            id(x): nn.Parameter(torch.empty_like(x, device="meta"), x.is_floating_point())
            for x in self.parameters()
        }
        memo |= {id(x): torch.empty_like(x, device="meta") for x in self.buffers()}
        mode = self.training
        self.train().train(
            mode
        )  # timm's LeViT drops the position biases that it keeps in evaluation mode
        try:
            with torch.device("meta"):
                return function(copy.deepcopy(self, memo).eval())
        except Exception:  # a network that reads values, or keeps tensors outside of its buffers
            return function(copy.deepcopy(self).eval())

    def _zeros(self) -> Tensor:
        """Return an image of the spec's size on the device of the network."""
        return zero_images(self.net, self.spec, self.spec.img_size)

    def _run(self, images: Tensor, indices: Sequence[int]) -> Outputs:
        """Return the outputs of some blocks, without the cells that lie beyond the image.

        Raises:
            UsageError: the network returns maps of other sizes than the spec's, as some do for some image sizes.
        """
        padded = self._pad(images)
        outputs = run_network(self.net, padded, sorted(set(indices)))
        found = dict(zip(sorted(set(indices)), outputs.maps, strict=True))
        for index, cells in found.items():
            wanted = _cells(padded, self.spec.levels[index][1])
            if cells.shape[-2:] != wanted:
                height, width = padded.shape[-2:]
                raise UsageError(
                    f"for images of {height} x {width} pixels, {self.spec.arch} returns a map of "
                    f"{tuple(cells.shape[-2:])} cells instead of {wanted}; use an img_size that is a multiple of "
                    f"{2 * self._unit}, or the default."
                )
        maps = []
        for index in indices:
            height, width = _cells(images, self.spec.levels[index][1])
            maps.append(found[index][..., :height, :width])
        return Outputs(maps, outputs.class_tokens)

    @property
    def _unit(self) -> int:
        """The coarsest stride."""
        return max((stride for _, stride in self.spec.levels), default=1)

    def _pad(self, images: Tensor) -> Tensor:
        """Pad (B, C, H, W) with zeros at the right and bottom to a size that the network takes.

        Raises:
            UsageError: the network takes one size alone, and the images are larger.
        """
        height, width = images.shape[-2:]
        if self.spec.sizing == "any":
            return images
        rows, columns = -height % self._unit, -width % self._unit
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


def size_error(spec: ExternalSpec, error: Exception) -> UsageError:
    """Return the error for an image size that a network does not take, with the network's own message."""
    if isinstance(error, UsageError):
        return error
    height, width = spec.img_size
    return UsageError(
        f"img_size {height} x {width} does not fit {spec.arch} ({text.describe_error(error)}); "
        "use another one, such as the default."
    )


def _cells(images: Tensor, stride: int) -> tuple[int, int]:
    """Return (h, w) of a map of a stride."""
    height, width = images.shape[-2:]
    return -(-height // stride), -(-width // stride)
