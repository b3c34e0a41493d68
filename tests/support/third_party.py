"""Independent models, whose weights are saved as other projects save them, and the comparison with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretrain.simmim import SimMIM
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.third_party.swin import shift_downsample


def perturb(model: nn.Module) -> Any:
    """Perturb all parameters, because some are initialised to constants."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def build_vit(width: int = 48, heads: int = 4, **options: Any) -> Any:
    """Build timm's ViT of two blocks for images of 32 pixels."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 0}
    return perturb(VisionTransformer(embed_dim=width, num_heads=heads, **{**sizes, **options}))


def save(content: object, path: Path) -> str:
    """Write a file with `torch.save` and return its path."""
    torch.save(content, path)
    return str(path)


def wrap(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Add a prefix to all names."""
    return {prefix + key: value for key, value in state.items()}


def official_simmim(model: SimMIM) -> dict[str, Tensor]:
    """Rename a SimMIM model's weights to the names of the official implementation."""
    names: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("encoder."):
            name = "encoder." + shift_downsample(name.removeprefix("encoder."), -1)
        name = name.replace("decoder.", "decoder.0.")
        names["encoder.mask_token" if name == "mask_token" else name] = value
    return names


@torch.no_grad()
def difference(checkpoint: Checkpoint, theirs: Any) -> float:
    """Return the largest difference of the features, relative to the largest value, of noise images.

    Of a ViT, the mean and class tokens of all blocks are compared; of other families, the pooled last map.
    """
    size = theirs.patch_embed.img_size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    ours = restore_backbone(checkpoint, size).eval()
    if checkpoint.spec.family == "vit":
        blocks = theirs.forward_intermediates(
            images, intermediates_only=True, return_prefix_tokens=True
        )
        wanted = torch.stack([torch.stack([x.mean((2, 3)), t[:, 0]], 1) for x, t in blocks], 1)
        found = ours.forward_pooled(images)
    else:
        wanted, found = theirs.forward_features(images).mean((1, 2)), ours.forward_features(images)
    return float((found - wanted).abs().max() / wanted.abs().max())
