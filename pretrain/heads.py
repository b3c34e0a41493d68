"""Prediction heads, and the aggregation of several feature levels before them.

A head maps features (B, D, h, w) to a prediction (B, K, h * f, w * f): K numbers at each of the f x f points of a
cell. SimMIM compares the linear head with a two-layer MLP and with inverse Swins (arXiv 2111.09886, table 2).

Legend: D channels of the features, K numbers per point, f points per side of a cell.
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

from simmim_bench.models.archs import ARCHS
from simmim_bench.models.attention import select_attention
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.models.swin import pad_before_shift

SWIN_WINDOW = 7  # Swin's default (arXiv 2103.14030, section 4), for encoders without windows
MIN_CONV_CHANNELS = 32  # ours: lower limit for the channels of the transposed convolutions


class HeadShape(NamedTuple):
    """Input and output sizes of a head.

    Attributes:
        width: channels of the features, D.
        channels: numbers per point, K.
        factor: points per side of a cell, f.
        grid: (h, w) of the features.
        window: tokens per side of an attention window, for heads that have attention.
    """

    width: int
    channels: int
    factor: int
    grid: tuple[int, int]
    window: int

    @property
    def doublings(self) -> int:
        """How often the map can be upsampled by 2 before it is finer than the points."""
        return (self.factor & -self.factor).bit_length() - 1


class LinearHead(nn.Conv2d):
    """A 1x1 convolution and a pixel shuffle: each cell of the last map predicts its points (SimMIM, section 3.3)."""

    def __init__(self, width: int, channels: int, factor: int, generator: torch.Generator) -> None:
        super().__init__(width, factor**2 * channels, kernel_size=1)
        self.factor = factor
        bound = width**-0.5  # torch's default for this layer, sampled from our generator
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        assert self.bias is not None
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, K, h * f, w * f)."""
        return F.pixel_shuffle(super().forward(features), self.factor)


def build_linear_head(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build SimMIM's default head."""
    return LinearHead(shape.width, shape.channels, shape.factor, generator)


def build_mlp_head(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build two layers, the inner one as wide as the features: 1.0 M more weights for Swin-B (SimMIM, table 2)."""
    inner = nn.Conv2d(shape.width, shape.width, kernel_size=1)
    return nn.Sequential(inner, nn.GELU(), build_linear_head(shape, generator))


def build_conv_head(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build 4 x 4 transposed convolutions that upsample by 2, as in Simple Baselines (arXiv 1804.06208).

    Each halves the channels; the last one reaches the resolution of the points, or stops before it by an odd factor.
    """
    layers: list[nn.Module] = []
    width = shape.width
    for _ in range(shape.doublings):
        narrower = max(min(MIN_CONV_CHANNELS, width), width // 2)
        layers += [
            nn.ConvTranspose2d(width, narrower, kernel_size=4, stride=2, padding=1),
            LayerNorm2d(narrower),
            nn.GELU(),
        ]
        width = narrower
    remaining = shape.factor >> shape.doublings
    return nn.Sequential(*layers, LinearHead(width, shape.channels, remaining, generator))


class PatchExpanding(nn.Module):
    """Upsample a map by 2 and halve its channels: the inverse of Swin's patch merging."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expansion = nn.Linear(width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, h, w, C) to (B, 2h, 2w, C / 2)."""
        expanded = self.expansion(self.norm(tokens)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(expanded, 2).permute(0, 2, 3, 1)


class InverseSwin(nn.Module):
    """An inverse Swin: the stages of a Swin from the last to the first, with upsampling by 2 between them.

    SimMIM's table 2 lists such heads with their sizes; their code is not public. Our interpretation keeps the Swin's
    widths, depths and numbers of heads, projects the encoder's width to that of the Swin's last stage with a linear
    layer, and replaces patch merging by patch expanding. With a Swin-B encoder the model has the 115 M (Swin-T) and
    175 M (Swin-B) parameters that we recall of the table. Stages finer than the predicted points are omitted; a
    linear head predicts the points of each cell.
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
                layers.append(PatchExpanding(width))
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
        pad_before_shift(self.layers)
        self.norm = nn.LayerNorm(width)
        self.last = LinearHead(width, shape.channels, shape.factor >> (stages - 1), generator)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, which use different attention kernels."""
        select_attention(self, training=mode)
        return super().train(mode)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) to (B, K, h * f, w * f)."""
        tokens = self.layers(self.project(features.permute(0, 2, 3, 1)))
        return self.last(self.norm(tokens).permute(0, 3, 1, 2))


def build_inverse_swin_t_head(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build an inverse Swin-T."""
    return InverseSwin("swin_t", shape, generator)


def build_inverse_swin_b_head(shape: HeadShape, generator: torch.Generator) -> nn.Module:
    """Build an inverse Swin-B."""
    return InverseSwin("swin_b", shape, generator)


HEADS: dict[str, Callable[[HeadShape, torch.Generator], nn.Module]] = {
    "linear": build_linear_head,
    "mlp": build_mlp_head,
    "conv": build_conv_head,
    "inverse_swin_t": build_inverse_swin_t_head,
    "inverse_swin_b": build_inverse_swin_b_head,
}


class LevelAggregation(nn.Module):
    """Aggregate an encoder's levels: pool them to the last one's size, concatenate, project by a 1x1 convolution."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        channels = sum(level.channels for level in spec.feature_levels)
        self.mix = nn.Conv2d(channels, spec.num_features, kernel_size=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map the normalised levels, of which the last is (B, D, h, w), to (B, D, h, w); finer levels are averaged."""
        size = (maps[-1].shape[2], maps[-1].shape[3])
        return self.mix(torch.cat([F.adaptive_avg_pool2d(m, size) for m in maps], dim=1))


def head_shape(spec: BackboneSpec, *, width: int, channels: int, stride: int) -> HeadShape:
    """Return the sizes of a head for features of `width` channels and points of `stride` x `stride` pixels."""
    return HeadShape(
        width=width,
        channels=channels,
        factor=spec.stride // stride,
        grid=(spec.img_size[0] // spec.stride, spec.img_size[1] // spec.stride),
        window=spec.window_size or SWIN_WINDOW,
    )
