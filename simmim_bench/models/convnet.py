"""Build ConvNeXt and ResNet as SimMIM encoders, on timm's modules.

The modules map normalised images (B, C, H, W) to tokens, feature maps, pooled features or logits. They follow
arXiv 2201.03545 and 1512.03385; a ResNet's blocks are bottlenecks with the stride in the 3x3 convolution, as in
torchvision and timm. In SimMIM (arXiv 2111.09886, section 3) the mask token replaces the stem's output at hidden
cells, and the features are the last stage. A2MIM (arXiv 2205.13943) inserts its tokens deeper in the network.

The receptive fields of a ResNet's stem overlap, so hidden pixels must be blanked before the stem
(`pretrain/encoder_input.py`).

BatchNorm in a ResNet: every gradient-accumulation step is normalised by itself and updates the running
statistics once. Several processes synchronise BatchNorm on GPUs (`DistContext`); on CPUs each process normalises
its own images. The running statistics are buffers of a checkpoint. After pretraining they are those of masked
images, and a frozen backbone normalises unmasked images with them. A BatchNorm with frozen weights keeps its
statistics.

Legend: B batch, C channels, (H, W) image, (h, w) tokens.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from timm.models import convnext, resnet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from simmim_bench.models.buffers import preserve_buffers
from simmim_bench.models.map_norms import build_map_norms, normalise_maps
from simmim_bench.models.spec import BackboneSpec, FeatureLevel

# Prefixes of parameters that timm names differently: (simmim-bench's, timm's).
TIMM_NAMES = {
    "convnext": (("norm.", "head.norm."), ("head.", "head.fc.")),
    "resnet": (("head.", "fc."),),
}
TIMM_STEM_STRIDE = 4  # the only stem stride that timm implements
Stage = tuple[Callable[[Tensor], Tensor], nn.Sequential]


def freeze_statistics(model: nn.Module) -> None:
    """Set every BatchNorm with frozen weights to evaluation mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()


class ConvNet(nn.Module):
    """Base class of networks with a stem and convolutional stages; parameters have timm's names.

    Attributes:
        norm: norm of the last stage; Identity if the blocks end with a norm.
        map_norms: new norms of the feature maps; see `MapOptions`.
    """

    spec: BackboneSpec
    norm: nn.Module
    map_norms: nn.ModuleList
    head: nn.Module
    grad_checkpointing: bool
    STEM: tuple[str, ...]  # prefixes of the stem's parameters
    STAGE: str  # format of the prefix of a stage's parameters
    FIRST_STAGE = 0  # number of the first stage in parameter names
    # Stage and block number in a parameter's name; a downsampling layer has no block number.
    BLOCK: re.Pattern[str]

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Apply the stem to (B, C, H, W); returns (B, h, w, C) with h = ceil(H / patch_size)."""

    @abstractmethod
    def _stages(self) -> Iterator[Stage]:
        """Yield every stage as (downsampling before its blocks, blocks)."""

    @abstractmethod
    def _plain_norm(self, features: Tensor) -> Tensor:
        """Normalise the output (B, C, h, w) of a stage other than the last, without weights."""

    def _make_head(self, num_classes: int) -> nn.Module:
        head = nn.Linear(self.spec.num_features, num_classes) if num_classes else nn.Identity()
        if isinstance(head, nn.Linear):
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        return head

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a BatchNorm with frozen weights stays in evaluation mode."""
        super().train(mode)
        freeze_statistics(self)
        return self

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """The residual blocks, from the first to the last."""
        return [block for _, blocks in self._stages() for block in blocks]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of blocks in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """Channels and stride of every map that `forward_maps` returns."""
        return self.spec.feature_levels

    @property
    def num_layers(self) -> int:
        """Number of values of `layer_id`."""
        return self.spec.num_blocks + 2

    def layer_id(self, name: str) -> int:
        """Return the layer of a parameter: 0 for the stem, 1 + i for block i, the last for the rest.

        Every block is one layer, as in a Swin; ConvNeXt's official code groups three blocks into one layer.
        A ConvNeXt's downsampling has the layer of the block before it.
        """
        if name.startswith(("mask_token", *self.STEM)):
            return 0
        found = self.BLOCK.match(name)
        if found is None:
            return self.num_layers - 1
        before = sum(self.spec.depths[: int(found[1]) - self.FIRST_STAGE])
        return before if found[2] is None else before + int(found[2]) + 1

    def unused_in_maps(self, last_level: int = -1) -> list[str]:
        """Return the names of the parameters that no map up to a level depends on, which a detector freezes."""
        count = len(self.spec.depths)
        last = range(count)[last_level]
        beyond = range(last + 1, count)
        unused = (
            "head.",
            *(self.STAGE.format(self.FIRST_STAGE + i) for i in beyond),
            *(f"map_norms.{i}." for i in beyond),
        )
        if beyond or self.spec.map_norm != "plain":
            unused += ("norm.",)
        return [name for name, _ in self.named_parameters() if name.startswith(unused)]

    def no_weight_decay(self, name: str, *, pretraining: bool = False) -> bool:
        """Return whether a parameter is exempt from weight decay beyond the rule for vectors and biases.

        That rule exempts norms and layer scales. SimMIM exempts a Swin's mask token; a convolutional
        network's mask token is exempt as well.
        """
        return pretraining and name == "mask_token"

    def _block(self, block: nn.Module, features: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(features)
        if not any(isinstance(module, _BatchNorm) for module in block.modules()):
            return checkpoint(block, features, use_reentrant=False)
        # The recomputation would update BatchNorm's statistics a second time.
        recomputation = preserve_buffers(block)
        return checkpoint(
            block, features, use_reentrant=False, context_fn=lambda: (nullcontext(), recomputation)
        )

    def _run(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens (B, h, w, C) to the output (B, C, h, w) of every stage, not normalised."""
        features = tokens.permute(0, 3, 1, 2)
        after_stages = []
        for downsample, blocks in self._stages():
            features = downsample(features)
            for block in blocks:
                features = self._block(block, features)
            after_stages.append(features)
        return after_stages

    def encode(self, tokens: Tensor) -> Tensor:
        """Map the stem's output (B, h, w, C), possibly masked, to SimMIM's features (B, C, h', w')."""
        return self.norm(self._run(tokens)[-1])

    def encode_levels(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens (B, h, w, C) to one map (B, C, h, w) per stage; the last one equals `encode`'s."""
        *earlier, last = self._run(tokens)
        return [*map(self._plain_norm, earlier), self.norm(last)]

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return one map (B, C, h, w) per stage, h = ceil(H / stride), normalised by the spec's `map_norm`.

        "plain" is the norm of `encode_levels`.
        """
        tokens = self.embed(images)
        if self.spec.map_norm == "plain":
            return [x.contiguous() for x in self.encode_levels(tokens)]
        return normalise_maps(self.map_norms, [x.permute(0, 2, 3, 1) for x in self._run(tokens)])

    def _pooled(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)

    def forward_pooled(self, images: Tensor) -> Tensor:
        """Return the mean cell after every stage: (B, stages, 1, C), narrower stages padded with zeros."""
        *earlier, last = map(self._pooled, self._run(self.embed(images)))
        means = [x.flatten(1) for x in (*earlier, self.norm(last))]
        width = self.spec.num_features
        return torch.stack([F.pad(x, (0, width - x.shape[1])) for x in means], 1).unsqueeze(2)

    def forward_tokens(self, images: Tensor) -> list[Tensor]:
        """Return the cells (B, h, w, C) after every stage, the last one normalised as in `forward_maps`."""
        *earlier, last = self._run(self.embed(images))
        return [x.permute(0, 2, 3, 1) for x in (*earlier, self.norm(last))]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, C): the mean of the last stage, then normalised, as in ConvNeXt."""
        return self.norm(self._pooled(self._run(self.embed(images))[-1])).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes), or pooled features if the backbone has no head."""
        return self.head(self.forward_features(images))


class ConvNeXt(ConvNet):
    """ConvNeXt; the last norm is applied to every cell of a map, or to the pooled features."""

    STEM = ("stem.",)
    STAGE = "stages.{}."
    BLOCK = re.compile(r"stages\.(\d+)\.(?:blocks\.(\d+)\.|downsample\.)")

    def __init__(
        self, spec: BackboneSpec, *, num_classes: int = 0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.spec, self.grad_checkpointing = spec, False
        timm_model = convnext.ConvNeXt(
            in_chans=spec.in_chans,
            num_classes=0,
            depths=spec.depths,
            dims=tuple(level.channels for level in spec.feature_levels),
            ls_init_value=spec.init_values,
            drop_path_rate=drop_path_rate,
        )
        self.stem = timm_model.stem
        if spec.patch_size != TIMM_STEM_STRIDE:
            patch = spec.patch_size
            self.stem[0] = nn.Conv2d(spec.in_chans, spec.embed_dim, patch, stride=patch)
            nn.init.trunc_normal_(self.stem[0].weight, std=0.02)
            nn.init.zeros_(self.stem[0].bias)
        self.stages = timm_model.stages
        self.norm = timm_model.head.norm
        self.map_norms = build_map_norms(
            spec, eps=1e-6
        )  # mmseg/.mim/configs/_base_/models/upernet_convnext.py
        self.head = self._make_head(num_classes)

    def _stages(self) -> Iterator[Stage]:
        for number, stage in enumerate(self.stages):
            before = partial(_downsample, stage.downsample) if number else stage.downsample
            yield before, stage.blocks

    def _plain_norm(self, features: Tensor) -> Tensor:
        """Normalise each cell's channels, as detectors with a ConvNeXt do, but without weights."""
        cells = features.permute(0, 2, 3, 1)
        return F.layer_norm(cells, cells.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)

    def embed(self, images: Tensor) -> Tensor:
        """Split (B, C, H, W) into patches and embed them as (B, h, w, C), zero-padded to whole patches."""
        return self.stem(_pad(images, self.spec.patch_size)).permute(0, 2, 3, 1)


def _pad(maps: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with zeros at the right and bottom, to sides that are multiples of `multiple`."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, -width % multiple, 0, -height % multiple))


def _downsample(layer: nn.Module, features: Tensor) -> Tensor:
    halved: Tensor = layer(_pad(features, 2))
    return halved


class ResNet(ConvNet):
    """ResNet with bottleneck blocks; a stem of stride 2 has no max pooling."""

    STEM = ("conv1.", "bn1.")
    STAGE = "layer{}."
    FIRST_STAGE = 1
    BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")

    def __init__(
        self, spec: BackboneSpec, *, num_classes: int = 0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.spec, self.grad_checkpointing = spec, False
        timm_model = resnet.ResNet(
            resnet.Bottleneck,
            spec.depths,
            num_classes=0,
            in_chans=spec.in_chans,
            channels=bottleneck_channels(spec),
            drop_path_rate=drop_path_rate,
        )
        self.conv1, self.bn1, self.act1 = timm_model.conv1, timm_model.bn1, timm_model.act1
        self.maxpool = timm_model.maxpool if spec.patch_size == TIMM_STEM_STRIDE else nn.Identity()
        for name in self._layers:
            self.add_module(name, getattr(timm_model, name))
        self.norm = nn.Identity()
        self.map_norms = nn.ModuleList()
        self.head = self._make_head(num_classes)

    @property
    def _layers(self) -> list[str]:
        return [f"layer{number + 1}" for number in range(len(self.spec.depths))]

    def _stages(self) -> Iterator[Stage]:
        for name in self._layers:
            yield nn.Identity(), getattr(self, name)

    def _plain_norm(self, features: Tensor) -> Tensor:
        """Return the features unchanged: the blocks end with a BatchNorm."""
        return features

    def embed(self, images: Tensor) -> Tensor:
        """Apply the 7 x 7 convolution and the max pooling to (B, C, H, W); returns (B, h, w, C)."""
        return self.maxpool(self.act1(self.bn1(self.conv1(images)))).permute(0, 2, 3, 1)


def name_to_timm(name: str, family: str) -> str:
    """Convert a parameter name of a convolutional network to timm's."""
    for ours, theirs in TIMM_NAMES[family]:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def name_from_timm(name: str, family: str) -> str:
    """Convert timm's parameter name of a convolutional network to simmim-bench's."""
    for ours, theirs in TIMM_NAMES[family]:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def bottleneck_channels(spec: BackboneSpec) -> tuple[int, ...]:
    """Return the channels inside the blocks of every stage: a quarter of the stage's (arXiv 1512.03385, table 1)."""
    return tuple(level.channels // 4 for level in spec.feature_levels)
