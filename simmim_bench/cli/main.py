"""The command line. Heavy imports happen inside the commands, so that `--help` loads no torch.

In: arguments. Out: results on stdout (`--json` for machines), logs and progress on stderr, an exit code:
0 done, 1 failed, 2 usage, 3 an engine is missing, 4 bad data, 5 diverged, 6 a check found drift,
130/143 interrupted after saving.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import sys
from importlib.util import find_spec as find_module
from pathlib import Path
from types import FrameType
from typing import Any

import click

from simmim_bench import __version__
from simmim_bench.cli.ablate import Stages as AblationStages
from simmim_bench.cli.ablate import make_ablate
from simmim_bench.cli.doctor import Stages, make_doctor
from simmim_bench.cli.leaderboard import leaderboard
from simmim_bench.cli.options import (
    SEED,
    complete_among,
    complete_arch,
    complete_ckpt,
    open_display,
    read_size,
    run_options,
)
from simmim_bench.cli.pocket import pocket
from simmim_bench.cli.suite_options import suite_options
from simmim_bench.errors import BenchError, InterruptedRun, UsageError
from simmim_bench.jobs.options import Execution
from simmim_bench.runs.options import RunOptions
from transfer.suite.options import SuiteOptions

TASK_NAMES = ("imagenet", "linear", "knn", "fewshot", "coco", "ade20k")


def all_recipes() -> dict[str, Any]:
    """Give all recipes of both stages by name."""
    return {**_pretrain_recipes(), **_transfer_recipes()}


def _pretrain_recipes() -> dict[str, Any]:
    from pretrain.recipes import RECIPES

    return dict(RECIPES)


def _transfer_recipes() -> dict[str, Any]:
    from transfer.recipes import RECIPES

    return dict(RECIPES)


def main() -> None:
    """Run the command line, and end."""
    try:
        _run()
    except SystemExit as end:
        dist = sys.modules.get("simmim_bench.distributed")  # where it is not loaded, there is none
        if dist is not None and isinstance(end.code, int):
            dist.exit_process(end.code)
        raise


def _run() -> None:
    """Run the command line; turn what a user can mend into one line and an exit code."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        _check_packages()
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except BenchError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "simmim-bench"
        message = " ".join(error.format_message().split())
        _fail(f"{message} See `{path} --help`.", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted.", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        _fail(
            f"cannot write {error.filename or 'the output'}: {error.strerror}; free some space.", 4
        )


def _terminate(number: int, frame: FrameType | None) -> None:
    """Answer SIGTERM where no training loop does; nothing is being saved there."""
    raise InterruptedRun("stopped by SIGTERM.", number)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _check_packages() -> None:
    """Refuse to run beside another package that is called `pretrain` or `transfer`."""
    home = Path(__file__).resolve().parents[2]
    for name in ("pretrain", "transfer"):
        found = find_module(name)
        origin = found.origin if found is not None else None
        if origin is None or Path(origin).resolve().parent.parent != home:
            raise UsageError(
                f"package '{name}' comes from {origin}, not from simmim-bench; start from another folder."
            )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """How well does a backbone pretrained with SimMIM transfer?

    Pretrain a backbone, take its checkpoint to six transfer tasks, and collect the records in one
    leaderboard:

    \b
      simmim-bench pretrain --arch vit_b --data imagenet --out runs/vit_b
      simmim-bench transfer linear --ckpt runs/vit_b --data imagenet
      simmim-bench leaderboard build runs

    Begin with `simmim-bench demo`: the whole path on generated pictures, in minutes on a CPU.
    """
    context.obj = _transfer_recipes  # for `leaderboard check`, which cannot import them


def _stages() -> Stages:
    """Give what the doctor asks of both stages."""
    from pretrain.estimate import plan_pretraining
    from pretrain.recipes import PretrainRecipe, for_arch
    from transfer.estimate import data_of, plan_transfer
    from transfer.examine import EXAMINERS
    from transfer.inspection import Reading

    return Stages(
        examiners=EXAMINERS,
        reading=Reading,
        is_pretraining=lambda recipe: isinstance(recipe, PretrainRecipe),
        for_arch=for_arch,
        plan_pretraining=plan_pretraining,
        data_of=data_of,
        plan_transfer=plan_transfer,
    )


def _ablation_stages() -> AblationStages:
    """Give what an ablation does of both stages."""
    from pretrain.axes import make_grid
    from pretrain.launch import look, resolve, start
    from transfer.ablation import over_own, run_transfer_of, transfer_name, transfer_status

    return AblationStages(
        resolve=resolve,
        make_grid=make_grid,
        look_at_pretraining=look,
        transfer_status=transfer_status,
        transfer_name=transfer_name,
        pretrain=start,
        transfer=run_transfer_of,
        compare=over_own,
    )


for _command in (
    leaderboard,
    pocket,
    make_doctor(all_recipes, _stages),
    make_ablate(_pretrain_recipes, _transfer_recipes, _ablation_stages),
):
    cli.add_command(_command)


@cli.command()
@click.option(
    "--arch",
    required=True,
    metavar="ARCH",
    shell_complete=complete_arch,
    help="Architecture: vit_ti vit_s vit_b vit_l, swin_t swin_s swin_b swin_l, swinv2_t ..., convnext_t "
    "convnext_s convnext_b, resnet50 resnet101; small: vit_pocket swin_pocket convnext_pocket resnet_pocket.",
)
@run_options(_pretrain_recipes)
@click.option("--init-from", metavar="CKPT", help="Start from the weights of a SimMIM checkpoint.")
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    metavar="N",
    help="Cut each process's share of a batch into N parts; as few as fit by default.",
)
@click.option(
    "--grad-checkpointing", is_flag=True, help="Less memory: compute blocks again going backward."
)
@click.option(
    "--shard", is_flag=True, help="Spread a model that does not fit over the processes (FSDP2)."
)
@click.option("--compile", "compiled", is_flag=True, help="Through torch.compile; mostly for GPUs.")
@click.option(
    "--keep-every",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="Keep a checkpoint every N epochs, beside the last and the best.",
)
@click.option(
    "--pictures-every",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Draw reconstructions every N epochs.",
)
@click.option(
    "--skip-unreadable",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Leave out up to N images that cannot be read, and count them; one more ends the run.",
)
def pretrain(arch: str, init_from: str | None, options: RunOptions, **execution: Any) -> None:
    """Pretrain a backbone with SimMIM.

    DATA is a folder of images at any depth, or of tar shards such as WebDataset's; of its train/ where it
    has one, with val/ for the held-out loss; or hfds:NAME, a Hugging Face dataset. The checkpoint is
    RUN/checkpoints/last, the one of the lowest held-out loss checkpoints/best, pictures of
    reconstructions RUN/reconstructions.png.

    \b
      simmim-bench pretrain --arch vit_pocket --data pocket/imagenet --out runs/pocket
      simmim-bench pretrain --arch vit_b --data imagenet -o epochs=100 -o batch_size=512
      torchrun --nproc-per-node 8 -m simmim_bench pretrain --arch vit_b --data imagenet --out runs/b
      srun simmim-bench pretrain --arch vit_b --data imagenet --out runs/b --resume

    batch_size is that of all processes together. SIGTERM, SIGINT and SIGUSR1 finish the step and save it;
    --resume then ends where an undisturbed run ends. On SIGUSR1 a SLURM job is requeued as well
    (#SBATCH --signal=USR1@120).
    """
    from simmim_bench.distributed import init_distributed

    folder = f"{arch}-{options.recipe or 'default'}-seed{options.seed}"
    out = options.out or Path("runs", "pretrain", folder)
    from pretrain.launch import resolve, start
    from pretrain.train import Execution

    recipe, named = resolve(arch=arch, recipe=options.recipe, overrides=options.overrides)
    with init_distributed() as dist:
        checkpoint = start(
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
            execution=Execution(**execution),
        )
    if not dist.is_main:
        return
    shown = json.dumps({"checkpoint": str(checkpoint)}) if options.as_json else str(checkpoint)
    click.echo(shown)


@cli.command()
@click.argument("task", type=click.Choice(TASK_NAMES))
@click.option(
    "--ckpt",
    required=True,
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="Checkpoint or run directory, a weights file (SimMIM's official ones, MAE, BEiT, timm, "
    "MMPretrain), timm:NAME, or random:ARCH for the baseline.",
)
@run_options(_transfer_recipes)
@click.option(
    "--baseline",
    metavar="CKPT",
    help="Run the same recipe from `random`, or another CKPT, and say the difference with its interval.",
)
@click.option(
    "--split",
    type=click.Path(path_type=Path),
    help="The training images of fewshot, NAME or CLASS/NAME a line, such as SimCLR's 1percent.txt; drawn "
    "by default.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Folder in which linear, knn and fewshot keep the features they share; beside --out, or "
    "runs/CKPT/features.",
)
@click.option(
    "--fraction",
    type=click.Choice(["1%", "10%"]),
    show_default="1%",
    help="Share of the training images that fewshot sees.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    metavar="N",
    help="Cut each process's share of a batch of coco into N parts; as few as fit by default.",
)
@click.option(
    "--grad-checkpointing",
    is_flag=True,
    help="Less memory for coco: compute blocks again going backward.",
)
@click.option(
    "--label-maps",
    is_flag=True,
    help="Keep the label maps that ade20k predicts, as PNGs in predictions/label_maps/.",
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="N",
    help="Run N seeds, from --seed on, and say mean and standard deviation.",
)
def transfer(
    task: str,
    ckpt: str,
    fraction: str | None,
    split: Path | None,
    features: Path | None,
    baseline: str | None,
    accumulate: int | None,
    grad_checkpointing: bool,
    label_maps: bool,
    seeds: int,
    options: RunOptions,
) -> None:
    """Transfer a checkpoint to a task and record the score.

    \b
    imagenet  fine-tune all weights; top-1                   train/CLASS/*, val/CLASS/*
    linear    linear classifier on frozen features; top-1    the same
    knn       nearest neighbours of frozen features; top-1   the same
    fewshot   logistic regression on frozen features with    the same
              1% or 10% of the images; top-1
              (with --recipe imagenet_...: fine-tuned)
    coco      Mask R-CNN through Detectron2; box, mask AP    train2017/, val2017/, annotations/
    ade20k    UPerNet through MMSegmentation; mIoU           images/, annotations/ {training,validation}

    The run directory holds the predictions and record.json, computed from them: runs/CKPT/TASK/seedN by
    default, --out for one seed, --out/seedN for several.

    \b
      simmim-bench transfer linear --ckpt runs/pocket --data pocket/imagenet --seeds 3 --baseline random
      simmim-bench transfer coco --ckpt runs/pocket --data pocket/coco
      simmim-bench transfer coco --ckpt random:vit_pocket --data pocket/coco
      torchrun --nproc-per-node 8 -m simmim_bench transfer imagenet --ckpt runs/b --data imagenet

    All run under torchrun and srun as well; every image is scored once.
    """
    from simmim_bench.distributed import init_distributed
    from transfer.compare import compare_runs
    from transfer.launch import (
        TransferRequest,
        check_run_dirs,
        over_seeds,
        plan,
        plan_baseline,
        start_seeds,
    )

    numbers = range(options.seed, options.seed + seeds)
    request = TransferRequest(
        task=task,
        options=options,
        fraction=fraction,
        split=split,
        accumulate=accumulate,
        grad_checkpointing=grad_checkpointing,
        label_maps=label_maps,
        features=features,
    )
    ours = plan(request, ckpt, numbers)
    other = None if baseline is None else plan_baseline(request, ckpt, baseline, numbers)
    with init_distributed() as dist:
        how: dict[str, Any] = {
            "display": open_display(options.quiet or not dist.is_main),
            "team": dist,
        }
        # What the baseline stumbles over is known before hours are spent on ours.
        for planned in (ours, other):
            if planned is not None and dist.is_main:
                check_run_dirs(planned)
        records = start_seeds(ours, **how)
        if other is not None:
            start_seeds(other, **how)
    if not dist.is_main:
        return
    plain: dict[str, Any] = dataclasses.asdict(records[0])
    lines = [f"{metric} {value:.2f}" for metric, value in records[0].metrics.items()]
    if seeds > 1:
        spread = over_seeds(records)
        plain = {"metrics": spread, "seeds": [dataclasses.asdict(record) for record in records]}
        lines = [
            f"{metric} {value['mean']:.2f} ± {value['std']:.2f} over {seeds} seeds"
            for metric, value in spread.items()
        ]
    if task == "coco" and "mask_ap" not in records[0].metrics:
        lines.append("mask_ap n/a: the data has boxes alone")
    if other is not None:
        difference = compare_runs(ours.places, other.places)
        plain["above_baseline"] = {"baseline": other.ckpt, **dataclasses.asdict(difference)}
        lines.append(f"above {other.ckpt}: {difference}")
    click.echo(json.dumps(plain) if options.as_json else "\n".join(lines))


@cli.command()
@suite_options(_transfer_recipes)
def suite(
    options: SuiteOptions, execution: Execution, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    """Take checkpoints through every task, to whole rows of the leaderboard.

    Each step is a `transfer` in a process of its own. What is done is not done again, what was interrupted
    goes on, and a step that fails stops no other: the end says what failed and how to go on. Without
    --coco or --ade20k their tasks are left out.

    \b
      simmim-bench suite --ckpt runs/vit_b --imagenet imagenet --coco coco --ade20k ade20k --dry-run
      simmim-bench suite --ckpt runs/vit_b --imagenet imagenet --coco coco --ade20k ade20k
      simmim-bench suite --ckpt runs/a --ckpt runs/b --baseline random --imagenet pocket/imagenet \\
          --tasks linear,knn --seeds 3 --seeds knn=1 -o linear.epochs=30
      simmim-bench suite --ckpt runs/vit_b --imagenet imagenet --coco coco --gpus-per-task 8 \\
          --slurm --slurm-partition gpu --slurm-time 12:00:00 --slurm-set cpus_per_task=64

    SIGINT and SIGTERM reach the steps that run; they save and stop, and the same command goes on. SLURM's
    jobs outlive the suite, which finds them when it is started again. Exit code: 0 when all is done, else
    that of the first step that failed.
    """
    from transfer.suite.plan import check_obstacles
    from transfer.suite.report import plan_text, print_result
    from transfer.suite.run import outcome_json, plan_suite, run_suite

    planned = plan_suite(options, execution)
    if not as_json:
        click.echo(plan_text(planned) + "\n")
    elif dry_run:
        click.echo(json.dumps([one.to_json() for one in planned]))
    check_obstacles(planned)
    if dry_run:
        return
    board = options.out / "leaderboard"
    result = run_suite(planned, execution, options.out, board, open_display(quiet))
    if as_json:
        steps = [outcome_json(outcome) for outcome in result.outcomes]
        click.echo(json.dumps({"steps": steps, "leaderboard": str(result.leaderboard)}))
    else:
        print_result(result)
    sys.exit(result.exit_code)


@cli.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List all recipes; `recipes show NAME` prints one with its sources."""
    if context.invoked_subcommand is None:
        found = all_recipes()
        width = max(map(len, found))
        for name, recipe in found.items():
            click.echo(f"{name:<{width}}  {type(recipe).__name__:<14}  {recipe.source}")


@recipes.command("show")
@click.argument("name", shell_complete=complete_among(all_recipes))
@click.option("--json", "as_json", is_flag=True, help="Print the recipe as JSON.")
def recipes_show(name: str, as_json: bool) -> None:
    """Print a recipe: every number with its source, and the published score.

    \b
      simmim-bench recipes show swin_b_800ep
      simmim-bench recipes show imagenet_swin_b_800ep --json
    """
    from simmim_bench.recipe import ABOUT, find_recipe

    recipe = find_recipe(all_recipes(), name)
    plain = recipe.to_json()
    if as_json:
        click.echo(json.dumps(plain, indent=2))
        return
    shown = {key: json.dumps(value) for key, value in plain.items() if key not in ABOUT}
    width, value_width = max(map(len, shown)), min(32, max(map(len, shown.values())))
    click.echo(f"{recipe.name}\nsource     {recipe.source}")
    click.echo(f"published  {recipe.published or 'no score'}\nsha256     {recipe.sha256()}\n")
    for key, value in shown.items():
        source = recipe.source_of(key) if key in recipe.sources else ""
        click.echo(f"{key:<{width}}  {value:<{value_width}}  {source}".rstrip())


@cli.command()
@click.argument("src", metavar="SRC", shell_complete=complete_ckpt)
@click.argument("dst", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["native", "timm", "detectron2", "mmseg"]),
    default="native",
    show_default=True,
    help="Who is to read DST.",
)
@click.option(
    "--img-size", metavar="H[,W]", help="Make the position tables for this size, in pixels."
)
@click.option("--window-size", type=click.IntRange(1), help="The same for attention windows.")
@click.option(
    "--mean",
    nargs=3,
    type=float,
    metavar="R G B",
    help="Normalisation that the weights expect, where the file does not say; pixels are in [0, 1].",
)
@click.option(
    "--std", nargs=3, type=click.FloatRange(0, min_open=True), metavar="R G B", help="The same."
)
@click.option("--label", help="The row's name in a leaderboard; the file's by default.")
@click.option("--overwrite", is_flag=True, help="Replace DST.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, all names in it.")
def convert(
    src: str,
    dst: Path,
    to: str,
    img_size: str | None,
    window_size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    label: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint: read SRC, resize it if asked to, write DST, compare the features.

    SRC is any CKPT: SimMIM's official files (pretraining and fine-tuning, ViT and Swin), Swin
    Transformer's, MAE, BEiT, timm, MMPretrain, safetensors, a checkpoint directory, timm:NAME. Pickles
    are read without being executed.

    \b
    native      a checkpoint directory            --ckpt DST
    timm        config.json, model.safetensors    timm.create_model("local-dir:DST", pretrained=True)
    detectron2  a .pth                            MODEL.WEIGHTS of its Swin; of our adapter for a ViT
    mmseg       a .pth                            init_cfg of its SwinTransformer or BEiT

    \b
      simmim-bench convert simmim_pretrain__vit_base.pth checkpoints/simmim_vit_b
      simmim-bench convert mae_pretrain_vit_base.pth mae_384 --img-size 384
      simmim-bench convert runs/swin_b swin_b.pth --to mmseg
    """
    from simmim_bench.checkpoints.convert import WRITERS
    from simmim_bench.checkpoints.convert import convert as run_conversion

    if to in WRITERS:
        write = WRITERS[to]
    else:
        from transfer.export import WRITERS as FRAMEWORKS

        write = FRAMEWORKS[to]
    done = run_conversion(
        src,
        dst,
        write=write,
        to=to,
        img_size=None if img_size is None else read_size(img_size),
        window_size=window_size,
        mean=mean,
        std=std,
        label=label,
        overwrite=overwrite,
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done)))
        return
    size = "x".join(map(str, done.img_size))
    window = f", window {done.window_size}" if done.window_size else ""
    click.echo(f"read       {done.source}: {done.method}, {done.arch}, {size} pixels{window}")
    for what in ("matched", "resized", "missing", "unused"):
        names = getattr(done, what)
        shown = "" if what == "matched" else ", ".join(names[:6]) + (", ..." if names[6:] else "")
        click.echo(f"{what:<10} {len(names)}  {shown}".rstrip())
    click.echo(f"features   differ by {done.feature_difference:.1e} of their size")
    click.echo(f"wrote      {done.destination}\nuse        {done.usage}")


@cli.command()
@click.option(
    "--ckpt",
    required=True,
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="A pretraining checkpoint.",
)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of images.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="PNG to write.")
@click.option(
    "--count", default=8, show_default=True, type=click.IntRange(1), help="How many images."
)
@click.option(
    "--mask",
    "masking",
    type=click.Choice(
        ["random", "square", "block", "pixels", "regions", "multimodal", "centre", "boxes"]
    ),
    default="random",
    show_default=True,
    help="Hide what a strategy of pretraining hides, a centre square, or each image's largest object.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="COCO's JSON of instances, for --mask boxes; images are found by their file names.",
)
@click.option(
    "--mask-patch-size",
    type=click.IntRange(1),
    help="Side of the masking unit in pixels; the stride by default.",
)
@click.option(
    "--mask-ratio",
    default=0.6,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share hidden; boxes have their own.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the masks.")
def visualize(ckpt: str, images: Path, out: Path, **masking: Any) -> None:
    """Draw what a checkpoint sees: original, masked, reconstruction pasted into the visible part.

    \b
      simmim-bench visualize --ckpt runs/pocket --images data/pocket/imagenet/val --out seen.png
      simmim-bench visualize --ckpt runs/vit_b --images coco/val2017 --out objects.png \\
          --mask boxes --annotations coco/annotations/instances_val2017.json
    """
    from pretrain.visualize import draw_folder

    draw_folder(ckpt, images, out, **masking)
    click.echo(str(out))


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder to write; what is done in it is not done again.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew.")
def demo(out: Path, overwrite: bool) -> None:
    """Go the whole path on generated pictures: about ten minutes on two CPU cores.

    A small ViT, two rows (random initialisation and SimMIM), all columns, the same recipes for both.
    """
    from pretrain.launch import resolve, start
    from simmim_bench.cli.demo import ARCH, run_demo
    from simmim_bench.pocket.write import PocketCounts
    from transfer.suite.report import print_result
    from transfer.suite.run import plan_suite, run_suite

    display, on_this_machine = open_display(False), Execution()
    recipe, named = resolve(arch=ARCH, recipe=None, overrides=())
    options = run_demo(
        out,
        counts=PocketCounts(),
        overwrite=overwrite,
        display=display,
        pretrain=lambda data, folder: start(
            recipe=recipe,
            named=named,
            data=data,
            out=folder,
            seed=0,
            display=display,
            resume=True,
        ),
    )
    planned = plan_suite(options, on_this_machine)
    result = run_suite(planned, on_this_machine, options.out, out / "leaderboard", display)
    print_result(result)
    click.echo(f"reconstructions  {out / 'pretrain' / 'reconstructions.png'}")
    sys.exit(result.exit_code)
