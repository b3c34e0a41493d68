"""Read `timm:NAME` and folders that timm wrote, and compare with timm's own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.foreign.importer import import_state
from simmim_bench.checkpoints.foreign.weights import (
    as_pair,
)
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.errors import DataError, UsageError, nearest
from simmim_bench.files import sha256_json


def read_timm(ckpt: str) -> Checkpoint:
    """Read `timm:NAME`: one of timm's pretrained models, which timm downloads and keeps.

    Raises:
        UsageError: timm has no pretrained model of that name.
        DataError: it cannot be downloaded, or is of no family of ours.
    """
    import timm

    name = ckpt.removeprefix("timm:")
    known = timm.list_models(pretrained=True)
    if name not in known and name not in {n.split(".")[0] for n in known}:
        raise UsageError(f"timm has no pretrained model '{name}'; {nearest(name, known)[:300]}")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises where there is no network
        raise DataError(
            f"{ckpt} cannot be downloaded ({type(error).__name__}); download it where there is a network "
            "and give the file."
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
        provenance={"method": "timm", "tag": cfg.get("tag", "")},
    )
    if checkpoint.spec.is_convolutional:
        check_same_features(checkpoint, model)
    return replace(checkpoint, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))


def build_timm(folder: Path) -> torch.nn.Module:
    """Build the model that a folder of timm's describes, with its weights.

    Raises:
        DataError: timm cannot.
    """
    import timm

    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (
        Exception
    ) as error:  # whatever timm raises for an architecture or an argument it does not know
        raise DataError(
            f"timm cannot build what {folder / 'config.json'} describes: {type(error).__name__}: {error}"
        ) from error


@torch.no_grad()
def check_same_features(checkpoint: Checkpoint, theirs: torch.nn.Module) -> None:
    """Refuse weights that make other features in our backbone than in timm's model.

    A variant of a convolutional network may differ in what has no weights, such as blurred strides.

    Raises:
        DataError: they do.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, checkpoint.spec.in_chans, 64, 64, generator=generator)
    theirs.eval()
    wanted = theirs.forward_head(theirs.forward_features(image), pre_logits=True)  # type: ignore[operator]
    found = restore_backbone(checkpoint).eval().forward_features(image)
    if wanted.shape != found.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise DataError(
            f"{checkpoint.name} is no plain {checkpoint.spec.arch}: with its weights, ours gives other features; "
            "give a plain one."
        )
