"""A third-party ConvNeXt or ResNet: its spec from the shapes of its weights."""

from __future__ import annotations

from simmim_bench.checkpoints.foreign.weights import (
    Renamed,
    form_of,
    known_archs,
    stage_depths,
)
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.models.convnet import TIMM_PATCH
from simmim_bench.models.vit import Form

# Which weight tells a convolutional network of timm's, and torchvision's ResNet; and images that they are for.
CONVOLUTIONAL = {
    "convnext": "stages.0.blocks.0.conv_dw.weight",
    "resnet": "layer1.0.conv3.weight",
}


CONVNET_SIZE = (224, 224)


def convnext_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a ConvNeXt's sizes off its weights."""
    state = renamed.state
    kernel = state["stem.0.weight"]
    dim = len(kernel)
    depths = stage_depths(state, r"stages\.(\d+)\.blocks\.(\d+)\.")
    known = known_archs("convnext", dim, depths)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"convnext_{dim}",
        family="convnext",
        img_size=img_size or (known[0].img_size if known else CONVNET_SIZE),
        patch_size=kernel.shape[2],
        embed_dim=dim,
        depths=depths,
        in_chans=kernel.shape[1],
        mlp_ratio=len(state["stages.0.blocks.0.mlp.fc1.weight"]) / dim,
        init_values=1e-6,
    )
    return spec, form_of(state)


def resnet_spec(
    renamed: Renamed, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Read a ResNet's sizes off its weights, which do not tell the stride of the stem: an arch of ours does."""
    state = renamed.state
    dim = len(state["layer1.0.conv3.weight"])
    depths = stage_depths(state, r"layer(\d+)\.(\d+)\.")
    known = known_archs("resnet", dim, depths)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"resnet_{dim}",
        family="resnet",
        img_size=img_size or (known[0].img_size if known else CONVNET_SIZE),
        patch_size=known[0].patch_size if known else TIMM_PATCH,
        embed_dim=dim,
        depths=depths,
        in_chans=state["conv1.weight"].shape[1],
    )
    return spec, form_of(state)
