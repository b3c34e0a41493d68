"""Our backbones in MMSegmentation, registered as `SimMIMBackbone`.

An MMSegmentation config needs `custom_imports=dict(imports=['transfer.mmseg_backbone'])` and
`backbone=dict(type='SimMIMBackbone', ckpt=CKPT, img_size=(512, 512))`. The module returns NCHW maps and declares their
`channels` and `strides`. A ViT's maps go through `Feature2Pyramid` with `pyramid_rescales`, those of other backbones
directly to `UPerHead`. A ResNet's BatchNorm is trained like all other weights, over the images of one process unless it
is converted with `timm.layers.convert_sync_batchnorm`; torch's function of that name, and mmengine's `sync_bn`, would
remove the activations within the norms of many of timm's networks.

The data preprocessor must normalise with the module's `mean` and `std`, which are those of the checkpoint for pixels as
their files store them, of 8 bits in [0, 255], in RGB order: `data_preprocessor=dict(type='SimMIMDataPreProcessor',
ckpt=CKPT)` does. MMSegmentation's base configs have ImageNet's, which not all checkpoints share.

Images of other channels than RGB, or of other values than 8 bits, keep the order of their channels. A config reads them
with `dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile', to_float32=True)`, which
expects interleaved TIFFs, and cannot have `PhotoMetricDistortion`, which is defined for three channels of 8 bits.

For layer-wise learning rate decay use `optim_wrapper=dict(constructor='SimMIMLayerDecay',
paramwise_cfg=dict(layer_decay=0.65), optimizer=...)`.

With a single process, replace SyncBN in the config by BN (`mmengine.model.revert_sync_batchnorm`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import load_checkpoint
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor, nn

from simmim_bench.backbones import load_backbone, open_checkpoint
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.spec import BackboneSpec, MapOptions
from simmim_bench.training.optim import parameter_groups


@MODELS.register_module()
class SimMIMBackbone(BaseModule):
    """Returns the feature maps of a checkpoint's backbone.

    Args:
        ckpt: a checkpoint directory, a run directory, `random:ARCH`, or a checkpoint already read.
        img_size: (H, W), or the side, of the training crop; None for the checkpoint's size.
        window_size: side of an attention window in tokens; None for the checkpoint's.
        drop_path_rate: stochastic-depth rate of the last block, in [0, 1).
        seed: initialises the weights that the checkpoint does not have.
        out_indices: indices of the backbone's levels to return, in order; None for all.
        frozen_stages: -1 to train all; 0 freezes the embedding, n also the blocks up to level n - 1, as in
            MMSegmentation's Swin.
        maps: how the maps are made, a `MapOptions` or its arguments as a dict; None for the checkpoint's way.
        init_cfg: `dict(type='Pretrained', checkpoint=FILE)` loads a file that `simmim-bench convert --to
            mmseg` wrote for this module, strictly.
    """

    def __init__(
        self,
        ckpt: str | Checkpoint,
        img_size: int | Sequence[int] | None = None,
        window_size: int | None = None,
        drop_path_rate: float = 0.0,
        seed: int = 0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        init_cfg: dict[str, Any] | None = None,
        maps: MapOptions | dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        checkpoint = open_checkpoint(ckpt)
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.backbone = load_backbone(
            checkpoint,
            None if sides is None else (sides[0], sides[1]),
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            seed=seed,
            maps=MapOptions(**maps) if isinstance(maps, dict) else maps,
        )
        # DistributedDataParallel refuses trained parameters without a gradient.
        count = len(self.backbone.feature_levels)
        out_indices = range(count) if out_indices is None else out_indices
        last = max(index % count for index in out_indices)
        for name in self.backbone.unused_in_maps(last):
            self.backbone.get_parameter(name).requires_grad_(False)
        self._freeze(frozen_stages)
        self.out_indices = tuple(out_indices)
        levels = [self.backbone.feature_levels[i] for i in self.out_indices]
        self.channels = tuple(level.channels for level in levels)
        self.strides = tuple(level.stride for level in levels)
        unit = checkpoint.pixel_format.unit
        self.mean = tuple(unit * value for value in checkpoint.mean)
        self.std = tuple(unit * value for value in checkpoint.std)

    def _freeze(self, stages: int) -> None:
        if stages == -1:
            return
        spec = self.backbone.spec
        if isinstance(spec, ExternalSpec):
            raise UsageError(
                f"frozen_stages={stages} does not apply to {spec.arch}, whose layers are not those of its levels; "
                "use -1."
            )
        ends = spec.level_blocks if spec.is_plain else tuple(accumulate(spec.depths))
        if not -1 <= stages <= len(ends):
            raise UsageError(
                f"frozen_stages={stages} is not allowed for {spec.arch}; use -1 to {len(ends)}."
            )
        last_frozen = (-1, 0, *ends)[stages + 1]
        for name, parameter in self.backbone.named_parameters():
            if self.backbone.layer_id(name) <= last_frozen:
                parameter.requires_grad_(False)

    def init_weights(self) -> None:
        """Load the weights of `init_cfg`, if given; the checkpoint's weights are loaded already.

        Raises:
            DataError: the file does not contain exactly this backbone.
            UsageError: `init_cfg` is of another type than "Pretrained".
        """
        if self.init_cfg is None:
            return
        if self.init_cfg.get("type") != "Pretrained":
            raise UsageError(
                f"init_cfg {self.init_cfg} is not of type 'Pretrained'; remove it and pass the checkpoint as ckpt=."
            )
        file = self.init_cfg["checkpoint"]
        try:
            load_checkpoint(self, file, map_location="cpu", strict=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"init_cfg: {file} does not contain this backbone: {error}; pass the file as ckpt=, which converts it."
            ) from error

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map normalised images (B, C, H, W) to one map (B, C, h, w) per level, h = ceil(H / stride)."""
        maps = self.backbone.forward_maps(images)
        return tuple(maps[i] for i in self.out_indices)


# In mmengine's registry, in which a model without `default_scope` looks for its data preprocessor.
@MMENGINE_MODELS.register_module()
class SimMIMDataPreProcessor(SegDataPreProcessor):
    """Converts RGB images of 8 bits from BGR, and normalises images as a checkpoint expects.

    Args:
        ckpt: a CKPT, or a checkpoint already read.
        unit: pixel value that is 1 in the checkpoint's mean and standard deviation; None for that of pixels as their
            files store them: 255 for 8 bits, 65535 for 16 bits, 1 for real numbers.
        options: as MMSegmentation's, without `mean`, `std`, `bgr_to_rgb` and `rgb_to_bgr`, which have no effect.
    """

    def __init__(self, ckpt: str | Checkpoint, unit: int | None = None, **options: Any) -> None:
        checkpoint = open_checkpoint(ckpt)
        self.pixel_format = checkpoint.pixel_format
        unit = self.pixel_format.unit if unit is None else unit
        settings = {"mean": None, "std": None, "rgb_to_bgr": False}
        super().__init__(**{**options, **settings, "bgr_to_rgb": self.pixel_format.is_rgb})
        # mmengine's own arguments are of one or three channels.
        for name, values in (("mean", checkpoint.mean), ("std", checkpoint.std)):
            scaled = torch.tensor([unit * value for value in values])
            self.register_buffer(name, scaled.view(-1, 1, 1), persistent=False)
        self._enable_normalize = True

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalise and stack the images of a batch.

        Raises:
            UsageError: the images have 8 bits, but the checkpoint takes others.
        """
        if self.pixel_format.value_range != "uint8" and data["inputs"][0].dtype == torch.uint8:
            raise UsageError(
                f"the images have 8 bits, but the checkpoint takes {self.pixel_format}; read them with "
                "color_type='unchanged', or use a checkpoint for 8 bits."
            )
        processed: dict[str, Any] = super().forward(data, training)
        return processed


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SimMIMLayerDecay:
    """Builds a config's optimizer with layer-wise learning rate decay in our backbone.

    mmengine requires a class. `paramwise_cfg` has `layer_decay`, the factor of each layer towards the input.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.layer_decay = (paramwise_cfg or {}).get("layer_decay", 1.0)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the wrapped optimizer.

        Raises:
            UsageError: the model does not have exactly one `SimMIMBackbone`.
        """
        adapters = [module for module in model.modules() if isinstance(module, SimMIMBackbone)]
        if len(adapters) != 1:
            raise UsageError(
                f"SimMIMLayerDecay needs exactly one SimMIMBackbone, but the model has {len(adapters)}."
            )
        groups = parameter_groups(
            model,
            adapters[0].backbone,
            lr=self.optimizer["lr"],
            weight_decay=self.optimizer.get("weight_decay", 0.0),
            layer_decay=self.layer_decay,
        )
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        wrapper = {"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer}
        built: OptimWrapper = OPTIM_WRAPPERS.build(wrapper)
        return built


def pyramid_rescales(spec: BackboneSpec) -> tuple[float, ...]:
    """Return the `rescales` of a ViT's `Feature2Pyramid`: strides of 4, 8, 16 and 32 for patches of 16.

    Patches of 8 pixels or less use the neck's second form, which starts at half a patch.
    """
    return (4, 2, 1, 0.5) if spec.patch_size > 8 else (2, 1, 0.5, 0.25)
