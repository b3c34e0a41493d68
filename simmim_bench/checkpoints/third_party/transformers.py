"""Read the configuration of a folder of the library transformers, which its models compute their features by.

Every value that changes features is read, or the folder is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_bench.checkpoints.fit import shorten
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics, statistics_of
from simmim_bench.checkpoints.third_party.timm import Geometry
from simmim_bench.checkpoints.third_party.weights import as_pair
from simmim_bench.errors import DataError
from simmim_bench.models.spec import MOST_STAGES
from simmim_bench.untrusted.json_text import read_json

# Epsilon of the LayerNorms by model type, transformers' default (models/*/configuration_*.py).
EPSILONS = {
    **{"vit": 1e-12, "vit_mae": 1e-12, "beit": 1e-12, "vit_msn": 1e-6, "dinov2": 1e-6},
    **{"swin": 1e-5, "swinv2": 1e-5},
}
METHODS = {"vit_mae": "MAE", "vit_msn": "MSN", "dinov2": "DINOv2"}
# simmim-bench's ViT has another epsilon on request. Its Swin has not: transformers' has it in its blocks only.
VIT_EPSILON, SWIN_EPSILON, LARGEST_EPSILON = 1e-6, 1e-5, 1e-2
# Settings of model types that simmim-bench's models do not have.
REFUSED = {"use_absolute_embeddings": "absolute position embedding", "use_swiglu_ffn": "SwiGLU"}
PIXEL_RANGE = 255  # of 8 bits, that `rescale_factor` multiplies


@dataclass(frozen=True)
class Configuration:
    """What a configuration says of the weights beside it.

    Attributes:
        geometry: sizes that the weights do not show.
        method: pretraining method; empty if the configuration does not show it.
        norm_eps: epsilon of a ViT's LayerNorms; None for the usual one.
    """

    geometry: Geometry
    method: str
    norm_eps: float | None


def read_configuration(config: Mapping[str, Any], folder: Path) -> Configuration:
    """Read the configuration of a folder of transformers.

    Raises:
        DataError: The model is of another type, or computes other features than simmim-bench's.
        ValueError: A size is none.
    """
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if not isinstance(kind, str) or kind not in EPSILONS:
        raise DataError(
            f"{folder} holds transformers' model of type {shorten([str(kind)])}, of which simmim-bench reads "
            f"{', '.join(EPSILONS)}; use timm's or the official file of these weights."
        )
    swin = kind.startswith("swin")
    family = "Swin" if swin else "ViT"
    if activation != "gelu":
        raise DataError(
            f"{folder} has hidden_act {shorten([str(activation)])}, but simmim-bench's {family} has gelu; use another "
            "model."
        )
    for key, what in REFUSED.items():
        if config.get(key):
            raise DataError(
                f"{folder} has {key}: simmim-bench's {family} has no {what}; use another model."
            )
    epsilon = config.get("layer_norm_eps", EPSILONS[kind])
    possible = isinstance(epsilon, float) and 0 < epsilon <= LARGEST_EPSILON
    if not possible or (swin and epsilon != SWIN_EPSILON):
        allowed = "1e-5" if swin else f"at most {LARGEST_EPSILON}"
        raise DataError(
            f"{folder} has layer_norm_eps {shorten([str(epsilon)])}, but simmim-bench's {family} has {allowed}; use "
            "another model."
        )
    size, patch = _sizes(config, folder, whole=swin)
    if swin:
        geometry = _swin_geometry(config, folder, size, patch)
    else:
        heads = config.get("num_attention_heads")
        geometry = Geometry(img_size=size, num_heads=heads if isinstance(heads, int) else None)
    architectures = config.get("architectures")
    simmim = isinstance(architectures, list) and any(
        isinstance(name, str) and name.endswith("ForMaskedImageModeling") for name in architectures
    )
    # transformers' documentation names SimMIM as the method of these models.
    method = "SimMIM" if simmim and kind != "beit" else METHODS.get(kind, "")
    return Configuration(geometry, method, None if swin or epsilon == VIT_EPSILON else epsilon)


def _sizes(
    config: Mapping[str, Any], folder: Path, *, whole: bool
) -> tuple[tuple[int, int] | None, int]:
    """Return the (H, W) of the patches in an image, in pixels, and the side of a patch.

    Args:
        whole: whether the last patch of a row or column may not be cut off.
    """
    size, patch = config.get("image_size"), config.get("patch_size")
    if not size or not patch:
        return (as_pair(size) if size else None), 0
    (height, width), (rows, columns) = as_pair(size), as_pair(patch)
    if rows != columns or not rows:
        raise DataError(
            f"{folder} has patches of {rows}x{columns} pixels, but simmim-bench has square ones; use another model."
        )
    if whole and (height % rows or width % rows):
        raise DataError(
            f"{folder} has image_size {height}x{width}, which is not a multiple of patch_size {rows}; use another "
            "model."
        )
    return (height // rows * rows, width // rows * rows), rows


def _swin_geometry(
    config: Mapping[str, Any], folder: Path, size: tuple[int, int] | None, patch: int
) -> Geometry:
    """Return the sizes of a Swin or Swin V2, whose windows must be those of simmim-bench's.

    transformers derives one window and shift from both sides of a map that is not larger than the window, and rounds
    the maps of a Swin V2 down (models/swin/modeling_swin.py, `set_shift_and_window_size`; models/swinv2/
    modeling_swinv2.py, `_compute_window_shift`), where simmim-bench has a window per side.
    """
    window = config.get("window_size")
    depths, scales = config.get("depths"), config.get("pretrained_window_sizes")
    window = None if window is None else as_pair(window)[0]
    for stage in range(min(len(depths), MOST_STAGES)) if isinstance(depths, list) else ():
        tokens = [] if size is None or not patch else [side // patch for side in size]
        sides = {s for side in tokens for s in (side >> stage, -(-side >> stage))}
        if window is not None and len(sides) > 1 and min(sides) <= window:
            raise DataError(
                f"{folder} has image_size {'x'.join(map(str, size or ()))}, for which transformers' windows of "
                f"{window} are not simmim-bench's; use another model."
            )
    return Geometry(
        img_size=size,
        window_size=window,
        pretrained_windows=(
            tuple(as_pair(s) for s in scales) if isinstance(scales, list) and any(scales) else ()
        ),
    )


def configured_pixels(folder: Path) -> PixelStatistics | None:
    """Return the normalisation of a folder's `preprocessor_config.json`, for pixels in [0, 1]; None if it has none.

    Raises:
        DataError: The file cannot be read, or the model expects blue, green and red channels.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    config = read_json(path, "transformers' configuration")
    if not isinstance(config, dict):
        return None
    if config.get("do_flip_channel_order"):
        raise DataError(
            f"{path} has do_flip_channel_order, but simmim-bench reads images as RGB; use another model."
        )
    scale = config.get("rescale_factor", 1 / PIXEL_RANGE) if config.get("do_rescale", True) else 1.0
    if not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"rescale_factor is {ascii(scale)[:80]}")
    statistics: PixelStatistics | None = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if config.get("do_normalize", True):
        statistics = statistics_of(config.get("image_mean"), config.get("image_std"))
    factor = scale * PIXEL_RANGE
    if statistics is None or math.isclose(factor, 1, rel_tol=1e-6):
        return statistics
    return statistics_of(
        [m / factor for m in statistics.mean], [s / factor for s in statistics.std]
    )
