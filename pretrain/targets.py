"""What is predicted of an image, and how a prediction is scored.

In: images (B, C, H, W), normalised; the head's prediction (B, K, H/t, W/t), t the pixels a side of one
predicted point; a mask. Out: the loss, pictures of what was predicted, and the loss of the best prediction
that ignores its input. SimMIM compares them in section 4.1 of arXiv 2111.09886.

Legend: B batch, C channels, K numbers predicted a point, G what is scored a point (channels, or one class).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from pretrain.design import Design, point_channels, target_stride
from simmim_bench.archs import BackboneSpec
from simmim_bench.checkpoint import IMAGENET_MEAN, IMAGENET_STD

PATCH_EPSILON = 1e-6  # MAE: models_mae.py (forward_loss)
FITTED_POINTS = 65536  # colours that clusters are found in: 128 for each of 512
LLOYD_STEPS = 50  # ours: the clusters hardly move any more
AT_A_TIME = 65536  # colours whose distances to all clusters are held at once


def _median(values: Tensor) -> Tensor:
    return values.median(dim=1, keepdim=True).values


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=1, keepdim=True)


def _huber_centre(values: Tensor) -> Tensor:
    """Give each row's c with sum(clamp(x - c, -1, 1)) = 0, where the smooth L1 distance is least."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    for _ in range(40):
        middle = (low + high) / 2
        above = (values - middle).clamp(-1, 1).sum(1, keepdim=True) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


class Distance(NamedTuple):
    """A distance of each number to its target, and the constant (G, 1) nearest to targets (G, N)."""

    of: Callable[[Tensor, Tensor], Tensor]
    nearest_constant: Callable[[Tensor], Tensor]


DISTANCES: dict[str, Distance] = {
    "l1": Distance(lambda prediction, target: (target - prediction).abs(), _median),
    "l2": Distance(lambda prediction, target: (target - prediction) ** 2, _mean),
    "smooth_l1": Distance(
        lambda prediction, target: F.smooth_l1_loss(prediction, target, reduction="none"),
        _huber_centre,
    ),
}


class Target(nn.Module):
    """What any target is: a picture in numbers, a distance to it, and the way back to pixels.

    A subclass gives `describe`, `of`, `distance`, `to_pixels` and `trivial_loss`.
    """

    def __init__(self, design: Design, spec: BackboneSpec) -> None:
        super().__init__()
        self.scope = design.scope
        self.stride = target_stride(design, spec)
        self.channels = point_channels(design, spec.in_chans)

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        raise NotImplementedError

    def fit(self, images: Iterable[Tensor], seed: int) -> None:
        """Learn what the target needs to know of the data, from images (1, C, H, W), normalised."""

    def of(self, images: Tensor) -> Tensor:
        """Give what is to be predicted of (B, C, H, W): (B, G, H/t, W/t), numbers or classes."""
        raise NotImplementedError

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Score (B, K, h, w) by (B, G, h, w): (B, G, h, w), 0 the best."""
        raise NotImplementedError

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Draw a prediction (B, K, H/t, W/t) as (B, C, H, W)."""
        raise NotImplementedError

    def restore(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Lend a reconstruction what the target leaves out, from the images; (B, C, H, W) both."""
        return reconstruction

    def trivial_loss(self, targets: Tensor) -> float:
        """Give the mean distance of targets (G, N) to the best prediction that is the same for all N."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """Give the mean distance over what counts.

        Args:
            hidden: (B, 1, H, W), 1 where a pixel is hidden; a point counts by its hidden share.
        """
        counts = torch.ones_like(hidden) if self.scope == "all" else hidden
        counts = self.reduce(counts).to(prediction)
        distance = self.distance(prediction, target)
        # 1e-5: the official guard against a mask that hides nothing.
        return (distance * counts).sum() / (counts.sum() + 1e-5) / distance.shape[1]

    def reduce(self, pixels: Tensor) -> Tensor:
        """Average the pixels of every point: (B, C, H, W) to (B, C, H/t, W/t)."""
        return pixels if self.stride == 1 else F.avg_pool2d(pixels, self.stride)

    def enlarge(self, points: Tensor) -> Tensor:
        """Draw every point as the square of pixels that it stands for."""
        if self.stride == 1:
            return points
        return F.interpolate(points, scale_factor=float(self.stride), mode="nearest")


class Pixels(Target):
    """The pixels, plain or normalised by their surroundings."""

    def __init__(self, design: Design, spec: BackboneSpec) -> None:
        super().__init__(design, spec)
        self.loss_name, self.side = design.loss, design.norm_target

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        what = (
            f"pixels normalised by {self.side} x {self.side} around them" if self.side else "pixels"
        )
        return f"{what}{_averaged(self.stride)}, {self.loss_name}"

    def normalised(self, images: Tensor) -> Tensor:
        """Take out of images (B, C, H, W) what is not to be predicted."""
        if not self.side:
            return images
        mean, deviation = local_statistics(images, self.side)
        return (images - mean) / deviation

    def of(self, images: Tensor) -> Tensor:
        """Give the pixels that are to be predicted of (B, C, H, W): (B, C, H/t, W/t)."""
        return self.reduce(self.normalised(images.float()))

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Score every channel of every point."""
        return DISTANCES[self.loss_name].of(prediction, target)

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Give the prediction at the image's size, in the target's own units."""
        return self.enlarge(prediction)

    def restore(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Lend the local mean and deviation."""
        if not self.side:
            return reconstruction
        mean, deviation = local_statistics(images, self.side)
        return reconstruction * deviation + mean

    def trivial_loss(self, targets: Tensor) -> float:
        """Give the mean distance to the best constant of each channel."""
        distance = DISTANCES[self.loss_name]
        constant = distance.nearest_constant(targets)
        return float(distance.of(constant.expand_as(targets), targets).mean())


class PatchNorm(Pixels):
    """Pixels normalised by their patch, as MAE's (arXiv 2111.06377, section 3).

    A patch is a cell of the last map: a ViT's own patch, as there, and 32 pixels of a Swin, the masking unit.
    """

    def __init__(self, design: Design, spec: BackboneSpec) -> None:
        super().__init__(design, spec)
        self.patch = spec.stride

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        what = f"pixels normalised by their patch of {self.patch} x {self.patch}"
        return f"{what}{_averaged(self.stride)}, {self.loss_name}"

    def normalised(self, images: Tensor) -> Tensor:
        """Take each patch's mean and deviation out of it."""
        mean, deviation = patch_statistics(images, self.patch)
        return (images - mean) / deviation

    def restore(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Lend each patch's mean and deviation."""
        mean, deviation = patch_statistics(images, self.patch)
        return reconstruction * deviation + mean


class Classes(Target):
    """One class of several for each of G things at a point; the loss is the cross-entropy in nats.

    A picture of a prediction has the mean colour of the predicted distribution.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, design: Design, spec: BackboneSpec, groups: int) -> None:
        super().__init__(design, spec)
        self.groups, self.classes = groups, self.channels // groups
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            own = torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, own, persistent=False)

    def colours(self, images: Tensor) -> Tensor:
        """Give the reduced image's pixels in [0, 1]: (B, C, H/t, W/t)."""
        return self.reduce(images.float() * self.std + self.mean)

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

    def __init__(self, design: Design, spec: BackboneSpec) -> None:
        super().__init__(design, spec, groups=spec.in_chans)

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        return f"{self.classes} bins a channel{_reduced(self.stride)}, cross-entropy"

    def of(self, images: Tensor) -> Tensor:
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

    def __init__(self, design: Design, spec: BackboneSpec) -> None:
        super().__init__(design, spec, groups=1)
        self.register_buffer("palette", torch.zeros(self.classes, spec.in_chans))

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        return f"{self.classes} colours of the data{_reduced(self.stride)}, cross-entropy"

    def fit(self, images: Iterable[Tensor], seed: int) -> None:
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

    def of(self, images: Tensor) -> Tensor:
        """Give each point's nearest colour."""
        colours = self.colours(images)
        flat = colours.permute(0, 2, 3, 1).flatten(0, 2)
        exact = "donot_use_mm_for_euclid_dist"  # whatever precision products are taken in
        nearest = [
            torch.cdist(part, self.palette, compute_mode=exact).argmin(1)
            for part in flat.split(AT_A_TIME)
        ]
        return torch.cat(nearest).view(len(colours), 1, *colours.shape[-2:])

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Give the mean of the colours under the predicted distribution."""
        colours = torch.einsum("bnyx,nc->bcyx", prediction.softmax(1), self.palette)
        return self.enlarge((colours - self.mean) / self.std)


TARGETS: dict[str, Callable[[Design, BackboneSpec], Target]] = {
    "pixels": Pixels,
    "patch_norm": PatchNorm,
    "bins": Bins,
    "clusters": Clusters,
}


def _averaged(stride: int) -> str:
    return f", averaged over {stride} x {stride}" if stride > 1 else ""


def _reduced(stride: int) -> str:
    return f" of the image reduced {stride} times" if stride > 1 else ""


def local_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Give the mean and deviation of every pixel's surroundings, each (B, C, H, W).

    Swin-Transformer's SimMIM for Swin V2 predicts pixels normalised by them (models/simmim.py,
    NORM_TARGET; 47 pixels).

    Args:
        images: (B, C, H, W).
        side: of the square around each pixel, odd; what lies outside the image does not count.
    """
    padding = side // 2
    mean = F.avg_pool2d(images, side, 1, padding, count_include_pad=False)
    square = F.avg_pool2d(images**2, side, 1, padding, count_include_pad=False)
    count = F.avg_pool2d(torch.ones_like(images), side, 1, padding) * side**2
    variance = ((square - mean**2) * count / (count - 1)).clamp(min=0)
    return mean, (variance + 1e-6) ** 0.5


def patch_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Give the mean and deviation of every pixel's patch, each (B, 1, H, W).

    All channels together have one of each, as in MAE's models_mae.py (forward_loss, norm_pix_loss).

    Args:
        images: (B, C, H, W), H and W multiples of `side`.
        side: of the patches.
    """
    patches = F.pixel_unshuffle(images, side)
    variance, mean = torch.var_mean(patches, dim=1, keepdim=True)
    deviation = (variance + PATCH_EPSILON) ** 0.5

    def spread(one: Tensor) -> Tensor:
        return one.repeat_interleave(side, 2).repeat_interleave(side, 3)

    return spread(mean), spread(deviation)
