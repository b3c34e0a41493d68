"""Recipes of MMSegmentation's MAE, Swin and ConvNeXt on ADE20K, and of ours that follow them.

Files and lines are those of onedl-mmsegmentation 1.4.2, which continues MMSegmentation 1.2; its configs are in
`mmseg/.mim/configs` of an installation, where tests compare them with these recipes. The published scores were trained
with MMSegmentation 0.x, whose learning rate falls from step 0 on (`lr_rule` "mmcv"): 1 % less at most.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.segmentation.recipes import Ade20kRecipe

_MAE = "MMSegmentation: configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py"
_MAE_MODEL = "MMSegmentation: configs/_base_/models/upernet_mae.py"
_DATASET = "MMSegmentation: configs/_base_/datasets/ade20k.py"
_SWIN = "MMSegmentation: configs/swin/swin-{}_upernet_8xb2-160k_ade20k-512x512.py"
_SWIN_TINY = _SWIN.format("tiny-patch4-window7-in1k-pre")
_CONVNEXT = "MMSegmentation: configs/convnext/convnext-{}_upernet_8xb2-amp-160k_ade20k-{}.py"
# Release 1.x has not ported `min_size` of 0.x: the comments of its configs/mae/*-ms.py and configs/beit/*_ms.py.
_MAE_MS = (
    "MMSegmentation 0.x: configs/mae/upernet_mae-base_fp16_512x512_160k_ade20k_ms.py at e9e83337"
)
_AUG_TEST = "MMSegmentation 0.x: tools/test.py (--aug-test)"
_LAYER_DECAY = "MMSegmentation: mmseg/engine/optimizers/layer_decay_optimizer_constructor.py:{}; {}"
_FP16 = "ours: fp16 with loss scaling there; bfloat16, which needs none, where the device is faster with it"
_TEST_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

ADE20K_MAE_VIT_B = Ade20kRecipe(
    name="ade20k_mae_vit_b",
    # The default of every ViT. One with position bias and layer scale of its own, such as SimMIM's, keeps them, so that
    # all ViTs are compared under one recipe; BEiT's recipe for such a ViT (ade20k_beit_vit_b_512_pt) has no published
    # score.
    source=_MAE,
    sources={
        "img_size": f"{_MAE}:5",
        "resize_within": f"{_DATASET}:10, 20",
        "scale_range": f"{_DATASET}:11",
        "photometric": f"{_DATASET}:15",
        "rel_pos": "MMSegmentation: mmseg/models/backbones/beit.py:83-84, mae.py:23-32; a ViT's own table is kept",
        "layer_scale": f"{_MAE}:18; a ViT's own layer scale is kept",
        "map_blocks": f"{_MAE}:20",
        "map_norm": "MMSegmentation: mmseg/models/backbones/mae.py:251-259",
        "position": "MMSegmentation: mmseg/models/backbones/mae.py:230-234",
        "drop_path_rate": f"{_MAE}:19",
        "head_channels": f"{_MAE}:23",
        "auxiliary_channels": f"{_MAE_MODEL}:46",
        "auxiliary_weight": f"{_MAE_MODEL}:54",
        "test_mode": f"{_MAE}:25",
        "slide_stride": f"{_MAE}:25; of the copies of this file that were read, one has 256, the others and 0.x 341",
        "base_lr": f"{_MAE}:31",
        "weight_decay": f"{_MAE}:31",
        "layer_decay": f"{_MAE}:32",
        "no_decay": _LAYER_DECAY.format(
            "134",
            "its names of the position embedding and class token lack `backbone.`, so both decay",
        ),
        "warmup_iters": f"{_MAE}:37",
        "max_iters": f"{_MAE}:43",
        "batch_size": f"{_MAE}:52, on 8 GPUs",
        "precision": f"{_FP16} ({_MAE}:49)",
        "num_workers": "ours",
    },
    published="48.13 mIoU with MAE's ViT-B (MMSegmentation: configs/mae/metafile.yaml:8)",
    img_size=(512, 512),
    scale_range=(0.5, 2.0),
    resize_within=(2048, 512),
    max_iters=160000,
    warmup_iters=1500,
    batch_size=16,
    base_lr=1e-4,
    weight_decay=0.05,
    no_decay="vectors",
    layer_decay=0.65,
    drop_path_rate=0.1,
    clip_grad=0.0,
    photometric=True,
    head_channels=768,
    auxiliary_channels=256,
    auxiliary_weight=0.4,
    test_mode="slide",
    map_blocks=(4, 6, 8, 12),
    map_norm="none",
    rel_pos="table",
    layer_scale=1.0,
    position="bicubic",
    num_workers=8,
)
ADE20K_MAE_VIT_B_MS = replace(
    ADE20K_MAE_VIT_B,
    name="ade20k_mae_vit_b_ms",
    sources={
        **ADE20K_MAE_VIT_B.sources,
        **dict.fromkeys(("test_scales", "test_flip", "min_test_side"), _MAE_MS),
    },
    published="48.7 mIoU with MAE's ViT-B (MMSegmentation: configs/mae/metafile.yaml:9)",
    test_scales=_TEST_SCALES,
    test_flip=True,
    min_test_side=512,
)
_LARGE = "MMSegmentation: configs/beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py"
ADE20K_MAE_VIT_L = replace(
    ADE20K_MAE_VIT_B,
    name="ade20k_mae_vit_l",
    source="ours: ade20k_mae_vit_b with the depth and widths of BEiT's ViT-L; MMSegmentation has no MAE ViT-L, and "
    "MAE's repository has no segmentation",
    sources={
        **ADE20K_MAE_VIT_B.sources,
        "map_blocks": f"{_LARGE}:19",
        "drop_path_rate": f"{_LARGE}:18",
        "head_channels": f"{_LARGE}:22",
        "layer_decay": "ours: 0.75, as MAE's fine-tuning of ViT-L; BEiT's fine-tuned ViT-L has 0.95",
    },
    published=None,
    map_blocks=(8, 12, 16, 24),
    drop_path_rate=0.2,
    head_channels=1024,
    layer_decay=0.75,
)
ADE20K_MAE_VIT_H = replace(
    ADE20K_MAE_VIT_L,
    name="ade20k_mae_vit_h",
    source="ours: ade20k_mae_vit_l for 32 blocks, with patches of 16 pixels",
    sources={
        **ADE20K_MAE_VIT_L.sources,
        "map_blocks": "ours: a third, a half, two thirds and all of the depth, as for ViT-B and ViT-L",
        "drop_path_rate": "ours: 0.3, as MAE's fine-tuning of ViT-H",
        "head_channels": "ours: as ViT-L",
        "patch_size": "ours: 512 is not a multiple of 14",
    },
    map_blocks=(11, 16, 22, 32),
    drop_path_rate=0.3,
    patch_size=16,
)

ADE20K_SWIN_W7 = replace(
    ADE20K_MAE_VIT_B,
    name="ade20k_swin_w7",
    source=_SWIN.format("base-patch4-window7-in1k-pre"),
    # SimMIM reports 52.8 for Swin-B and no recipe.
    sources={
        "img_size": f"{_SWIN_TINY}:5",
        "resize_within": f"{_DATASET}:10, 20",
        "scale_range": f"{_DATASET}:11",
        "photometric": f"{_DATASET}:15",
        "window_size": f"{_SWIN_TINY}:15; SimMIM's position tables are resized as "
        "SimMIM resizes them (utils.py), MMSegmentation's bicubically",
        "drop_path_rate": f"{_SWIN_TINY}:17",
        "map_norm": "MMSegmentation: mmseg/models/backbones/swin.py:631-635",
        "head_channels": "MMSegmentation: configs/_base_/models/upernet_swin.py:40",
        "auxiliary_channels": "MMSegmentation: configs/_base_/models/upernet_swin.py:51",
        "auxiliary_weight": "MMSegmentation: configs/_base_/models/upernet_swin.py:59",
        "test_mode": "MMSegmentation: configs/_base_/models/upernet_swin.py:62",
        "base_lr": f"{_SWIN_TINY}:28",
        "weight_decay": f"{_SWIN_TINY}:28",
        "layer_decay": "none there",
        "no_decay": f"{_SWIN_TINY}:29-34; biases and the heads' norms decay",
        "warmup_iters": f"{_SWIN_TINY}:38",
        "max_iters": f"{_SWIN_TINY}:44",
        "batch_size": f"{_SWIN_TINY}:50, on 8 GPUs",
        "precision": f"{_SWIN_TINY}:26",
        "num_workers": "ours",
    },
    published="47.99 mIoU with Swin-B pretrained with labels of ImageNet-1K "
    "(MMSegmentation: configs/swin/metafile.yaml:56)",
    base_lr=6e-5,
    weight_decay=0.01,
    no_decay="norms",
    layer_decay=1.0,
    drop_path_rate=0.3,
    head_channels=512,
    test_mode="whole",
    window_size=7,
    map_blocks=(),
    map_norm="affine",
    rel_pos="own",
    layer_scale=None,
    position="antialiased",
    precision="fp32",
)
ADE20K_SWIN_W7_MS = replace(
    ADE20K_SWIN_W7,
    name="ade20k_swin_w7_ms",
    sources={
        **ADE20K_SWIN_W7.sources,
        **dict.fromkeys(("test_scales", "test_flip"), _AUG_TEST),
    },
    published="49.57 mIoU with Swin-B pretrained with labels of ImageNet-1K "
    "(MMSegmentation: configs/swin/metafile.yaml:57)",
    test_scales=_TEST_SCALES,
    test_flip=True,
)
_W12 = _SWIN.format("base-patch4-window12-in1k-384x384-pre")
ADE20K_SWIN_W12 = replace(
    ADE20K_SWIN_W7,
    name="ade20k_swin_w12",
    source=_W12,
    sources={
        **ADE20K_SWIN_W7.sources,
        "window_size": f"{_W12}:12; SimMIM's Swin-L is pretrained with windows of 12",
    },
    published="48.35 mIoU with Swin-B pretrained with labels of ImageNet-1K, at 384 pixels "
    "(MMSegmentation: configs/swin/metafile.yaml:103)",
    window_size=12,
)
ADE20K_SWIN_W12_MS = replace(
    ADE20K_SWIN_W12,
    name="ade20k_swin_w12_ms",
    sources={
        **ADE20K_SWIN_W12.sources,
        **dict.fromkeys(("test_scales", "test_flip"), _AUG_TEST),
    },
    published="49.65 mIoU with Swin-B pretrained with labels of ImageNet-1K, at 384 pixels "
    "(MMSegmentation: configs/swin/metafile.yaml:104)",
    test_scales=_TEST_SCALES,
    test_flip=True,
)
ADE20K_SWINV2 = replace(
    ADE20K_SWIN_W7,
    name="ade20k_swinv2",
    source="ours: ade20k_swin_w7 with the checkpoint's windows; MMSegmentation has no Swin V2",
    published=None,
    window_size=None,
)

_CONVNEXT_B = _CONVNEXT.format("base", "512x512")
_CONVNEXT_MODEL = "MMSegmentation: configs/_base_/models/upernet_convnext.py"
ADE20K_CONVNEXT_512 = replace(
    ADE20K_SWIN_W7,
    name="ade20k_convnext_512",
    source=_CONVNEXT_B,
    sources={
        "img_size": f"{_CONVNEXT_B}:5",
        "resize_within": f"{_DATASET}:10, 20",
        "scale_range": f"{_DATASET}:11",
        "photometric": f"{_DATASET}:15",
        "drop_path_rate": f"{_CONVNEXT_MODEL}:19",
        "map_norm": "MMPretrain's ConvNeXt, which was not read: a norm per level; there the last one is the "
        "checkpoint's final norm, here it is new",
        "head_channels": f"{_CONVNEXT_MODEL}:30",
        "auxiliary_channels": f"{_CONVNEXT_MODEL}:42",
        "auxiliary_weight": f"{_CONVNEXT_MODEL}:50",
        "test_mode": f"{_CONVNEXT_B}:11",
        "slide_stride": f"{_CONVNEXT_B}:11",
        "base_lr": f"{_CONVNEXT_B}:18",
        "weight_decay": f"{_CONVNEXT_B}:18",
        "layer_decay": f"{_CONVNEXT_B}:20",
        "stage_decay_layers": f"{_CONVNEXT_B}:21-22",
        "no_decay": _LAYER_DECAY.format("134", "no other name of a ConvNeXt is listed"),
        "warmup_iters": f"{_CONVNEXT_B}:29",
        "max_iters": f"{_CONVNEXT_B}:34",
        "batch_size": f"{_CONVNEXT_B}:41, on 8 GPUs",
        "precision": f"{_FP16} ({_CONVNEXT_B}:16)",
        "num_workers": "ours",
    },
    published="48.71 mIoU with ConvNeXt-B pretrained with labels of ImageNet-1K "
    "(MMSegmentation: configs/convnext/metafile.yaml:56)",
    base_lr=1e-4,
    weight_decay=0.05,
    no_decay="vectors",
    layer_decay=0.9,
    stage_decay_layers=12,
    drop_path_rate=0.4,
    test_mode="slide",
    window_size=None,
    precision="auto",
)
ADE20K_CONVNEXT_512_MS = replace(
    ADE20K_CONVNEXT_512,
    name="ade20k_convnext_512_ms",
    sources={
        **ADE20K_CONVNEXT_512.sources,
        **dict.fromkeys(("test_scales", "test_flip"), _AUG_TEST),
    },
    published="49.54 mIoU with ConvNeXt-B pretrained with labels of ImageNet-1K "
    "(MMSegmentation: configs/convnext/metafile.yaml:57)",
    test_scales=_TEST_SCALES,
    test_flip=True,
)
_CONVNEXT_S = _CONVNEXT.format("small", "512x512")
ADE20K_CONVNEXT_S_512 = replace(
    ADE20K_CONVNEXT_512,
    name="ade20k_convnext_s_512",
    source=_CONVNEXT_S,
    sources={**ADE20K_CONVNEXT_512.sources, "drop_path_rate": f"{_CONVNEXT_S}:14"},
    published="48.56 mIoU with ConvNeXt-S pretrained with labels of ImageNet-1K "
    "(MMSegmentation: configs/convnext/metafile.yaml:32)",
    drop_path_rate=0.3,
)
_CONVNEXT_T = _CONVNEXT.format("tiny", "512x512")
ADE20K_CONVNEXT_T_512 = replace(
    ADE20K_CONVNEXT_512,
    name="ade20k_convnext_t_512",
    source=_CONVNEXT_T,
    sources={**ADE20K_CONVNEXT_512.sources, "stage_decay_layers": f"{_CONVNEXT_T}:33-37"},
    published="46.11 mIoU with ConvNeXt-T pretrained with labels of ImageNet-1K "
    "(MMSegmentation: configs/convnext/metafile.yaml:8)",
    stage_decay_layers=6,
)
