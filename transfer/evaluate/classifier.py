"""A classifier that was loaded for evaluation, and its classification head's name in a weights file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.errors import DataError
from simmim_bench.results.record import ScoredModel
from transfer.evaluate.preprocessing import Preprocessing

# The last weight of a classifier: SimMIM, Swin, MAE, BEiT and timm's ViT; timm; ResNet and others; torchvision.
HEAD = re.compile(r"^(head|head\.fc|fc|heads\.head|classifier(\.(\d+))?)\.weight$")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier with trained weights.

    Attributes:
        model: maps normalised images (B, 3, H, W) to logits (B, K).
        num_classes: K.
        described: as the record describes it.
        preprocessing: of its publisher.
        code: what computes the model: "simmim-bench", "timm" or "torchvision".
        classes: names of the classes in the order of the logits; None where the file has none.
    """

    model: nn.Module
    num_classes: int
    described: ScoredModel
    preprocessing: Preprocessing
    code: str
    classes: tuple[str, ...] | None = None


def no_head(ckpt: str) -> DataError:
    """Return the error for a CKPT without classification head."""
    return DataError(
        f"{ckpt} has no classification head, so that there is nothing to evaluate; fine-tune it first with "
        f"`simmim-bench transfer imagenet --ckpt {ckpt} --data DIR`, then evaluate that run."
    )


def head_name(state: StateDict) -> str | None:
    """Return the prefix of a state dict's classification head, such as `head.`; None without head."""
    heads = [(int(m[3] or 0), k) for k in state if (m := HEAD.match(k)) is not None]
    return max(heads)[1].removesuffix("weight") if heads else None


def head_classes(state: StateDict) -> int | None:
    """Return the number of outputs of a state dict's classification head; None without head."""
    name = head_name(state)
    return None if name is None else len(state[f"{name}weight"])
