"""Detectors of ViTDet's project, from Detectron2's installed configs and its project's, which are transcribed here.

Source of the transcription: facebookresearch/detectron2, projects/ViTDet/configs. The configs in the folder
configs/common are installed with Detectron2 and are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import SwinTransformer
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn
from torch.overrides import TorchFunctionMode

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.models.archs import find_spec
from simmim_bench.models.build import build_backbone
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import BackboneSpec
from transfer.detection.model import build_roi_heads, build_rpn
from transfer.detection.recipes import CocoRecipe
from transfer.detectron2_backbone import build_detection_backbone

COMMON = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "common"


def load_common(file: str) -> Any:
    """Load one of Detectron2's installed configs."""
    if not COMMON.exists():
        pytest.skip("this Detectron2 was installed without its configs")
    return LazyConfig.load(str(COMMON / file))


def mae_spec(arch: str) -> BackboneSpec:
    """Return the spec of a MAE checkpoint: a learned absolute position and no other."""
    return replace(find_spec(arch), rel_pos_bias=False, abs_pos_embed=True, init_values=None)


@dataclass(frozen=True)
class Official:
    """One of the project's configs.

    Attributes:
        arch: of the checkpoint that it trains.
        changes: of `model.backbone`, by dotted name; each has its line in the config.
        layer_decay: of `lr_factor_func`, with the number of layers; None without one.
        shorten: numerator and denominator by which the schedule of 100 epochs is shortened.
    """

    arch: str
    changes: dict[str, Any]
    layer_decay: tuple[float, int] | None
    lr: float = 1e-4  # configs/common/optim.py:25
    weight_decay: float = 0.1  # configs/common/optim.py:27
    weight_decay_norm: float | None = 0.0  # configs/common/optim.py:23
    overrides: tuple[str, ...] = ("pos_embed",)  # mask_rcnn_vitdet_b_100ep.py:40
    shorten: tuple[int, int] = (1, 1)
    cascade: bool = False

    @property
    def max_iter(self) -> int:
        """`train.max_iter`, mask_rcnn_vitdet_b_100ep.py:25."""
        return 184375 * self.shorten[0] // self.shorten[1]

    def model_config(self) -> Any:
        """Return the model as a LazyConfig."""
        swin = self.layer_decay is None
        model = load_common(f"models/{'mask_rcnn_fpn' if swin else 'mask_rcnn_vitdet'}.py").model
        if swin:
            _use_swin(model)
        for key, value in self.changes.items():
            *path, last = key.split(".")
            node = model.backbone
            for part in path:
                node = node[part]
            node[last] = value
        if self.cascade:
            _use_cascade(model)
        return model

    def scheduler(self) -> Any:
        """Build the multiplier of the rate over the fraction of the training; mask_rcnn_vitdet_b_100ep.py:27-35."""
        numerator, denominator = self.shorten
        return WarmupParamScheduler(
            MultiStepParamScheduler(
                values=[1.0, 0.1, 0.01],
                milestones=[m * numerator // denominator for m in (163889, 177546)],
                num_updates=self.max_iter,
            ),
            warmup_length=250 / 184375,
            warmup_factor=0.001,
        )

    def parameter_settings(self, model: nn.Module) -> dict[str, tuple[float, float]]:
        """Return the learning rate and weight decay of every parameter, by name."""
        factor = None
        if self.layer_decay is not None:
            rate, layers = self.layer_decay
            factor = partial(get_vit_lr_decay_rate, lr_decay_rate=rate, num_layers=layers)
        groups = get_default_optimizer_params(
            model,
            base_lr=self.lr,
            weight_decay_norm=self.weight_decay_norm,
            lr_factor_func=factor,
            overrides={name: {"weight_decay": 0.0} for name in self.overrides},
        )
        of_parameter = {
            id(p): (g["lr"], g.get("weight_decay", self.weight_decay))
            for g in groups
            for p in g["params"]
        }
        return {name: of_parameter[id(p)] for name, p in model.named_parameters()}


def _use_swin(model: Any) -> None:
    """Apply cascade_mask_rcnn_mvitv2_b_in21k_100ep.py:20-43 and cascade_mask_rcnn_swin_b_in21k_50ep.py:11-18."""
    constants = load_common("data/constants.py").constants
    model.pixel_mean = constants.imagenet_rgb256_mean
    model.pixel_std = constants.imagenet_rgb256_std
    model.input_format = "RGB"
    model.backbone.norm = "LN"
    model.roi_heads.mask_head.conv_norm = "LN"
    model.proposal_generator.head.conv_dims = [-1, -1]
    model.backbone.bottom_up = LazyCall(SwinTransformer)(
        depths=[2, 2, 18, 2], drop_path_rate=0.4, embed_dim=128, num_heads=[4, 8, 16, 32]
    )
    model.backbone.in_features = ("p0", "p1", "p2", "p3")
    model.backbone.square_pad = 1024


def _use_cascade(model: Any) -> None:
    """Apply cascade_mask_rcnn_vitdet_b_100ep.py:20-48."""
    for key in ("box_head", "box_predictor", "proposal_matcher"):
        model.roi_heads.pop(key)
    model.roi_heads.update(
        _target_=CascadeROIHeads,
        box_heads=[
            LazyCall(FastRCNNConvFCHead)(
                input_shape=ShapeSpec(channels=256, height=7, width=7),
                conv_dims=[256, 256, 256, 256],
                fc_dims=[1024],
                conv_norm="LN",
            )
            for _ in range(3)
        ],
        box_predictors=[
            LazyCall(FastRCNNOutputLayers)(
                input_shape=ShapeSpec(channels=1024),
                test_score_thresh=0.05,
                box2box_transform=LazyCall(Box2BoxTransform)(weights=(w1, w1, w2, w2)),
                cls_agnostic_bbox_reg=True,
                num_classes=80,
            )
            for w1, w2 in [(10, 5), (20, 10), (30, 15)]
        ],
        proposal_matchers=[
            LazyCall(Matcher)(thresholds=[th], labels=[0, 1], allow_low_quality_matches=False)
            for th in [0.5, 0.6, 0.7]
        ],
    )


_LARGE = {  # mask_rcnn_vitdet_l_100ep.py:16-23
    "net.embed_dim": 1024,
    "net.depth": 24,
    "net.num_heads": 16,
    "net.drop_path_rate": 0.4,
    "net.window_block_indexes": [*range(5), *range(6, 11), *range(12, 17), *range(18, 23)],
}
_HUGE = {  # mask_rcnn_vitdet_h_75ep.py:16-23
    "net.embed_dim": 1280,
    "net.depth": 32,
    "net.num_heads": 16,
    "net.drop_path_rate": 0.5,
    "net.window_block_indexes": [*range(7), *range(8, 15), *range(16, 23), *range(24, 31)],
}
VITDET_B = Official("vit_b", {}, (0.7, 12))  # mask_rcnn_vitdet_b_100ep.py:39
VITDET_L = Official("vit_l", _LARGE, (0.8, 24))  # mask_rcnn_vitdet_l_100ep.py:25
VITDET_H = Official(
    "vit_h", _HUGE, (0.9, 32), weight_decay_norm=None, overrides=(), shorten=(3, 4)
)  # mask_rcnn_vitdet_h_75ep.py:25-33
SWIN_B = Official(  # cascade_mask_rcnn_swin_b_in21k_50ep.py:40-50
    "swin_b",
    {},
    None,
    lr=4e-5,
    weight_decay=0.05,
    overrides=("relative_position_bias_table",),
    shorten=(1, 2),
    cascade=True,
)
SWIN_L = replace(  # cascade_mask_rcnn_swin_l_in21k_50ep.py:9-12
    SWIN_B,
    arch="swin_l",
    changes={"bottom_up.embed_dim": 192, "bottom_up.num_heads": [6, 12, 24, 48]},
)
OFFICIAL = [
    ("coco_vitdet_b", VITDET_B),
    ("coco_vitdet_l", VITDET_L),
    ("coco_vitdet_h", VITDET_H),
    ("coco_vitdet_cascade_b", replace(VITDET_B, cascade=True)),
    ("coco_vitdet_cascade_l", replace(VITDET_L, cascade=True)),
    ("coco_vitdet_cascade_h", replace(VITDET_H, cascade=True)),
    ("coco_swin_lsj_50ep", SWIN_B),
    ("coco_swin_lsj_50ep", SWIN_L),
]


class _ValuesOnCpu(TorchFunctionMode):
    """Keeps the numbers that a model reads while it is built."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.linspace, torch.tensor):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build models on the meta device within the block."""
    with shapes_only(), _ValuesOnCpu():
        yield


def build_official(official: Official) -> nn.Module:
    """Build a config's model, without the values of its weights."""
    with without_weights():
        model: nn.Module = instantiate(official.model_config())
    return model


def build_ours(recipe: CocoRecipe, arch: str) -> nn.ModuleDict:
    """Build a recipe's detector of 80 classes for a MAE checkpoint or a Swin, without the values of its weights."""
    spec = mae_spec(arch) if arch.startswith("vit") else find_spec(arch)
    with without_weights():
        checkpoint = Checkpoint(
            name=arch,
            spec=spec,
            form="transfer",
            state=dict(build_backbone(spec).state_dict()),
            sha256="0",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            provenance={"label": arch},
        )
        backbone = build_detection_backbone(checkpoint, recipe, seed=0)
        return nn.ModuleDict(
            {
                "backbone": backbone,
                "proposal_generator": build_rpn(backbone, recipe),
                "roi_heads": build_roi_heads(backbone, recipe, num_classes=80, masks=True),
            }
        )


def detectron2_name(name: str) -> str:
    """Return Detectron2's name of a parameter of our detector; the biases of queries and values share one name."""
    head, _, rest = name.partition(".backbone.")
    if not rest:
        return name
    rest = rest.replace("attn.q_bias", "attn.qkv.bias").replace("attn.v_bias", "attn.qkv.bias")
    parts = rest.split(".")
    if parts[0] == "map_norms":
        parts[:2] = [f"norm{parts[1]}"]
    if parts[0] == "layers" and parts[2] == "downsample":  # timm's stage begins with it
        parts[1] = str(int(parts[1]) - 1)
    return ".".join([head, *parts])
