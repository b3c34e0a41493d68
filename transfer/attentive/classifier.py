"""A chosen attentive head on its frozen backbone: logits of images, and the attention of the head's queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.build import Backbone
from transfer.attentive.batch_norm import total_over
from transfer.attentive.heads import AttentiveHead, attend
from transfer.attentive.probes import Candidate
from transfer.attentive.recipes import ATTENTIVE, AttentiveRecipe
from transfer.attentive.tokens import FrozenTokens, load_tokens
from transfer.fitted import FittedClassifier
from transfer.frozen.features import block_width

KIND = "attentive"
# The fields of a recipe that build the classifier, and crop its images.
FIELDS = ("img_size", "queries", "num_heads", "token_norm", "window_size", "test_crop_ratio")


class AttentiveClassifier(nn.Module):
    """A frozen backbone with one attentive head.

    Args:
        tokens: of a single block.
    """

    def __init__(self, tokens: FrozenTokens, head: AttentiveHead) -> None:
        super().__init__()
        self.tokens, self.head = tokens, head
        self.eval()

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone."""
        return self.tokens.backbone

    def _attend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted means (B, Q, D) of the tokens, and the weights (B, Q, h, w)."""
        (grid,) = self.tokens.maps(images)
        with torch.autocast(images.device.type, enabled=False):
            means, weights = attend(
                grid.flatten(1, 2), self.head.queries(self.head.running_moments())
            )
        return means, weights.transpose(1, 2).unflatten(2, grid.shape[1:3])

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, K)."""
        means, _ = self._attend(images)
        every = torch.ones(len(images), device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            return self.head.classify(
                means, self.head.running_moments(), every, total_over(DistContext())
            )

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to the attention of each query over the tokens: (B, Q, h, w), sum 1."""
        return self._attend(images)[1]


def describe_fitted(
    head: AttentiveHead,
    candidate: Candidate,
    recipe: AttentiveRecipe,
    classes: tuple[str, ...],
    seed: int,
) -> FittedClassifier:
    """Describe a fitted head for `transfer/fitted.py`."""
    return FittedClassifier(
        kind=KIND,
        settings={
            "block": candidate.block,
            "head": candidate.head,
            **{name: getattr(recipe, name) for name in FIELDS},
            "seed": seed,
        },
        state=head.state_dict(),
        classes=classes,
    )


def build_classifier(fitted: FittedClassifier, checkpoint: Checkpoint) -> AttentiveClassifier:
    """Build the classifier that `describe_fitted` described.

    Raises:
        DataError: its settings or tensors do not fit each other or the checkpoint.
    """
    try:
        settings: dict[str, Any] = dict(fitted.settings)
        block, name, seed = settings.pop("block"), settings.pop("head"), settings.pop("seed")
        settings["img_size"] = tuple(settings["img_size"])
        recipe = replace(ATTENTIVE, blocks=(block,), heads=(name,), **settings)
        tokens = load_tokens(recipe, checkpoint, torch.device("cpu"), seed=seed)
        width = block_width(checkpoint.spec, block)
        head = AttentiveHead(name, width, len(fitted.classes), recipe)
        head.load_state_dict(dict(fitted.state))
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        raise DataError(
            f"the fitted attentive classifier does not fit {checkpoint.name}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; run its task again."
        ) from error
    return AttentiveClassifier(tokens, head)
