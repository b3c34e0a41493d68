"""What a target is: computed from images, compared with the head's prediction by a loss, and converted back to pixels.

`Target` defines the interface and the loss, by `loss.py`: the mean distance over the hidden pixels.
`RegressionTarget` adds the distances L1, smooth L1 and L2. `table.py` lists all targets.

Legend: B batch, C channels, K numbers predicted per point, G distances per point (one per channel, or one per class
label), t side in pixels of the square that a point covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.design import Design, TargetModelInfo, point_channels, target_stride
from pretrain.loss import DISTANCES, masked_mean
from pretrain.masking.masks import upsample_mask
from simmim_bench.display import Display
from simmim_bench.models.spec import BackboneSpec

FITTED_IMAGES = 256  # images that `fit` receives; they cover the colours of a data set


class Target(nn.Module):
    """Interface of a prediction target.

    A subclass implements `describe`, `from_images`, `distance`, `to_pixels` and `trivial_loss`.

    Attributes:
        needs_model: the target is the output of another model, which `attach_model` sets; without it `from_images`
            cannot be called.
        can_visualize: a prediction can be converted to an image; if not, `to_pixels` returns NaN.
        fitted_images: maximum number of images that `fit` receives.
        inherited: what a run started with `--init-from` keeps instead of fitting it anew, because the predicted classes
            refer to it; empty if nothing is fitted or the fit affects visualisation only.
    """

    needs_model = False
    can_visualize = True
    inherited = ""
    fitted_images = FITTED_IMAGES

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__()
        self.scope = design.scope
        self.stride = target_stride(design, spec, model)
        self.channels = point_channels(design, spec.in_chans, model)
        # A tuple hides the model from nn.Module: it is not saved, trained, sharded or moved with the student.
        self._model: tuple[nn.Module, ...] = ()

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        raise NotImplementedError

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation that normalise the images, for targets in other units."""

    def attach_model(self, model: nn.Module) -> None:
        """Set the model that the target comes from; it maps (images, hidden pixels) to what `query_model` returns."""
        self._model = (model.eval(),)

    @property
    def ready(self) -> bool:
        """Whether `from_images` can be called."""
        return bool(self._model) or not self.needs_model

    @torch.compiler.disable
    @torch.no_grad()
    def query_model(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attached model's output for the images and the mask of hidden pixels."""
        if mask is None:
            hidden = images.new_zeros(len(images), *images.shape[2:])
        else:
            hidden = upsample_mask(mask, (images.shape[2], images.shape[3])).to(images)
        output: Tensor = self._model[0](images, hidden)
        return output

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Fit the target's data-dependent state, such as a palette or a tokenizer.

        Args:
            images: (1, C, H, W) each, normalised; at most `fitted_images` of them.
            seed: seed of the run.
            display: shows the progress of a long fit; None for none.

        Returns:
            Metrics of the fit by name, for the log and the checkpoint; empty if there are none.
        """
        return {}

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute what is to be predicted.

        Args:
            images: (B, C, H, W), normalised, without masking.
            mask: mask of patches or pixels, as in `SimMIM.forward`; None if nothing is hidden.

        Returns:
            (B, G, H/t, W/t), numbers or class indices.
        """
        raise NotImplementedError

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distance (B, G, h, w) of a prediction (B, K, h, w) to a target (B, G, h, w); 0 is perfect."""
        raise NotImplementedError

    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Convert a prediction (B, K, H/t, W/t) to an image (B, C, H, W) in the target's units."""
        raise NotImplementedError

    def denormalise(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Undo the target's normalisation of a reconstruction with the images' statistics; (B, C, H, W) both."""
        return reconstruction

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the mean distance of targets (G, N) to the best prediction that is the same for all N points."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """Return the mean distance over the hidden points, or over all points if the scope is "all".

        Args:
            prediction: (B, K, H/t, W/t) from the head.
            target: (B, G, H/t, W/t) from `from_images`.
            hidden: (B, 1, H, W), 1 where a pixel is hidden; a point is weighted by its fraction of hidden pixels.
        """
        weights = torch.ones_like(hidden) if self.scope == "all" else hidden
        weights = self.reduce(weights).to(prediction)
        return masked_mean(self.distance(prediction, target), weights)

    def reduce(self, pixels: Tensor) -> Tensor:
        """Average the pixels that every point covers: (B, C, H, W) to (B, C, H/t, W/t)."""
        return pixels if self.stride == 1 else F.avg_pool2d(pixels, self.stride)

    def enlarge(self, points: Tensor) -> Tensor:
        """Repeat every point over the pixels that it covers: (B, C, H/t, W/t) to (B, C, H, W)."""
        if self.stride == 1:
            return points
        return F.interpolate(points, scale_factor=float(self.stride), mode="nearest")


class RegressionTarget(Target):
    """A target of real numbers, compared by one of `DISTANCES`."""

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model)
        self.loss_name = design.loss

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the elementwise distance, (B, G, h, w)."""
        return DISTANCES[self.loss_name].elementwise(prediction, target)

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the mean distance to the best constant of each channel."""
        distance = DISTANCES[self.loss_name]
        constant = distance.nearest_constant(targets)
        return float(distance.elementwise(constant.expand_as(targets), targets).mean())


def averaging_suffix(stride: int) -> str:
    """Return the suffix of a description for points that average several pixels; empty for single pixels."""
    return f", averaged over {stride} x {stride}" if stride > 1 else ""
