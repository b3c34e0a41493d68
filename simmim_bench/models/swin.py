"""Build Swin and Swin V2 as SimMIM uses them, on timm's modules.

The modules map normalised images (B, C, H, W) to tokens, feature maps, pooled features or logits. They follow
arXiv 2103.14030 and 2111.09883; in SimMIM (arXiv 2111.09886, section 3) the mask is applied to the patch
embedding and the features are the normalised last stage.

Where a window does not divide a map, timm's blocks shift the map and then pad it, but mask attention as if they had
padded it first, so that rows wrapped around from one border attend to rows of the opposite one. `pad_before_shift`
makes them pad first, as the Swins of Detectron2, MMSegmentation and torchvision do. SimMIM's own Swin requires sizes
that its windows divide, where both orders are equal.

Legend: B batch, C channels, (H, W) image, (h, w) tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn
from typing_extensions import Self

from simmim_bench.models.attention import select_attention
from simmim_bench.models.cpu_attention import suits_products
from simmim_bench.models.cpu_windows import attend_in_windows, attend_in_windows_v2
from simmim_bench.models.map_norms import build_map_norms, normalise_maps
from simmim_bench.models.spec import BackboneSpec, FeatureLevel

_TIMM_CLASSES = {"swin": SwinTransformer, "swinv2": SwinTransformerV2}


# Products of windows and heads that torch's fused attention takes on CUDA: before 2.8 it refuses more, and later ones
# fail in the backward pass of more windows (seen with torch 2.11 and 65,536).
MAX_WINDOWS = 65_535


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's block of a Swin, padding a map to whole windows before the shift."""

    def _attn(self, x: Tensor) -> Tensor:
        """Apply window attention to normalised tokens (B, h, w, C)."""
        height, width = x.shape[1:3]
        x = _pad_to_windows(x, self.window_size)
        if suits_products(self.attn.fused_attn, self.attn.attn_drop, x):
            return attend_in_windows(self, x)[:, :height, :width]
        parts = [super(PaddedSwinBlock, self)._attn(p) for p in _split(self, x)]
        return _join(parts)[:, :height, :width]


class PaddedSwinV2Block(SwinTransformerV2Block):
    """timm's block of a Swin V2, padding a map to whole windows before the shift."""

    def _attn(self, x: Tensor) -> Tensor:
        """Apply window attention to tokens (B, h, w, C)."""
        height, width = x.shape[1:3]
        x = _pad_to_windows(x, self.window_size)
        if suits_products(not self.training, self.attn.attn_drop, x):
            return attend_in_windows_v2(self, x)[:, :height, :width]
        parts = [super(PaddedSwinV2Block, self)._attn(p) for p in _split(self, x)]
        return _join(parts)[:, :height, :width]


_PADDED_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    SwinTransformerBlock: PaddedSwinBlock,
    SwinTransformerV2Block: PaddedSwinV2Block,
}


def _pad_to_windows(tokens: Tensor, window: tuple[int, int]) -> Tensor:
    """Pad tokens (B, h, w, C) with zeros at the bottom and at the right to whole windows."""
    height, width = tokens.shape[1:3]
    bottom, right = -height % window[0], -width % window[1]
    # timm pads as well, by nothing then; a second copy of every map would cost time.
    return F.pad(tokens, (0, 0, 0, right, 0, bottom)) if bottom or right else tokens


def _split(
    block: SwinTransformerBlock | SwinTransformerV2Block, tokens: Tensor
) -> tuple[Tensor, ...]:
    """Split tokens (B, h, w, C) along the batch, so that no part has more than `MAX_WINDOWS` windows times heads."""
    rows, columns = (
        side // window for side, window in zip(tokens.shape[1:3], block.window_size, strict=True)
    )
    return tokens.split(max(1, MAX_WINDOWS // (rows * columns * block.attn.num_heads)))


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pad_before_shift(model: nn.Module) -> None:
    """Make the blocks of timm's Swin or Swin V2 pad a map to whole windows before they shift it.

    The parameters and their names stay the same. At sizes that the windows divide, nothing changes.
    """
    for module in model.modules():
        if type(module) in _PADDED_BLOCKS:
            # timm's models have no argument for the class of their blocks, and these classes add no state.
            module.__class__ = _PADDED_BLOCKS[type(module)]


class Swin(nn.Module):
    """Swin or Swin V2 with timm's parameter names; pretraining and transfer use the same modules."""

    def __init__(
        self, spec: BackboneSpec, *, num_classes: int = 0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.spec = spec
        v2_options = {"pretrained_window_sizes": spec.pretrained_windows or (0,) * len(spec.depths)}
        timm_model = _TIMM_CLASSES[spec.family](
            img_size=spec.img_size,
            patch_size=spec.patch_size,
            in_chans=spec.in_chans,
            num_classes=0,
            embed_dim=spec.embed_dim,
            depths=spec.depths,
            num_heads=spec.num_heads,
            window_size=spec.window_size,
            mlp_ratio=spec.mlp_ratio,
            drop_path_rate=drop_path_rate,
            strict_img_size=False,
            **(v2_options if spec.family == "swinv2" else {}),
        )
        pad_before_shift(timm_model)
        self.patch_embed = timm_model.patch_embed
        self.layers = timm_model.layers
        self.norm = timm_model.norm
        # eps: the default of torch's LayerNorm, as in mmseg/models/backbones/swin.py and detectron2's.
        self.map_norms = build_map_norms(spec, eps=1e-5)
        self.head = nn.Linear(spec.num_features, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode and select the attention kernel for that mode."""
        select_attention(self, training=mode)
        return super().train(mode)

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """The transformer blocks, from the first to the last."""
        return [block for stage in self.layers for block in stage.blocks]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of blocks in the backward pass instead of storing them."""
        for stage in self.layers:
            stage.grad_checkpointing = enable

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """Channels and stride of every map that `forward_maps` returns."""
        return self.spec.feature_levels

    @property
    def num_layers(self) -> int:
        """Number of values of `layer_id`."""
        return self.spec.num_blocks + 2

    def layer_id(self, name: str) -> int:
        """Return the layer of a parameter: 0 for the embedding, 1 + i for block i, the last for the rest.

        timm stores a downsampling at the start of a stage, the official code at the end of the previous
        stage. As in the official code, a downsampling has the layer of the block before it.
        """
        if name.startswith(("mask_token", "patch_embed.")):
            return 0
        if name.startswith("layers."):
            _, stage, part, *rest = name.split(".")
            before = sum(self.spec.depths[: int(stage)])
            return before if part == "downsample" else before + int(rest[0]) + 1
        return self.num_layers - 1

    def unused_in_maps(self, last_level: int = -1) -> list[str]:
        """Return the names of the parameters that no map up to a level depends on, which a detector freezes."""
        last = range(len(self.layers))[last_level]
        beyond = range(last + 1, len(self.layers))
        unused = ("head.", *(f"{part}.{i}." for i in beyond for part in ("layers", "map_norms")))
        if beyond or self.spec.map_norm != "plain":
            unused += ("norm.",)
        return [name for name, _ in self.named_parameters() if name.startswith(unused)]

    def no_weight_decay(self, name: str, *, pretraining: bool = False) -> bool:
        """Return whether a parameter is exempt from weight decay beyond the rule for vectors and biases.

        The official code intends to exempt the position biases always, but during pretraining it searches
        for "encoder.relative_position_bias_table", which no name contains; so they decay during
        pretraining. It exempts a Swin's mask token, but not a ViT's.
        """
        if pretraining:
            return name == "mask_token"
        return any(
            part in name for part in ("relative_position_bias_table", "logit_scale", "cpb_mlp")
        )

    def embed(self, images: Tensor) -> Tensor:
        """Split (B, C, H, W) into patches and embed them as (B, h, w, C), zero-padded to whole patches."""
        patch = self.spec.patch_size
        height, width = images.shape[-2:]
        return self.patch_embed(F.pad(images, (0, -width % patch, 0, -height % patch)))

    def _run_stages(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens (B, h, w, C) after every stage."""
        after_stages = []
        for stage in self.layers:
            tokens = stage(tokens)
            after_stages.append(tokens)
        return after_stages

    def _run(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens (B, h, w, C) after every stage, the last one normalised."""
        *earlier, last = self._run_stages(tokens)
        return [*earlier, self.norm(last)]

    def encode(self, tokens: Tensor) -> Tensor:
        """Map embedded, possibly masked patches (B, h, w, C) to SimMIM's features (B, C, h', w')."""
        return self._run(tokens)[-1].permute(0, 3, 1, 2)

    def encode_levels(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens (B, h, w, C) to one map (B, C, h, w) per stage; the last one equals `encode`'s."""
        *earlier, last = self._run(tokens)
        maps = [F.layer_norm(x, x.shape[-1:]) for x in earlier] + [last]
        return [x.permute(0, 3, 1, 2) for x in maps]

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return one map (B, C, h, w) per stage, h = ceil(H / stride), normalised by the spec's `map_norm`.

        With "plain", the earlier stages are layer-normalised without weights and the last by `norm`, so that no
        weight is missing from a checkpoint. Published detectors learn a scale and shift per stage ("affine").
        """
        tokens = self.embed(images)
        if self.spec.map_norm == "plain":
            return [x.contiguous() for x in self.encode_levels(tokens)]
        return normalise_maps(self.map_norms, self._run_stages(tokens))

    def forward_pooled(self, images: Tensor) -> Tensor:
        """Return the mean token after every stage: (B, stages, 1, C), narrower stages padded with zeros."""
        means = [x.mean((1, 2)) for x in self._run(self.embed(images))]
        width = self.spec.num_features
        return torch.stack([F.pad(x, (0, width - x.shape[1])) for x in means], 1).unsqueeze(2)

    def forward_tokens(self, images: Tensor) -> list[Tensor]:
        """Return the tokens (B, h, w, C) after every stage, the last one normalised as in `forward_pooled`."""
        return self._run(self.embed(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, C): the mean of the last stage."""
        return self._run(self.embed(images))[-1].mean((1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes), or pooled features if the backbone has no head."""
        return self.head(self.forward_features(images))
