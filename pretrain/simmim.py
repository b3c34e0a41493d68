"""SimMIM (arXiv 2111.09886, section 3): mask token, encoder, one linear layer, L1 on hidden pixels.

In: images (B, C, H, W), normalised, and masks (B, H/p, W/p) of patches or (B, H, W) of pixels, 1 = hidden.
Out: loss, reconstruction (B, C, H, W) and the encoder's features (B, D, h, w).
Equals the official models/simmim.py, by numbers; with `norm_target`, that of the Swin-Transformer
repository, which predicts pixels normalised by their surroundings. The parts that the paper and others
tried instead are in `encoder_input.py`, `heads.py` and `target_table.py`; a `Design` says which are taken.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.design import Design, TargetModel, check_design, design_of, target_model_of
from pretrain.encoder_input import ENCODER_INPUTS, LightDecoder
from pretrain.heads import HEADS, Aggregate, head_shape
from pretrain.masking.masks import at_pixels, hidden_patches
from pretrain.targets.base import Target
from pretrain.targets.pixels import Pixels
from pretrain.targets.table import TARGETS
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.build import build_backbone

PAPER = Design()


class SimMIMOutput(NamedTuple):
    """What one forward pass gives.

    The loss is not a number where a target comes from a teacher or a tokenizer that is not there, nor is
    the reconstruction where a target cannot be drawn.
    """

    loss: Tensor
    reconstruction: Tensor
    features: Tensor


class PixelsBeside(nn.Module):
    """SimMIM's own target, whole pixels, with a head of its own, beside another target."""

    def __init__(
        self, design: Design, spec: BackboneSpec, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.target = Pixels(Design(loss=design.loss, scope=design.scope), spec)
        shape = head_shape(
            spec, width=width, channels=self.target.channels, stride=self.target.stride
        )
        self.decoder = HEADS[design.head](shape, generator)


class SimMIM(nn.Module):
    """A backbone in its pretraining form with SimMIM's mask token and head, or what a design has instead.

    Args:
        target_model: what is known of the teacher or tokenizer that the target comes from. The model itself
            is given to `target.follow`; without it there is no loss.

    Raises:
        UsageError: the backbone cannot have the design.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        design: Design = PAPER,
        target_model: TargetModel | None = None,
        *,
        drop_path_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_design(design, spec, target_model)
        self.spec, self.design, self.target_model = spec, design, target_model
        self.encoder = build_backbone(
            spec, form="pretrain", drop_path_rate=drop_path_rate, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        self.input = ENCODER_INPUTS[design.encoder_input]
        self.mask_token = None
        if self.input.takes_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, spec.stem_dim))
            bound = 0.02 if spec.narrow_init else 2.0
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-bound, b=bound, generator=generator)
        self.target = TARGETS[design.target](design, spec, target_model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.aggregate = Aggregate(spec) if design.aggregate else None
            self.light = LightDecoder(spec) if self.input.needs_light_decoder else None
            width = spec.num_features if self.light is None else self.light.width
            shape = head_shape(
                spec, width=width, channels=self.target.channels, stride=self.target.stride
            )
            self.decoder = HEADS[design.head](shape, generator)
            self.beside = (
                PixelsBeside(design, spec, width, generator) if design.pixel_weight else None
            )

    @property
    def drawn(self) -> Target:
        """The target whose prediction is the reconstruction: pixels where they are predicted as well."""
        return self.target if self.beside is None else self.beside.target

    def weighted_targets(self) -> list[tuple[float, Target]]:
        """Give what the loss is a sum of, each with its weight."""
        beside = [] if self.beside is None else [(self.design.pixel_weight, self.drawn)]
        return [(1.0, self.target), *beside]

    def forward(self, images: Tensor, mask: Tensor) -> SimMIMOutput:
        """Hide, encode, predict and score.

        Args:
            images: (B, C, H, W) float, normalised.
            mask: (B, H / patch_size, W / patch_size), 1 = hidden from the encoder; or (B, H, W), of
                pixels: a hidden one is 0, the mean colour, and a patch of hidden ones alone the mask token.

        Returns:
            The paper's loss is the L1 distance over hidden pixels, divided by their number and by C. The
            reconstruction is in the units of `drawn`: normalised where a target is.
        """
        whole, wanted = images, self.target.of(images, mask) if self.target.ready else None
        hidden = at_pixels(mask, (images.shape[2], images.shape[3])).unsqueeze(1)
        if mask.shape[1:] == images.shape[2:]:
            images = images * (1 - hidden.to(images))
            mask = hidden_patches(mask, self.spec.patch_size)
        levels = self.aggregate is not None
        maps = self.input.see(self.encoder, images, mask, self.mask_token, levels)
        features = maps[-1]
        seen = features if self.aggregate is None else self.aggregate(maps)
        seen = seen if self.light is None else self.light(seen, mask)
        prediction = self.decoder(seen).float()
        hidden = hidden.to(prediction)
        if wanted is None:
            loss = prediction.new_full((), torch.nan)
        else:
            loss = self.target.loss(prediction, wanted, hidden)
        if self.beside is not None:
            prediction = self.beside.decoder(seen).float()
            own = self.drawn.loss(prediction, self.drawn.of(whole), hidden)
            loss = loss + self.design.pixel_weight * own
        return SimMIMOutput(loss, self.drawn.to_pixels(prediction), features)


def load_simmim(ckpt: str | Checkpoint) -> SimMIM:
    """Give the SimMIM model of a pretraining checkpoint, in eval mode; without its teacher, if it had one.

    Raises:
        DataError: the checkpoint cannot be read, or has no SimMIM head.
    """
    checkpoint = read_checkpoint(ckpt) if isinstance(ckpt, str) else ckpt
    state = checkpoint.state or {}
    has_head = any(name.startswith("decoder.") for name in state)
    if checkpoint.form != "pretrain" or not has_head:
        raise DataError(
            f"{checkpoint.name} has no SimMIM head: give a checkpoint that `simmim-bench pretrain` wrote, or an "
            "official SimMIM pretraining file."
        )
    try:
        provenance = checkpoint.provenance
        model = SimMIM(checkpoint.spec, design_of(provenance), target_model_of(provenance))
        model.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, UsageError) as error:
        raise DataError(
            f"checkpoint {checkpoint.name} does not fit {checkpoint.spec.arch}: {error}"
        ) from error
    return model.eval()
