"""List every architecture as a `BackboneSpec`, found by a name such as `vit_b`.

This module does not import torch, so that the command line starts fast. Sizes are those of ViT (arXiv 2010.11929,
table 1; "ti" and "s" as in DeiT, arXiv 2012.12877, table 1), Swin (arXiv 2103.14030, section 3.3), Swin V2
(arXiv 2111.09883, section 3.4), ConvNeXt (arXiv 2201.03545, section 3) and ResNet (arXiv 1512.03385, table 1).
SimMIM's own choices (layer scale 0.1, no absolute position embedding, window 6 at 192 pixels during pretraining) are
from SimMIM's configs/ folder.
"""

from __future__ import annotations

from dataclasses import replace

from simmim_bench.errors import UsageError, nearest
from simmim_bench.models.spec import BackboneSpec


def _vit(arch: str, embed_dim: int, depth: int, num_heads: int) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="vit",
        img_size=(224, 224),
        patch_size=16,
        embed_dim=embed_dim,
        depths=(depth,),
        num_heads=(num_heads,),
        narrow_init=True,
        init_values=0.1,  # SimMIM: configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml
    )


def _swin(
    arch: str, embed_dim: int, depths: tuple[int, ...], first_heads: int, *, v2: bool = False
) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="swinv2" if v2 else "swin",
        # SimMIM: configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml
        img_size=(192, 192),
        patch_size=4,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=tuple(first_heads * 2**stage for stage in range(len(depths))),
        window_size=12 if v2 else 6,  # Swin V2 with SimMIM: Swin-Transformer, configs/simmim/
    )


def _convnext(arch: str, embed_dim: int, depths: tuple[int, ...]) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="convnext",
        img_size=(224, 224),
        patch_size=4,
        embed_dim=embed_dim,
        depths=depths,
        init_values=1e-6,  # arXiv 2201.03545, appendix A.1
    )


def _resnet(arch: str, depths: tuple[int, ...]) -> BackboneSpec:
    return BackboneSpec(
        arch=arch,
        family="resnet",
        img_size=(224, 224),
        patch_size=4,
        embed_dim=256,
        depths=depths,
    )


SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l", "huge": "h"}
ARCHS: dict[str, BackboneSpec] = {
    spec.arch: spec
    for spec in (
        _vit("vit_ti", 192, 12, 3),
        _vit("vit_s", 384, 12, 6),
        _vit("vit_b", 768, 12, 12),
        _vit("vit_l", 1024, 24, 16),
        # Patches of 14 pixels, as in MAE (models_mae.py, mae_vit_huge_patch14).
        replace(_vit("vit_h", 1280, 32, 16), patch_size=14),
        _swin("swin_t", 96, (2, 2, 6, 2), 3),
        _swin("swin_s", 96, (2, 2, 18, 2), 3),
        _swin("swin_b", 128, (2, 2, 18, 2), 4),
        _swin("swin_l", 192, (2, 2, 18, 2), 6),
        _swin("swinv2_t", 96, (2, 2, 6, 2), 3, v2=True),
        _swin("swinv2_s", 96, (2, 2, 18, 2), 3, v2=True),
        _swin("swinv2_b", 128, (2, 2, 18, 2), 4, v2=True),
        _swin("swinv2_l", 192, (2, 2, 18, 2), 6, v2=True),
        # arXiv 2111.09883, section 3.4, without the extra norms of H and G, which timm does not implement.
        _swin("swinv2_h", 352, (2, 2, 18, 2), 11, v2=True),
        _swin("swinv2_g", 512, (2, 2, 42, 4), 16, v2=True),
        # The SwinV2-g of arXiv 2206.04664, whose SimMIM weights are public. Width 448 yields its 1.06 billion
        # parameters.
        _swin("swinv2_g1b", 448, (2, 2, 18, 2), 14, v2=True),
        _convnext("convnext_t", 96, (3, 3, 9, 3)),
        _convnext("convnext_s", 96, (3, 3, 27, 3)),
        _convnext("convnext_b", 128, (3, 3, 27, 3)),
        _resnet("resnet50", (3, 4, 6, 3)),
        _resnet("resnet101", (3, 4, 23, 3)),
        # simmim-bench's own, for images of 32 to 96 pixels and training on a CPU in minutes. Layer scale 0.1
        # suits deep models and long runs; four blocks learn faster without it. A relative position bias
        # starts at zero and needs thousands of steps to distinguish near from far. Narrow initialisation
        # costs seven points of linear probe after minutes of training, and a narrow head costs most of the
        # gain of two epochs of fine-tuning.
        replace(
            _vit("vit_pocket", 128, 4, 4),
            img_size=(32, 32),
            patch_size=4,
            init_values=None,
            sincos_position=True,
            narrow_init=False,
        ),
        # Half the width of `vit_pocket`, its teacher in distillation.
        replace(
            _vit("vit_mini_pocket", 64, 4, 2),
            img_size=(32, 32),
            patch_size=4,
            init_values=None,
            sincos_position=True,
            narrow_init=False,
        ),
        replace(
            _swin("swin_pocket", 48, (1, 1, 2, 1), 2),
            img_size=(32, 32),
            patch_size=2,
            window_size=4,
        ),
        # With half the usual stem stride, the last stage has four cells for an image of 32 pixels.
        replace(
            _convnext("convnext_pocket", 32, (1, 1, 2, 1)),
            img_size=(32, 32),
            patch_size=2,
            init_values=1.0,
        ),
        replace(
            _resnet("resnet_pocket", (2, 2, 2, 2)),
            img_size=(32, 32),
            patch_size=2,
            embed_dim=64,
        ),
        # The same for images of 64 pixels, with the strides of a ViT of 8 pixels and of a usual Swin and ResNet.
        *(
            replace(
                _vit(arch, embed_dim, 4, embed_dim // 32),
                img_size=(64, 64),
                patch_size=8,
                init_values=None,
                sincos_position=True,
                narrow_init=False,
            )
            for arch, embed_dim in (
                ("vit_half_64px", 64),
                ("vit_64px", 128),
                ("vit_double_64px", 256),
            )
        ),
        replace(_swin("swin_64px", 48, (1, 1, 2, 1), 2), img_size=(64, 64), window_size=4),
        replace(_resnet("resnet_64px", (2, 2, 2, 2)), img_size=(64, 64), embed_dim=64),
    )
}


def recipe_family(spec: BackboneSpec) -> str:
    """Return the name by which defaults are listed for architectures alike: "pocket" and "64px", or the family."""
    suffix = spec.arch.rpartition("_")[2]
    return suffix if suffix in ("pocket", "64px") else spec.family


def suggest_arch(arch: str) -> str | None:
    """Return the architecture that a name with a size in full means, such as vit_b for vit_base; None for none."""
    family, *words = arch.lower().replace("-", "_").split("_")
    size = SIZES.get(words[0], words[0]) if words else ""
    names = (f"{family}_{size}", f"{family}_{size}i")  # a ViT's tiny size is "ti"
    return next((name for name in names if name in ARCHS), None)


def find_spec(arch: str) -> BackboneSpec:
    """Return the spec of an architecture.

    Raises:
        UsageError: The name is unknown; the message suggests the nearest one.
    """
    if arch not in ARCHS:
        suggested = suggest_arch(arch)
        hint = f"did you mean '{suggested}'?" if suggested else nearest(arch, ARCHS)
        raise UsageError(
            f"unknown arch '{arch}'; {hint} Networks of timm are transferred, not pretrained: --ckpt timm:NAME, or "
            "random:NAME."
        )
    return ARCHS[arch]
