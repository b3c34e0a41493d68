"""`simmim-bench evaluate`: score a fine-tuned model without training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from simmim_bench.api.evaluation import TASKS, Evaluated, run_evaluate
from simmim_bench.api.score_context import describe_files, score_context
from simmim_bench.api.transfer_result import images_se
from simmim_bench.cli.options import (
    complete_arch,
    complete_ckpt,
    scoring_recipes,
)
from simmim_bench.cli.recipe_help import RecipeCommand, evaluation_recipe
from simmim_bench.cli.recipe_options import SCORING_FLAGS
from simmim_bench.cli.run_options import run_options
from simmim_bench.recipe import Recipe
from simmim_bench.runs.options import RunOptions
from simmim_bench.tasks import format_metric

if TYPE_CHECKING:
    from simmim_bench.results.scored_runs import ScoredRuns


class EvaluateCommand(RecipeCommand):
    """`evaluate`, whose recipe --recipe or the task chooses."""

    def choose_recipe(self, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe that the arguments choose."""
        return evaluation_recipe(given)


@click.command(cls=EvaluateCommand)
@click.argument("task", type=click.Choice(TASKS))
@click.option(
    "--ckpt",
    required=True,
    metavar="CKPT",
    shell_complete=complete_ckpt,
    help="Run of `transfer`, a weights file, a timm folder, or timm:NAME.",
)
@run_options(
    scoring_recipes,
    recipe_help="Named recipe; by default a run's own, `evaluate_imagenet` with the preprocessing of a file's "
    "publisher, or the default of coco or ade20k for the backbone.",
    override_example="test_crop_ratio=1",
    seeded=False,
    flags=SCORING_FLAGS,
)
@click.option(
    "--model",
    metavar="NAME",
    help="For imagenet: timm:NAME or torchvision:NAME, the model of a weights file that does not show it.",
)
@click.option(
    "--backbone",
    metavar="CKPT",
    shell_complete=complete_arch,
    help="For coco and ade20k: the backbone of a model file, a CKPT or an architecture such as vit_b.",
)
def evaluate(
    task: str, ckpt: str, model: str | None, backbone: str | None, options: RunOptions
) -> None:
    """Score a fine-tuned model without training, and record the score.

    \b
      imagenet  a classifier on val/CLASS/*: top-1, top-5
      coco      a detector on val2017/: box and mask AP
      ade20k    a segmentor on images/validation/: mIoU

    A run of `transfer` is scored again under its own recipe. A classifier can also be an official file of SimMIM,
    Swin Transformer, MAE or BEiT, a model of timm, or a file of torchvision. Its images are preprocessed as its
    publisher does, unless -o says otherwise: img_size, test_crop_ratio, crop_mode, interpolation, mean, std. Class
    k is the k-th folder in alphabetical order.

    \b
      simmim-bench evaluate imagenet --ckpt runs/vit_b/imagenet/seed0 --data imagenet
      simmim-bench evaluate imagenet --ckpt simmim_finetune__vit_base.pth --data imagenet
      simmim-bench evaluate imagenet --ckpt resnet50-11ad3fa6.pth --data imagenet
      simmim-bench evaluate imagenet --ckpt timm:deit_small_patch16_224 --data imagenet --img-size 256
      simmim-bench evaluate imagenet --ckpt x.pth --model timm:vit_base_patch16_224.augreg_in1k --data imagenet
      simmim-bench evaluate coco --ckpt runs/vit_b/coco/seed0 --data coco

    A model file that Detectron2 or MMSegmentation wrote, with the backbone of this project, needs the backbone
    and the recipe:

    \b
      simmim-bench evaluate coco --ckpt model_final.pth --backbone runs/vit_b --recipe coco_vitdet_b --data coco
      simmim-bench evaluate ade20k --ckpt iter_160000.pth --backbone vit_b --data ade20k

    The run directory, runs/CKPT/evaluate-TASK by default (with -DATA for a second data set), holds the predictions
    and record.json. A published score of the model's recipe is printed next to the score. images ± is the standard
    error from the number of images.
    """
    found = run_evaluate(task, ckpt, options, model=model, backbone=backbone)
    if found.runs is None:
        return
    lines, plain = summarise(found, found.runs)
    click.echo(json.dumps(plain) if options.as_json else "\n".join(lines))


def summarise(found: Evaluated, runs: ScoredRuns) -> tuple[list[str], dict[str, Any]]:
    """Return the scores, those that training recorded, and a published one, as lines and as JSON.

    Args:
        runs: the evaluation's run alone.
    """
    scores, lines = runs.scores(), []
    for metric, score in scores.items():
        before = ""
        if metric in found.trained:
            before = f"  (training recorded {format_metric(metric, found.trained[metric])})"
        lines.append(f"{metric} {score}{before}")
    if runs.unknown:
        lines.append(f"without images ±: {runs.unknown}")
    context = score_context(runs)
    lines += context.lines(scores)
    if found.published is not None:
        lines.append(f"published: {found.published}")
    plain = {
        **dataclasses.asdict(runs.first),
        "images_se": images_se(scores),
        "trained": dict(found.trained) or None,
        "published": found.published,
        "chance": dict(context.chance) or None,
    }
    return [*lines, *describe_files([runs])], plain
