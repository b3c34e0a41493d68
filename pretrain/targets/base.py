"""What is predicted of an image, and how a prediction is scored.

In: images (B, C, H, W), normalised; the head's prediction (B, K, H/t, W/t), t the pixels a side of one
predicted point; a mask. Out: the loss, pictures of what was predicted, and the loss of the best prediction
that ignores its input. SimMIM compares them in section 4.1 of arXiv 2111.09886. Here is what any target is,
and pixels; `target_table.py` lists the others.

Legend: B batch, C channels, K numbers predicted a point, G what is scored a point (channels, or one class).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.design import Design, TargetModel, point_channels, target_stride
from pretrain.masking.masks import at_pixels
from simmim_bench.display import Display
from simmim_bench.models.archs import BackboneSpec

FITTED_IMAGES = 256  # that `fit` is given: enough for the colours of a data set


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

    Attributes:
        needs_model: it comes from another model, which `follow` gives it; without, there is no `of`.
        draws: whether a prediction can be drawn; where not, `to_pixels` gives no numbers.
        fitted_images: how many images `fit` wants to look at.
        inherited: what `fit` finds and a prediction's classes mean, so that weights go on with it; empty for
            none, and where `fit` finds nothing else than pictures of the classes.
    """

    needs_model = False
    draws = True
    inherited = ""
    fitted_images = FITTED_IMAGES

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__()
        self.scope = design.scope
        self.stride = target_stride(design, spec, model)
        self.channels = point_channels(design, spec.in_chans, model)
        # In a tuple, where it is no part of the student: not saved, trained, shared out or moved with it.
        self._model: tuple[nn.Module, ...] = ()

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        raise NotImplementedError

    def attach_model(self, model: nn.Module) -> None:
        """Take the model that the target comes from: (images, hidden pixels) to what `ask` gives."""
        self._model = (model.eval(),)

    @property
    def ready(self) -> bool:
        """Whether all is there that `of` needs."""
        return bool(self._model) or not self.needs_model

    @torch.compiler.disable
    @torch.no_grad()
    def query_model(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Let the model that the target comes from look at the images, and at what is hidden of them."""
        if mask is None:
            hidden = images.new_zeros(len(images), *images.shape[2:])
        else:
            hidden = at_pixels(mask, (images.shape[2], images.shape[3])).to(images)
        answer: Tensor = self._model[0](images, hidden)
        return answer

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Learn what the target needs to know of the data.

        Args:
            images: (1, C, H, W), normalised; `fitted_images` of them at most.
            display: shows the progress where there is some to be shown.

        Returns:
            What is worth telling of it, by name.
        """
        return {}

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give what is to be predicted.

        Args:
            images: (B, C, H, W), whole.
            mask: what is hidden of them, as `SimMIM.forward` has it; None for nothing.

        Returns:
            (B, G, H/t, W/t), numbers or classes.
        """
        raise NotImplementedError

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Score (B, K, h, w) by (B, G, h, w): (B, G, h, w), 0 the best."""
        raise NotImplementedError

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Draw a prediction (B, K, H/t, W/t) as (B, C, H, W)."""
        raise NotImplementedError

    def denormalise(self, reconstruction: Tensor, images: Tensor) -> Tensor:
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


class Numbers(Target):
    """Numbers, to which there is a distance of the recipe's choice."""

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.loss_name = design.loss

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Score every number of every point."""
        return DISTANCES[self.loss_name].of(prediction, target)

    def trivial_loss(self, targets: Tensor) -> float:
        """Give the mean distance to the best constant of each channel."""
        distance = DISTANCES[self.loss_name]
        constant = distance.nearest_constant(targets)
        return float(distance.of(constant.expand_as(targets), targets).mean())


def averaged(stride: int) -> str:
    """Say that points are means of pixels, where they are."""
    return f", averaged over {stride} x {stride}" if stride > 1 else ""
