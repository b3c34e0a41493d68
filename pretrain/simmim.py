"""SimMIM (arXiv 2111.09886, section 3): mask token, encoder, one linear layer, L1 on hidden pixels.

In: images (B, C, H, W), normalised, and masks (B, H/p, W/p), 1 = hidden.
Out: loss, reconstruction (B, C, H, W) and the encoder's features (B, D, h, w).
Equals the official models/simmim.py, by numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_bench.archs import BackboneSpec
from simmim_bench.backbones import build_backbone
from simmim_bench.checkpoint import read_checkpoint
from simmim_bench.errors import DataError


class SimMIMOutput(NamedTuple):
    """What one forward pass gives."""

    loss: Tensor
    reconstruction: Tensor
    features: Tensor


class SimMIM(nn.Module):
    """A backbone in its pretraining form with SimMIM's mask token and head."""

    def __init__(self, spec: BackboneSpec, *, drop_path_rate: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = build_backbone(
            spec, form="pretrain", drop_path_rate=drop_path_rate, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        # A 1x1 convolution and a pixel shuffle: each cell of the last map gives its own pixels.
        self.decoder = nn.Conv2d(spec.num_features, spec.stride**2 * spec.in_chans, kernel_size=1)
        bound = spec.num_features**-0.5  # torch's own default for this layer, from our seed
        nn.init.uniform_(self.decoder.weight, -bound, bound, generator=generator)
        assert self.decoder.bias is not None
        nn.init.zeros_(self.decoder.bias)

    def forward(self, images: Tensor, mask: Tensor) -> SimMIMOutput:
        """Hide, encode, reconstruct and score.

        Args:
            images: (B, C, H, W) float, normalised.
            mask: (B, H / patch_size, W / patch_size), 1 = hidden from the encoder.

        Returns:
            The loss is the L1 distance over hidden pixels, divided by their number and by C.
        """
        tokens = self.encoder.embed(images)
        hidden = mask.to(tokens).unsqueeze(-1)
        tokens = tokens * (1 - hidden) + self.mask_token.to(tokens) * hidden
        features = self.encoder.encode(tokens)
        reconstruction = F.pixel_shuffle(self.decoder(features), self.spec.stride).float()

        patch = self.spec.patch_size
        pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
        pixels = pixels.to(reconstruction)
        distance = (images.float() - reconstruction).abs()
        # 1e-5: the official guard against a mask that hides nothing.
        loss = (distance * pixels).sum() / (pixels.sum() + 1e-5) / images.shape[1]
        return SimMIMOutput(loss, reconstruction, features)


def load_simmim(ckpt: str) -> SimMIM:
    """Give the SimMIM model of a pretraining checkpoint, in eval mode.

    Raises:
        DataError: the checkpoint cannot be read, or has no SimMIM head.
    """
    checkpoint = read_checkpoint(ckpt)
    if checkpoint.form != "pretrain" or checkpoint.state is None:
        raise DataError(
            f"{ckpt} has no SimMIM head: give a checkpoint that `simmim-bench pretrain` wrote."
        )
    model = SimMIM(checkpoint.spec)
    try:
        model.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        raise DataError(
            f"checkpoint {ckpt} does not fit {checkpoint.spec.arch}: {error}"
        ) from error
    return model.eval()
