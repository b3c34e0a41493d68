"""Tiny backbone specs of every family, shared by tests."""

from __future__ import annotations

import dataclasses

from simmim_bench.models.archs import ARCHS

TINY = {
    "vit": dataclasses.replace(
        ARCHS["vit_pocket"], embed_dim=32, depths=(4,), num_heads=(2,), img_size=(32, 32)
    ),
    "swin": dataclasses.replace(
        ARCHS["swin_pocket"],
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        img_size=(32, 32),
    ),
    "swinv2": dataclasses.replace(
        ARCHS["swin_pocket"],
        family="swinv2",
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        img_size=(32, 32),
    ),
    "convnext": dataclasses.replace(ARCHS["convnext_pocket"], embed_dim=16),
    "resnet": dataclasses.replace(ARCHS["resnet_pocket"], embed_dim=16),
}
