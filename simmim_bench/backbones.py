"""Load a backbone from a checkpoint: the entry point for users and adapters.

The module has `.forward(images) -> logits`, `.forward_features(images) -> (B, C)`,
`.forward_maps(images) -> list of (B, C, h, w)`, `.feature_levels` and `.layer_id(parameter name)`. Loading is
strict: the names of weights that may be missing are listed, position tables are resized as in the official
code's step from pretraining to fine-tuning (SimMIM: utils.py, load_pretrained), and a report lists the outcome.
"""

from __future__ import annotations

import warnings
from os import PathLike, fspath

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.models.build import Backbone
from simmim_bench.models.spec import MapOptions


def open_checkpoint(ckpt: str | PathLike[str] | Checkpoint) -> Checkpoint:
    """Return a checkpoint; read it if a CKPT is passed, and warn of what its file leaves open.

    Raises:
        UsageError, DataError: see `read_checkpoint`.
    """
    if isinstance(ckpt, Checkpoint):
        return ckpt
    checkpoint = read_checkpoint(fspath(ckpt))
    if checkpoint.warning:
        warnings.warn(checkpoint.warning, stacklevel=3)
    return checkpoint


def load_backbone(
    ckpt: str | PathLike[str] | Checkpoint,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int = 0,
    *,
    window_size: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    seed: int = 0,
    maps: MapOptions | None = None,
) -> Backbone:
    """Load the backbone of a checkpoint in its transfer form.

    Args:
        ckpt: CKPT as the command line takes it, or a checkpoint that was read.
        img_size: (H, W), or the side of a square, for position tables and windows; None for the checkpoint's.
        num_classes: outputs of a new classification head; 0 for pooled features.
        window_size: side of an attention window in tokens; None for the checkpoint's. By default, a ViT has
            global attention.
        in_chans: image channels; None for the checkpoint's. As in timm, the kernels of the first
            convolution are summed for one channel, and repeated and scaled for additional channels.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks have less.
        seed: of the initialisation of weights that the checkpoint does not hold.
        maps: how feature maps are made; None for the checkpoint's way, which is simmim-bench's default.

    Returns:
        The module; its `load_report` attribute lists the matched, resized, missing and unused weights.

    Raises:
        UsageError: The architecture is unknown, or the image size is not a multiple of the patch size.
        DataError: The checkpoint cannot be read, or its weights do not fit.

    Example:
        >>> backbone = load_backbone("runs/vit_b", img_size=(384, 512))
        >>> maps = backbone.forward_maps(images)  # images (B, 3, 384, 512), normalised
    """
    checkpoint = open_checkpoint(ckpt)
    if isinstance(img_size, int):
        img_size = (img_size, img_size)
    return restore_backbone(
        checkpoint,
        img_size,
        num_classes,
        window_size=window_size,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        seed=seed,
        maps=maps,
    )
