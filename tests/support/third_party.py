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

# transformers 4: models/vit/modeling_vit.py; 5: the same file, names in memory.
TRANSFORMERS = {
    4: (
        ("blocks.", "encoder.layer."),
        ("attn.proj.", "attention.output.dense."),
        ("attn.", "attention.attention."),
        ("mlp.fc1.", "intermediate.dense."),
        ("mlp.fc2.", "output.dense."),
    ),
    5: (
        ("blocks.", "layers."),
        ("attn.proj.", "attention.o_proj."),
        ("attn.query.", "attention.q_proj."),
        ("attn.key.", "attention.k_proj."),
        ("attn.value.", "attention.v_proj."),
    ),
}
TRANSFORMERS_SWIN = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("patch_embed.norm.", "embeddings.norm."),
    ("layers.", "encoder.layers."),
    ("attn.proj.", "attention.output.dense."),
    ("attn.cpb_mlp.", "attention.self.continuous_position_bias_mlp."),
    ("attn.", "attention.self."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
# MMPretrain: models/backbones/vision_transformer.py.
MMPRETRAIN = (
    ("blocks.", "layers."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    ("mlp.fc1.", "ffn.layers.0.0."),
    ("mlp.fc2.", "ffn.layers.1."),
)
TRANSFORMERS_COMMON = (
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
)


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


def transformers_names(model: Any, version: int = 4) -> dict[str, Tensor]:
    """Split timm's queries, keys and values and rename the weights as transformers does."""
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        split = {key.replace("qkv", p): v for p, v in parts} if "qkv" in key else {key: value}
        for name, part in split.items():
            name = f"layernorm.{name[5:]}" if name.startswith("norm.") else name
            for ours, theirs in (*TRANSFORMERS[version], *TRANSFORMERS_COMMON):
                name = name.replace(ours, theirs)
            state[name] = part.contiguous()
    return state


def transformers_swin_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the queries, keys and values of timm's Swin or Swin V2 and rename the weights as transformers does."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        split = {key.replace("qkv", p): v for p, v in parts} if ".qkv." in key else {key: value}
        for name, part in split.items():
            name = f"layer{name}" if name.startswith("norm.") else shift_downsample(name, -1)
            name = name.replace("q_bias", "query.bias").replace("v_bias", "value.bias")
            for ours, theirs in TRANSFORMERS_SWIN:
                name = name.replace(ours, theirs)
            renamed[name] = part.contiguous()
    return renamed


def mmpretrain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of timm's ViT as MMPretrain does."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for ours, theirs in MMPRETRAIN:
            name = name.replace(ours, theirs)
        renamed[f"backbone.{f'ln1.{name[5:]}' if name.startswith('norm.') else name}"] = value
    return renamed
