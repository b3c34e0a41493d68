"""The linear classifier that `linear` or `fewshot` fits, kept for other images, and the module of its logits.

The module repeats what the run computed from an image: the pooled tokens of the chosen block, rounded to float16 as the
feature store keeps them, the norm with its statistics from training, and the classifier in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import DataError
from simmim_bench.models.build import Backbone
from simmim_bench.models.external import ExternalBackbone
from simmim_bench.models.vit import ViT
from simmim_bench.probes.norms import Normaliser
from simmim_bench.recipe import Norm
from transfer.fitted import FittedClassifier
from transfer.frozen.candidates import LinearHead
from transfer.frozen.feature_store import MAX_FLOAT16
from transfer.frozen.features import FeatureSet, block_width, final_norm
from transfer.frozen.recipes import FrozenRecipe


def fitted_linear(
    head: LinearHead,
    chosen: Mapping[str, Any],
    recipe: FrozenRecipe,
    classes: Sequence[str],
    seed: int,
) -> FittedClassifier:
    """Describe a fitted linear classifier.

    Args:
        chosen: the candidate that was fitted; see `linear_probe.list_candidates`.
        seed: of the run, which initialises weights that the checkpoint does not hold.
    """
    settings = {
        **FeatureSet.of(chosen).to_json(),
        "norm": chosen["norm"],
        "token_norm": recipe.token_norm,
        "img_size": list(recipe.img_size),
        "window_size": recipe.window_size,
        "test_crop_ratio": recipe.test_crop_ratio,
        "seed": seed,
    }
    return FittedClassifier(
        kind="linear", settings=settings, state=head.state(), classes=tuple(classes)
    )


class LinearOnFrozen(nn.Module):
    """A frozen backbone with a linear classifier on one feature set: images (B, 3, H, W) to logits (B, K).

    Args:
        backbone: in its transfer form.
        token_norm: see `features.token_norm`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        backbone: Backbone,
        feature_set: FeatureSet,
        norm: Norm,
        head: LinearHead,
        token_norm: nn.Module | None,
    ) -> None:
        super().__init__()
        self.backbone, self.token_norm = backbone, token_norm
        self.normaliser = Normaliser([norm], torch.zeros(1, len(head.mean)))
        self.normaliser.means, self.normaliser.deviations = head.mean[None], head.deviation[None]
        poolings = backbone.spec.poolings
        self._parts = [
            (block - 1, poolings.index(pooling), block_width(backbone.spec, block, pooling))
            for block, pooling in feature_set.parts
        ]
        self.register_buffer("weight", head.weight)
        self.register_buffer("bias", head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K), float32."""
        pooled = self._pool(images).float().clamp(-MAX_FLOAT16, MAX_FLOAT16).half()
        x = torch.cat([pooled[:, b, p, :width] for b, p, width in self._parts], 1)
        with torch.autocast(x.device.type, enabled=False):
            return torch.addmm(self.bias, self.normaliser(x)[0], self.weight.T)

    def _pool(self, images: Tensor) -> Tensor:
        if self.token_norm is None:
            return self.backbone.forward_pooled(images)
        assert isinstance(self.backbone, ViT | ExternalBackbone)
        return self.backbone.forward_pooled(images, token_norm=self.token_norm)


def build_linear(fitted: FittedClassifier, checkpoint: Checkpoint) -> LinearOnFrozen:
    """Build the classifier and its backbone.

    Raises:
        DataError: the description lacks a setting or a tensor, or the checkpoint does not fit.
    """
    settings = fitted.settings
    try:
        feature_set, head = FeatureSet.of(settings), LinearHead(**fitted.state)
        height, width = settings["img_size"]
        norm, kind, seed, window_size = (
            settings[name] for name in ("norm", "token_norm", "seed", "window_size")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the linear classifier fitted on {checkpoint.name} lacks a setting or a tensor ({error}); run its task "
            "again."
        ) from error
    backbone = load_backbone(checkpoint, (height, width), window_size=window_size, seed=seed)
    widths = sum(block_width(backbone.spec, *part) for part in feature_set.parts)
    shapes = {"weight": (len(fitted.classes), widths), "bias": (len(fitted.classes),)}
    shapes |= dict.fromkeys(("mean", "deviation"), (widths,))
    if any(tuple(fitted.state[name].shape) != shape for name, shape in shapes.items()):
        raise DataError(
            f"the linear classifier has {len(fitted.classes)} classes on {widths} channels of {checkpoint.name}, and "
            "its tensors have other shapes; run its task again."
        )
    token_norm = None if kind == "none" else final_norm(checkpoint)
    return LinearOnFrozen(backbone, feature_set, norm, head, token_norm)
