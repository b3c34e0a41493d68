"""Recipes of BEiT on ADE20K, with UPerNet at 512 and 640 pixels.

Files and lines are those of microsoft/unilm at 768a3c87, in `beit/semantic_segmentation/`, and of MMSegmentation (see
`mmseg_recipes.py`). In "pt" the ViT is pretrained without labels; in "pt2ft" and at 640 pixels it was fine-tuned on
ImageNet-22K after pretraining.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.segmentation.mmseg_recipes import ADE20K_MAE_VIT_B, ADE20K_MAE_VIT_B_MS

_UNILM = "microsoft/unilm: beit/semantic_segmentation"
_FILE = _UNILM + "/configs/beit/upernet/upernet_beit_{}_slide_160k_ade20k_{}.py"
_MODEL = f"{_UNILM}/configs/_base_/models/upernet_beit.py"
_BASE_PT, _BASE_PT2FT = _FILE.format("base_12_512", "pt"), _FILE.format("base_12_512", "pt2ft")
_LARGE_512, _LARGE_640 = (
    _FILE.format("large_24_512", "pt2ft"),
    _FILE.format("large_24_640", "pt2ft"),
)
_MMSEG_640 = "MMSegmentation: configs/beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py"
_MMSEG_MODEL = "MMSegmentation: configs/_base_/models/upernet_beit.py"
_MMSEG_DATASET = "MMSegmentation: configs/_base_/datasets/ade20k_640x640.py"
_OWN = "the checkpoint's: every BEiT has one"
_FP16 = "ours: apex's fp16 (O1) there; bfloat16 where the device is faster with it"

ADE20K_BEIT_VIT_B_512_PT = replace(
    ADE20K_MAE_VIT_B,
    name="ade20k_beit_vit_b_512_pt",
    source=_BASE_PT,
    sources={
        "img_size": f"{_BASE_PT}:18",
        "resize_within": f"{_UNILM}/configs/_base_/datasets/ade20k.py:10, 23",
        "scale_range": f"{_UNILM}/configs/_base_/datasets/ade20k.py:10",
        "photometric": f"{_UNILM}/configs/_base_/datasets/ade20k.py:13",
        "rel_pos": _OWN,
        "layer_scale": _OWN,
        "map_blocks": f"{_BASE_PT}:34",
        "map_norm": f"{_UNILM}/backbone/beit.py:436-438",
        "drop_path_rate": f"{_BASE_PT}:33",
        "head_channels": f"{_BASE_PT}:39",
        "auxiliary_channels": f"{_MODEL}:44",
        "auxiliary_weight": f"{_MODEL}:52",
        "test_mode": f"{_BASE_PT}:45",
        "slide_stride": f"{_BASE_PT}:45",
        "base_lr": f"{_BASE_PT}:54",
        "weight_decay": f"{_BASE_PT}:54",
        "layer_decay": f"{_BASE_PT}:56",
        "no_decay": f"{_UNILM}/mmcv_custom/layer_decay_optimizer_constructor.py:43; the name of the class token lacks "
        "`backbone.`, so it decays",
        "warmup_iters": f"{_BASE_PT}:60",
        "max_iters": f"{_UNILM}/configs/_base_/schedules/schedule_160k.py:7",
        "lr_rule": "MMCV 1.x: mmcv/runner/hooks/lr_updater.py (before_train_iter, PolyLrUpdaterHook)",
        "batch_size": f"{_BASE_PT}:65, on 8 GPUs",
        "precision": f"{_FP16} ({_BASE_PT}:77)",
        "num_workers": "ours",
    },
    published=None,
    lr_rule="mmcv",
    base_lr=7e-4,
    rel_pos="own",
    layer_scale=None,
)
ADE20K_BEIT_VIT_B_512_PT2FT = replace(
    ADE20K_BEIT_VIT_B_512_PT,
    name="ade20k_beit_vit_b_512_pt2ft",
    source=_BASE_PT2FT,
    base_lr=3e-5,
    layer_decay=0.9,
)
ADE20K_BEIT_VIT_L_512_PT2FT = replace(
    ADE20K_BEIT_VIT_B_512_PT,
    name="ade20k_beit_vit_l_512_pt2ft",
    source=_LARGE_512,
    sources={
        **ADE20K_BEIT_VIT_B_512_PT.sources,
        "map_blocks": f"{_LARGE_512}:34",
        "drop_path_rate": f"{_LARGE_512}:33",
        "head_channels": f"{_LARGE_512}:39",
    },
    base_lr=2e-5,
    layer_decay=0.95,
    map_blocks=(8, 12, 16, 24),
    drop_path_rate=0.2,
    head_channels=1024,
)

ADE20K_BEIT_VIT_B_640 = replace(
    ADE20K_MAE_VIT_B,
    name="ade20k_beit_vit_b_640",
    source=_MMSEG_640,
    sources={
        **ADE20K_MAE_VIT_B.sources,
        "img_size": f"{_MMSEG_640}:5",
        "resize_within": f"{_MMSEG_DATASET}:10, 20",
        "scale_range": f"{_MMSEG_DATASET}:11",
        "photometric": f"{_MMSEG_DATASET}:15",
        "rel_pos": _OWN,
        "layer_scale": _OWN,
        "map_blocks": f"{_MMSEG_MODEL}:22",
        "map_norm": "MMSegmentation: mmseg/models/backbones/beit.py:534-546",
        "drop_path_rate": f"{_MMSEG_MODEL}:25",
        "head_channels": f"{_MMSEG_MODEL}:36",
        "auxiliary_channels": f"{_MMSEG_MODEL}:47",
        "auxiliary_weight": f"{_MMSEG_MODEL}:55",
        "test_mode": f"{_MMSEG_640}:10",
        "slide_stride": f"{_MMSEG_640}:10",
        "base_lr": f"{_MMSEG_640}:16",
        "weight_decay": f"{_MMSEG_640}:16",
        "layer_decay": f"{_MMSEG_640}:18",
        "warmup_iters": f"{_MMSEG_640}:22",
        "max_iters": f"{_MMSEG_640}:27",
        "batch_size": f"{_MMSEG_640}:34, on 8 GPUs",
        "precision": f"{_MMSEG_640}:14",
    },
    published="53.08 mIoU (MMSegmentation: configs/beit/metafile.yaml:8); 53.6 with the same numbers in fp16 "
    "(microsoft/unilm: beit/README.md:86)",
    img_size=(640, 640),
    resize_within=(2560, 640),
    base_lr=3e-5,
    layer_decay=0.9,
    rel_pos="own",
    layer_scale=None,
    precision="fp32",
)
ADE20K_BEIT_VIT_B_640_MS = replace(
    ADE20K_BEIT_VIT_B_640,
    name="ade20k_beit_vit_b_640_ms",
    sources={
        **ADE20K_BEIT_VIT_B_640.sources,
        **dict.fromkeys(
            ("test_scales", "test_flip", "min_test_side"),
            _FILE.format("base_12_640", "ms") + ":69-84",
        ),
    },
    published="53.84 mIoU (MMSegmentation: configs/beit/metafile.yaml:9); 54.2 with the same numbers in fp16 "
    "(microsoft/unilm: beit/README.md:86)",
    test_scales=ADE20K_MAE_VIT_B_MS.test_scales,
    test_flip=True,
    min_test_side=640,
)
ADE20K_BEIT_VIT_L_640 = replace(
    ADE20K_BEIT_VIT_L_512_PT2FT,
    name="ade20k_beit_vit_l_640",
    # MMSegmentation's file of this model accumulates two batches too, but lets the rate fall to 0 at iteration 160,000
    # of 320,000.
    source=_LARGE_640,
    sources={
        **ADE20K_BEIT_VIT_L_512_PT2FT.sources,
        "img_size": f"{_LARGE_640}:19",
        "resize_within": f"{_UNILM}/configs/_base_/datasets/ade20k_640x640.py:10, 23",
        "scale_range": f"{_UNILM}/configs/_base_/datasets/ade20k_640x640.py:10",
        "photometric": f"{_UNILM}/configs/_base_/datasets/ade20k_640x640.py:13",
        "map_blocks": f"{_LARGE_640}:35",
        "drop_path_rate": f"{_LARGE_640}:34",
        "head_channels": f"{_LARGE_640}:40",
        "test_mode": f"{_LARGE_640}:46",
        "slide_stride": f"{_LARGE_640}:46",
        "base_lr": f"{_LARGE_640}:55",
        "weight_decay": f"{_LARGE_640}:55",
        "layer_decay": f"{_LARGE_640}:57",
        "warmup_iters": f"{_LARGE_640}:61: 3,000 iterations, two a step",
        "max_iters": f"{_UNILM}/configs/_base_/schedules/schedule_320k.py:7: 320,000 iterations, two a step",
        "batch_size": f"{_LARGE_640}:66, 75: 8 images, accumulated twice; batch norm is over 8 images there, 16 here",
        "precision": f"{_FP16} ({_LARGE_640}:79)",
    },
    published="56.7 mIoU (microsoft/unilm: beit/README.md:87); 56.33 with MMSegmentation's "
    "(configs/beit/metafile.yaml:32)",
    img_size=(640, 640),
    resize_within=(2560, 640),
)
ADE20K_BEIT_VIT_L_640_MS = replace(
    ADE20K_BEIT_VIT_L_640,
    name="ade20k_beit_vit_l_640_ms",
    sources={
        **ADE20K_BEIT_VIT_L_640.sources,
        **dict.fromkeys(
            ("test_scales", "test_flip", "min_test_side"),
            _FILE.format("large_24_640", "ms") + ":72-87",
        ),
    },
    published="57.0 mIoU (microsoft/unilm: beit/README.md:87); 56.84 with MMSegmentation's "
    "(configs/beit/metafile.yaml:33)",
    test_scales=ADE20K_MAE_VIT_B_MS.test_scales,
    test_flip=True,
    min_test_side=640,
)
