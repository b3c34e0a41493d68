"""What a user knows of a third-party checkpoint that its file does not show."""

from __future__ import annotations

from dataclasses import dataclass, fields

from simmim_bench.checkpoints.third_party.statistics import PixelStatistics


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Options of `simmim-bench convert` that settle what a third-party file leaves open; None if not passed.

    Attributes:
        num_heads: attention heads of a ViT.
        window_size: side of a Swin V2's attention window in tokens, in training.
        img_size: (H, W) of the images in training.
        timm_model: name of the timm model that has these weights.
        checkpoint_key: entry of the file that holds the weights; a nested one with dots.
        strip_prefix: prefix of the encoder's names.
        statistics: normalisation of the input.
    """

    num_heads: int | None = None
    window_size: int | None = None
    img_size: tuple[int, int] | None = None
    timm_model: str | None = None
    checkpoint_key: str | None = None
    strip_prefix: str | None = None
    statistics: PixelStatistics | None = None

    def options(self) -> list[str]:
        """Return the names of the passed options that only a third-party file can have."""
        names = {"window_size": "source-window-size", "img_size": "source-img-size"}
        passed = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return [
            f"--{names.get(name, name).replace('_', '-')}"
            for name in passed
            if name != "statistics"
        ]


NO_HINTS = Hints()
