"""Adapt a checkpoint of RGB images to other channels: its first convolution, by timm's `adapt_input_conv`.

The kernels are summed for one channel, and repeated and scaled for more. Nothing adapts a checkpoint unasked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.fit import LoadReport
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.data.pixel_format import count_channels
from simmim_bench.errors import UsageError


def describe_adaptation(checkpoint: Checkpoint, in_chans: int | None) -> dict[str, str]:
    """Return what the provenance says of a first convolution that is adapted to other channels.

    Raises:
        UsageError: the checkpoint does not take three channels, which timm's rule adapts.
    """
    own = checkpoint.spec.in_chans
    if in_chans is None or in_chans == own:
        return {}
    if own != 3:
        raise UsageError(
            f"--in-chans {in_chans} adapts weights for 3 channels, but {checkpoint.name} takes {count_channels(own)}; "
            "use a checkpoint of RGB images."
        )
    return {"adapted": f"{count_channels(in_chans)} adapted from {own}"}


def adapt_channels(
    checkpoint: Checkpoint,
    img_size: tuple[int, int] | None,
    window_size: int | None,
    in_chans: int,
    *,
    num_classes: int,
) -> tuple[Checkpoint, LoadReport]:
    """Return the checkpoint of a backbone for other channels, in its transfer form."""
    model = restore_backbone(
        checkpoint, img_size, num_classes, window_size=window_size, in_chans=in_chans
    )
    report: Any = model.load_report  # torch types attributes of modules as tensors and modules
    loaded = model.state_dict()
    state = {name: loaded[name] for name in report.matched + report.resized}
    return replace(checkpoint, spec=model.spec, form="transfer", state=state), report
