"""Pretrain a backbone with SimMIM: `simmim_bench.pretrain` and `simmim-bench pretrain`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simmim_bench.api.arguments import check_ckpt, check_images
from simmim_bench.api.display import open_display
from simmim_bench.api.keys import Overrides, check_count
from simmim_bench.api.options import (
    AnyPath,
    read_ckpt,
    read_optional_path,
    read_path,
    read_run_options,
)
from simmim_bench.data.named import DataSet
from simmim_bench.errors import UsageError
from simmim_bench.imports import without_collection
from simmim_bench.library import as_library
from simmim_bench.recipe import Precision
from simmim_bench.runs.options import RunOptions


@as_library()
def pretrain(
    arch: str,
    *,
    data: AnyPath,
    recipe: str | None = None,
    out: AnyPath | None = None,
    init_from: AnyPath | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    img_size: int | tuple[int, int] | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    limit: int | None = None,
    val_fraction: float | None = None,
    overrides: Overrides | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accumulate: int | None = None,
    grad_checkpointing: bool = False,
    shard: bool = False,
    compile: bool | None = None,
    keep_every: int = 0,
    visualize_every: int = 1,
    probe_data: AnyPath | None = None,
    probe_every: int | None = None,
    skip_unreadable: int = 0,
    deterministic: bool = False,
    log: str | Iterable[str] = (),
    quiet: bool = False,
) -> Path:
    """Pretrain a backbone with SimMIM, and return the run directory.

    Every setting that differs from the recipe is stored in the checkpoint. Ctrl-C, or a notebook's "interrupt", raises
    KeyboardInterrupt; `resume=True` then continues from the last saved epoch to the same weights as an uninterrupted
    run.

    Args:
        arch: architecture, such as "vit_b" or "swin_t"; "vit_pocket" for small data.
        data: folder of images at any depth, or of tar shards; or "hfds:NAME". With train/ and val/ in it, train/ is
            trained on and val/ gives the held-out loss.
        recipe: named recipe, as `simmim-bench recipes` lists them; by default that of the architecture.
        out: run directory; by default runs/pretrain/ARCH-RECIPE-seedN. It receives checkpoints/last, checkpoints/best,
            metrics.jsonl, log.txt and reconstructions.png.
        init_from: CKPT of the initial weights; by default they are initialised from the seed.
        seed: seed of everything that is sampled, 0 to 2^32 - 1.
        epochs: passes over the training images.
        batch_size: images per step, in total over all processes.
        lr: learning rate (`base_lr`), for 512 images per step; it is scaled to the batch size.
        img_size: side of square images, or (H, W), in pixels.
        workers: processes per GPU that load images; 0 loads in this process.
        precision: "auto", "bf16", "fp16" or "fp32".
        limit: number of training and of held-out images that are used, to try things out.
        val_fraction: fraction of the training images to hold out where the data has no val/, 0.0001 to 0.5.
        overrides: further changes of the recipe, such as {"mask_ratio": 0.5}.
        resume: continue the run in `out`; a finished run is left as it is.
        overwrite: replace the run in `out`.
        accumulate: gradient-accumulation steps per process; by default the smallest number that fits in memory.
        grad_checkpointing: save memory by recomputing activations in the backward pass.
        shard: shard the model over several processes (FSDP2).
        compile: use torch.compile; by default on a GPU from 5,000 steps on.
        keep_every: epochs between checkpoints that are kept besides the last and the best; 0 for none.
        visualize_every: epochs between figures of reconstructions.
        probe_data: labelled images, on which the features are scored by k-NN and logistic regression.
        probe_every: epochs between probes; 1 by default.
        skip_unreadable: number of unreadable images that are skipped; one more ends the run.
        deterministic: use deterministic kernels alone, which are slower.
        log: "wandb", "mlflow" or "trackio", or several, which also receive the figures.
        quiet: no log and no progress.

    Returns:
        The run directory, a CKPT for `transfer`, `suite`, `load_backbone` and `load_simmim`, which take its last
        checkpoint.

    Raises:
        UsageError: an unknown architecture, recipe or key, a value out of range, or a run directory that is not empty.
        DataError: the images or the initial weights cannot be read.
        MissingFrameworkError: the package of a logger is not installed.
        DivergedError: the loss is not finite.

    Example:
        >>> ckpt = sb.pretrain("vit_pocket", data="pocket/imagenet", out="runs/pocket", epochs=100)
        >>> sb.transfer("knn", ckpt=ckpt, data="pocket/imagenet")
    """
    least = {"keep_every": 0, "visualize_every": 1, "skip_unreadable": 0, "accumulate": 1}
    train_options: dict[str, Any] = {
        "keep_every": keep_every,
        "visualize_every": visualize_every,
        "skip_unreadable": skip_unreadable,
        "accumulate": accumulate,
        "grad_checkpointing": grad_checkpointing,
        "shard": shard,
        "compiled": compile,
    }
    for name, value in least.items():
        check_count(name, train_options[name], value)
    check_count("probe_every", probe_every, 1)
    options = read_run_options(
        DataSet(read_path(data)),
        recipe=recipe,
        out=out,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        overrides=overrides,
        deterministic=deterministic,
        log=log,
        quiet=quiet,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        img_size=img_size,
        workers=workers,
        precision=precision,
        limit=limit,
        val_fraction=val_fraction,
    )
    checkpoint, _ = run_pretrain(
        arch,
        options,
        init_from=None if init_from is None else read_ckpt(init_from),
        probe_data=read_optional_path(probe_data),
        probe_every=probe_every,
        **train_options,
    )
    return checkpoint.parents[1]


def run_pretrain(
    arch: str,
    options: RunOptions,
    *,
    init_from: str | None = None,
    probe_data: Path | None = None,
    probe_every: int | None = None,
    **train_options: Any,
) -> tuple[Path, bool]:
    """Pretrain with the options of a command line.

    Args:
        train_options: further fields of `pretrain.run.TrainOptions`.

    Returns:
        The folder of the last checkpoint, and whether this process is rank 0.

    Raises:
        UsageError, DataError, DivergedError: see `pretrain`.
    """
    if probe_every is not None and probe_data is None:
        raise UsageError(f"--probe-every {probe_every} needs --probe-data; add it.")
    from pretrain.recipes import resolve_recipe

    folder = f"{arch}-{options.recipe or 'default'}-seed{options.seed}"
    out = options.out or Path("runs", "pretrain", folder)
    recipe, named = resolve_recipe(arch=arch, recipe=options.recipe, overrides=options.overrides)
    check_images(options.data)
    if init_from is not None:
        check_ckpt(init_from)
    with without_collection():
        from pretrain.launch import run_pretraining
        from pretrain.train import TrainOptions
        from simmim_bench.distributed import init_distributed
        from simmim_bench.training.determinism import deterministic_algorithms

    with deterministic_algorithms(options.deterministic), init_distributed() as dist:
        checkpoint = run_pretraining(
            recipe=recipe,
            named=named,
            data=options.data,
            out=out,
            seed=options.seed,
            display=open_display(options.quiet or not dist.is_main),
            dist=dist,
            init_from=init_from,
            resume=options.resume,
            overwrite=options.overwrite,
            loggers=options.loggers,
            options=TrainOptions(
                probe_data=probe_data, probe_every=probe_every or 1, **train_options
            ),
        )
    return checkpoint, dist.is_main
