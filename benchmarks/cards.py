"""Estimate what a whole row of a ViT-B costs on other cards than the one that was measured.

The rate of a card is that of the measured card times the ratio of the peak rates that the vendor states: the same
fraction of the peak is assumed. Cards with slower memory or fewer watts reach less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simmim_bench.display import format_duration
from simmim_bench.training.memory import GIB, StepMemory

ARCH = "vit_b"
MEASURED_CARD = "H200"
# The recipes of a row. The frozen tasks share one pass of the backbone; their solvers take minutes more.
COLUMNS = (
    ("imagenet_vit_b_800ep", "ImageNet fine-tuning"),
    ("linear", "linear, k-NN, 1 %, 10 %"),
    ("coco_vitdet_b", "COCO"),
    ("ade20k_mae_vit_b", "ADE20K"),
)
ACCUMULATES = (
    "imagenet",
    "coco",
)  # tasks that split a batch which does not fit into parts of a step


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


# Of figures that a data sheet states "with sparsity", the half.
CARDS = (
    Card("H200", 989, 141 * 10**9, "NVIDIA H200 Tensor Core GPU datasheet"),
    Card("H100 SXM", 989, 80 * 10**9, "NVIDIA H100 Tensor Core GPU datasheet"),
    Card("A100 80GB", 312, 80 * 10**9, "NVIDIA A100 Tensor Core GPU datasheet"),
    Card("L40S", 362, 48 * 10**9, "NVIDIA L40S datasheet"),
    Card("RTX 4090", 165, 24 * 10**9, "NVIDIA Ada GPU Architecture whitepaper, appendix A"),
    Card("L4", 121, 24 * 10**9, "NVIDIA L4 Tensor Core GPU datasheet"),
)


def markdown(costs: list[dict[str, Any]]) -> str:
    """Render the time of a row on each card as a Markdown table, with the parts of a batch that does not fit.

    Args:
        costs: of results/costs.json.
    """
    by_recipe = {cost["recipe"]: cost for cost in costs if cost["arch"] == ARCH}
    row = [by_recipe[name] for name, _ in COLUMNS]
    titles = [title for _, title in COLUMNS]
    lines = [
        f"| one card | peak, TFLOP/s | memory, GB | {' | '.join(titles)} | whole row |",
        "| --- | ---: | ---: |" + " ---: |" * (len(titles) + 1),
    ]
    for card in CARDS:
        times = [seconds_on(card, cost) for cost in row]
        cells = [
            f"{format_duration(seconds)}{fit(card, cost)}"
            for seconds, cost in zip(times, row, strict=True)
        ]
        how = "" if card.name == MEASURED_CARD else ", estimated"
        lines.append(
            f"| {card.name}{how} | {card.tflop_per_s:.0f} | {card.memory / 1e9:.0f} | {' | '.join(cells)} "
            f"| {format_duration(sum(times))} |"
        )
    sources = "; ".join(f"{card.name}: {card.source}" for card in CARDS)
    return "\n".join([*lines, "", f"Peaks and memory: {sources}."])


def seconds_on(card: Card, cost: dict[str, Any]) -> float:
    """Return the seconds of a recipe's steps on one card at the measured card's fraction of the peak."""
    measured = next(one for one in CARDS if one.name == MEASURED_CARD)
    return cost["images"] / cost["images_per_s"] * measured.tflop_per_s / card.tflop_per_s


def fit(card: Card, cost: dict[str, Any]) -> str:
    """Say in how many parts a batch fits in a card's memory; "" where it fits as a whole."""
    memory = StepMemory(fixed=cost["fixed"], per_image=cost["per_image"], available=card.memory)
    parts = memory.accumulation_steps(cost["batch_size"])
    if parts == 1:
        return ""
    if parts is None:
        return ", does not fit"
    if cost["task"] in ACCUMULATES:
        return f", batch in {parts} parts"
    needed = memory.needed(cost["batch_size"]) / GIB
    return f", needs {needed:.0f} GiB: use {parts} cards"
