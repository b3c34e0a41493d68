"""Infer the spec of a third-party ConvNeXt or ResNet from the shapes of its weights."""

from __future__ import annotations

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.third_party.weights import (
    RenamedWeights,
    infer_form,
    known_archs,
    stage_depths,
)
from simmim_bench.models.convnet import TIMM_STEM_STRIDE
from simmim_bench.models.spec import BackboneSpec, Form

# A weight that identifies timm's ConvNeXt, and the ResNet of timm and torchvision.
IDENTIFYING_WEIGHTS = {
    "convnext": "stages.0.blocks.0.conv_dw.weight",
    "resnet": "layer1.0.conv3.weight",
}
# torchvision's ResNet as a sequence of its children, as in lightly's examples (examples/pytorch_lightning/byol.py).
SEQUENTIAL_RESNET = "4.0.conv3.weight"
CHILDREN = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in range(1, 5)}}
DEFAULT_IMG_SIZE = (224, 224)  # no weight depends on the image size


def from_sequence(state: StateDict) -> StateDict:
    """Rename a ResNet that is a sequence of its children; return other weights unchanged."""
    if SEQUENTIAL_RESNET not in state:
        return state
    parts = [(key, *key.partition(".")) for key in state]
    return {CHILDREN.get(first, first) + dot + rest: state[key] for key, first, dot, rest in parts}


def convnext_spec(
    renamed: RenamedWeights, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Infer the spec and form of a ConvNeXt; `window_size` is unused."""
    state = renamed.state
    kernel = state["stem.0.weight"]
    dim = len(kernel)
    depths = stage_depths(state, r"stages\.(\d+)\.blocks\.(\d+)\.")
    known = known_archs("convnext", dim, depths)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"convnext_{dim}",
        family="convnext",
        img_size=img_size or (known[0].img_size if known else DEFAULT_IMG_SIZE),
        patch_size=kernel.shape[2],
        embed_dim=dim,
        depths=depths,
        in_chans=kernel.shape[1],
        mlp_ratio=len(state["stages.0.blocks.0.mlp.fc1.weight"]) / dim,
        init_values=1e-6,
    )
    return spec, infer_form(state)


def resnet_spec(
    renamed: RenamedWeights, img_size: tuple[int, int] | None, window_size: int | None
) -> tuple[BackboneSpec, Form]:
    """Infer the spec and form of a ResNet; `window_size` is unused.

    The weights do not determine the stride of the stem; a known architecture of this width and depth does.
    """
    state = renamed.state
    dim = len(state["layer1.0.conv3.weight"])
    depths = stage_depths(state, r"layer(\d+)\.(\d+)\.")
    known = known_archs("resnet", dim, depths)
    spec = BackboneSpec(
        arch=known[0].arch if known else f"resnet_{dim}",
        family="resnet",
        img_size=img_size or (known[0].img_size if known else DEFAULT_IMG_SIZE),
        patch_size=known[0].patch_size if known else TIMM_STEM_STRIDE,
        embed_dim=dim,
        depths=depths,
        in_chans=state["conv1.weight"].shape[1],
    )
    return spec, infer_form(state)
