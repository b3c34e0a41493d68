"""A checkpoint of random weights of any spec, without a file."""

from __future__ import annotations

from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec


def random_checkpoint(spec: BackboneSpec) -> Checkpoint:
    """Return a transfer checkpoint of initialised weights, normalised with ImageNet's mean and deviation."""
    return Checkpoint(
        name="random",
        spec=spec,
        form="transfer",
        state=dict(build_backbone(spec).state_dict()),
        sha256="0",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "random"},
    )
