"""ConvNeXt and ResNet as SimMIM's encoders, on timm's modules.

In: images (B, C, H, W), normalised. Out: tokens, feature maps, pooled features or logits.
Follows arXiv 2201.03545 and 1512.03385; a ResNet's blocks are bottlenecks with the stride in their 3x3
convolution, as torchvision's and timm's. With SimMIM (arXiv 2111.09886, section 3) the mask token takes the
place of the stem's output where a cell is hidden, and the features are the last stage. A2MIM
(arXiv 2205.13943) puts its tokens deeper into the network.

A ResNet's stem overlaps: pixels that are hidden have to be blanked before it (`encoder_input.see_tokens`).

BatchNorm in a ResNet: a step that is cut into parts normalises each part by itself and moves the running
statistics once a part. Several processes normalise together on GPUs (`DistContext.share`), each its own images on
CPUs. The running statistics are buffers of a checkpoint. After pretraining they are those of masked images,
which a frozen backbone then takes whole images by. A BatchNorm whose weights are frozen keeps its statistics.

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

from simmim_bench.models.archs import BackboneSpec, FeatureLevel
from simmim_bench.models.buffers import preserve_buffers

# Where timm has another name: (ours, timm's).
TIMM_NAMES = {
    "convnext": (("norm.", "head.norm."), ("head.", "head.fc.")),
    "resnet": (("head.", "fc."),),
}
TIMM_PATCH = 4  # stride of the stems that timm has
Stage = tuple[Callable[[Tensor], Tensor], nn.Sequential]


class ConvNet(nn.Module):
    """What a stem and stages of convolutions have in common; parameters keep timm's names.

    Attributes:
        norm: of the last stage; Identity where the blocks end with one.
    """

    spec: BackboneSpec
    norm: nn.Module
    head: nn.Module
    grad_checkpointing: bool
    STEM: tuple[str, ...]
    STAGE: str  # name of a stage's parameters, by the stage's number from 0
    FIRST_STAGE = 0
    BLOCK: re.Pattern[
        str
    ]  # stage and block in a parameter's name; a downsampling before has no block

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Put (B, C, H, W) through the stem: (B, h, w, C), h = ceil(H / patch_size)."""

    @abstractmethod
    def _stages(self) -> Iterator[Stage]:
        """Give every stage: what comes before its blocks, and they."""

    @abstractmethod
    def _plain_norm(self, features: Tensor) -> Tensor:
        """Normalise a stage (B, C, h, w) before the last without weights."""

    def _make_head(self, num_classes: int) -> nn.Module:
        head = nn.Linear(self.spec.num_features, num_classes) if num_classes else nn.Identity()
        if isinstance(head, nn.Linear):
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        return head

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen BatchNorm stays in evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """The residual blocks, from the first to the last."""
        return [block for _, blocks in self._stages() for block in blocks]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping what is inside them."""
        self.grad_checkpointing = enable

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """Channels and stride of each map that `forward_maps` gives."""
        return self.spec.feature_levels

    @property
    def num_layers(self) -> int:
        """How many values `layer_id` can take."""
        return self.spec.num_blocks + 2

    def layer_id(self, name: str) -> int:
        """Say how deep a parameter lies: 0 for the stem, blocks from 1 on, the last for the rest.

        Layers are blocks, as a Swin's; ConvNeXt's own code counts three of them as one. A ConvNeXt's
        downsampling is counted with the block before it.
        """
        if name.startswith(("mask_token", *self.STEM)):
            return 0
        found = self.BLOCK.match(name)
        if found is None:
            return self.num_layers - 1
        before = sum(self.spec.depths[: int(found[1]) - self.FIRST_STAGE])
        return before if found[2] is None else before + int(found[2]) + 1

    def unused_in_maps(self, last_level: int = -1) -> list[str]:
        """Name the parameters that the maps up to a level do not depend on: a detector leaves them alone."""
        count = len(self.spec.depths)
        last = range(count)[last_level]
        unused = (
            "head.",
            *(self.STAGE.format(self.FIRST_STAGE + i) for i in range(last + 1, count)),
        )
        if last < count - 1:
            unused += ("norm.",)
        return [name for name, _ in self.named_parameters() if name.startswith(unused)]

    def no_weight_decay(self, name: str, *, pretraining: bool = False) -> bool:
        """Say whether a parameter is kept from weight decay beyond the rule for vectors and biases.

        That rule spares norms and layer scales. SimMIM spares a Swin's mask token; ours is spared as well.
        """
        return pretraining and name == "mask_token"

    def _block(self, block: nn.Module, features: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(features)
        if not any(isinstance(module, _BatchNorm) for module in block.modules()):
            return checkpoint(block, features, use_reentrant=False)
        # Computing a block again would move BatchNorm's statistics a second time.
        again = preserve_buffers(block)
        return checkpoint(
            block, features, use_reentrant=False, context_fn=lambda: (nullcontext(), again)
        )

    def _run(self, tokens: Tensor) -> list[Tensor]:
        """Give what every stage makes of tokens (B, h, w, C): (B, C, h, w) each, not normalised."""
        features = tokens.permute(0, 3, 1, 2)
        after_stages = []
        for downsample, blocks in self._stages():
            features = downsample(features)
            for block in blocks:
                features = self._block(block, features)
            after_stages.append(features)
        return after_stages

    def encode(self, tokens: Tensor) -> Tensor:
        """Map the stem's, possibly masked output (B, h, w, C) to SimMIM's features (B, C, h', w')."""
        return self.norm(self._run(tokens)[-1])

    def encode_levels(self, tokens: Tensor) -> list[Tensor]:
        """Give a map (B, C, h, w) for every stage of tokens (B, h, w, C); the last is `encode`'s."""
        *earlier, last = self._run(tokens)
        return [*map(self._plain_norm, earlier), self.norm(last)]

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Give a map (B, C, h, w) for every stage, h = ceil(H / stride), normalised as for SimMIM."""
        return [x.contiguous() for x in self.encode_levels(self.embed(images))]

    def _pooled(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)

    def forward_pooled(self, images: Tensor) -> Tensor:
        """Give the mean cell after every stage: (B, stages, 1, C), narrower ones filled with zeros."""
        *earlier, last = map(self._pooled, self._run(self.embed(images)))
        means = [x.flatten(1) for x in (*earlier, self.norm(last))]
        width = self.spec.num_features
        return torch.stack([F.pad(x, (0, width - x.shape[1])) for x in means], 1).unsqueeze(2)

    def forward_features(self, images: Tensor) -> Tensor:
        """Give pooled features (B, C): the mean of the last stage, then normalised, as ConvNeXt has it."""
        return self.norm(self._pooled(self._run(self.embed(images))[-1])).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits (B, num_classes), or pooled features where there is no head."""
        return self.head(self.forward_features(images))


class ConvNeXt(ConvNet):
    """A ConvNeXt; its last norm is over a cell's channels on maps, and over the pooled features' otherwise."""

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
        if spec.patch_size != TIMM_PATCH:
            patch = spec.patch_size
            self.stem[0] = nn.Conv2d(spec.in_chans, spec.embed_dim, patch, stride=patch)
            nn.init.trunc_normal_(self.stem[0].weight, std=0.02)
            nn.init.zeros_(self.stem[0].bias)
        self.stages = timm_model.stages
        self.norm = timm_model.head.norm
        self.head = self._make_head(num_classes)

    def _stages(self) -> Iterator[Stage]:
        for number, stage in enumerate(self.stages):
            before = partial(_downsampled, stage.downsample) if number else stage.downsample
            yield before, stage.blocks

    def _plain_norm(self, features: Tensor) -> Tensor:
        """Normalise each cell's channels, as detectors with a ConvNeXt do with weights."""
        cells = features.permute(0, 2, 3, 1)
        return F.layer_norm(cells, cells.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)

    def embed(self, images: Tensor) -> Tensor:
        """Cut (B, C, H, W) into patches and embed them: (B, h, w, C); a ragged border is filled with zeros."""
        return self.stem(_filled(images, self.spec.patch_size)).permute(0, 2, 3, 1)


def _filled(maps: Tensor, multiple: int) -> Tensor:
    """Fill (B, C, H, W) up with zeros to sides that are multiples."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, -width % multiple, 0, -height % multiple))


def _downsampled(layer: nn.Module, features: Tensor) -> Tensor:
    halved: Tensor = layer(_filled(features, 2))
    return halved


class ResNet(ConvNet):
    """A ResNet of bottlenecks; a stem of stride 2 is one without the pooling."""

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
            channels=bottlenecks(spec),
            drop_path_rate=drop_path_rate,
        )
        self.conv1, self.bn1, self.act1 = timm_model.conv1, timm_model.bn1, timm_model.act1
        self.maxpool = timm_model.maxpool if spec.patch_size == TIMM_PATCH else nn.Identity()
        for name in self._layers:
            self.add_module(name, getattr(timm_model, name))
        self.norm = nn.Identity()
        self.head = self._make_head(num_classes)

    @property
    def _layers(self) -> list[str]:
        return [f"layer{number + 1}" for number in range(len(self.spec.depths))]

    def _stages(self) -> Iterator[Stage]:
        for name in self._layers:
            yield nn.Identity(), getattr(self, name)

    def _plain_norm(self, features: Tensor) -> Tensor:
        """Leave a stage as its BatchNorms have left it."""
        return features

    def embed(self, images: Tensor) -> Tensor:
        """Put (B, C, H, W) through the convolution of 7 x 7 and the pooling: (B, h, w, C)."""
        return self.maxpool(self.act1(self.bn1(self.conv1(images)))).permute(0, 2, 3, 1)


def timm_name(name: str, family: str) -> str:
    """Give a weight's name in timm."""
    for ours, theirs in TIMM_NAMES[family]:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def name_of_timm(name: str, family: str) -> str:
    """Give our name of a weight of timm's."""
    for ours, theirs in TIMM_NAMES[family]:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def bottlenecks(spec: BackboneSpec) -> tuple[int, ...]:
    """Give the channels inside a block of every stage: a quarter of the stage's (arXiv 1512.03385, table 1)."""
    return tuple(level.channels // 4 for level in spec.feature_levels)
