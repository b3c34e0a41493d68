"""Read `timm:NAME`, build the model of a timm folder, and compare a checkpoint's features with timm's model."""

from __future__ import annotations

from pathlib import Path

import torch

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.third_party.importer import import_state
from simmim_bench.checkpoints.third_party.statistics import PixelStatistics
from simmim_bench.checkpoints.third_party.weights import as_pair
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.files import sha256_json


def read_timm(ckpt: str) -> Checkpoint:
    """Read `timm:NAME`, one of timm's pretrained models, which timm downloads and caches.

    Raises:
        UsageError: timm has no pretrained model of that name.
        DataError: The model cannot be downloaded, or its family is not supported.
    """
    import timm

    name = ckpt.removeprefix("timm:")
    known = timm.list_models(pretrained=True)
    if name not in known and name not in {n.split(".")[0] for n in known}:
        raise UsageError(f"timm has no pretrained model '{name}'; {nearest(name, known)[:300]}")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises many types without a network
        raise DataError(
            f"{ckpt} cannot be downloaded ({type(error).__name__}); download it on a machine with a network "
            "and pass the file."
        ) from error
    cfg = model.pretrained_cfg
    state = model.state_dict()
    checkpoint = import_state(
        state,
        name=ckpt,
        label=name,
        sha256=sha256_json({k: v.double().sum().item() for k, v in state.items()}),
        img_size=as_pair(cfg["input_size"][-1]),
        num_heads=model.blocks[0].attn.num_heads if hasattr(model, "blocks") else None,
        statistics=PixelStatistics(tuple(cfg["mean"]), tuple(cfg["std"])),
        provenance={"method": "timm", "tag": cfg.get("tag", "")},
    )
    if checkpoint.spec.is_convolutional:
        check_same_features(checkpoint, model)
    return checkpoint


def build_timm(folder: Path) -> torch.nn.Module:
    """Build the model that a timm folder describes, with its weights.

    Raises:
        DataError: timm cannot build the model.
    """
    import timm

    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm raises many types for an unknown architecture or argument
        raise DataError(
            f"timm cannot build the model of {folder / 'config.json'}: {type(error).__name__}: {error}"
        ) from error


@torch.no_grad()
def check_same_features(checkpoint: Checkpoint, theirs: torch.nn.Module) -> None:
    """Check that simmim-bench's backbone computes the same features as timm's model.

    Variants of a convolutional network may differ in operations without weights, such as anti-aliased
    downsampling.

    Raises:
        DataError: The features differ.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, checkpoint.spec.in_chans, 64, 64, generator=generator)
    theirs.eval()
    wanted = theirs.forward_head(theirs.forward_features(image), pre_logits=True)  # type: ignore[operator]
    found = restore_backbone(checkpoint).eval().forward_features(image)
    if wanted.shape != found.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise DataError(
            f"{checkpoint.name} is a variant of {checkpoint.spec.arch}: timm's model computes other features with "
            "these weights; use a plain model."
        )
