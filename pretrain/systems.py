"""Other systems that texts describe under SimMIM's name, each as changes to the default recipe of an arch.

The paper's SimMIM (arXiv 2111.09886) hides 60 % at random, encodes mask tokens together with visible patches,
and predicts hidden pixels by one linear layer with an L1 loss. None of these systems has published scores;
where their descriptions leave something open, the choice is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class System:
    """One system.

    Attributes:
        arch: the architecture that the system is described with.
        source: what distinguishes the system from the paper's SimMIM; the recipe's `source` starts with it.
        changes: fields of the arch's default recipe, with their new values.
    """

    arch: str
    source: str
    changes: dict[str, Any]


SYSTEMS: dict[str, System] = {
    "visible_multiscale": System(
        arch="vit_b",
        source="ours: an encoder of visible patches alone, 60 to 80 % hidden, and an MLP on several scales; "
        "not the paper's, which encodes mask tokens and predicts by a linear layer",
        changes={
            "encoder_input": "visible",
            "aggregate": True,
            "head": "mlp",
            "mask_ratio": 0.7,
        },
    ),
    "multimodal_masks": System(
        arch="vit_b",
        source="ours: masks that follow colour, place and texture in turn; not the paper's, which hides at random",
        changes={"masking": "multimodal"},
    ),
    "cnn_mse": System(
        arch="resnet50",
        source="ours: a CNN of images with holes and a transposed-convolution decoder under the squared error of all "
        "pixels, half hidden; not the paper's, which trains transformers with L1 on hidden pixels",
        changes={
            "encoder_input": "zeros",
            "head": "conv",
            "loss": "l2",
            "scope": "all",
            "mask_ratio": 0.5,
        },
    ),
    "masked_distillation": System(
        arch="vit_s",
        source="ours: a small student of masked images predicts a large teacher's features of the whole ones, and "
        "pixels beside; not the paper's, which has no teacher",
        changes={
            "target": "teacher_features",
            # MAE's ViT-L from timm; -o teacher=CKPT selects another.
            "teacher": "timm:vit_large_patch16_224.mae",
            "pixel_weight": 1.0,
        },
    ),
}
