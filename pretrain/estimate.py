"""Plan a pretraining run before it starts, for `simmim-bench doctor`'s estimate of memory, time and disk."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.build import build_model, check_sizes, load_teacher
from pretrain.masking.masks import sample_recipe_masks
from pretrain.recipes import PretrainRecipe
from simmim_bench.data.random_crop import RandomCropFlip
from simmim_bench.diagnostics.estimate import KEPT, DataSize, Work, checkpoint_bytes, epoch_steps
from simmim_bench.display import plural
from simmim_bench.training.kernels import use_channels_last
from simmim_bench.training.precision import decide_precision


def plan_pretraining(recipe: PretrainRecipe, data: DataSize, device: torch.device) -> Work:
    """Build the model of a recipe with random weights, and count the steps of its training.

    Returns:
        A `Work` whose step runs on random images.

    Raises:
        UsageError: sizes that do not divide each other, or a teacher or tokenizer that does not fit.
        DataError: a teacher or tokenizer that cannot be read.
    """
    spec = check_sizes(recipe)
    teacher = load_teacher(recipe, spec)
    model = build_model(recipe, spec, teacher, init_from=None, seed=0, device=device).train()
    use_channels_last(model.encoder, spec, device)

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, spec.in_chans, *spec.img_size, device=device)
        mask = sample_recipe_masks(
            recipe, spec.patch_size, pixels, torch.Generator().manual_seed(0)
        )
        loss: Tensor = model(pixels, mask.to(device)).loss
        return loss

    steps_per_epoch = epoch_steps(data.train, recipe.batch_size)
    weights = checkpoint_bytes([model], ())
    return Work(
        model=model,
        forward=forward,
        precision=decide_precision(recipe.precision, device, spec.num_features),
        batch_size=min(recipe.batch_size, data.train),
        steps=recipe.epochs * steps_per_epoch,
        counted=f"{plural(recipe.epochs, 'epoch')} of {plural(steps_per_epoch, 'step')}, of {data.images}",
        disk=KEPT * checkpoint_bytes([model], model.parameters()) + weights,
        written=f"{KEPT} checkpoints at a time and the best one's weights; --keep-every keeps more",
        cut="by itself" if device.type == "cuda" else "--accumulate",
        load=RandomCropFlip(
            recipe.img_size, recipe.crop_scale, crops_per_decode=recipe.crops_per_decode
        )
        if recipe.pixel_format.is_rgb
        else None,
        num_workers=recipe.num_workers,
    )
