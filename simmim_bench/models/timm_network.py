"""Build timm's networks: with or without weights that are in memory, for an image size, without a classifier.

Nothing that a model's configuration names is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

# Entries of timm's `PretrainedCfg` that name weights elsewhere, or code of the model that reads them; without them.
NO_SOURCE: dict[str, Any] = {
    **dict.fromkeys(("url", "file", "hf_hub_id", "hf_hub_filename")),
    **{"source": "", "custom_load": False},
}
# Arguments by which timm's families take images of several sizes; of a family, the first of them that it takes.
FLEXIBLE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False, "dynamic_mask": True},
    {"strict_img_size": False},
    {},
)


def create_network(name: str, **arguments: Any) -> nn.Module:
    """Create a timm model with random weights and without a classifier."""
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def create_with_weights(name: str, state: Mapping[str, Tensor], **arguments: Any) -> Any:
    """Create a timm model with weights that are in memory already, and nothing that its configuration names.

    timm loads them as its own files: it converts the names of older versions and of a model's official file, and
    resizes what depends on the size of the image.

    Args:
        name: as of `timm.create_model`.
        state: the weights.
        arguments: further ones of `timm.create_model`; `pretrained_cfg_overlay` is extended.
    """
    overlay = {
        **arguments.pop("pretrained_cfg_overlay", {}),
        **NO_SOURCE,
        "state_dict": dict(state),
    }
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights
    return model
