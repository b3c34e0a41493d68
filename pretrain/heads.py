"""Heads: from the encoder's features to a prediction, and the gathering of several levels before them.

In: features (B, D, h, w). Out: a prediction (B, K, h * f, w * f), K numbers at each of f x f points of a cell.
SimMIM compares the linear head with a two-layer MLP and with Swins turned round (arXiv 2111.09886, table 2).

Legend: D features' channels, K numbers a point, f points a side of a cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.swin_transformer import SwinTransformerStage
from torch import Tensor, nn
from typing_extensions import Self

from simmim_bench.models.archs import ARCHS, BackboneSpec
from simmim_bench.models.attention import select_attention

SWIN_WINDOW = 7  # Swin's own (arXiv 2103.14030, section 4), where the encoder has none
NARROWEST = 32  # ours: channels that transposed convolutions do not go below


class HeadShape(NamedTuple):
    """What a head is between.

    Attributes:
        width: channels of the features, D.
        channels: numbers at each point, K.
        factor: points a side of a cell, f.
        grid: (h, w) of the features.
        window: tokens a side of an attention window, where a head has some.
    """

    width: int
    channels: int
    factor: int
    grid: tuple[int, int]
    window: int

    @property
    def doublings(self) -> int:
        """How often the map can be doubled before it is finer than the points."""
        return (self.factor & -self.factor).bit_length() - 1


class LinearHead(nn.Conv2d):
    """A 1x1 convolution and a pixel shuffle: each cell of the last map gives its own points (SimMIM, section 3.3)."""

    def __init__(self, width: int, channels: int, factor: int, generator: torch.Generator) -> None:
        super().__init__(width, factor**2 * channels, kernel_size=1)
        self.factor = factor
        bound = width**-0.5  # torch's own default for this layer, from our seed
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        assert self.bias is not None
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, K, h * f, w * f)."""
        return F.pixel_shuffle(super().forward(features), self.factor)


def linear(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build SimMIM's own head."""
    return LinearHead(shape.width, shape.channels, shape.factor, generator)


def mlp(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build two layers, the inner one as wide as the features: 1.0 M more for Swin-B, as SimMIM's table says."""
    inner = nn.Conv2d(shape.width, shape.width, kernel_size=1)
    return nn.Sequential(inner, nn.GELU(), linear(shape, generator))


def conv(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build transposed convolutions of 4 x 4 that double the map, as a Simple Baseline's (arXiv 1804.06208).

    Each halves the channels; they stop at the points' resolution.
    """
    layers: list[nn.Module] = []
    width = shape.width
    for _ in range(shape.doublings):
        narrower = max(min(NARROWEST, width), width // 2)
        layers += [
            nn.ConvTranspose2d(width, narrower, kernel_size=4, stride=2, padding=1),
            LayerNorm2d(narrower),
            nn.GELU(),
        ]
        width = narrower
    left = shape.factor >> shape.doublings
    return nn.Sequential(*layers, LinearHead(width, shape.channels, left, generator))


class Expand(nn.Module):
    """Double a map and halve its channels: a Swin's patch merging turned round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expansion = nn.Linear(width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, h, w, C) to (B, 2h, 2w, C / 2)."""
        expanded = self.expansion(self.norm(tokens)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(expanded, 2).permute(0, 2, 3, 1)


class InverseSwin(nn.Module):
    """A Swin turned round: its stages from the last to the first, the map doubled between them.

    SimMIM's table 2 names such heads and gives their sizes; their code is not public. Our reading has the
    Swin's own widths, depths and heads, a linear layer that takes the encoder's width to its last
    stage's, and patch expansions for patch mergings. After a Swin-B it has the 115 M and 175 M
    parameters that we recall of the table. Stages finer than what is predicted are left out; at the end
    each cell gives its own points.
    """

    def __init__(self, arch: str, shape: HeadShape, generator: torch.Generator) -> None:
        super().__init__()
        swin = ARCHS[arch]
        stages = min(len(swin.depths), 1 + shape.doublings)
        last = len(swin.depths) - 1
        width = swin.num_features
        self.project = nn.Linear(shape.width, width)
        layers: list[nn.Module] = []
        for i in range(stages):
            if i:
                layers.append(Expand(width))
                width //= 2
            layers.append(
                SwinTransformerStage(
                    width,
                    width,
                    (shape.grid[0] << i, shape.grid[1] << i),
                    depth=swin.depths[last - i],
                    downsample=False,
                    num_heads=swin.num_heads[last - i],
                    window_size=shape.window,
                    mlp_ratio=swin.mlp_ratio,
                )
            )
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.last = LinearHead(width, shape.channels, shape.factor >> (stages - 1), generator)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, each with its own attention kernel."""
        select_attention(self, training=mode)
        return super().train(mode)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, K, h * f, w * f)."""
        tokens = self.layers(self.project(features.permute(0, 2, 3, 1)))
        return self.last(self.norm(tokens).permute(0, 3, 1, 2))


def inverse_swin_t(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build a Swin-T turned round."""
    return InverseSwin("swin_t", shape, generator)


def inverse_swin_b(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build a Swin-B turned round."""
    return InverseSwin("swin_b", shape, generator)


HEADS: dict[str, Callable[[HeadShape, torch.Generator], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "conv": conv,
    "inverse_swin_t": inverse_swin_t,
    "inverse_swin_b": inverse_swin_b,
}


class Aggregate(nn.Module):
    """Gather an encoder's levels into a map like the last: resized, put side by side, mixed by a 1x1 convolution."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        channels = sum(level.channels for level in spec.feature_levels)
        self.mix = nn.Conv2d(channels, spec.num_features, kernel_size=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map normalised levels, the last (B, D, h, w), to (B, D, h, w); finer ones are averaged."""
        size = (maps[-1].shape[2], maps[-1].shape[3])
        return self.mix(torch.cat([F.adaptive_avg_pool2d(m, size) for m in maps], dim=1))


def head_shape(spec: BackboneSpec, *, width: int, channels: int, stride: int) -> HeadShape:
    """Say what a head is between, for features of a width and points of `stride` pixels a side."""
    return HeadShape(
        width=width,
        channels=channels,
        factor=spec.stride // stride,
        grid=(spec.img_size[0] // spec.stride, spec.img_size[1] // spec.stride),
        window=spec.window_size or SWIN_WINDOW,
    )
