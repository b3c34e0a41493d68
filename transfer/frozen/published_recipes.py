"""Published protocols on frozen features, each number with its file and line, and what differs from them.

Lines are those of facebookresearch/mae at efb2a80, facebookresearch/dino at 7c446df, facebookresearch/dinov2 at
b8931f7 and microsoft/unilm at 768a3c8. Two differences hold for all: features are stored as float16, and where a
protocol compares candidates, they are compared on training images, so that the validation set is evaluated once.

A protocol with a new random crop each epoch decodes and forwards 1,281,167 images an epoch: 115 million in the 90
epochs of linear_mae and linear_simmim, 128 million in linear_beit's 100. All candidates share this one pass. The
float16 features of one epoch of a ViT-B take 2 GB of main memory, those of linear_beit, which compares all blocks,
47 GB.
"""

from __future__ import annotations

from dataclasses import replace

from transfer.frozen.recipes import KNN, LINEAR

LINEAR_MAE = replace(
    LINEAR,
    name="linear_mae",
    source="MAE: FINETUNE.md (Linear Probing), main_linprobe.py; with torchvision's crop instead of MAE's, and "
    "BatchNorm with exact statistics: linear_mae_vit_b follows MAE in both",
    sources={
        "test_crop_ratio": "MAE: main_linprobe.py (256 / 224)",
        "norm": "MAE: models_vit.py (norm), main_linprobe.py (BatchNorm1d); without the last LayerNorm's own "
        "weights, which the BatchNorm cancels up to their sign and to its epsilon",
        "blocks": "MAE: models_vit.py",
    },
    published="top-1 67.8 for MAE's ViT-B after 1,600 epochs (MAE: FINETUNE.md:173)",
    blocks=(-1,),
    pooling=("cls",),
    norm=("layer+batch",),
    warmup_epochs=10,
    batch_size=16384,
    base_lr=(0.1,),
    optimizer="lars",
    crops=90,
)
LINEAR_MAE_VIT_B = replace(
    LINEAR_MAE,
    name="linear_mae_vit_b",
    source="MAE: FINETUNE.md:135-153 (Linear Probing), main_linprobe.py",
    sources={
        "batch_size": "MAE: FINETUNE.md:141-150 (512 x 4 nodes x 8 GPUs)",
        "base_lr": "MAE: FINETUNE.md:146 (--blr 0.1), main_linprobe.py:240",
        "warmup_epochs": "MAE: main_linprobe.py:66",
        "optimizer": "MAE: util/lars.py:18 (momentum 0.9, trust coefficient 0.001), main_linprobe.py:252",
        "pooling": "MAE: FINETUNE.md:143 (--cls_token), models_vit.py:50-51",
        "token_norm": "MAE: models_vit.py:50 (norm)",
        "norm": "MAE: main_linprobe.py:222 (BatchNorm1d, affine=False, eps=1e-6)",
        "norm_images": "MAE: FINETUNE.md:142 (--batch_size 512 a GPU; BatchNorm is not synchronised)",
        "crop_rule": "MAE: main_linprobe.py:133, util/crop.py:23-42",
        "test_crop_ratio": "MAE: main_linprobe.py:138-139",
    },
    token_norm="final",
    norm=("batch",),
    norm_images=512,
    crop_rule="mae",
)
LINEAR_MAE_VIT_L = replace(
    LINEAR_MAE_VIT_B,
    name="linear_mae_vit_l",
    sources={
        **LINEAR_MAE_VIT_B.sources,
        "epochs": "MAE: FINETUNE.md:155 (50 suffice for ViT-L and ViT-H)",
    },
    published="top-1 76.0 for MAE's ViT-L after 1,600 epochs (MAE: FINETUNE.md:174); whether with 50 or 90 epochs of "
    "the probe is not stated",
    epochs=50,
    crops=50,
)
LINEAR_MAE_VIT_H = replace(
    LINEAR_MAE_VIT_L,
    name="linear_mae_vit_h",
    published="top-1 77.2 for MAE's ViT-H/14 after 1,600 epochs (MAE: FINETUNE.md:175); whether with 50 or 90 epochs "
    "of the probe is not stated",
)
LINEAR_SIMMIM = replace(
    LINEAR_MAE,
    name="linear_simmim",
    source="block and pooling: github.com/microsoft/SimMIM/issues/14; SimMIM publishes nothing else of it, so "
    "the rest is MAE's: FINETUNE.md (Linear Probing)",
    sources={},
    published="top-1 56.7 for SimMIM's ViT-B after 800 epochs (arXiv 2111.09886, table 6, as quoted in "
    "github.com/microsoft/SimMIM/issues/14 and 36); its optimiser, schedule and norm are not published",
    blocks=(8,),
    pooling=("mean",),
    norm=("batch",),
)
LINEAR_BEIT = replace(
    LINEAR,
    name="linear_beit",
    source="BEiT: run_linear_eval.py, on eight GPUs (get_started_for_image_classification.md:119-129); there the "
    "best block is chosen on val/, here on held-out training images; there crops are resized bilinearly (line 58) "
    "and the rate changes once an epoch (lines 129 and 148), here bicubically and every step. BEiT prints no score of "
    "it: the 56.7 of arXiv 2106.08254, table 9, is of another protocol, as quoted elsewhere: the mean token of "
    "block 9 alone, 50 epochs",
    pooling=("cls+mean",),
    norm=("none",),
    epochs=100,
    batch_size=1024,
    base_lr=(1e-3,),
    optimizer="adamw",
    weight_decay=1e-4,
    crops=100,
)
LINEAR_DINOV2 = replace(
    LINEAR,
    name="linear_dinov2",
    source="DINOv2: dinov2/eval/linear.py; there the candidate is the best on val/ (lines 292-299), here the best on "
    "held-out training images, trained again on all. A position table of another grid is interpolated with "
    "antialiasing, which DINOv2's models without registers do not do (dinov2/hub/backbones.py:27)",
    sources={
        "blocks": "DINOv2: dinov2/eval/linear.py:171-183",
        "n_last_blocks": "DINOv2: dinov2/eval/linear.py:503",
        "pooling": "DINOv2: dinov2/eval/linear.py:174-181, 239",
        "token_norm": "DINOv2: dinov2/models/vision_transformer.py:311-312",
        "epochs": "DINOv2: dinov2/eval/linear.py:139",
        "epoch_steps": "DINOv2: dinov2/eval/linear.py:142",
        "batch_size": "DINOv2: dinov2/eval/linear.py:140 (128 a GPU), dinov2/run/submit.py:39-46 (8 GPUs, 1 node)",
        "base_lr": "DINOv2: dinov2/eval/linear.py:145, 231-232",
        "optimizer": "DINOv2: dinov2/eval/linear.py:517-519",
        "crop_scale": "DINOv2: dinov2/data/transforms.py:63 (torchvision's default)",
        "hflip": "DINOv2: dinov2/data/transforms.py:59",
        "test_crop_ratio": "DINOv2: dinov2/data/transforms.py:79-81",
        "held_out": "ours",
    },
    published="top-1 84.5 for DINOv2's ViT-B/14, 81.1 for ViT-S/14, 86.3 for ViT-L/14 (DINOv2: README.md:52-84)",
    blocks=(-1,),
    n_last_blocks=(1, 4),
    pooling=("cls", "cls+mean"),
    token_norm="final",
    norm=("none",),
    epochs=10,
    epoch_steps=1250,
    batch_size=1024,
    base_lr=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    held_out=0.01,
    crops=10,
)

KNN_DINO = replace(
    KNN,
    name="knn_dino",
    source="DINO: eval_knn.py; there every k is scored on val/, here k is chosen on training images, and the scores "
    "of every k are in the record's details. There top-5 takes classes without a vote in no particular order, here by "
    "their nearest image. SimMIM's loss does not reach the class token after the last block, so "
    "that its checkpoints score low here whatever their patch tokens hold",
    sources={
        "k": "DINO: eval_knn.py:194",
        "temperature": "DINO: eval_knn.py:196",
        "blocks": "DINO: vision_transformer.py:209-214 (the last block)",
        "pooling": "DINO: vision_transformer.py:214",
        "token_norm": "DINO: vision_transformer.py:213",
        "norm": "DINO: eval_knn.py:81-82 (only the length is normalised, as always here)",
        "test_crop_ratio": "DINO: eval_knn.py:33-34",
        "precision": "DINO: eval_knn.py:105 (without autocast)",
    },
    published="top-1 76.1 for DINO's ViT-B/16, 74.5 for ViT-S/16 (DINO: README.md:26-50); k is not stated, 20 is "
    "usually best (eval_knn.py:195)",
    blocks=(-1,),
    pooling=("cls",),
    token_norm="final",
    norm=("none",),
    k=(10, 20, 100, 200),
    precision="fp32",
)
