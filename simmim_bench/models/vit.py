"""Build SimMIM's vision transformer on timm's BEiT blocks.

The module maps normalised images (B, C, H, W) to tokens, feature maps, pooled features or logits. It follows
SimMIM (arXiv 2111.09886, section 3) and its models/vision_transformer.py: a class token, no absolute position
embedding, bias on queries and values only, layer scale. In the pretraining form all blocks share one relative
position bias. In the transfer form every block has its own copy, and the mean of the patch tokens is
normalised by `fc_norm` instead of the last norm.

With a `window_size` the transfer form is ViTDet's backbone (arXiv 2203.16527, section 3): the last block of each
quarter has global attention, the other blocks have window attention, and the model has no class token.
SimMIM's position bias of a 14 x 14 grid is then used unchanged for a 14 x 14 window.

Legend: B batch, C channels, (H, W) image, (h, w) tokens, L = h * w.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, calculate_drop_path_rates, resample_abs_pos_embed, trunc_normal_
from timm.models.beit import Block
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from simmim_bench.models.attention import select_attention
from simmim_bench.models.cpu_attention import attend_by_products, suits_products
from simmim_bench.models.decomposed_position import DecomposedPositionAttention
from simmim_bench.models.map_norms import build_map_norms, normalise_maps
from simmim_bench.models.position_bias import Grid, RelativePositionBias, aligned_bias
from simmim_bench.models.spec import BackboneSpec, FeatureLevel, Form

HEAD_SCALE = 1e-3  # init_scale of SimMIM's models/vision_transformer.py
SINCOS_EXTENT = (
    8.0  # simmim-bench's choice: neighbouring patches of an 8 x 8 grid are at distance 1
)


class ViTBlock(Block):
    """BEiT block whose position bias is resized to the grid of the input.

    Args:
        drop_path: stochastic depth rate, in [0, 1).
        own_position_bias: whether the block has a position bias table, instead of a shared one.
        class_token: whether the first token is a class token.
        window: side of an attention window in tokens; 0 for global attention.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        drop_path: float,
        own_position_bias: bool,
        class_token: bool,
        window: int,
    ) -> None:
        super().__init__(
            spec.embed_dim,
            spec.num_heads[0],
            qkv_bias=True,
            mlp_ratio=spec.mlp_ratio,
            drop_path=drop_path,
            init_values=spec.init_values,
            norm_layer=partial(_norm, eps=spec.norm_eps),
        )
        self.class_token, self.window = class_token, window
        self.rel_pos_bias = (
            RelativePositionBias((window, window) if window else spec.grid, spec.num_heads[0])
            if own_position_bias
            else None
        )
        if spec.decomposed_rel_pos:
            side = (window, window) if window else spec.grid
            self.attn = DecomposedPositionAttention(spec.embed_dim, spec.num_heads[0], side)

    def forward(self, tokens: Tensor, grid: Grid, shared_bias: Tensor | None = None) -> Tensor:
        """Map (B, [1 +] L, C) to (B, [1 +] L, C)."""
        if self.window:
            # As in ViTDet, windows at the border are padded with zeros, and attention includes the padding.
            windows, padded = window_partition(self.norm1(tokens).unflatten(1, grid), self.window)
            attended = self._attend(windows.flatten(1, 2), (self.window, self.window), shared_bias)
            attended = window_unpartition(
                attended.view_as(windows), self.window, grid, padded
            ).flatten(1, 2)
        else:
            attended = self._attend(self.norm1(tokens), grid, shared_bias)
        tokens = tokens + self.drop_path1(_scale(attended, self.gamma_1))
        return tokens + self.drop_path2(_scale(self.mlp(self.norm2(tokens)), self.gamma_2))

    def _attend(self, tokens: Tensor, size: Grid, shared_bias: Tensor | None) -> Tensor:
        """Apply the attention to the normalised tokens of a grid or of windows of an (h, w) size."""
        if isinstance(self.attn, DecomposedPositionAttention):
            return self.attn(tokens, size)
        device, dtype = tokens.device.type, tokens.dtype
        # The "meta" device has no autocast; torch.compile cannot trace the question whether it is available.
        if device != "meta" and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # of queries and keys
        bias = shared_bias
        if self.rel_pos_bias is not None:
            bias = self.rel_pos_bias(size, class_token=self.class_token, dtype=dtype)
        elif bias is not None:
            bias = aligned_bias(bias, dtype)
        if suits_products(self.attn.fused_attn, self.attn.attn_drop, tokens):
            return self._attend_by_products(tokens, bias)
        attended: Tensor = self.attn(tokens, shared_rel_pos_bias=bias)
        return attended

    def _attend_by_products(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Compute what timm's attention module does in float32 on a CPU, with fewer copies."""
        attention = self.attn
        if bias is not None:
            bias = bias.squeeze(0)
        qkv_bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        qkv = F.linear(tokens, attention.qkv.weight, qkv_bias)
        attended = attend_by_products(qkv, bias, attention.num_heads, attention.scale)
        return attention.proj_drop(attention.proj(attended))


def _scale(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else gamma * branch


def _norm(dim: int, eps: float | None = None, **factory: object) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=eps or 1e-6, **factory)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def sincos_position(grid: Grid, dim: int, device: torch.device | None = None) -> Tensor:
    """Compute the sine-cosine position embedding (h, w, dim) of every patch, on the CPU, and keep it on a device.

    Positions are relative to the image size, so that another grid samples the same embedding at another
    density. The embedding is halved to match the magnitude of the embedded patches.
    """
    rows = (torch.arange(grid[0]) + 0.5) / grid[0] * SINCOS_EXTENT
    columns = (torch.arange(grid[1]) + 0.5) / grid[1] * SINCOS_EXTENT
    frequencies = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    by_row, by_column = rows[:, None] * frequencies, columns[:, None] * frequencies
    y = torch.cat([by_row.sin(), by_row.cos()], 1)[:, None].expand(-1, grid[1], -1)
    x = torch.cat([by_column.sin(), by_column.cos()], 1)[None].expand(grid[0], -1, -1)
    return (torch.cat([y, x], dim=2) / 2).to(device)


class ViT(nn.Module):
    """ViT in its pretraining form (shared bias, last norm) or its transfer form (one bias per block, `fc_norm`)."""

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        form: Form = "transfer",
        num_classes: int = 0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.spec, self.form = spec, form
        self.grid = spec.absolute_grid
        self.has_class_token = form == "pretrain" or spec.has_class_token
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(
            None,
            spec.patch_size,
            spec.in_chans,
            spec.embed_dim,
            flatten=False,
            strict_img_size=False,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], spec.embed_dim))
            if spec.abs_pos_embed
            else None
        )
        pretraining = form == "pretrain"
        self.rel_pos_bias = (
            RelativePositionBias(self.grid, spec.num_heads[0])
            if pretraining and spec.rel_pos_bias
            else None
        )
        rates = calculate_drop_path_rates(drop_path_rate, spec.depths[0])
        self.blocks = nn.ModuleList(
            ViTBlock(
                spec,
                drop_path=rate,
                own_position_bias=spec.rel_pos_bias and not pretraining,
                class_token=self.has_class_token,
                window=0 if pretraining or i not in spec.windowed_blocks else spec.window_size,
            )
            for i, rate in enumerate(rates)
        )
        norm, none = _norm(spec.embed_dim, spec.norm_eps), nn.Identity()
        self.norm: nn.Module = norm if pretraining else none
        self.fc_norm: nn.Module = none if pretraining else norm
        self.map_norms = build_map_norms(spec, eps=1e-6)
        self.head = nn.Linear(spec.embed_dim, num_classes) if num_classes else nn.Identity()
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise the weights as the official code does: normal 0.02, deeper projections scaled down.

        With `narrow_init`, the normal is truncated at one standard deviation in the pretraining form, and
        the head is scaled down in the transfer form.
        """
        bound = 0.02 if self.form == "pretrain" and self.spec.narrow_init else 2.0
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                trunc_normal_(module.weight, std=0.02, a=-bound, b=bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.cls_token, self.pos_embed):
            if embedding is not None:
                trunc_normal_(embedding, std=0.02, a=-bound, b=bound)
        if isinstance(self.head, nn.Linear) and self.spec.narrow_init:
            self.head.weight.data.mul_(HEAD_SCALE)
        for depth, block in enumerate(self.blocks, start=1):
            assert isinstance(block, ViTBlock)
            block.attn.proj.weight.data.div_((2 * depth) ** 0.5)
            block.mlp.fc2.weight.data.div_((2 * depth) ** 0.5)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode and select the attention kernel for that mode."""
        select_attention(self, training=mode)
        return super().train(mode)

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """The transformer blocks, from the first to the last."""
        return list(self.blocks)

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
        """Return the layer of a parameter: 0 for the embedding, 1 + i for block i, the last for the rest."""
        if name.startswith(("cls_token", "pos_embed", "mask_token", "patch_embed.")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.num_layers - 1

    def unused_in_maps(self, last_level: int = -1) -> list[str]:
        """Return the names of the parameters that no map up to a level depends on, which a detector freezes."""
        beyond = [
            f"blocks.{i}." for i in range(self.spec.level_blocks[last_level], len(self.blocks))
        ]
        unused = ("fc_norm.", "head.", *beyond)
        if not self.has_class_token:
            unused += ("cls_token",)
        return [name for name, _ in self.named_parameters() if name.startswith(unused)]

    def no_weight_decay(self, name: str, *, pretraining: bool = False) -> bool:
        """Return whether a parameter is exempt from weight decay beyond the rule for vectors and biases."""
        return name in ("cls_token", "pos_embed")

    def embed(self, images: Tensor) -> Tensor:
        """Split (B, C, H, W) into patches and embed them as (B, h, w, C), zero-padded to whole patches."""
        patch = self.spec.patch_size
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % patch, 0, -height % patch))
        return self.patch_embed(images).permute(0, 2, 3, 1)

    def _run(self, tokens: Tensor) -> list[Tensor]:
        """Return the patch tokens (B, h, w, C) after every block."""
        grid = (tokens.shape[1], tokens.shape[2])
        first = int(self.has_class_token)
        return [x[:, first:].unflatten(1, grid) for x in self._run_with_class_token(tokens)]

    def _run_with_class_token(self, tokens: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Return the class token, if the model has one, and the patch tokens (B, [1 +] L, C) after every block.

        Args:
            tokens: (B, h, w, C).
            visible: (B, V) long, indices of the patches to encode, for the pretraining form; None for all.
        """
        grid = (tokens.shape[1], tokens.shape[2])
        if self.spec.sincos_position:
            tokens = tokens + sincos_position(grid, self.spec.embed_dim, tokens.device).to(tokens)
        x = tokens.flatten(1, 2)
        if self.has_class_token:
            x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), x], dim=1)
        if self.pos_embed is not None:
            positions = resample_abs_pos_embed(
                self.pos_embed,
                list(grid),
                list(self.grid),
                antialias=self.spec.antialias_position,
            )
            x = x + (positions if self.has_class_token else positions[:, 1:])
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        if visible is not None:
            kept = F.pad(visible + 1, (1, 0))  # index 0 keeps the class token
            x = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            if shared is not None:
                shared = shared[0][:, kept.unsqueeze(2), kept.unsqueeze(1)].transpose(0, 1)
                shared = aligned_bias(shared, shared.dtype)  # once, and not in every block
        after_blocks = []
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, grid, shared, use_reentrant=False)
            else:
                x = block(x, grid, shared)
            after_blocks.append(x)
        return after_blocks

    def encode(self, tokens: Tensor) -> Tensor:
        """Map embedded, possibly masked patches (B, h, w, C) to SimMIM's features (B, C, h, w)."""
        return self.norm(self._run(tokens)[-1]).permute(0, 3, 1, 2)

    def encode_levels(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens (B, h, w, C) to one map (B, C, h, w) per feature level; the last one equals `encode`'s."""
        return [x.permute(0, 3, 1, 2) for x in self._normed_levels(self._run(tokens))]

    def encode_visible(self, tokens: Tensor, visible: Tensor) -> list[Tensor]:
        """Encode only the visible patches, in the pretraining form.

        Args:
            tokens: (B, h, w, C).
            visible: (B, V) long, indices of the visible patches among the h * w patches.

        Returns:
            One map (B, C, h, w) per feature level, zero at hidden patches.
        """
        grid = (tokens.shape[1], tokens.shape[2])
        after_blocks = [x[:, 1:] for x in self._run_with_class_token(tokens, visible)]
        maps = []
        for level in self._normed_levels(after_blocks):
            indices = visible.unsqueeze(-1).expand_as(level)
            empty = level.new_zeros(len(level), grid[0] * grid[1], level.shape[-1])
            maps.append(empty.scatter(1, indices, level).unflatten(1, grid).permute(0, 3, 1, 2))
        return maps

    def _normed_levels(self, after_blocks: list[Tensor]) -> list[Tensor]:
        """Return the feature levels: the last normalised by `norm`, the earlier ones without weights."""
        levels = [after_blocks[i - 1] for i in self.spec.level_blocks]
        earlier = [F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in levels[:-1]]
        return [*earlier, self.norm(levels[-1])]

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Return one map (B, C, h, w) per feature level, h = ceil(H / stride), normalised by the spec's `map_norm`.

        With "plain", every level is layer-normalised without weights: the magnitude of the residual stream
        grows from block to block and with training, and a newly initialised neck does not learn from inputs
        of arbitrary scale.
        """
        after_blocks = self._run(self.embed(images))
        levels = [after_blocks[i - 1] for i in self.spec.level_blocks]
        if self.spec.map_norm == "plain":
            levels = [F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in levels]
        return normalise_maps(self.map_norms, levels)

    def forward_pooled(self, images: Tensor, token_norm: nn.Module | None = None) -> Tensor:
        """Return the spec's `poolings` after every block: (B, blocks, poolings, C), for probing.

        Args:
            token_norm: applied to the tokens after every block, before they are pooled.
        """
        after_blocks = self._run_with_class_token(self.embed(images))
        if token_norm is not None:
            after_blocks = [token_norm(x) for x in after_blocks]
        if not self.has_class_token:
            return torch.stack([x.mean(1, keepdim=True) for x in after_blocks], 1)
        return torch.stack([torch.stack([x[:, 1:].mean(1), x[:, 0]], 1) for x in after_blocks], 1)

    def forward_tokens(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens (B, h, w, C) after every block, not normalised."""
        return self._run(self.embed(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, C): the mean of the patch tokens, normalised."""
        last = self.norm(self._run(self.embed(images))[-1])
        return self.fc_norm(last.mean((1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes), or pooled features if the backbone has no head."""
        return self.head(self.forward_features(images))
