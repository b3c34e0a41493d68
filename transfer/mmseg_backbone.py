"""SimMIM's backbones in MMSegmentation, under the name `SimMIMBackbone`.

In: a plain MMSegmentation config with `custom_imports=dict(imports=['transfer.mmseg_backbone'])` and
`backbone=dict(type='SimMIMBackbone', ckpt=CKPT, img_size=(512, 512))`. Out: NCHW maps whose `channels`
and `strides` the module declares; a ViT's go through `Feature2Pyramid` with `pyramid_rescales`, others' straight
to `UPerHead`. The data preprocessor must normalise as the checkpoint says: `mean` and `std`
of the module, for pixels in [0, 255] in RGB order. A ResNet's BatchNorm is trained like the rest, over the
images of one process unless `torch.nn.SyncBatchNorm.convert_sync_batchnorm` has changed it.

Rates that fall from layer to layer: `optim_wrapper=dict(constructor='SimMIMLayerDecay',
paramwise_cfg=dict(layer_decay=0.65), optimizer=...)`.

On one process a config's SyncBN must be BN (`mmengine.model.revert_sync_batchnorm` does it).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.training.optim import parameter_groups


@MODELS.register_module()
class SimMIMBackbone(BaseModule):
    """Give the feature maps of a checkpoint's backbone.

    Args:
        ckpt: a checkpoint directory, a run directory, `random:ARCH`, or a checkpoint already read.
        img_size: (H, W), or a side, of the training crop; None for the checkpoint's own.
        window_size: tokens a side of an attention window; None for the checkpoint's own.
        drop_path_rate: stochastic depth of the last block, in [0, 1).
        seed: draws what the checkpoint does not hold.
        out_indices: which of the backbone's levels to give, in order.
        frozen_stages: -1 to train all; 0 keeps the embedding as it is, n the blocks up to level n - 1
            as well, as in MMSegmentation's Swin.
        init_cfg: `dict(type='Pretrained', checkpoint=FILE)` puts in what `simmim-bench convert --to mmseg`
            wrote for this module, strictly.
    """

    def __init__(
        self,
        ckpt: str | Checkpoint,
        img_size: int | Sequence[int] | None = None,
        window_size: int | None = None,
        drop_path_rate: float = 0.0,
        seed: int = 0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
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
        count = len(self.backbone.feature_levels)
        last = max(index % count for index in out_indices)
        for name in self.backbone.unused_in_maps(last):
            self.backbone.get_parameter(name).requires_grad_(False)
        self._freeze(frozen_stages)
        self.out_indices = tuple(out_indices)
        levels = [self.backbone.feature_levels[i] for i in self.out_indices]
        self.channels = tuple(level.channels for level in levels)
        self.strides = tuple(level.stride for level in levels)
        self.mean = tuple(255 * value for value in checkpoint.mean)
        self.std = tuple(255 * value for value in checkpoint.std)

    def _freeze(self, stages: int) -> None:
        spec = self.backbone.spec
        ends = spec.level_blocks if spec.family == "vit" else tuple(accumulate(spec.depths))
        if not -1 <= stages <= len(ends):
            raise UsageError(f"frozen_stages {stages} is not in -1..{len(ends)} of {spec.arch}.")
        last_frozen = (-1, 0, *ends)[stages + 1]
        for name, parameter in self.backbone.named_parameters():
            if self.backbone.layer_id(name) <= last_frozen:
                parameter.requires_grad_(False)

    def init_weights(self) -> None:
        """Put in the weights of `init_cfg`; without it they are the checkpoint's already.

        Raises:
            DataError: the file does not hold exactly this backbone.
            UsageError: an `init_cfg` of another type.
        """
        if self.init_cfg is None:
            return
        if self.init_cfg.get("type") != "Pretrained":
            raise UsageError(
                f"init_cfg {self.init_cfg} is not of type 'Pretrained'; leave it away and name a ckpt."
            )
        file = self.init_cfg["checkpoint"]
        try:
            load_checkpoint(self, file, map_location="cpu", strict=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"init_cfg: {file} does not hold this backbone: {error}; give it as ckpt=, which converts."
            ) from error

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, C, H, W), normalised, to a map (B, C, h, w) a level, h = ceil(H / stride)."""
        maps = self.backbone.forward_maps(images)
        return tuple(maps[i] for i in self.out_indices)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SimMIMLayerDecay:
    """Build a config's optimizer with rates that fall from layer to layer of our backbone.

    mmengine asks for a class; `paramwise_cfg` has `layer_decay`, the factor a layer going down.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.layer_decay = (paramwise_cfg or {}).get("layer_decay", 1.0)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Give the wrapped optimizer.

        Raises:
            UsageError: the model has no backbone of ours, or several.
        """
        ours = [module for module in model.modules() if isinstance(module, SimMIMBackbone)]
        if len(ours) != 1:
            raise UsageError(
                f"SimMIMLayerDecay wants one SimMIMBackbone, the model has {len(ours)}."
            )
        groups = parameter_groups(
            model,
            ours[0].backbone,
            lr=self.optimizer["lr"],
            weight_decay=self.optimizer.get("weight_decay", 0.0),
            layer_decay=self.layer_decay,
        )
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        wrapper = {"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer}
        built: OptimWrapper = OPTIM_WRAPPERS.build(wrapper)
        return built


def pyramid_rescales(spec: BackboneSpec) -> tuple[float, ...]:
    """Give the `rescales` of a ViT's `Feature2Pyramid`: strides of 4, 8, 16 and 32 for patches of 16.

    Small patches take the neck's second form, which begins at half a patch.
    """
    return (4, 2, 1, 0.5) if spec.patch_size > 8 else (2, 1, 0.5, 0.25)
