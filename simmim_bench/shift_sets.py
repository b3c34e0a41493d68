"""The validation sets of `transfer shift`: what is known of each without torch.

A score on ImageNet's validation set is one number on images that models have been selected on for a decade. These sets
have the same classes, and other images or other labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHIFT_TASK = "shift"  # as `simmim-bench transfer` takes it


@dataclass(frozen=True, kw_only=True)
class ShiftSet:
    """A published validation set.

    Attributes:
        name: as in `--data NAME=DIR`.
        title: heading of its column in the leaderboard.
        full_name: name in messages.
        folders: the class folders, in a few words, for `--help`.
        images: number of images that are scored; of a set with conditions, of each one.
        source: where the number and the rule of scoring are from.
        predictions: the kind of file that the scores are computed from; see `results/shift.py`.
    """

    name: str
    title: str
    full_name: str
    folders: str
    images: int
    source: str
    predictions: Literal["ranking", "multilabel", "corruptions"] = "ranking"


SHIFT_SETS: dict[str, ShiftSet] = {
    shift.name: shift
    for shift in (
        ShiftSet(
            name="v2",
            title="V2",
            full_name="ImageNet-V2",
            folders="0 to 999",
            images=10_000,
            source="arXiv 1902.10811; modestyachts/ImageNetV2: code/make_imagenet_folders.py numbers the "
            "sorted WordNet ids",
        ),
        ShiftSet(
            name="real",
            title="ReaL",
            full_name="ReaL",
            folders="ImageNet itself: val/CLASS/*",
            images=46_837,
            source="arXiv 2006.07159; 3,163 of the 50,000 images have no label and are left out, as in timm: "
            "data/real_labels.py",
            predictions="multilabel",
        ),
        ShiftSet(
            name="a",
            title="A",
            full_name="ImageNet-A",
            folders="200 WordNet ids",
            images=7_500,
            source="arXiv 1907.07174; hendrycks/natural-adv-examples: eval.py compares the logits of the 200 "
            "classes alone",
        ),
        ShiftSet(
            name="r",
            title="R",
            full_name="ImageNet-R",
            folders="200 WordNet ids",
            images=30_000,
            source="arXiv 2006.16241; hendrycks/imagenet-r: eval.py compares the logits of the 200 classes "
            "alone",
        ),
        ShiftSet(
            name="sketch",
            title="Sketch",
            full_name="ImageNet-Sketch",
            folders="1000 WordNet ids",
            images=50_889,
            source="arXiv 1905.13549",
        ),
        ShiftSet(
            name="c",
            title="C",
            full_name="ImageNet-C",
            folders="CORRUPTION/SEVERITY/CLASS/*",
            images=50_000,
            source="arXiv 1903.12261; hendrycks/robustness: ImageNet-C/test.py",
            predictions="corruptions",
        ),
    )
}


def shift_record_name(name: str) -> str:
    """Return the task as records name it: `shift-v2`; `shift` for a folder of a user's own."""
    return f"{SHIFT_TASK}-{name}" if name in SHIFT_SETS else SHIFT_TASK
