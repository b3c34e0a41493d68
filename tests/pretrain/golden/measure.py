"""Measure the numbers of this folder on the official SimMIM implementation.

Run from a checkout of microsoft/SimMIM at d3e29bca, with a SciPy before 1.14, which still has the
`interp2d` that the official remapping calls. `README.md` lists the files that the script writes.

    PYTHONPATH=CHECKOUT python tests/pretrain/golden/measure.py OUT
"""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.simmim import SimMIM, SwinTransformerForSimMIM, VisionTransformerForSimMIM
from models.swin_transformer import SwinTransformer
from models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from utils import remap_pretrained_keys_swin, remap_pretrained_keys_vit
from yacs.config import CfgNode

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "dim": 16,
        "depth": 3,
        "heads": 2,
        "img": 64,
        "ft": 96,
        "patch_size": 16,
        "init_values": 0.1,
    },
    "swin": {
        "dim": 4,
        "depths": [2, 2, 2, 1],
        "heads": [1, 1, 2, 4],
        "win": 3,
        "img": 96,
        "ftimg": 128,
        "ftwin": 4,
        "patch_size": 4,
        "init_values": None,
    },
}
MASK_UNIT, MASK_RATIO = 32, 0.6
CLASSES, BATCH = 10, 2
# Gradients that are stored in full; of every gradient the norm is stored.
STORED_GRADIENTS = (
    "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight",
    "decoder.0.weight",
    "decoder.0.bias",
)
MAX_GRADIENT_SIZE = 20_000  # numbers; the Swin's decoder.0.weight has 98,304


def vit(config: dict[str, Any], *, finetune: bool = False) -> Any:
    """Build a small official ViT with the switches of configs/vit_base__800ep."""
    sizes = {
        "img_size": config["ft" if finetune else "img"],
        "patch_size": config["patch_size"],
        "embed_dim": config["dim"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "init_values": config["init_values"],
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": finetune,
        "use_shared_rel_pos_bias": not finetune,
    }
    if finetune:
        return VisionTransformer(num_classes=CLASSES, use_mean_pooling=True, **sizes)
    encoder = VisionTransformerForSimMIM(num_classes=0, use_mean_pooling=False, **sizes)
    return SimMIM(encoder, encoder_stride=16)


def swin(config: dict[str, Any], *, finetune: bool = False) -> Any:
    """Build a small official Swin with the switches of configs/swin_base__800ep."""
    sizes = {
        "img_size": config["ftimg" if finetune else "img"],
        "patch_size": config["patch_size"],
        "embed_dim": config["dim"],
        "depths": config["depths"],
        "num_heads": config["heads"],
        "window_size": config["ftwin" if finetune else "win"],
    }
    if finetune:
        return SwinTransformer(num_classes=CLASSES, **sizes)
    return SimMIM(SwinTransformerForSimMIM(num_classes=0, **sizes), encoder_stride=32)


def perturb(model: nn.Module, generator: torch.Generator) -> None:
    """Move every parameter away from its initial value, so that none is still zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def sample_images(side: int, generator: torch.Generator) -> Tensor:
    """Sample images (B, 3, side, side) in steps of 1/8, which compress well."""
    return (torch.randn(BATCH, 3, side, side, generator=generator) * 8).round() / 8


def sample_masks(side: int, patch: int, generator: torch.Generator) -> Tensor:
    """Sample masks (B, side / patch, side / patch) as data/data_simmim.py does, 1 = hidden."""
    units = side // MASK_UNIT
    hidden = int(np.ceil(units**2 * MASK_RATIO))
    noise = torch.rand(BATCH, units**2, generator=generator)
    masks = torch.zeros(BATCH, units**2).scatter_(1, noise.argsort(1)[:, :hidden], 1.0)
    masks = masks.view(BATCH, units, units)
    return masks.repeat_interleave(MASK_UNIT // patch, 1).repeat_interleave(MASK_UNIT // patch, 2)


def measure_pretraining(model: Any, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Measure one forward and backward pass: `z`, `rec`, `loss` and the gradients."""
    model.eval()
    z = model.encoder(x, mask)
    loss = model(x, mask)
    loss.backward()
    found = {"x": x, "mask": mask, "z": z, "rec": model.decoder(z), "loss": loss}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[f"gradnorm:{name}"] = parameter.grad.norm()
        if name.endswith(STORED_GRADIENTS) and parameter.numel() <= MAX_GRADIENT_SIZE:
            found[f"grad:{name}"] = parameter.grad
    return found


def measure_fine_tuning(model: Any, xf: Tensor) -> dict[str, Tensor]:
    """Measure the pooled features and the logits."""
    model.eval()
    return {"xf": xf, "feats": model.forward_features(xf), "logits": model(xf)}


def remapped(family: str, pretrained: Any, config: dict[str, Any]) -> Any:
    """Load the pretrained encoder as utils.load_pretrained does; the head stays random."""
    build, remap = {
        "vit": (vit, remap_pretrained_keys_vit),
        "swin": (swin, remap_pretrained_keys_swin),
    }[family]
    model = build(config, finetune=True)
    state = {
        name.replace("encoder.", ""): value.clone()
        for name, value in pretrained.state_dict().items()
        if name.startswith("encoder.")
    }
    model.load_state_dict(remap(model, state, logging.getLogger()), strict=False)
    return model


def save(path: Path, model: nn.Module, family: str) -> None:
    """Save the weights as utils.save_checkpoint does, without the optimizer's state."""
    torch.save({"model": model.state_dict(), "config": CfgNode({"MODEL": {"TYPE": family}})}, path)


def main(out: Path) -> None:
    """Write every file of this folder but the README into `out`."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for seed, (family, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = {"vit": vit, "swin": swin}[family](config)
        perturb(model, generator)
        x = sample_images(config["img"], generator)
        mask = sample_masks(config["img"], config["patch_size"], generator)
        numbers = measure_pretraining(model, x, mask)
        save(out / f"{family}_pretrain.pth", model, family)
        finetuned = remapped(family, model, config)
        for module in (finetuned.head, getattr(finetuned, "fc_norm", None)):
            if module is not None:
                perturb(module, generator)
        xf = sample_images(config.get("ft") or config["ftimg"], generator)
        numbers |= measure_fine_tuning(finetuned, xf)
        save(out / f"{family}_finetune.pth", finetuned, family)
        arrays = {name: value.detach().numpy() for name, value in numbers.items()}
        np.savez_compressed(out / f"{family}.npz", **arrays)
    (out / "config.json").write_text(json.dumps(CONFIGS, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
