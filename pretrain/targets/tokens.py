"""Targets that are visual tokens, as BEiT's (arXiv 2106.08254): of a tokenizer of ours, or of the user's.

In: images (B, C, H, W), normalised. Out: what a `Target` gives, its targets being ids (B, 1, H/t, W/t). A
tokenizer of ours is kept with the student's weights; one of the user's is not, and the student is rebuilt and
drawn without it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pretrain.design import Design, TargetModel
from pretrain.targets.base import Target
from pretrain.targets.classes import Classes
from pretrain.targets.tokenizer import Tokenizer, as_buffers, fit_tokenizer
from simmim_bench.display import Display
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.training.precision import full_precision

FITTED_IMAGES = 2048  # ours: of 196 tokens each, 400,000 tokens


class Tokens(Classes):
    """The tokens of a tokenizer of ours, which `fit` makes where none is given.

    A prediction is drawn by decoding the mean code of the predicted distribution.
    """

    fitted_images = FITTED_IMAGES
    inherited = "the tokenizer's tokens"

    def __init__(
        self, design: Design, spec: BackboneSpec, model: TargetModel | None = None
    ) -> None:
        super().__init__(design, spec, model, groups=1)
        self.given = None if model is None else model.label
        # Buffers, as they are not trained with the student.
        self.tokenizer = as_buffers(
            Tokenizer(self.classes, self.stride, spec.in_chans, generator=torch.Generator())
        )

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        whose = f" of {self.given}" if self.given else ""
        side = self.stride
        return f"{self.classes} visual tokens{whose} of {side} x {side} pixels, cross-entropy"

    def attach_model(self, model: nn.Module) -> None:
        """Take the weights of another tokenizer of ours."""
        self.tokenizer.load_state_dict(model.state_dict())
        self.fitted_images, self.inherited = 0, ""

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Fit a tokenizer on the images, unless one was given; tell how well it reconstructs others."""
        if not self.fitted_images:
            return {}
        # As bytes, which they come from: a quarter of the memory.
        pictures = torch.cat(
            [(self.in_range(i) * 255).round().clamp(0, 255).byte().cpu() for i in images]
        )
        fitted, figures = fit_tokenizer(
            pictures,
            vocabulary=self.classes,
            stride=self.stride,
            seed=seed,
            display=display or Display(quiet=True),
        )
        self.tokenizer.load_state_dict(fitted.state_dict())
        return figures

    @torch.no_grad()
    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each point's token."""
        with full_precision(images.device):
            return self.tokenizer.ids(self.in_range(images)).unsqueeze(1)

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Decode the mean code of the predicted distribution."""
        with full_precision(prediction.device):
            codes = torch.einsum(
                "bnyx,nd->bdyx", prediction.float().softmax(1), self.tokenizer.codebook
            )
            return (self.tokenizer.decode(codes) - self.mean) / self.std


class UserTokens(Classes):
    """The tokens of a user's tokenizer.

    In evaluation its `decode`, where it has one, draws the likeliest tokens. Without, and without the
    tokenizer, a token is drawn as the mean colour of the squares of the data that had it, and as black if
    none had.
    """

    needs_model = True
    palette: Tensor

    def __init__(self, design: Design, spec: BackboneSpec, model: TargetModel) -> None:
        super().__init__(design, spec, model, groups=1)
        self.name = model.name
        self.register_buffer("palette", torch.zeros(self.classes, spec.in_chans))

    def describe(self) -> str:
        """Say in a few words what is predicted."""
        side = self.stride
        return (
            f"{self.classes} visual tokens of {self.name} of {side} x {side} pixels, cross-entropy"
        )

    def fit(
        self, images: Iterable[Tensor], seed: int, display: Display | None = None
    ) -> dict[str, float]:
        """Find the mean colour of every token."""
        sums, counts = torch.zeros_like(self.palette), self.palette.new_zeros(self.classes)
        for image in images:
            ids = self.of(image).flatten()
            colours = self.colours(image).permute(0, 2, 3, 1).flatten(0, 2)
            sums.index_add_(0, ids, colours)
            counts += ids.bincount(minlength=self.classes)
        self.palette.copy_(sums / counts.clamp(min=1).unsqueeze(1))
        return {"tokens_in_use": float((counts > 0).sum())}

    def of(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each point's token."""
        return self.query_model(images, None)

    @torch.no_grad()
    def to_pixels(self, prediction: Tensor) -> Tensor:
        """Draw the likeliest tokens, or the mean of their colours under the predicted distribution."""
        decoded = None
        if self._model and not self.training:
            decoded = self._model[0].decode(prediction.argmax(1))  # type: ignore[operator]
        if decoded is None:
            decoded = self.enlarge(
                torch.einsum("bnyx,nc->bcyx", prediction.softmax(1), self.palette)
            )
        return (decoded - self.mean) / self.std


def tokens(design: Design, spec: BackboneSpec, model: TargetModel | None = None) -> Target:
    """Build the target of a tokenizer: of ours, which is kept, or of the user's, which is not."""
    if model is None or model.kept:
        return Tokens(design, spec, model)
    return UserTokens(design, spec, model)
