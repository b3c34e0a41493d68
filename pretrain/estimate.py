"""A pretraining as far as it is known before it is begun.

In: a recipe and the number of images. Out: a `Work` whose step can be taken on made-up images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.masking.masks import masking_unit, recipe_masks
from pretrain.recipes import PretrainRecipe
from pretrain.simmim import SimMIM
from pretrain.targets.models import load_target_model
from pretrain.train import check_sizes
from simmim_bench.diagnostics.estimate import KEPT, DataSize, Work, checkpoint_bytes, epoch_steps
from simmim_bench.training.precision import decide_precision


def plan_pretraining(recipe: PretrainRecipe, data: DataSize, device: torch.device) -> Work:
    """Build the model of a recipe, with random weights, and count its steps.

    Raises:
        UsageError: sizes that do not divide each other, or a teacher or tokenizer that does not fit.
        DataError: a teacher or tokenizer that cannot be read.
    """
    spec = check_sizes(recipe)
    source = load_target_model(
        recipe.design, spec, masking_unit(recipe.masking, recipe.mask_patch_size)
    )
    known = None if source is None else source.known
    model = SimMIM(spec, recipe.design, known, drop_path_rate=recipe.drop_path_rate)
    if source is not None:
        model.target.attach_model(source.model.to(device))
    model.to(device).train()

    def forward(images: int) -> Tensor:
        pixels = torch.randn(images, spec.in_chans, *spec.img_size, device=device)
        mask = recipe_masks(recipe, spec.patch_size, pixels, torch.Generator().manual_seed(0))
        loss: Tensor = model(pixels, mask.to(device)).loss
        return loss

    of_epoch = epoch_steps(data.train, recipe.batch_size)
    weights = checkpoint_bytes([model], ())
    return Work(
        model=model,
        forward=forward,
        precision=decide_precision(recipe.precision, device, spec.num_features),
        batch_size=min(recipe.batch_size, data.train),
        steps=recipe.epochs * of_epoch,
        counted=f"{recipe.epochs} epochs of {of_epoch:,} steps, of {data.images}",
        disk=KEPT * checkpoint_bytes([model], model.parameters()) + weights,
        written=f"{KEPT} checkpoints at a time and the best one's weights; --keep-every keeps more",
        cut="by itself" if device.type == "cuda" else "--accumulate",
    )
