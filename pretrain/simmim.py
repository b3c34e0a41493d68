"""SimMIM (arXiv 2111.09886, section 3): mask token, encoder, one linear layer, L1 on hidden pixels.

In: images (B, C, H, W), normalised, and masks (B, H/p, W/p), 1 = hidden.
Out: loss, reconstruction (B, C, H, W) and the encoder's features (B, D, h, w).
Equals the official models/simmim.py, by numbers; with `norm_target`, that of the Swin-Transformer
repository, which predicts pixels normalised by their surroundings.
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

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        drop_path_rate: float = 0.0,
        norm_target: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spec, self.norm_target = spec, norm_target
        self.encoder = build_backbone(
            spec, form="pretrain", drop_path_rate=drop_path_rate, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        bound = 0.02 if spec.narrow_init else 2.0
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-bound, b=bound, generator=generator)
        # A 1x1 convolution and a pixel shuffle: each cell of the last map gives its own pixels.
        self.decoder = nn.Conv2d(spec.num_features, spec.stride**2 * spec.in_chans, kernel_size=1)
        bound = spec.num_features**-0.5  # torch's own default for this layer, from our seed
        nn.init.uniform_(self.decoder.weight, -bound, bound, generator=generator)
        assert self.decoder.bias is not None
        nn.init.uniform_(self.decoder.bias, -bound, bound, generator=generator)

    def forward(self, images: Tensor, mask: Tensor) -> SimMIMOutput:
        """Hide, encode, reconstruct and score.

        Args:
            images: (B, C, H, W) float, normalised.
            mask: (B, H / patch_size, W / patch_size), 1 = hidden from the encoder.

        Returns:
            The loss is the L1 distance over hidden pixels, divided by their number and by C.
        """
        target = images.float()
        if self.norm_target:
            mean, deviation = local_statistics(target, self.norm_target)
            target = (target - mean) / deviation
        tokens = self.encoder.embed(images)
        hidden = mask.to(tokens).unsqueeze(-1)
        tokens = tokens * (1 - hidden) + self.mask_token.to(tokens) * hidden
        features = self.encoder.encode(tokens)
        reconstruction = F.pixel_shuffle(self.decoder(features), self.spec.stride).float()

        patch = self.spec.patch_size
        pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
        pixels = pixels.to(reconstruction)
        distance = (target - reconstruction).abs()
        # 1e-5: the official guard against a mask that hides nothing.
        loss = (distance * pixels).sum() / (pixels.sum() + 1e-5) / images.shape[1]
        return SimMIMOutput(loss, reconstruction, features)


def local_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Give the mean and deviation of every pixel's surroundings, each (B, C, H, W).

    Swin-Transformer's SimMIM for Swin V2 predicts pixels normalised by them (models/simmim.py,
    NORM_TARGET; 47 pixels).

    Args:
        images: (B, C, H, W).
        side: of the square around each pixel, odd; what lies outside the image does not count.
    """
    padding = side // 2
    mean = F.avg_pool2d(images, side, 1, padding, count_include_pad=False)
    square = F.avg_pool2d(images**2, side, 1, padding, count_include_pad=False)
    count = F.avg_pool2d(torch.ones_like(images), side, 1, padding) * side**2
    variance = ((square - mean**2) * count / (count - 1)).clamp(min=0)
    return mean, (variance + 1e-6) ** 0.5


def load_simmim(ckpt: str) -> SimMIM:
    """Give the SimMIM model of a pretraining checkpoint, in eval mode.

    Raises:
        DataError: the checkpoint cannot be read, or has no SimMIM head.
    """
    checkpoint = read_checkpoint(ckpt)
    state = checkpoint.state or {}
    if checkpoint.form != "pretrain" or not {"mask_token", "decoder.weight"} <= state.keys():
        raise DataError(
            f"{ckpt} has no SimMIM head: give a checkpoint that `simmim-bench pretrain` wrote, or an "
            "official SimMIM pretraining file."
        )
    model = SimMIM(checkpoint.spec, norm_target=checkpoint.provenance.get("norm_target", 0))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"checkpoint {ckpt} does not fit {checkpoint.spec.arch}: {error}"
        ) from error
    return model.eval()
