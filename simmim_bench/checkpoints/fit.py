"""Report how a checkpoint's weights fit a backbone: matched, resized, missing and unused ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.models.decomposed_position import VECTORS
from simmim_bench.models.position_bias import BIAS_TABLE
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.untrusted import text

# Weights that a pretraining checkpoint does not have; the task initialises them.
NEW_IN_TRANSFER = ("fc_norm.", "head.")
# A buffer of BatchNorm without effect on the output; older checkpoints of torchvision do not have it.
BATCHNORM_COUNTER = "num_batches_tracked"
LAYER_SCALES = (".gamma_1", ".gamma_2")  # of a ViT's block
NET_PREFIX = "net."  # of the weights of an `ExternalBackbone`'s network


@dataclass
class LoadReport:
    """Names of the weights that were matched, resized, missing from the checkpoint, and unused."""

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        # Records store this text.
        if not (self.matched or self.resized or self.missing or self.unused):
            return "weights: drawn from the seed"
        counts = [f"{len(self.matched)} matched"]
        new = [name for name in self.missing if name.startswith(NEW_IN_TRANSFER)]
        # The norm of pooled features takes the place of that of tokens.
        replaced = [n for n in self.unused if n.startswith("norm.") and f"fc_{n}" in self.missing]
        for what, names in (
            ("resized", self.resized),
            ("new for the task", new),
            ("replaced by them", replaced),
            ("missing", [name for name in self.missing if name not in new]),
            ("unused", [name for name in self.unused if name not in replaced]),
        ):
            counts.append(f"{len(names)} {what}" + (f" ({shorten(names)})" if names else ""))
        return "weights: " + ", ".join(counts)


@dataclass
class Fit:
    """Result of matching a checkpoint's weights with a backbone.

    Attributes:
        report: names of the weights by outcome.
        weights: weights in the backbone's shapes, by the backbone's names.
        faults: one message for every reason why the checkpoint does not fit; empty if it fits.
    """

    report: LoadReport
    weights: StateDict
    faults: list[str]


def shorten(names: list[str], limit: int = 4) -> str:
    """Return the first names of a file's weights, comma-separated, with an ellipsis if there are more than `limit`."""
    shown = [text.shorten(text.visible(name), 100) for name in names[:limit]]
    return ", ".join(shown) + (", ..." if len(names) > limit else "")


def check_missing(fit: Fit, title: str, spec: BackboneSpec, old: BackboneSpec) -> None:
    """Add a fault if weights of the encoder are missing, except those that `MapOptions` adds."""
    missing = [
        name
        for name in fit.report.missing
        if not name.startswith(NEW_IN_TRANSFER)
        and not name.endswith(BATCHNORM_COUNTER)
        and not _is_new(name, old)
    ]
    if missing:
        fit.faults.append(
            f"{title} lacks {len(missing)} weights of {spec.arch}'s encoder: {shorten(missing)}"
        )


def _is_new(name: str, old: BackboneSpec) -> bool:
    """Return whether a backbone of the spec `old` has no weight of this name, but `MapOptions` can add it."""
    return (
        (name.startswith("map_norms.") and old.map_norm != "affine")
        or (name.endswith(f"rel_pos_bias.{BIAS_TABLE}") and not old.rel_pos_bias)
        or (name.endswith(VECTORS) and not old.decomposed_rel_pos)
        or (name.endswith(LAYER_SCALES) and old.init_values is None)
    )
