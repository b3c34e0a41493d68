"""Find the mean and standard deviation that a third-party checkpoint's input was normalised with.

No weight shows them. BEiT normalises with 0.5, BEiT v2 and SimMIM with ImageNet's values, and the files of all three
have the same names and shapes once they are fine-tuned, because SimMIM's ViT is BEiT's (SimMIM:
models/vision_transformer.py, line 5; unilm: beit/modeling_finetune.py). The configuration beside the weights tells them
apart. Where a file has none, the checkpoint carries a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.checkpoints.third_party.weights import RenamedWeights, as_values, config_entries
from simmim_bench.data.pixel_format import check_statistics
from simmim_bench.errors import UsageError
from simmim_bench.models.position_bias import BIAS_TABLE

BEIT_ARGUMENT = "imagenet_default_mean_and_std"  # of BEiT's and BEiT v2's training scripts


@dataclass(frozen=True)
class PixelStatistics:
    """Normalisation of the input, for pixels in [0, 1].

    Attributes:
        mean, std: one value per channel.
        warning: what a file leaves open, and how to settle it; empty if the values are known.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    warning: str = ""

    def __post_init__(self) -> None:
        check_statistics(self.mean, self.std)


IMAGENET = PixelStatistics(IMAGENET_MEAN, IMAGENET_STD)
# timm's IMAGENET_INCEPTION_MEAN and _STD, BEiT's default (unilm: beit/datasets.py, `build_transform` and
# `DataAugmentationForBEiT`; beit/modeling_finetune.py, `_cfg`).
BEIT = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def statistics_of(mean: Any, std: Any) -> PixelStatistics | None:
    """Return the normalisation of a configuration's values; None if it has not both.

    Raises:
        ValueError: the values cannot normalise an image.
    """
    means, stds = as_values(mean), as_values(std)
    if means is None or stds is None:
        return None
    try:
        return PixelStatistics(means, stds)
    except UsageError as error:
        raise ValueError(str(error)) from error


def configured_statistics(rest: Mapping[str, Any]) -> PixelStatistics | None:
    """Return the normalisation that a file's entries beside the weights determine; None if they do not.

    - `config`, which SimMIM saves (utils.py, `save_checkpoint`): ImageNet's (data/data_finetune.py, line 113,
      and data/data_simmim.py). Swin Transformer's is the same.
    - `args`, which BEiT saves (unilm: beit/utils.py, `save_model`): 0.5, or ImageNet's with the option
      `--imagenet_default_mean_and_std`, as in every command of BEiT v2's documentation.
    """
    config, args = rest.get("config"), config_entries(rest.get("args"))
    if isinstance(config, Mapping) and isinstance(config.get("MODEL"), Mapping):
        return IMAGENET
    if BEIT_ARGUMENT in args:
        return IMAGENET if args[BEIT_ARGUMENT] else BEIT
    # timm's train.py records the values, or None for those of the model.
    return statistics_of(args.get("mean"), args.get("std"))


def inferred_statistics(renamed: RenamedWeights, name: str) -> PixelStatistics:
    """Return the normalisation that the weights of a file without configuration suggest.

    A ViT with a relative position bias that is neither a SimMIM model nor a BEiT with its head of visual tokens is
    taken for a fine-tuned BEiT, with a warning: BEiT's files are published without `args`, whereas SimMIM's
    `save_checkpoint` always adds `config`. A ViT with another position embedding is taken for one that was trained with
    ImageNet's values, as DINO, DeiT and DINOv2 are, with a warning.
    """
    if renamed.method == "BEiT":
        return BEIT
    if renamed.method != "weights" or renamed.family != "vit":
        return IMAGENET
    imagenet = [" ".join(map(str, values)) for values in (IMAGENET_MEAN, IMAGENET_STD)]
    if not any(key.endswith(f"rel_pos_bias.{BIAS_TABLE}") for key in renamed.state):
        return PixelStatistics(
            IMAGENET.mean,
            IMAGENET.std,
            f"{name} does not show how its input was normalised. ImageNet's mean and std are used; ViTs of Google and "
            f"of timm's augreg have 0.5. To set the values: simmim-bench convert {name} DST --mean 0.5 0.5 0.5 --std "
            f"0.5 0.5 0.5, or --mean {imagenet[0]} --std {imagenet[1]}.",
        )
    return PixelStatistics(
        BEIT.mean,
        BEIT.std,
        f"{name} does not show how its input was normalised: a fine-tuned BEiT (mean and std 0.5), BEiT v2 and "
        f"SimMIM (ImageNet's) have the same weights by name. 0.5 is used. To set the values: simmim-bench convert "
        f"{name} DST --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5, or --mean {imagenet[0]} --std {imagenet[1]}.",
    )
