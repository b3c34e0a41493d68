"""The recipes of the attentive probe: simmim-bench's own protocols, and that of efficient probing.

Learning rates are for 256 images a step. Lines are those of billpsomas/efficient-probing at b8f4fb8, the code of
arXiv 2506.10178.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simmim_bench.recipe import Precision, Recipe, Resizing, check_positive
from transfer.frozen.recipes import CropRule

Head = Literal["efficient", "latent", "cross"]
TokenNorm = Literal["none", "layer", "batch", "final"]


@dataclass(frozen=True, kw_only=True)
class AttentiveRecipe(Recipe):
    """An attentive probe; see `transfer/attentive/`.

    Every combination of `blocks`, `heads` and `base_lr` is a candidate. The candidate is chosen on training images
    alone.

    Attributes:
        img_size: (H, W) in pixels.
        blocks: blocks whose tokens are pooled, counted from 1 (of a Swin, ConvNeXt or ResNet: stages), -1 being the
            last; None for those at 1/2, 2/3, 5/6 and all of the depth, rounded.
        heads: the ways to pool; see `heads.py`.
        queries: queries of the efficient probe; they divide the channels.
        num_heads: attention heads of the other two; they divide the channels.
        token_norm: norm of the tokens before they are pooled: none; "layer", over the channels of a token; "batch",
            over all tokens of a batch, per channel, in both cases without weights; or "final", the checkpoint's own
            LayerNorm after the last block, with its weights.
        epochs, warmup_epochs: passes over the images; the rate follows a cosine, updated every step.
        batch_size: images a step.
        norm_images: images over which BatchNorm computes its statistics in training. A step is computed in parts of
            this size, which bounds the memory of the tokens.
        base_lr: candidates for the rate, for 256 images a step.
        optimizer: "lars" is SGD with the rate of each weight scaled by the ratio of the weight's norm to its
            gradient's norm (arXiv 1708.03888).
        momentum: of LARS.
        weight_decay: of the probe's weights.
        held_out: fraction of the training images on which the candidates are compared, in (0, 1).
        crop_rule, crop_scale, hflip: of the random crops; see `LinearRecipe`.
        test_crop_ratio: fraction of the shorter side that the centre crop covers.
        forward_batch_size: images of a forward pass of the evaluation; it does not change the result.
        window_size: window size of a Swin; None for the checkpoint's.
        precision: of the backbone; "auto" is bfloat16 on GPUs that have it, float16 on others, float32 on CPUs.
        resizing: "pil", as the published pipelines, or "fast", which differs by about a level of 255.
        num_workers: processes per GPU that load images; 0 to load in the training process.
        limit: the number of training images and of validation images that are used, for trying things out; None for
            all. They are the same for every seed, as evenly from the classes as these allow.
        val_fraction: fraction of the training images of every class that is scored instead of trained on, for data
            without a validation split; None for data with one. They are the same for every seed.
    """

    img_size: tuple[int, int]
    blocks: tuple[int, ...] | None = None
    heads: tuple[Head, ...]
    queries: int = 32
    num_heads: int = 8
    token_norm: TokenNorm
    epochs: int
    warmup_epochs: int
    batch_size: int
    norm_images: int
    base_lr: tuple[float, ...]
    optimizer: Literal["lars", "adamw"]
    momentum: float = 0.9
    weight_decay: float = 0.0
    held_out: float
    crop_rule: CropRule = "torchvision"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    test_crop_ratio: float
    forward_batch_size: int = 256
    window_size: int | None = None
    precision: Precision = "auto"
    resizing: Resizing = "pil"
    num_workers: int = 0
    limit: int | None = None
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size", "epochs", "batch_size", "base_lr", "forward_batch_size")


ATTENTIVE = AttentiveRecipe(
    name="attentive",
    source="ours: two heads after several blocks, LARS as in efficient-probing (arXiv 2506.10178) for a third of its "
    "epochs; class tokens are not pooled, as SimMIM has trained none",
    sources={
        "queries": "efficient-probing: main_linprobe.py:113",
        "num_heads": "timm: AttentionPoolLatent",
        "batch_size": "efficient-probing: README.md:119-120",
        "optimizer": "efficient-probing: main_linprobe.py:81",
    },
    img_size=(224, 224),
    heads=("efficient", "cross"),
    token_norm="layer",
    epochs=30,
    warmup_epochs=3,
    batch_size=4096,
    norm_images=256,
    base_lr=(0.1, 0.3, 1.0),
    optimizer="lars",
    held_out=0.02,
    test_crop_ratio=224 / 256,
    num_workers=8,
)
ATTENTIVE_POCKET = replace(
    ATTENTIVE,
    name="attentive_pocket",
    source="ours: thousands of small images, a CPU core, a minute; AIM's head, which costs least",
    img_size=(32, 32),
    heads=("cross",),
    epochs=5,
    warmup_epochs=1,
    batch_size=128,
    norm_images=128,
    base_lr=(0.02, 0.06),
    optimizer="adamw",
    crop_scale=(0.35, 1.0),
    held_out=0.2,
    test_crop_ratio=1.0,
    num_workers=0,
)
ATTENTIVE_CIFAR = replace(
    ATTENTIVE_POCKET,
    name="attentive_cifar",
    source="ours: tens of thousands of small photographs, a CPU core, a quarter of an hour; AIM's head, which costs "
    "least",
    epochs=8,
    batch_size=256,
    norm_images=256,
    held_out=0.1,
)
ATTENTIVE_64PX = replace(
    ATTENTIVE_CIFAR,
    name="attentive_64px",
    source="ours: tens of thousands of photographs of 64 pixels, a CPU core, minutes; AIM's head, which costs least",
    img_size=(64, 64),
    epochs=3,
)
ATTENTIVE_EP = replace(
    ATTENTIVE,
    name="attentive_ep",
    source="efficient-probing: README.md:1180-1185 (SimMIM's ViT-B), main_linprobe.py, poolings/ep.py; there the best "
    "epoch on val/ is reported (README.md:119), here the last; there the head is computed under autocast, here in "
    "float32; BatchNorm's running statistics are those of all groups of a batch, there of one process; there one seed. "
    "There the class token is pooled too for encoders whose loss is defined on it (--cls_features ep_all), here never",
    sources={
        "blocks": "efficient-probing: models_simmim.py:330 (the last)",
        "heads": "efficient-probing: README.md:1185 (--cls_features ep)",
        "queries": "efficient-probing: README.md:1185 (--ep_queries 32)",
        "num_heads": "timm: AttentionPoolLatent",
        "token_norm": "efficient-probing: models_simmim.py:333-338 (no norm after the last block)",
        "epochs": "efficient-probing: README.md:1181",
        "warmup_epochs": "efficient-probing: main_linprobe.py:88",
        "batch_size": "efficient-probing: README.md:1180-1181 (512 a GPU, 8 GPUs); the log has 16 of 256",
        "norm_images": "efficient-probing: README.md:1181 (the batch of a GPU; BatchNorm is not synchronised)",
        "base_lr": "efficient-probing: README.md:1181 (--blr 0.1), main_linprobe.py:573",
        "optimizer": "efficient-probing: README.md:1181, util/lars.py:8 (momentum 0.9, trust coefficient 0.001)",
        "weight_decay": "efficient-probing: main_linprobe.py:79",
        "crop_rule": "efficient-probing: main_linprobe.py:35, 257 (MAE's crop)",
        "hflip": "efficient-probing: main_linprobe.py:258",
        "test_crop_ratio": "efficient-probing: main_linprobe.py:272-273",
        "held_out": "not used: there is one candidate",
    },
    published="top-1 64.86 for SimMIM's ViT-B after 800 epochs, 75.46 for MAE's (efficient-probing: results.csv), "
    "at the best epoch on val/, one seed",
    blocks=(-1,),
    heads=("efficient",),
    token_norm="none",
    epochs=90,
    warmup_epochs=10,
    norm_images=512,
    base_lr=(0.1,),
    crop_rule="mae",
)
