"""Small inputs and pretraining runs shared by tests of designs, targets, teachers and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.masking.masks import sample_masks
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM
from pretrain.train import TrainOptions, pretrain
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.display import Display
from simmim_bench.errors import InterruptedRun
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.overrides import override
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from simmim_bench.training.loop import fit

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))


def smooth_images(spec: BackboneSpec, count: int = 2, seed: int = 0) -> Tensor:
    """Return normalised images (B, 3, H, W) of smooth colours, whose pixels are in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, spec.img_size, mode="bilinear")
    fine = 0.9 * fine + 0.1 * torch.rand(fine.shape, generator=generator)
    return (fine - MEAN) / STD


def synthetic_photographs(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return smooth colour fields with noise, which have regions and textures like photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return smooth + 0.1 * torch.rand(count, 3, *size, generator=generator)


def half_masks(spec: BackboneSpec, count: int = 2, seed: int = 0) -> Tensor:
    """Return random masks (B, h, w) that hide half of the units of one cell of the last map."""
    return sample_masks(
        count,
        spec.img_size,
        mask_patch_size=spec.stride,
        patch_size=spec.patch_size,
        mask_ratio=0.5,
        generator=torch.Generator().manual_seed(seed),
    )


def pixel_mask(mask: Tensor, spec: BackboneSpec) -> Tensor:
    """Upsample a mask (B, h, w) of patches to pixels (B, H, W)."""
    return mask.repeat_interleave(spec.patch_size, 1).repeat_interleave(spec.patch_size, 2)


def save_checkpoint(model: SimMIM, path: Path) -> str:
    """Write a checkpoint of a model without training; return CKPT."""
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


def pretrain_pocket(
    out: Path,
    data: Path,
    *assignments: str,
    init_from: str | None = None,
    resume: bool = False,
    options: TrainOptions | None = None,
) -> Path:
    """Pretrain the pocket ViT for two epochs, unless an assignment changes it; return the checkpoint.

    Few held-out images are evaluated: they take half of the time, and do not change the training.
    """
    batch_size = min(30, len(any_images(data)))
    quick = ["epochs=2", f"batch_size={batch_size}", "mask_patch_size=8"]
    if "epochs=1" in assignments:  # as long as the recipe's warm-up
        quick.append("warmup_epochs=0")
    recipe = override(POCKET, [*quick, *assignments])
    quiet = Display(quiet=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_run(
            out, recipe=recipe, deviates={}, arguments={}, display=quiet, resume=resume
        ) as opened,
    ):
        patch.setattr("pretrain.evaluation.held_out.HELD_OUT_IMAGES", 4)
        return pretrain(
            RunContext(run=opened, seed=0, resume=resume),
            recipe=recipe,
            deviates={},
            data=data,
            init_from=init_from,
            options=options,
        )


def pretrain_first_epoch(
    out: Path,
    data: Path,
    *assignments: str,
    monkeypatch: pytest.MonkeyPatch,
    options: TrainOptions | None = None,
) -> None:
    """Interrupt a run after its first epoch, which is saved."""

    def stopped(*state: Any, save: Callable[[], None], **settings: Any) -> None:
        def save_and_stop() -> None:
            save()
            raise InterruptedRun("stopped", 15)

        fit(*state, save=save_and_stop, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("pretrain.train.fit", stopped)
        with pytest.raises(InterruptedRun):
            pretrain_pocket(out, data, *assignments, options=options)
