"""Compute what each task costs at full size, on one and on eight GPUs, and write results/costs.json.

    python benchmarks/costs.py && python benchmarks/tables.py

Steps, batch and disk are those of `simmim-bench doctor --recipe`, which calls the same functions, at the published
sizes of the data sets. The rate of a step is the one that a GPU check measured, where it measured one. Elsewhere it is
computed from the step's floating-point operations, at the rate of operations of a measured step, and marked as
estimated. It takes a minute or two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from separate_process import SeparateProcess

from pretrain.estimate import plan_pretraining
from pretrain.recipes import PretrainRecipe
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.options import all_recipes
from simmim_bench.diagnostics.estimate import PUBLISHED, Work
from simmim_bench.display import format_duration
from simmim_bench.overrides import override
from simmim_bench.recipe import find_recipe
from simmim_bench.training.flops import count_flops
from simmim_bench.training.memory import GIB
from transfer.tasks import load_function, runner_of, task_of

HERE = Path(__file__).resolve().parent
RESULT = "costs.json"
CPU = torch.device("cpu")
TRAINING = 3  # operations of a training step relative to its forward pass
GPUS = 8
# Images per second of a step that a GPU check measured, as the path of the figure in its report.
MEASURED = {
    "vit_b_800ep": ("pretrain_vit", "batch 256", "images_per_s"),
    "swin_b_800ep": ("pretrain_swin", "batch 256", "images_per_s"),
    "swin_b_100ep": ("pretrain_swin", "batch 256", "images_per_s"),  # another schedule of that step
    "imagenet_vit_b_800ep": ("finetune_and_features", "finetune"),
    "coco_vitdet_b": ("detector_step", "images_per_s"),
    "knn": ("finetune_and_features", "features_pinned"),
}
# Recipes with the architecture they are computed for; a measured one comes before those estimated from it.
ROWS = (
    ("vit_b_800ep", "vit_b"),
    ("swin_b_800ep", "swin_b"),
    ("swin_b_100ep", "swin_b"),
    ("swin_l_800ep", "swin_l"),
    ("swinv2_b_800ep", "swinv2_b"),
    ("imagenet_vit_b_800ep", "vit_b"),
    ("imagenet_swin_b_800ep", "swin_b"),
    ("imagenet_swin_b_100ep", "swin_b"),
    ("imagenet_swin_b_100ep_img192", "swin_b"),
    ("imagenet_swin_l_800ep", "swin_l"),
    ("imagenet_swinv2_b_800ep_prefix", "swinv2_b"),
    ("knn", "vit_b"),
    ("linear", "vit_b"),
    ("linear_mae_vit_b", "vit_b"),
    ("logistic", "vit_b"),
    ("coco_vitdet_b", "vit_b"),
    ("coco_swin_od_3x", "swin_b"),
    ("ade20k_mae_vit_b", "vit_b"),
    ("ade20k_swin_w7", "swin_b"),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a recipe.

    Attributes:
        images: images of all steps.
        gflop: floating-point operations of an image in a step, in 1e9.
        images_per_s: of one GPU.
        measured: whether the rate was measured for this recipe's step.
        disk: bytes of the run's largest files.
    """

    recipe: str
    arch: str
    task: str
    steps: int
    batch_size: int
    images: int
    gflop: float
    images_per_s: float
    measured: bool
    disk: int


def main() -> int:
    """Compute the costs on the card of a GPU check, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, default=HERE / "results" / "gpu_check_h200.json")
    parser.add_argument("--out", type=Path, default=HERE / "results" / RESULT)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    costs = [asdict(cost) for cost in compute_costs(report["checks"])]
    content = {"device": report["device"], "torch": report["torch"], "costs": costs}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def compute_costs(checks: dict[str, Any]) -> Iterator[Cost]:
    """Yield the cost of every row, each computed in a process of its own, whose memory is then free again."""
    rates: dict[
        tuple[str, bool], float
    ] = {}  # operations per second by family, and whether trained
    for name, arch in ROWS:
        print(f"{name} on {arch}", file=sys.stderr)
        process = SeparateProcess(partial, measure, name, arch)
        planned = process()
        process.close()
        family = (family_of(arch), planned.pop("trained"))
        measured = find_measured(checks, name)
        if measured is not None:
            rates.setdefault(family, measured * planned["gflop"])
        yield Cost(
            **planned,
            images_per_s=measured or float(f"{rates[family] / planned['gflop']:.3g}"),
            measured=measured is not None,
        )


def measure(name: str, arch: str) -> dict[str, Any]:
    """Plan a recipe, and count the operations of an image."""
    work = plan(name, arch)
    trained = any(p.requires_grad for p in work.model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        flops = count_flops(lambda: work.forward(work.least)) / work.least
    return {
        "recipe": name,
        "arch": arch,
        "task": task_name(name),
        "steps": work.steps,
        "batch_size": work.batch_size,
        "images": work.steps * work.batch_size,
        "gflop": round(flops * (TRAINING if trained else 1) / 1e9, 1),
        "disk": work.disk,
        "trained": trained,
    }


def plan(name: str, arch: str) -> Work:
    """Plan a recipe at the published size of its data set, as `simmim-bench doctor --recipe` does."""
    recipe = override(find_recipe(all_recipes(), name), ["precision=bf16"])
    if isinstance(recipe, PretrainRecipe):
        return plan_pretraining(recipe, PUBLISHED["imagenet"], CPU)
    data = PUBLISHED[task_of(recipe).data]
    work: Work = load_function(runner_of(recipe).estimate)(
        recipe, read_checkpoint(f"random:{arch}"), data, CPU
    )
    return work


def task_name(name: str) -> str:
    """Return the task of a recipe, or "pretrain"."""
    recipe = find_recipe(all_recipes(), name)
    return "pretrain" if isinstance(recipe, PretrainRecipe) else task_of(recipe).name


def family_of(arch: str) -> str:
    """Return the kind of backbone whose measured rate of operations applies; that of Swin V2 is Swin's."""
    return arch.partition("_")[0].removesuffix("v2")


def find_measured(checks: dict[str, Any], name: str) -> float | None:
    """Return the measured images per second of a recipe's step, if a check measured it."""
    if name not in MEASURED:
        return None
    check, *path = MEASURED[name]
    found: Any = checks[check]["findings"]
    for key in path:
        found = found[key]
    return float(found)


def markdown(content: dict[str, Any]) -> str:
    """Render the costs as a Markdown table."""
    lines = [
        f"{content['device']}, torch {content['torch']}, bfloat16.",
        "",
        "| recipe | images | images/s | 1 GPU | 8 GPUs | disk, GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cost in content["costs"]:
        rate = (
            f"{cost['images_per_s']:,.3g}"
            if cost["images_per_s"] < 100
            else f"{cost['images_per_s']:,.0f}"
        )
        seconds = cost["images"] / cost["images_per_s"]
        lines.append(
            f"| `{cost['recipe']}`, {cost['arch']} | {cost['images'] / 1e6:,.1f} M "
            f"| {rate}{'' if cost['measured'] else ' *'} | {format_duration(seconds)} "
            f"| {format_duration(seconds / GPUS)} | {cost['disk'] / GIB:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
