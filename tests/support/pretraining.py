"""Small inputs and pretraining runs that tests of designs, teachers and tokens share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.masking.masks import random_masks
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM
from pretrain.train import pretrain
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.display import Display
from simmim_bench.errors import InterruptedRun
from simmim_bench.models.archs import BackboneSpec
from simmim_bench.recipe import override
from simmim_bench.runs.run_dir import open_run
from simmim_bench.training.loop import fit

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))


def pictures(spec: BackboneSpec, count: int = 2, seed: int = 0) -> Tensor:
    """Give normalised pictures of smooth colours with pixels in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, spec.img_size, mode="bilinear")
    fine = 0.9 * fine + 0.1 * torch.rand(fine.shape, generator=generator)
    return (fine - MEAN) / STD


def masks(spec: BackboneSpec, count: int = 2, seed: int = 0) -> Tensor:
    return random_masks(
        count,
        spec.img_size,
        mask_patch_size=spec.stride,
        patch_size=spec.patch_size,
        mask_ratio=0.5,
        generator=torch.Generator().manual_seed(seed),
    )


def at_pixels(mask: Tensor, spec: BackboneSpec) -> Tensor:
    return mask.repeat_interleave(spec.patch_size, 1).repeat_interleave(spec.patch_size, 2)


def save(model: SimMIM, path: Path) -> str:
    write_checkpoint(
        path,
        state=model.state_dict(),
        spec=model.spec,
        form="pretrain",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        provenance={"label": "tiny", "design": asdict(model.design)},
    )
    return str(path)


def run(
    out: Path, data: Path, *assignments: str, init_from: str | None = None, resume: bool = False
) -> Path:
    recipe = override(POCKET, ["epochs=2", "batch_size=30", "mask_patch_size=8", *assignments])
    quiet = Display(quiet=True)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=quiet, resume=resume
    ) as opened:
        return pretrain(
            recipe=recipe,
            deviates={},
            data=data,
            run=opened,
            seed=0,
            init_from=init_from,
            resume=resume,
        )


def run_one_epoch(
    out: Path, data: Path, *assignments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop a run after the first of its epochs, which is saved."""

    def stopped(*, save: Callable[[int], None], **how: Any) -> None:
        def save_and_stop(done: int) -> None:
            save(done)
            raise InterruptedRun("stopped", 15)

        fit(save=save_and_stop, **how)

    with monkeypatch.context() as patched:
        patched.setattr("pretrain.train.fit", stopped)
        with pytest.raises(InterruptedRun):
            run(out, data, *assignments)
