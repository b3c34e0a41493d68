"""Targets that are one class of several: bins of a channel, or colours of the data.

In: images (B, C, H, W), normalised. Out: what a `Target` gives, its targets being classes (B, G, H/t, W/t) and
its loss the cross-entropy in nats. SimMIM compares them in section 4.1.4 of arXiv 2111.09886.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from pretrain.design import Design, TargetModel
from pretrain.targets.base import Target
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.display import Display
from simmim_bench.models.archs import BackboneSpec

FITTED_POINTS = 65536  # colours that clusters are found in: 128 for each of 512
LLOYD_STEPS = 50  # ours: the clusters hardly move any more
AT_A_TIME = 65536  # points whose distances to all centres are held at once


class Classes(Target):
    """One class of several for each of G things at a point; the loss is the cross-entropy in nats.

    A picture of a prediction has the mean colour of the predicted distribution.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None, groups: int
    ) -> None:
        super().__init__(design, spec, model)
        self.groups, self.classes = groups, self.channels // groups
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            own = torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, own, persistent=False)

    def in_range(self, images: Tensor) -> Tensor:
        """Give normalised pixels as they are in the image, in [0, 1]."""
        return images.float() * self.std + self.mean

    def colours(self, images: Tensor) -> Tensor:
        """Give the reduced image's pixels in [0, 1]: (B, C, H/t, W/t)."""
        return self.reduce(self.in_range(images))

    def logits(self, prediction: Tensor) -> Tensor:
        """Put the classes into a dimension of their own: (B, classes, G, h, w)."""
        return prediction.unflatten(1, (self.groups, self.classes)).transpose(1, 2)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Score every class by its cross-entropy."""
        return F.cross_entropy(self.logits(prediction), target, reduction="none")

    def trivial_loss(self, targets: Tensor) -> float:
        """Give the entropy of the classes' shares, the mean of all G."""
        counts = torch.stack([row.bincount(minlength=self.classes) for row in targets]).double()
        shares = counts / targets.shape[1]
        return float(torch.special.entr(shares).sum(1).mean())


class Bins(Classes):
    """Which of so many equal parts of [0, 1] each channel falls into (SimMIM, section 4.1.4)."""

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model, groups=spec.in_chans)

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        return f"{self.classes} bins a channel{_reduced(self.stride)}, cross-entropy"

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each channel's bin."""
        return (self.colours(images) * self.classes).long().clamp(0, self.classes - 1)

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Give the mean of the bins' middles under the predicted distribution."""
        middles = (torch.arange(self.classes, device=prediction.device) + 0.5) / self.classes
        colours = torch.einsum("bngyx,n->bgyx", self.logits(prediction).softmax(1), middles)
        return self.enlarge((colours - self.mean) / self.std)


class Clusters(Classes):
    """Which of the data's colours is nearest, as iGPT's palette (SimMIM, section 4.1.4).

    The distance is Euclid's in [0, 1] a channel. The colours are found once, by k-means, and kept with
    the weights.
    """

    palette: Tensor
    inherited = "the colours that are classes"

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model, groups=1)
        self.register_buffer("palette", torch.zeros(self.classes, spec.in_chans))

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        return f"{self.classes} colours of the data{_reduced(self.stride)}, cross-entropy"

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Find the colours by k-means (Lloyd's steps from k-means++), on colours that a seed chooses."""
        seen = torch.cat(
            [self.colours(i).transpose(0, 1).flatten(1) for i in images], dim=1
        ).T.cpu()
        generator = torch.Generator().manual_seed(seed)
        chosen = seen[torch.randperm(len(seen), generator=generator)[:FITTED_POINTS]]
        found, _ = kmeans2(
            chosen.double().numpy(),
            self.classes,
            iter=LLOYD_STEPS,
            minit="++",
            missing="warn",
            seed=seed,
        )
        self.palette.copy_(torch.from_numpy(found))
        return {}

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each point's nearest colour."""
        colours = self.colours(images)
        flat = colours.permute(0, 2, 3, 1).flatten(0, 2)
        return nearest(flat, self.palette).view(len(colours), 1, *colours.shape[-2:])

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Give the mean of the colours under the predicted distribution."""
        colours = torch.einsum("bnyx,nc->bcyx", prediction.softmax(1), self.palette)
        return self.enlarge((colours - self.mean) / self.std)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Give each of points (N, D) the number of the nearest of centres (K, D), by Euclid's distance: (N,)."""
    exact = "donot_use_mm_for_euclid_dist"  # whatever precision products are taken in
    found = [
        torch.cdist(part, centres, compute_mode=exact).argmin(1) for part in points.split(AT_A_TIME)
    ]
    return torch.cat(found)


def _reduced(stride: int) -> str:
    return f" of the image reduced {stride} times" if stride > 1 else ""
