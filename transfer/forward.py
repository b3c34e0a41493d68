"""One pass over images: each once, in the order of the list, whatever the number of processes.

In: images, a function from a batch to a row for each image. Out: the rows, on the main process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simmim_bench.checkpoint import Checkpoint
from simmim_bench.data import ImageDataset, eval_loader, eval_transform
from simmim_bench.kernels import autocast
from simmim_bench.rundir import RunDir
from simmim_bench.sources import ImageList
from simmim_bench.team import Team
from transfer.recipes import FinetuneRecipe, ProbeRecipe


@torch.no_grad()
def forward_all(
    forward: Callable[[Tensor], Tensor],
    images: ImageList,
    *,
    checkpoint: Checkpoint,
    recipe: FinetuneRecipe | ProbeRecipe,
    run: RunDir,
    team: Team,
    description: str,
) -> Tensor:
    """Give what `forward` makes of every image: (N, ...) float32 on the CPU.

    Each of the processes takes every so-manieth image; none is taken twice to fill a batch, which would
    count it twice. The main process gets all rows, the others none.

    Args:
        forward: maps (B, C, H, W), normalised, to (B, ...).
    """
    own = images.subset(range(team.rank, len(images), team.size))
    transform = eval_transform(
        recipe.img_size,
        crop_ratio=recipe.test_crop_ratio,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )
    loader = eval_loader(
        ImageDataset(own, transform), batch_size=recipe.batch_size, num_workers=recipe.num_workers
    )
    rows = []
    with (
        run.display.task(description, len(own)) as task,
        autocast(team.device, recipe.precision),
    ):
        for batch, _ in loader:
            rows.append(forward(batch.to(team.device, non_blocking=True)).float().cpu())
            task.advance(len(batch))
    # One process may have none: of fewer images than processes.
    shares = team.gather(torch.cat(rows) if rows else torch.zeros(0))
    if not shares:
        return torch.zeros(0)
    everything = torch.empty(len(images), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        if len(share):
            everything[rank :: team.size] = share
    return everything
