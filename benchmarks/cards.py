"""Estimate what a whole row of a ViT-B costs on other cards than the one that was measured.

The rate of a card is that of the measured card times the ratio of the peak rates that the vendor states: the same
fraction of the peak is assumed. Cards with slower memory or a lower power limit reach less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from simmim_bench.display import format_duration
from simmim_bench.training.memory import BACKWARD, GIB, StepMemory

ARCH = "vit_b"
MEASURED_CARD = "H200"
# The recipes of a row. The frozen tasks share one pass of the backbone; their solvers take minutes more.
COLUMNS = (
    ("imagenet_vit_b_800ep", "ImageNet fine-tuning"),
    ("linear", "linear, k-NN, 1 %, 10 %"),
    ("coco_vitdet_b", "COCO"),
    ("ade20k_mae_vit_b", "ADE20K"),
)
BATCHES = (64, 512)  # images of a pretraining step whose peaks the GPU check measured
DETECTOR_IMAGES = 2  # images of its detector step
# Steps whose peaks the GPU check measured, by the name of the check.
STEPS = {
    "pretrain_vit": "pretraining, ViT-B, 224 pixels",
    "pretrain_swin": "pretraining, Swin-B, 192 pixels",
}
_DETECTOR = "Mask R-CNN, ViT-B, 1,024 pixels"
DETECTOR_STEPS = {
    "windows of 14, the default": f"{_DETECTOR}, windows of 14 (default)",
    "windows of 14, activations recomputed": f"{_DETECTOR}, windows of 14, `--grad-checkpointing`",
    "global attention": f"{_DETECTOR}, global attention",
}


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        tflop_per_s: peak of dense bfloat16 products with float32 sums, in 1e12 operations per second.
        memory: bytes.
        source: the vendor's document that states both.
    """

    name: str
    tflop_per_s: float
    memory: int
    source: str


# Half of the figures that a data sheet states "with sparsity".
CARDS = (
    Card("H200", 989, 141 * 10**9, "NVIDIA H200 Tensor Core GPU datasheet"),
    Card("H100 SXM", 989, 80 * 10**9, "NVIDIA H100 Tensor Core GPU datasheet"),
    Card("A100 80GB", 312, 80 * 10**9, "NVIDIA A100 Tensor Core GPU datasheet"),
    Card("L40S", 362, 48 * 10**9, "NVIDIA L40S datasheet"),
    Card("RTX 4090", 165, 24 * 10**9, "NVIDIA Ada GPU Architecture whitepaper, appendix A"),
    Card("L4", 121, 24 * 10**9, "NVIDIA L4 Tensor Core GPU datasheet"),
)


def markdown(costs: list[dict[str, Any]], checks: dict[str, Any]) -> str:
    """Render the time of a row on each card as a Markdown table; a batch that does not fit has accumulation steps.

    Args:
        costs: of results/costs.json.
        checks: of the measured card's GPU check.
    """
    memories = step_memories(checks)
    by_recipe = {cost["recipe"]: cost for cost in costs if cost["arch"] == ARCH}
    row = [by_recipe[name] for name, _ in COLUMNS]
    titles = [title for _, title in COLUMNS]
    lines = [
        f"| one card | peak, TFLOP/s | memory, GB | {' | '.join(titles)} | whole row |",
        "| --- | ---: | ---: |" + " ---: |" * (len(titles) + 1),
    ]
    for card in CARDS:
        times = [seconds_on(card, cost) for cost in row]
        cells = []
        for seconds, cost in zip(times, row, strict=True):
            split = None
            if cost["task"] in memories:
                split = accumulation_steps(card, memories[cost["task"]], cost["batch_size"])
            star = "" if cost["measured"] and card.name == MEASURED_CARD else " *"
            steps = f", {split} accumulation steps" if split and split > 1 else ""
            cells.append(f"{format_duration(seconds)}{star}{steps}")
        lines.append(
            f"| {card.name} | {card.tflop_per_s:.0f} | {card.memory / 1e9:.0f} | {' | '.join(cells)} "
            f"| {format_duration(sum(times))} * |"
        )
    sources = "; ".join(f"{card.name}: {card.source}" for card in CARDS)
    return "\n".join([*lines, "", f"Peaks and memory: {sources}."])


def memory_markdown(report: dict[str, Any]) -> str:
    """Render the measured peak of memory of training steps as a Markdown table.

    Args:
        report: of a GPU check, with the names of the card and of torch.
    """
    lines = [
        f"{report['device']}, torch {report['torch']}, bfloat16.",
        "",
        "| step | images on one GPU | peak, GiB | images/s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for check, title in STEPS.items():
        for batch, found in report["checks"][check]["findings"].items():
            images = batch.removeprefix("batch ")
            lines.append(
                f"| {title} | {images} | {found['peak_gib']:.1f} | {found['images_per_s']:,.0f} |"
            )
    detector = report["checks"]["detector_step"]["findings"]
    for name, title in DETECTOR_STEPS.items():
        rate = DETECTOR_IMAGES / detector[f"seconds, {name}"]
        peak = detector[f"peak_of_{name}"].removesuffix(" GiB")
        lines.append(f"| {title} | {DETECTOR_IMAGES} | {peak} | {rate:.1f} |")
    return "\n".join(lines)


def seconds_on(card: Card, cost: dict[str, Any]) -> float:
    """Return the seconds of a recipe's steps on one card at the measured card's fraction of the peak."""
    measured = next(one for one in CARDS if one.name == MEASURED_CARD)
    return cost["images"] / cost["images_per_s"] * measured.tflop_per_s / card.tflop_per_s


def step_memories(checks: dict[str, Any]) -> dict[str, StepMemory]:
    """Return the memory of a training step by task, from the peaks that a GPU check measured.

    Fine-tuning takes about that of pretraining, whose backbone has as many patches. ADE20K's was not measured.
    """
    peaks = checks["pretrain_vit"]["findings"]
    few, many = (round(GIB * peaks[f"batch {count}"]["peak_gib"]) for count in BATCHES)
    per_image = (many - few) / (BATCHES[1] - BATCHES[0])
    fixed = round(few - BATCHES[0] * per_image)
    text: str = checks["detector_step"]["findings"]["peak_of_windows of 14, the default"]
    detector = float(text.removesuffix(" GiB")) * GIB
    return {
        "imagenet": _measured(fixed, per_image),
        "coco": _measured(fixed, (detector - fixed) / DETECTOR_IMAGES),
    }


def _measured(fixed: int, per_image: float) -> StepMemory:
    return StepMemory(fixed=fixed, per_image=per_image / BACKWARD, available=None)


def accumulation_steps(card: Card, memory: StepMemory, batch_size: int) -> int | None:
    """Return into how many accumulation steps a batch is split on a card; None where no image fits."""
    return replace(memory, available=card.memory).accumulation_steps(batch_size)
