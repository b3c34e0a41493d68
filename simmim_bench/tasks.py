"""The tasks."""

from __future__ import annotations

from dataclasses import dataclass

DATA_SETS = ("imagenet", "coco", "ade20k")


@dataclass(frozen=True)
class Kind:
    """One task of a row: the command's task, its fraction, and whose data it learns from."""

    task: str
    fraction: str | None
    data: str


KINDS = {  # as records call them; first what costs least
    "linear": Kind("linear", None, "imagenet"),
    "knn": Kind("knn", None, "imagenet"),
    "fewshot-1%": Kind("fewshot", "1%", "imagenet"),
    "fewshot-10%": Kind("fewshot", "10%", "imagenet"),
    "imagenet": Kind("imagenet", None, "imagenet"),
    "coco": Kind("coco", None, "coco"),
    "ade20k": Kind("ade20k", None, "ade20k"),
}


GROUPS = {"fewshot": ("fewshot-1%", "fewshot-10%")}
