"""Architectures of timm that the adapter is tried on, with what is expected of each.

The kind is "plain" (maps of one stride after every block), "stages", or "none" (no maps of constant stride). The
sizing is that of `ExternalSpec`. The tests run at `side` pixels with the `arguments`, which make a network small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import torch

from simmim_bench.models.external_spec import Sizing

Kind = Literal["plain", "stages", "none"]


@dataclass(frozen=True)
class Arch:
    """What is expected of an architecture.

    Attributes:
        reduction: the strides, where timm declares others than those of its maps.
    """

    kind: Kind
    sizing: Sizing
    side: int = 64
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reduction: tuple[int, ...] = ()


FOUR_BLOCKS = {"depth": 4}
# Networks with small kernels and pooling that rounds up.
ANY = Arch("stages", "any")
# Networks that cut an image into patches, windows or halves.
MULTIPLE = Arch("stages", "multiple")
# Networks whose position tables or windows are of one image size, for which they are built.
FIXED = Arch("stages", "fixed")
VIT = Arch("plain", "multiple", arguments=FOUR_BLOCKS)
VIT_14 = Arch("plain", "multiple", 56, FOUR_BLOCKS)
FIXED_VIT = Arch("plain", "fixed", arguments=FOUR_BLOCKS)

# By module of timm (timm/models/NAME.py).
TIMM_ARCHS: dict[str, dict[str, Arch]] = {
    "beit": {"beit_base_patch16_224": FIXED_VIT, "beitv2_base_patch16_224": FIXED_VIT},
    "byoanet": {"botnet26t_256": FIXED, "lambda_resnet26t": MULTIPLE},
    "byobnet": {
        "mobileone_s0": ANY,
        "repvgg_a0": ANY,
        "regnetz_b16": ANY,
        "resnet50_clip": MULTIPLE,
    },
    "cait": {"cait_xxs24_224": FIXED_VIT},
    "coat": {"coat_lite_tiny": FIXED},
    "convit": {"convit_tiny": FIXED_VIT},
    "convmixer": {"convmixer_768_32": Arch("plain", "multiple", 56)},
    "convnext": {
        "convnext_atto": MULTIPLE,
        "convnextv2_atto": MULTIPLE,
        "convnext_zepto_rms": MULTIPLE,
    },
    "cspnet": {"cs3darknet_s": ANY},
    "davit": {"davit_tiny": Arch("stages", "any", arguments={"depths": (1, 1, 1, 1)})},
    "deit": {"deit3_small_patch16_224": VIT, "deit_tiny_distilled_patch16_224": VIT},
    "densenet": {"densenet121": MULTIPLE},
    "dla": {"dla46_c": MULTIPLE},
    "edgenext": {"edgenext_xx_small": MULTIPLE},
    "efficientformer": {"efficientformer_l1": Arch("stages", "fixed", 224)},
    "efficientformer_v2": {"efficientformerv2_s0": FIXED},
    "efficientnet": {"efficientnet_b0": ANY, "efficientnetv2_rw_t": ANY, "mixnet_s": ANY},
    "efficientvit_mit": {"efficientvit_b0": ANY},
    "eva": {
        "eva02_tiny_patch14_224": VIT_14,
        "vit_small_patch16_dinov3": VIT,
        "vit_pe_core_tiny_patch16_384": VIT,
    },
    "fasternet": {"fasternet_t0": MULTIPLE},
    "fastvit": {"fastvit_t8": ANY},
    "focalnet": {"focalnet_tiny_srf": MULTIPLE},
    "ghostnet": {"ghostnet_050": ANY},
    "hgnet": {"hgnetv2_b0": ANY},
    "hiera": {"hiera_tiny_224": FIXED},
    "hieradet_sam2": {"sam2_hiera_tiny": MULTIPLE},
    "hrnet": {"hrnet_w18_small": MULTIPLE},
    "inception_next": {"inception_next_atto": MULTIPLE},
    "levit": {"levit_128s": FIXED},
    "mambaout": {"mambaout_femto": ANY},
    "maxxvit": {"coatnet_pico_rw_224": FIXED, "maxvit_pico_rw_256": FIXED},
    "metaformer": {"caformer_s18": MULTIPLE, "poolformer_s12": MULTIPLE},
    "mlp_mixer": {"mixer_s32_224": Arch("plain", "fixed")},
    "mobilenetv3": {"mobilenetv3_small_050": ANY, "mobilenetv4_conv_small_035": ANY},
    "mobilevit": {"mobilevit_xxs": ANY, "mobilevitv2_050": FIXED},
    "mvitv2": {"mvitv2_tiny": FIXED},
    "naflexvit": {"naflexvit_base_patch16_gap": VIT},
    "nest": {"nest_tiny": FIXED},
    "nfnet": {"nf_regnet_b0": ANY},
    "pvt_v2": {"pvt_v2_b0": ANY},
    "regnet": {"regnetx_002": ANY, "regnety_002": ANY},
    "repvit": {"repvit_m0_9": ANY},
    "resnest": {"resnest14d": ANY},
    "resnet": {"resnet10t": ANY, "resnet18": ANY, "resnet26d": ANY, "ecaresnet26t": ANY},
    "resnetv2": {"resnetv2_18": ANY, "resnetv2_50x1_bit": ANY},
    "rexnet": {"rexnet_100": ANY},
    "sequencer": {"sequencer2d_s": Arch("stages", "multiple", 56)},
    "shvit": {"shvit_s1": ANY},
    "starnet": {"starnet_s050": ANY},
    "swin_transformer": {"swin_s3_tiny_224": MULTIPLE},
    "swin_transformer_v2": {"swinv2_tiny_window8_256": MULTIPLE},
    "swin_transformer_v2_cr": {"swinv2_cr_tiny_224": MULTIPLE},
    "tiny_vit": {"tiny_vit_5m_224": ANY},
    "tresnet": {"tresnet_m": Arch("stages", "multiple", reduction=(4, 4, 8, 16, 32))},
    "twins": {"twins_svt_small": MULTIPLE},
    "vgg": {"vgg11_bn": MULTIPLE},
    "visformer": {"visformer_tiny": FIXED},
    "vision_transformer": {
        "aimv2_large_patch14_224": VIT_14,
        "flexivit_small": VIT,
        "vit_base_patch16_siglip_224": VIT,  # SigLIP and SigLIP 2
        "vit_base_patch32_clip_224": VIT,
        "vit_huge_patch14_gap_224": VIT_14,  # I-JEPA
        "vit_small_patch14_reg4_dinov2": VIT_14,
    },
    "vision_transformer_hybrid": {"vit_tiny_r_s16_p8_224": VIT},
    "vision_transformer_relpos": {"vit_relpos_small_patch16_224": FIXED_VIT},
    "vision_transformer_sam": {"samvit_base_patch16_224": VIT},
    "volo": {"volo_d1_224": FIXED},
    "xcit": {"xcit_nano_12_p16_224": Arch("plain", "any", arguments=FOUR_BLOCKS)},
    # Convolutions without padding, or branches of two strides: features, but no maps.
    "crossvit": {"crossvit_tiny_240": Arch("none", "any", 240)},
    "inception_v3": {"inception_v3": Arch("none", "any", 96)},
    "pit": {"pit_ti_224": Arch("none", "fixed", 224)},
    "xception": {"xception": Arch("none", "any", 96)},
}
ALL = {name: arch for archs in TIMM_ARCHS.values() for name, arch in archs.items()}
SAMPLE = ("regnety_002", "vit_small_patch14_reg4_dinov2")  # of the fast tests
# Networks for one size whose trained weights timm does not resize.
NOT_RESIZED = {
    "botnet26t_256",
    "cait_xxs24_224",
    "convit_tiny",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "hiera_tiny_224",
    "levit_128s",
    "mixer_s32_224",
    "nest_tiny",
    "pit_ti_224",
    "visformer_tiny",
    "volo_d1_224",
}
# Encoders of vision-language models, without pooled features; timm has another architecture for most.
REFUSED = ("gemma4_vit_167m_enc", "mobilenetv5_300m_enc", "qwen3_vit_88m_enc")


def table() -> str:
    """Return the list as a table in Markdown."""
    maps = {"plain": "after every block", "stages": "after every stage", "none": "none"}
    lines = ["| timm's module | architecture | maps | image sizes |", "| --- | --- | --- | --- |"]
    for module, archs in TIMM_ARCHS.items():
        for name, arch in archs.items():
            sizes = arch.sizing if name not in NOT_RESIZED else "fixed, as trained"
            lines.append(f"| {module} | {name} | {maps[arch.kind]} | {sizes} |")
    return "\n".join(lines)


def create(name: str, arch: Arch, **arguments: Any) -> Any:
    """Create timm's model at the small size, as its users do."""
    every = {"num_classes": 0, **arch.arguments, **arguments}
    try:
        return timm.create_model(name, img_size=arch.side, **every)
    except TypeError:
        return timm.create_model(name, **every)


def create_perturbed(name: str, arch: Arch) -> Any:
    """Create timm's model at the small size with random weights, none of which hides a fault by being 0 or 1e-6."""
    torch.manual_seed(0)
    model = create(name, arch).eval()
    # Of networks without an argument for it.
    model.pretrained_cfg["input_size"] = (3, arch.side, arch.side)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model
