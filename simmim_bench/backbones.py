"""Backbones: from a spec to a module, from a checkpoint to a module with its weights in.

In: a `BackboneSpec`, or a CKPT. Out: an `nn.Module` with `.forward(images) -> logits`,
`.forward_features(images) -> (B, C)`, `.forward_maps(images) -> list of (B, C, h, w)`,
`.feature_levels` and `.layer_id(parameter name)`. Loading is strict: what may be missing is listed by
name, the position tables are resized as the official code does when it goes from pretraining to
fine-tuning (SimMIM: utils.py, load_pretrained), and a report says what was done.
"""

from __future__ import annotations

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.models.build import Backbone


def load_backbone(
    ckpt: str | Checkpoint,
    img_size: tuple[int, int] | None = None,
    num_classes: int = 0,
    *,
    window_size: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    seed: int = 0,
) -> Backbone:
    """Give the backbone of a checkpoint in its transfer form.

    Args:
        ckpt: what `read_checkpoint` takes, or a checkpoint already read.
        img_size: (H, W) to make position tables and windows for; None for the checkpoint's own.
        num_classes: outputs of a new classification head; 0 for pooled features.
        window_size: tokens a side of an attention window; None for the checkpoint's own, a ViT's being none.
        in_chans: image channels; None for the checkpoint's own. The kernels of the first convolution are
            summed for one channel and repeated, scaled, for more than the checkpoint's, as timm does.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks have less.
        seed: draws all that the checkpoint does not hold.

    Returns:
        The module; its `load_report` attribute says matched / resized / missing / unused.

    Raises:
        UsageError: an unknown arch, or a size that the patches do not divide.
        DataError: a checkpoint that cannot be read, or does not fit.
    """
    checkpoint = read_checkpoint(ckpt) if isinstance(ckpt, str) else ckpt
    return restore_backbone(
        checkpoint,
        img_size,
        num_classes,
        window_size=window_size,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        seed=seed,
    )
