"""The SimMIM model (arXiv 2111.09886, section 3): mask token, encoder, one-layer head, L1 loss on hidden pixels.

One forward pass, step by step, with the module of each step:

1. masking: `masking/masks.py` samples the mask, 1 = hidden (called by `Pretraining.compute_loss` in `run.py`);
2. encoder input: `encoder_input.py` replaces what is hidden by mask tokens and runs the encoder;
3. head: `heads.py` predicts every output position, a pixel or a t x t square, from the last feature map;
4. target: `targets/` computes what the prediction is compared with (pixels; `targets/table.py` lists all);
5. loss: `loss.py` averages the distance over the hidden pixels (called by `Target.loss` in `targets/base.py`).

`Design` in `design.py` holds the choices. With the defaults, the model equals the official models/simmim.py
numerically; with `norm_target`, it equals that of the Swin-Transformer repository, which predicts pixels
normalised by their surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.design import Design, TargetModelInfo, check_design, read_design, read_target_model
from pretrain.encoder_input import ENCODER_INPUTS, LightDecoder
from pretrain.heads import HEADS, LevelAggregation, head_shape
from pretrain.masking.masks import hidden_patches, upsample_mask
from pretrain.targets.base import Target
from pretrain.targets.pixels import PixelTarget
from pretrain.targets.table import TARGETS
from simmim_bench.backbones import open_checkpoint
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.build import build_encoder
from simmim_bench.models.shapes import uninitialised
from simmim_bench.models.spec import BackboneSpec

PAPER_DESIGN = Design()


class SimMIMOutput(NamedTuple):
    """Output of one forward pass.

    Attributes:
        loss: scalar; NaN where the target comes from a teacher or tokenizer that is not attached.
        reconstruction: (B, C, H, W); NaN where the target cannot be visualised; empty if not requested.
        features: (B, D, h, w), the encoder's last feature map.
    """

    loss: Tensor
    reconstruction: Tensor
    features: Tensor


class AuxiliaryPixels(nn.Module):
    """SimMIM's own target, whole pixels, with a separate head, as a second loss next to another target."""

    def __init__(
        self, design: Design, spec: BackboneSpec, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.target = PixelTarget(Design(loss=design.loss, scope=design.scope), spec)
        shape = head_shape(
            spec, width=width, channels=self.target.channels, stride=self.target.stride
        )
        self.decoder = HEADS[design.head](shape, generator)


class SimMIM(nn.Module):
    """A backbone in its pretraining form with mask token, head and target, as a `Design` chooses them.

    Args:
        target_model: metadata of the teacher or tokenizer that the target comes from. Attach the model itself
            with `target.attach_model`; without it the loss is NaN.
        statistics: mean and standard deviation that normalise the images.

    Raises:
        UsageError: the backbone does not support the design.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        design: Design = PAPER_DESIGN,
        target_model: TargetModelInfo | None = None,
        *,
        drop_path_rate: float = 0.0,
        seed: int = 0,
        statistics: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        super().__init__()
        check_design(design, spec, target_model)
        self.spec, self.design, self.target_model = spec, design, target_model
        self.encoder = build_encoder(
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
        self.target.set_statistics(*statistics)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.aggregate = LevelAggregation(spec) if design.aggregate else None
            self.light = LightDecoder(spec) if self.input.needs_light_decoder else None
            width = spec.num_features if self.light is None else self.light.width
            shape = head_shape(
                spec, width=width, channels=self.target.channels, stride=self.target.stride
            )
            self.decoder = HEADS[design.head](shape, generator)
            # The auxiliary head; saved checkpoints have the names `light` and `beside`.
            self.beside = (
                AuxiliaryPixels(design, spec, width, generator) if design.pixel_weight else None
            )

    @property
    def reconstruction_target(self) -> Target:
        """The target whose prediction is `SimMIMOutput.reconstruction`: the auxiliary pixels, if there are any."""
        return self.target if self.beside is None else self.beside.target

    def weighted_targets(self) -> list[tuple[float, Target]]:
        """Return the targets whose losses are summed, each with its weight."""
        auxiliary = (
            [] if self.beside is None else [(self.design.pixel_weight, self.reconstruction_target)]
        )
        return [(1.0, self.target), *auxiliary]

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        visible: int | None = None,
        reconstruct: bool = True,
    ) -> SimMIMOutput:
        """Hide, encode, predict and compute the loss.

        Args:
            images: (B, C, H, W) float, normalised.
            mask: (B, H / patch_size, W / patch_size), 1 = hidden from the encoder; or (B, H, W) of pixels:
                a hidden pixel becomes 0, the mean colour, and a patch becomes the mask token where all its
                pixels are hidden.
            visible: number of visible patches of every image, if it is known, for an encoder of visible
                patches alone; otherwise the host waits for a GPU to count them.
            reconstruct: whether to convert the prediction to an image, which training does not need.

        Returns:
            The paper's loss is the L1 distance summed over hidden pixels, divided by their number and by C.
            The reconstruction is in the units of `reconstruction_target`: normalised if the target is.
        """
        expected = self.target.from_images(images, mask) if self.target.ready else None
        pixel_mask = upsample_mask(mask, (images.shape[2], images.shape[3])).unsqueeze(1)
        encoder_images, patch_mask = self._hide_pixels(images, mask, pixel_mask)
        all_levels = self.aggregate is not None
        maps = self.input.encode(
            self.encoder, encoder_images, patch_mask, self.mask_token, all_levels, visible
        )
        head_input = maps[-1] if self.aggregate is None else self.aggregate(maps)
        if self.light is not None:
            head_input = self.light(head_input, patch_mask)
        prediction = self.decoder(head_input).float()
        pixel_mask = pixel_mask.to(prediction)
        if expected is None:
            loss = prediction.new_full((), torch.nan)
        else:
            loss = self.target.loss(prediction, expected, pixel_mask)
        if self.beside is not None:
            prediction = self.beside.decoder(head_input).float()
            pixels = self.beside.target.from_images(images)
            pixel_loss = self.beside.target.loss(prediction, pixels, pixel_mask)
            loss = loss + self.design.pixel_weight * pixel_loss
        reconstruction = (
            self.reconstruction_target.to_pixels(prediction)
            if reconstruct
            else prediction.new_empty(0)
        )
        return SimMIMOutput(loss, reconstruction, maps[-1])

    def forward_pooled(self, images: Tensor) -> Tensor:
        """Return the encoder's pooled features of unmasked images after every block, (B, blocks, poolings, D)."""
        return self.encoder.forward_pooled(images)

    def _hide_pixels(
        self, images: Tensor, mask: Tensor, pixel_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the images and the mask of patches; a mask of pixels zeroes the images' hidden pixels first."""
        if mask.shape[1:] != images.shape[2:]:
            return images, mask
        return images * (1 - pixel_mask.to(images)), hidden_patches(mask, self.spec.patch_size)


def load_simmim(ckpt: str | PathLike[str] | Checkpoint) -> SimMIM:
    """Load the SimMIM model of a pretraining checkpoint, in eval mode and without its teacher.

    Args:
        ckpt: CKPT as the command line takes it, or a checkpoint that has been read.

    Raises:
        DataError: the checkpoint cannot be read, or has no SimMIM head.

    Example:
        >>> model = load_simmim("runs/vit_b")
        >>> model(images, mask).loss  # images (B, 3, H, W), normalised; mask (B, H / 16, W / 16), 1 = hidden
    """
    checkpoint = open_checkpoint(ckpt)
    state = checkpoint.state or {}
    has_head = any(name.startswith("decoder.") for name in state)
    if checkpoint.form != "pretrain" or not has_head:
        raise DataError(
            f"{checkpoint.name} has no SimMIM head; use a checkpoint that `simmim-bench pretrain` wrote, or an "
            "official SimMIM pretraining file."
        )
    try:
        provenance = checkpoint.provenance
        with uninitialised():
            model = SimMIM(
                checkpoint.spec,
                read_design(provenance),
                read_target_model(provenance),
                statistics=(checkpoint.mean, checkpoint.std),
            )
        model.load_state_dict(state)  # every weight, or an error
    except (RuntimeError, KeyError, TypeError, UsageError) as error:
        raise DataError(
            f"checkpoint {checkpoint.name} does not fit {checkpoint.spec.arch}: {error}"
        ) from error
    return model.eval()
