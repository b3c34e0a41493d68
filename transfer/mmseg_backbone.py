"""SimMIM's backbones in MMSegmentation, under the name `SimMIMBackbone`.

In: a plain MMSegmentation config with `custom_imports=dict(imports=['transfer.mmseg_backbone'])` and
`backbone=dict(type='SimMIMBackbone', ckpt=CKPT, img_size=(512, 512))`. Out: NCHW maps whose `channels`
and `strides` the module declares; a Swin's go straight to `UPerHead`, a ViT's through `Feature2Pyramid`
with `pyramid_rescales`. The data preprocessor must normalise as the checkpoint says: `mean` and `std`
of the module, for pixels in [0, 255] in RGB order.

On one process a config's SyncBN must be BN (`mmengine.model.revert_sync_batchnorm` does it).
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from simmim_bench.archs import BackboneSpec
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoint import Checkpoint, read_checkpoint


@MODELS.register_module()
class SimMIMBackbone(BaseModule):
    """Give the feature maps of a checkpoint's backbone.

    Args:
        ckpt: a checkpoint directory, a run directory, `random:ARCH`, or a checkpoint already read.
        img_size: (H, W), or a side, of the training crop; None for the checkpoint's own.
        window_size: of a Swin; None for the checkpoint's own.
        drop_path_rate: stochastic depth of the last block, in [0, 1).
        seed: draws what the checkpoint does not hold.
        out_indices: which of the backbone's levels to give, in order.
    """

    def __init__(
        self,
        ckpt: str | Checkpoint,
        img_size: int | Sequence[int] | None = None,
        window_size: int | None = None,
        drop_path_rate: float = 0.0,
        seed: int = 0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        checkpoint = read_checkpoint(ckpt) if isinstance(ckpt, str) else ckpt
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.backbone = load_backbone(
            checkpoint,
            None if sides is None else (sides[0], sides[1]),
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            seed=seed,
        )
        # DistributedDataParallel refuses parameters without gradient.
        for name in self.backbone.unused_in_maps:
            self.backbone.get_parameter(name).requires_grad_(False)
        self.out_indices = tuple(out_indices)
        levels = [self.backbone.feature_levels[i] for i in self.out_indices]
        self.channels = tuple(level.channels for level in levels)
        self.strides = tuple(level.stride for level in levels)
        self.mean = tuple(255 * value for value in checkpoint.mean)
        self.std = tuple(255 * value for value in checkpoint.std)

    def init_weights(self) -> None:
        """Leave the weights alone: the checkpoint has given them."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, C, H, W), normalised, to a map (B, C, h, w) a level, h = ceil(H / stride)."""
        maps = self.backbone.forward_maps(images)
        return tuple(maps[i] for i in self.out_indices)


def pyramid_rescales(spec: BackboneSpec) -> tuple[float, ...]:
    """Give the `rescales` of a ViT's `Feature2Pyramid`: strides of 4, 8, 16 and 32 for patches of 16.

    Small patches take the neck's second form, which begins at half a patch.
    """
    return (4, 2, 1, 0.5) if spec.patch_size > 8 else (2, 1, 0.5, 0.25)
