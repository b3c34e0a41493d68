"""Run a detector on the validation images of all processes and collect results in COCO's form.

Imports Detectron2 at the top: import this module after `framework.require_detectron2` has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances

from simmim_bench.display import ProgressTask
from simmim_bench.distributed import DistContext
from transfer.detection.coco_layout import CocoSplit
from transfer.detection.data import ErrorUnwrappingLoader


def detect(
    model: GeneralizedRCNN,
    loader: ErrorUnwrappingLoader,
    split: CocoSplit,
    task: ProgressTask,
    *,
    keep: int,
    dist: DistContext,
) -> tuple[list[dict[str, Any]], list[Instances], int]:
    """Detect the objects of every image that the loaders of all processes yield.

    Args:
        task: progress, advanced by one per image of this process.
        keep: number of images whose detections are also returned as instances.

    Returns:
        All detections as COCO results, in the images' order, the instances of this process's first `keep`
        images, and the number of images; complete on rank 0 only.
    """
    collector = ResultCollector(split.category_ids, task, keep)
    inference_on_dataset(model, loader, collector)
    by_rank = dist.gather((collector.results, collector.images))
    results = [result for own, _ in by_rank for result in own]
    return results, collector.kept, sum(images for _, images in by_rank)


class ResultCollector(DatasetEvaluator):
    """Collects detections in COCO's form, with the category ids of the annotation file."""

    def __init__(self, category_ids: Sequence[int], task: ProgressTask, keep: int) -> None:
        self.category_ids, self.task, self.keep = category_ids, task, keep
        self.reset()

    def reset(self) -> None:
        """Discard all collected results."""
        self.results: list[dict[str, Any]] = []
        self.kept: list[Instances] = []
        self.images = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Instances]]) -> None:
        """Add the detections of a batch."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            for result in instances_to_coco_json(instances, image["image_id"]):
                category_id = self.category_ids[result["category_id"]]
                self.results.append({**result, "category_id": category_id})
            if len(self.kept) < self.keep:
                self.kept.append(instances)
            self.images += 1
        self.task.advance(len(inputs))
