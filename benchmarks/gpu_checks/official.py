"""A pretraining step with the operations of the official SimMIM code, to measure this project's step against.

The backbones are timm's own: its BEiT and Swin, which the official models/vision_transformer.py and swin_transformer.py
share their operations with. Attention is a product, a float32 bias, a softmax and a product. Mask token, decoder, loss
and optimizer are those of models/simmim.py, main_simmim.py and optimizer.py. In favour of the official code, its
images arrive normalised, and its step neither reads the loss nor waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import timm.models.beit
import timm.models.swin_transformer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_checks.harness import Setup
from gpu_checks.product import BackboneSpec, autocast, sample_masks
from gpu_checks.training import CLIP_GRAD

MASK_PATCH_SIZE, MASK_RATIO = 32, 0.6  # config.py
LR, WEIGHT_DECAY, BETAS, EPS = 1e-4, 0.05, (0.9, 0.999), 1e-8  # config.py


class OfficialSimMIM(nn.Module):
    """SimMIM on timm's backbone of a spec; parameters are named as in this project, with `backbone` for `encoder`."""

    def __init__(self, spec: BackboneSpec, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.backbone: Any = BACKBONES[spec.family](spec, drop_path_rate)
        modules: Iterable[Any] = self.backbone.modules()
        for module in modules:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.stem_dim))
        self.stride = spec.feature_levels[-1].stride
        self.decoder = nn.Conv2d(spec.num_features, 3 * self.stride**2, 1)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of images (B, 3, H, W) and a mask (B, H / patch_size, W / patch_size) of ones and zeros."""
        tokens = self.backbone.patch_embed(images)
        hidden = mask.flatten(1).unsqueeze(-1).to(tokens)
        embedded = tokens.flatten(1, -2)
        masked = embedded * (1 - hidden) + self.mask_token * hidden
        features = self._encode(masked.view_as(tokens))
        reconstruction = F.pixel_shuffle(self.decoder(features), self.stride)
        patch = self.spec.patch_size
        pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
        distance = F.l1_loss(images, reconstruction, reduction="none")
        return (distance * pixels).sum() / (pixels.sum() + 1e-5) / 3

    def _encode(self, tokens: Tensor) -> Tensor:
        backbone = self.backbone
        if self.spec.family == "swin":
            for stage in backbone.layers:
                tokens = stage(tokens)
            return backbone.norm(tokens).permute(0, 3, 1, 2)
        tokens = torch.cat([backbone.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        bias = backbone.rel_pos_bias()
        for block in backbone.blocks:
            tokens = block(tokens, shared_rel_pos_bias=bias)
        return backbone.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, self.spec.grid)


class OfficialStep:
    """A training step of the official code: forward and backward pass under autocast, clipping, AdamW."""

    def __init__(
        self, setup: Setup, spec: BackboneSpec, batch_size: int, drop_path_rate: float
    ) -> None:
        self.setup = setup
        self.model = OfficialSimMIM(spec, drop_path_rate).to(setup.device).train()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, eps=EPS
        )
        masks = sample_masks(
            batch_size,
            spec.img_size,
            mask_patch_size=MASK_PATCH_SIZE,
            patch_size=spec.patch_size,
            mask_ratio=MASK_RATIO,
        )
        self._images = torch.randn(batch_size, 3, *spec.img_size, device=setup.device)
        self._masks = masks.float().to(setup.device)

    def __call__(self) -> None:
        """Take a step."""
        self._optimizer.zero_grad()
        with autocast(self.setup.device, self.setup.precision):
            loss = self.model(self._images, self._masks)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_GRAD)
        self._optimizer.step()


def _build_vit(spec: BackboneSpec, drop_path_rate: float) -> nn.Module:
    return timm.models.beit.Beit(
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=spec.embed_dim,
        depth=spec.depths[0],
        num_heads=spec.num_heads[0],
        mlp_ratio=spec.mlp_ratio,
        drop_path_rate=drop_path_rate,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        init_values=spec.init_values,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        use_fc_norm=False,
    )


def _build_swin(spec: BackboneSpec, drop_path_rate: float) -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        num_classes=0,
        embed_dim=spec.embed_dim,
        depths=spec.depths,
        num_heads=spec.num_heads,
        window_size=spec.window_size,
        mlp_ratio=spec.mlp_ratio,
        drop_path_rate=drop_path_rate,
    )


BACKBONES = {"vit": _build_vit, "swin": _build_swin}
