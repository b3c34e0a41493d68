"""The heads of all candidates, which are trained jointly on the tokens of one forward pass.

The queries of all heads of a block are scored and averaged in one product each with the tokens; what follows is small.
Every candidate has a head for each part of the training images: one learns from the images that are not held out, on
which the candidates are compared, and one from all images, which is evaluated if its candidate is chosen. A second
training of the chosen candidate alone would forward every crop once more.

Legend: B images of a process, L tokens, D channels, K classes, P parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn

from transfer.attentive.batch_norm import Total, moments
from transfer.attentive.heads import AttentiveHead, attend, build_heads
from transfer.attentive.recipes import AttentiveRecipe, Head

SINGLE = "use a single candidate: -o blocks=... -o heads=... -o base_lr=..."  # where images are too few to compare
REFERENCE_BATCH = 256  # images a step for which learning rates are stated, as in MAE


@dataclass(frozen=True)
class Candidate:
    """One setting that is compared.

    Attributes:
        block: the block whose tokens are pooled, counted from 1.
    """

    block: int
    head: Head
    base_lr: float

    def to_json(self) -> dict[str, Any]:
        """Return the plain form, as `compared.json` lists it."""
        return asdict(self)


def list_candidates(blocks: Sequence[int], recipe: AttentiveRecipe) -> list[Candidate]:
    """Return every block with every head and every rate."""
    return [
        Candidate(block, head, rate)
        for block in blocks
        for head in recipe.heads
        for rate in recipe.base_lr
    ]


class AttentiveProbes(nn.Module):
    """P heads of every candidate.

    Args:
        widths: channels after each block.
        parts: P.
        classes: K.
        seed: initialises the weights, the same for all rates and parts.
        total: sums over the processes.
        processes: number of processes, whose gradients are averaged.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        widths: Mapping[int, int],
        classes: int,
        recipe: AttentiveRecipe,
        *,
        parts: int,
        seed: int,
        total: Total,
        processes: int = 1,
    ) -> None:
        super().__init__()
        self.candidates, self.parts = list(candidates), parts
        self.blocks = list(dict.fromkeys(candidate.block for candidate in candidates))
        self._total, self._processes = total, processes
        self.heads = nn.ModuleList(
            nn.ModuleList(
                build_heads(c.head, widths[c.block], classes, recipe, seed=seed, copies=parts)
            )
            for c in candidates
        )

    def head(self, candidate: int, part: int) -> AttentiveHead:
        """Return the head of a candidate for a part of the images."""
        heads = self.heads[candidate]
        assert isinstance(heads, nn.ModuleList)
        head = heads[part]
        assert isinstance(head, AttentiveHead)
        return head

    def logits(self, tokens: Sequence[Tensor], counted: Tensor) -> dict[tuple[int, int], Tensor]:
        """Return the logits (B, K) of all heads by the numbers of candidate and part.

        Args:
            tokens: (B, L, D) of every block of `blocks`.
            counted: (P', B), 1 for an image that enters a part's statistics, else 0, for the first P' parts; the
                heads of the other parts are left out.
        """
        found = {}
        for block, x in zip(self.blocks, tokens, strict=True):
            members = [
                (number, part)
                for number, candidate in enumerate(self.candidates)
                if candidate.block == block
                for part in range(len(counted))
            ]
            norms = self._token_moments(members, x, counted)
            queries = [self.head(*member).queries(norms[member]) for member in members]
            means, _ = attend(x, torch.cat(queries))
            split = means.split([len(q) for q in queries], dim=1)
            for member, own in zip(members, split, strict=True):
                found[member] = self.head(*member).classify(
                    own, norms[member], counted[member[1]], self._total
                )
        return found

    def _token_moments(
        self, members: Sequence[tuple[int, int]], x: Tensor, counted: Tensor
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor] | None]:
        """Return the mean and variance by which every head's BatchNorm normalises the tokens, or None."""
        if not self.training or self.head(*members[0]).token_norm is None:
            return {member: self.head(*member).running_moments() for member in members}
        of_parts = [moments(x, own, self._total) for own in counted]
        for number, part in members:
            norm = self.head(number, part).token_norm
            assert norm is not None
            norm.update(*of_parts[part])
        return {member: of_parts[member[1]][:2] for member in members}

    def forward(self, tokens: Sequence[Tensor], labels: Tensor, counted: Tensor) -> Tensor:
        """Return the mean loss of every head over the counted images: (candidates, P).

        The mean over the processes of what each returns is the mean over the images of all of them.

        Args:
            tokens: (B, L, D) of every block.
            labels: (B,).
            counted: (P, B), 1 for an image that a part learns from, else 0.
        """
        logits = self.logits(tokens, counted)
        images = self._total(counted.sum(1)).clamp(min=1) / self._processes
        losses = [
            [
                F.cross_entropy(logits[number, part], labels, reduction="none")
                @ counted[part]
                / images[part]
                for part in range(self.parts)
            ]
            for number in range(len(self.candidates))
        ]
        return torch.stack([torch.stack(row) for row in losses])


def build_optimizer(probes: AttentiveProbes, recipe: AttentiveRecipe) -> torch.optim.Optimizer:
    """Build one optimizer for all heads, with parameter groups for each rate.

    Vectors neither decay nor are their rates scaled by LARS (efficient-probing: util/lars.py:21).
    """
    peak = peak_lr(recipe)
    groups: list[dict[str, Any]] = []
    for rate in recipe.base_lr:
        heads = [
            head
            for candidate, head in zip(probes.candidates, probes.heads, strict=True)
            if candidate.base_lr == rate
        ]
        parameters = [p for head in heads for p in head.parameters()]
        scale = rate / max(recipe.base_lr)
        common = {"lr": peak * scale, "lr_scale": scale}
        weights = {"weight_decay": recipe.weight_decay}
        if recipe.optimizer == "lars":
            weights["always_adapt"] = True
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], **common, **weights},
            {"params": [p for p in parameters if p.ndim <= 1], **common, "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return Lars(groups, momentum=recipe.momentum, weight_decay=0.0)


def peak_lr(recipe: AttentiveRecipe) -> float:
    """Return the largest rate, scaled by the recipe's batch size, even if fewer images make a batch."""
    return max(recipe.base_lr) * recipe.batch_size / REFERENCE_BATCH
