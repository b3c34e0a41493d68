"""Classification targets: bins of a channel, or colours of the data.

The targets are class indices (B, G, H/t, W/t) and the loss is the cross-entropy in nats. SimMIM compares them in
section 4.1.4 of arXiv 2111.09886.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.design import Design, TargetModelInfo
from pretrain.targets.base import Target
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.display import Display
from simmim_bench.models.spec import BackboneSpec

FITTED_POINTS = 65536  # colours that k-means clusters: 128 for each of 512 clusters
LLOYD_STEPS = 50  # ours: the clusters hardly change afterwards
CHUNK_POINTS = 65536  # points whose distances to all centres are in memory at once


class ClassificationTarget(Target):
    """G class labels per point; the loss is the cross-entropy in nats.

    A prediction is visualised by the mean colour under the predicted distribution.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None, groups: int
    ) -> None:
        super().__init__(design, spec, model)
        self.groups, self.classes = groups, self.channels // groups
        self.set_statistics(IMAGENET_MEAN, IMAGENET_STD)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation that normalise the images."""
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def to_unit_range(self, images: Tensor) -> Tensor:
        """Convert normalised pixels to [0, 1]."""
        return images.float() * self.std + self.mean

    def colours(self, images: Tensor) -> Tensor:
        """Return the pixels of the reduced image in [0, 1], (B, C, H/t, W/t)."""
        return self.reduce(self.to_unit_range(images))

    def logits(self, prediction: Tensor) -> Tensor:
        """Reshape a prediction (B, G * classes, h, w) to logits (B, classes, G, h, w)."""
        return prediction.unflatten(1, (self.groups, self.classes)).transpose(1, 2)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of every label, (B, G, h, w)."""
        return F.cross_entropy(self.logits(prediction), target, reduction="none")

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the entropy of the class frequencies, averaged over all G labels."""
        counts = torch.stack([row.bincount(minlength=self.classes) for row in targets]).double()
        frequencies = counts / targets.shape[1]
        return float(torch.special.entr(frequencies).sum(1).mean())


class BinTarget(ClassificationTarget):
    """The index of the interval of [0, 1] that each channel falls into, all equally wide (SimMIM, section 4.1.4)."""

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model, groups=spec.in_chans)

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        return f"{self.classes} bins a channel{_reduced(self.stride)}, cross-entropy"

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return each channel's bin."""
        return (self.colours(images) * self.classes).long().clamp(0, self.classes - 1)

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Return the mean of the bins' centres under the predicted distribution."""
        centres = (torch.arange(self.classes, device=prediction.device) + 0.5) / self.classes
        colours = torch.einsum("bngyx,n->bgyx", self.logits(prediction).softmax(1), centres)
        return self.enlarge((colours - self.mean) / self.std)


class ClusterTarget(ClassificationTarget):
    """The index of the nearest colour of a palette, as in iGPT (SimMIM, section 4.1.4).

    The distance is Euclidean, with channels in [0, 1]. The palette is fitted once, by k-means on the data, and stored
    with the weights.
    """

    palette: Tensor
    inherited = "the colours that are classes"

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model, groups=1)
        self.register_buffer("palette", torch.zeros(self.classes, spec.in_chans))

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        return f"{self.classes} colours of the data{_reduced(self.stride)}, cross-entropy"

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Fit the palette by k-means (Lloyd's algorithm from k-means++) on a random sample of the images' colours."""
        from scipy.cluster.vq import kmeans2

        colours = torch.cat(
            [self.colours(i).transpose(0, 1).flatten(1) for i in images], dim=1
        ).T.cpu()
        generator = torch.Generator().manual_seed(seed)
        chosen = colours[torch.randperm(len(colours), generator=generator)[:FITTED_POINTS]]
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

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the index of each point's nearest colour."""
        colours = self.colours(images)
        flat = colours.permute(0, 2, 3, 1).flatten(0, 2)
        return nearest_centre(flat, self.palette).view(len(colours), 1, *colours.shape[-2:])

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Return the mean colour under the predicted distribution."""
        colours = torch.einsum("bnyx,nc->bcyx", prediction.softmax(1), self.palette)
        return self.enlarge((colours - self.mean) / self.std)


def nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """Return, for each of the points (N, D), the index (N,) of the nearest of the centres (K, D), Euclidean."""
    exact = "donot_use_mm_for_euclid_dist"  # independent of the precision of matrix products
    found = [
        torch.cdist(chunk, centres, compute_mode=exact).argmin(1)
        for chunk in points.split(CHUNK_POINTS)
    ]
    return torch.cat(found)


def _reduced(stride: int) -> str:
    return f" of the image reduced {stride} times" if stride > 1 else ""
