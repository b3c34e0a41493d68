"""Visual-token targets, as in BEiT (arXiv 2106.08254), of a fitted tokenizer or of a user-defined one.

The targets are token ids (B, 1, H/t, W/t). A fitted tokenizer is stored with the student's weights. A user-defined
tokenizer is not, and the student is rebuilt and visualised without it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pretrain.design import Design, TargetModelInfo
from pretrain.targets.base import Target
from pretrain.targets.classes import ClassificationTarget
from pretrain.targets.tokenizer import Tokenizer, fit_tokenizer, freeze_as_buffers
from simmim_bench.display import Display
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.training.precision import full_precision

FITTED_IMAGES = 2048  # ours: 400,000 tokens at 196 tokens per image


class TokenTarget(ClassificationTarget):
    """The tokens of a `Tokenizer`, which `fit` fits if none is given.

    A prediction is visualised by decoding the mean code under the predicted distribution.
    """

    fitted_images = FITTED_IMAGES
    inherited = "the tokenizer's tokens"

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
    ) -> None:
        super().__init__(design, spec, model, groups=1)
        self.given = None if model is None else model.label
        # Buffers, because they are not trained with the student.
        self.tokenizer = freeze_as_buffers(
            Tokenizer(self.classes, self.stride, spec.in_chans, generator=torch.Generator())
        )

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        origin = f" of {self.given}" if self.given else ""
        side = self.stride
        return f"{self.classes} visual tokens{origin} of {side} x {side} pixels, cross-entropy"

    def attach_model(self, model: nn.Module) -> None:
        """Load the weights of a given `Tokenizer`, which `fit` then keeps."""
        self.tokenizer.load_state_dict(model.state_dict())
        self.fitted_images, self.inherited = 0, ""

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Fit a tokenizer on the images, unless one was given; return its metrics on held-out images."""
        if not self.fitted_images:
            return {}
        # uint8, as decoded: a quarter of the memory.
        pixels = torch.cat(
            [(self.to_unit_range(i) * 255).round().clamp(0, 255).byte().cpu() for i in images]
        )
        fitted, metrics = fit_tokenizer(
            pixels,
            vocabulary=self.classes,
            stride=self.stride,
            seed=seed,
            display=display or Display(quiet=True),
        )
        self.tokenizer.load_state_dict(fitted.state_dict())
        return metrics

    @torch.no_grad()
    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return each point's token id."""
        with full_precision(images.device):
            return self.tokenizer.ids(self.to_unit_range(images)).unsqueeze(1)

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Decode the mean code under the predicted distribution."""
        with full_precision(prediction.device):
            codes = torch.einsum(
                "bnyx,nd->bdyx", prediction.float().softmax(1), self.tokenizer.codebook
            )
            return (self.tokenizer.decode(codes) - self.mean) / self.std


class UserTokenTarget(ClassificationTarget):
    """The tokens of a user-defined tokenizer.

    In evaluation, the tokenizer's `decode`, if it has one, visualises the most probable tokens. Otherwise, and without
    the tokenizer, a token is visualised as the mean colour of the squares of the data with this token, and as black
    if there are none.
    """

    needs_model = True
    palette: Tensor

    def __init__(self, design: Design, spec: BackboneSpec, model: TargetModelInfo) -> None:
        super().__init__(design, spec, model, groups=1)
        self.name = model.name
        self.register_buffer("palette", torch.zeros(self.classes, spec.in_chans))

    def describe(self) -> str:
        """Return a short description of what is predicted, for logs and messages."""
        side = self.stride
        return (
            f"{self.classes} visual tokens of {self.name} of {side} x {side} pixels, cross-entropy"
        )

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Fit the mean colour of every token."""
        sums, counts = torch.zeros_like(self.palette), self.palette.new_zeros(self.classes)
        for image in images:
            ids = self.from_images(image).flatten()
            colours = self.colours(image).permute(0, 2, 3, 1).flatten(0, 2)
            sums.index_add_(0, ids, colours)
            counts += ids.bincount(minlength=self.classes)
        self.palette.copy_(sums / counts.clamp(min=1).unsqueeze(1))
        return {"tokens_in_use": float((counts > 0).sum())}

    def from_images(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return each point's token id."""
        return self.query_model(images, None)

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Decode the most probable tokens, or return the mean token colour under the predicted distribution."""
        decoded = None
        if self._model and not self.training:
            decoded = self._model[0].decode(prediction.argmax(1))  # type: ignore[operator]
        if decoded is None:
            decoded = self.enlarge(
                torch.einsum("bnyx,nc->bcyx", prediction.softmax(1), self.palette)
            )
        return (decoded - self.mean) / self.std


def build_token_target(
    design: Design, spec: BackboneSpec, model: TargetModelInfo | None = None
) -> Target:
    """Build the target of a fitted tokenizer, whose weights are stored, or of a user-defined one, whose are not."""
    if model is None or model.kept:
        return TokenTarget(design, spec, model)
    return UserTokenTarget(design, spec, model)
