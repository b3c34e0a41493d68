"""Transfer a checkpoint to a task: `simmim_bench.transfer` and `simmim_bench.transfers`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from simmim_bench.api.keys import SHORT_KEYS, Overrides, check_count
from simmim_bench.api.options import (
    AnyPath,
    check_task,
    read_ckpt,
    read_data,
    read_run_options,
    read_task_options,
    transfer_tasks,
)
from simmim_bench.api.transfer_result import TransferResult
from simmim_bench.api.transfer_runs import run_transfers
from simmim_bench.data.named import read_title
from simmim_bench.errors import UsageError
from simmim_bench.library import as_library
from simmim_bench.recipe import Precision

if TYPE_CHECKING:
    from simmim_bench.results.record import Record

# Arguments of `transfer` that are neither of one task nor of `shift` alone.
RUN_ARGUMENTS = (
    *("recipe", "out", "seed", "overrides", "resume", "overwrite", "deterministic", "log", "quiet"),
    *SHORT_KEYS,
)


@as_library()
def transfer(
    task: str,
    *,
    ckpt: AnyPath,
    data: AnyPath | Mapping[str, AnyPath],
    data_name: str | None = None,
    recipe: str | None = None,
    out: AnyPath | None = None,
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
    model: str | None = None,
    deterministic: bool = False,
    log: str | Iterable[str] = (),
    quiet: bool = False,
    **task_options: Any,
) -> Record:
    """Transfer a checkpoint to a task, and return the record of its score.

    `transfers` runs several seeds or data sets, and compares with a baseline. Ctrl-C, or a notebook's "interrupt",
    raises KeyboardInterrupt; `resume=True` continues from the last saved epoch.

    Args:
        task: "imagenet" (fine-tune all weights), "linear", "attentive", "knn", "fewshot", "coco", "ade20k", or "shift",
            which scores a trained classifier on a further validation set.
        ckpt: a checkpoint or run folder, a weights file of others, "random:ARCH", "timm:NAME", "hub:ORG/NAME[@REV]" or
            "py:package.module:factory".
        data: folder of the data set, or "hfds:NAME"; {"NAME": folder} for a named one.
        data_name: what tables call the data set, such as "CIFAR-10", where its folder's name says nothing.
        recipe: named recipe, as `simmim-bench recipes` lists them; by default the one for the checkpoint.
        out: run directory; by default runs/CKPT/TASK/seedN, or runs/CKPT/TASK/DATA/seedN where the former holds runs
            on another data set. It receives record.json and predictions/.
        seed: seed of everything that is sampled, 0 to 2^32 - 1.
        epochs: passes over the training images. Like the following seven and `overrides`, a difference from the recipe
            is stored in the record and shown beside the score.
        batch_size: images per step, in total over all processes.
        lr: learning rate (`base_lr`), which the recipe may scale to the batch size.
        img_size: side of square images, or (H, W), in pixels.
        workers: processes per GPU that load images; 0 loads in this process.
        precision: "auto", "bf16", "fp16" or "fp32".
        limit: number of training and of validation images that are used, to try things out.
        val_fraction: fraction of the training images of every class to score instead of training on them, where the
            data has no val/, 0.0001 to 0.5.
        overrides: further changes of the recipe, such as {"weight_decay": 0.0}.
        resume: continue the run in `out`; a finished run is left as it is, and its record returned.
        overwrite: replace the run in `out`.
        model: for "shift", "timm:NAME" or "torchvision:NAME", the model of a weights file that does not show it.
        deterministic: use deterministic kernels alone, which are slower.
        log: "wandb", "mlflow" or "trackio", or several, which also receive figures and score.
        quiet: no log and no progress.
        task_options: options of the task, named as the command line's: `fraction="1%"`, `split=`, `features=`,
            `compile=`, `accumulate=`, `grad_checkpointing=`, `label_maps=`.

    Returns:
        The record; `record.metrics` holds percentages in [0, 100], such as {"top1": 63.3, ...}.

    Raises:
        UsageError: an unknown name, a value out of range, or a run directory that is not empty.
        DataError: the checkpoint or the data cannot be read.
        MissingFrameworkError: Detectron2, MMSegmentation or the package of a logger is not installed.
        DivergedError: the loss is not finite.

    Example:
        >>> record = sb.transfer("linear", ckpt="runs/pocket", data="pocket/imagenet", epochs=30)
        >>> record.metrics["top1"]
    """
    if isinstance(data, Mapping) and len(data) > 1:
        raise UsageError(f"transfer takes one data set, not {len(data)}; use transfers.")
    found = _run_as_library(
        task,
        ckpt,
        data,
        data_name=data_name,
        recipe=recipe,
        out=out,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        img_size=img_size,
        workers=workers,
        precision=precision,
        limit=limit,
        val_fraction=val_fraction,
        overrides=overrides,
        resume=resume,
        overwrite=overwrite,
        model=model,
        deterministic=deterministic,
        log=log,
        quiet=quiet,
        **task_options,
    )
    return found[0].runs.first


@as_library()
def transfers(
    task: str,
    *,
    ckpt: AnyPath,
    data: AnyPath | Mapping[str, AnyPath],
    seeds: int = 1,
    baseline: str | None = None,
    **options: Any,
) -> list[TransferResult]:
    """Transfer a checkpoint with several seeds, to several data sets, or against a baseline.

    Args:
        task: as of `transfer`.
        ckpt: as of `transfer`.
        data: folder of the data set, or folders by name, {"pets": "data/pets", "flowers": "data/flowers"}.
        seeds: number of seeds, 1 to 100, from `seed` on.
        baseline: "random", or another CKPT, to which the same recipe is applied.
        options: every other argument of `transfer`, such as `epochs=30` or `fraction="10%"`.

    Returns:
        One result per data set. `str(result)` has the scores with their uncertainty, `result.scores()` the numbers,
        `result.above` the differences from the baseline with 95 % intervals, `result.records` the records.

    Raises:
        UsageError, DataError, MissingFrameworkError, DivergedError: see `transfer`.

    Example:
        >>> (result,) = sb.transfers("knn", ckpt=ckpt, data="pocket/imagenet", seeds=3, baseline="random")
        >>> print(result)
    """
    return _run_as_library(task, ckpt, data, seeds=seeds, baseline=baseline, **options)


def _run_as_library(
    task: str,
    ckpt: AnyPath,
    data: AnyPath | Mapping[str, AnyPath],
    *,
    seeds: int = 1,
    baseline: str | None = None,
    model: str | None = None,
    data_name: str | None = None,
    **options: Any,
) -> list[TransferResult]:
    """Check the arguments of `transfer` or `transfers`, and run them.

    Returns:
        A result per data set, on every process.
    """
    check_task(task, transfer_tasks())
    check_count("seeds", seeds, 1, 100)
    data_sets = read_data(data)
    own = {name: options.pop(name) for name in RUN_ARGUMENTS if name in options}
    task_options = read_task_options(options, "transfer")
    found = run_transfers(
        task,
        read_ckpt(ckpt),
        data_sets,
        read_run_options(data_sets[0], data_title=read_title(data_name, data_sets), **own),
        seeds=seeds,
        baseline=baseline,
        model=model,
        task_options=task_options,
    )
    if found.failure is not None:
        raise found.failure
    return found.results
