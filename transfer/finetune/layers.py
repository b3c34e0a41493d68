"""Number the layers of a convolutional network as published fine-tunings do, for layer-wise learning-rate decay."""

from __future__ import annotations

import math
from collections.abc import Callable

from simmim_bench.errors import UsageError
from simmim_bench.models.build import Backbone
from simmim_bench.models.convnet import ConvNet
from transfer.finetune.recipes import LayerGroups


def layers_after(model: Backbone, groups: LayerGroups) -> Callable[[str], int] | None:
    """Return the function that maps a parameter's name to the number of layers after its layer.

    Args:
        groups: "block" for the model's own layers, `Backbone.layer_id`; "group" for SparK's, a few blocks each,
            which for a ConvNeXt-B are those of ConvNeXt V2's `--layer_decay_type group`; "convnextv2" for its
            `--layer_decay_type single`.

    Returns:
        The function; None for the model's own layers.

    Raises:
        UsageError: the groups are not defined for the model's family.
    """
    if groups == "block":
        return None
    family = model.spec.family
    if not isinstance(model, ConvNet) or (groups == "convnextv2" and family != "convnext"):
        families = "convnext" if groups == "convnextv2" else "convnext and resnet"
        raise UsageError(
            f"layer_groups={groups} applies to the families {families}, not to {model.spec.arch}; use "
            "-o layer_groups=block."
        )
    depths = model.spec.depths
    stem, number, last = 0, _resnet_group, _resnet_groups(depths)[2] + 1
    if family == "convnext":
        number, last = _convnext_group, _convnext_groups(depths) + 1
    if groups == "convnextv2":
        stem, number, last = 1, _convnextv2_layer, sum(depths) + 1

    def after(name: str) -> int:
        if name.startswith(model.STEM):
            return last - stem
        found = model.BLOCK.match(name)
        if found is None:  # the last norm and the head
            return 0
        block = None if found[2] is None else int(found[2])
        return last - number(depths, int(found[1]) - model.FIRST_STAGE, block)

    return after


def _convnext_groups(depths: tuple[int, ...]) -> int:
    # SparK: downstream_imagenet/models/__init__.py:19; ConvNeXt V2: optim_factory.py:57 has 12 alone
    return 12 if depths[2] > 9 else 6


def _convnext_group(depths: tuple[int, ...], stage: int, block: int | None) -> int:
    """Return the layer of a ConvNeXt's block, or of the downsampling before a stage.

    SparK: downstream_imagenet/models/__init__.py:18-40; ConvNeXt V2: optim_factory.py:51-79.
    """
    if stage == len(depths) - 1:
        return _convnext_groups(depths)
    return 3 + (block or 0) // 3 if stage == 2 else stage + 1


def _convnextv2_layer(depths: tuple[int, ...], stage: int, block: int | None) -> int:
    """Return the layer of a ConvNeXt's block; a downsampling has that of the block after it.

    ConvNeXt V2: optim_factory.py:32-48.
    """
    return sum(depths[:stage]) + (block or 0) + 1


def _resnet_groups(depths: tuple[int, ...]) -> tuple[tuple[int, int], int, int]:
    """Return the blocks of a group in stages 1 and 2, the first layer of stage 2, and the layer of the last stage.

    SparK: downstream_imagenet/models/__init__.py:51-66, for the depths of ResNet-50, 101, 152 and 200.
    """
    second, third = (2, 3) if depths[1] <= 4 else (4, 4)
    first = 2 + math.ceil(depths[1] / second)
    return (second, third), first, first + math.ceil(depths[2] / third)


def _resnet_group(depths: tuple[int, ...], stage: int, block: int | None) -> int:
    """Return the layer of a ResNet's block (SparK: downstream_imagenet/models/__init__.py:67-82)."""
    (second, third), first, last = _resnet_groups(depths)
    assert block is not None
    return (1, 2 + block // second, first + block // third, last)[stage]
