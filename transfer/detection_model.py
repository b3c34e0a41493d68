"""Mask R-CNN of Detectron2's own parts, its training and its inference.

In: a checkpoint, a recipe, loaders. Out: a trained `GeneralizedRCNN`, and results in COCO's form.
Follows arXiv 1703.06870 with the heads of ViTDet (arXiv 2203.16527, appendix A.2) where the recipe says so.
Imports Detectron2 at the top: `detection.py` loads this module only after it made sure of it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import Instances
from torch import nn

from simmim_bench.checkpoint import Checkpoint
from simmim_bench.display import Task
from simmim_bench.engine import METRICS_EVERY, StopRequest, stop_on_signals
from simmim_bench.errors import DivergedError, InterruptedRun
from simmim_bench.kernels import autocast
from simmim_bench.optim import Schedule
from simmim_bench.rundir import RunDir
from transfer.dense_recipes import CocoRecipe
from transfer.detection_data import CocoSplit, PlainErrors
from transfer.detectron2_backbone import SimMIMBackbone, build_detection_backbone

SAVE_EVERY = 1000  # iterations; some minutes of a GPU


def build_detector(
    checkpoint: Checkpoint,
    recipe: CocoRecipe,
    *,
    num_classes: int,
    masks: bool,
    seed: int,
    device: torch.device,
) -> GeneralizedRCNN:
    """Build Mask R-CNN, or Faster R-CNN without masks; what the checkpoint lacks comes from the seed."""
    backbone = build_detection_backbone(checkpoint, recipe, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GeneralizedRCNN(
            backbone=backbone,
            proposal_generator=_rpn(backbone, recipe),
            roi_heads=_roi_heads(backbone, recipe, num_classes=num_classes, masks=masks),
            pixel_mean=[255 * value for value in checkpoint.mean],
            pixel_std=[255 * value for value in checkpoint.std],
            input_format="RGB",
        )
    # Detectron2's own AMPTrainer needs CUDA; as a decorator, autocast serves inference as well.
    model.forward = autocast(device, recipe.precision)(model.forward)  # type: ignore[operator]
    return model.to(device)


def _rpn(backbone: Backbone, recipe: CocoRecipe) -> RPN:
    levels = backbone.output_shape()
    return RPN(
        in_features=list(levels),
        head=StandardRPNHead(
            in_channels=recipe.neck_channels,
            num_anchors=len(recipe.anchor_ratios),
            conv_dims=[-1] * recipe.rpn_convs,
        ),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[size] for size in recipe.anchor_sizes],
            aspect_ratios=list(recipe.anchor_ratios),
            strides=[level.stride for level in levels.values()],
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=recipe.rpn_samples,
        positive_fraction=0.5,
        pre_nms_topk=recipe.pre_nms_topk,
        post_nms_topk=recipe.post_nms_topk,
        nms_thresh=0.7,
    )


def _roi_heads(
    backbone: Backbone, recipe: CocoRecipe, *, num_classes: int, masks: bool
) -> StandardROIHeads:
    levels, width = backbone.output_shape(), recipe.neck_channels
    # A level pooled from another is for proposals only, as in Detectron2's FPN models.
    names = list(levels)[: len(levels) - (0 if backbone.top_block is None else 1)]

    def pooler(size: int) -> ROIPooler:
        return ROIPooler(
            output_size=size,
            scales=[1 / levels[name].stride for name in names],
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
            # 224 pixels at stride 16, for COCO's anchors: 7/4 of the level's anchor.
            canonical_box_size=recipe.anchor_sizes[0] * 7 / 4,
            canonical_level=int(math.log2(recipe.strides[0])),
        )

    box_head = FastRCNNConvFCHead(
        ShapeSpec(channels=width, height=recipe.box_pool, width=recipe.box_pool),
        conv_dims=[width] * recipe.box_head_convs,
        fc_dims=[recipe.box_head_dim] * recipe.box_head_fcs,
        conv_norm=recipe.head_norm,
    )
    mask_parts: dict[str, Any] = {}
    if masks:
        mask_parts = {
            "mask_in_features": names,
            "mask_pooler": pooler(recipe.mask_pool),
            "mask_head": MaskRCNNConvUpsampleHead(
                ShapeSpec(channels=width, height=recipe.mask_pool, width=recipe.mask_pool),
                num_classes=1 if recipe.class_agnostic else num_classes,
                conv_dims=[width] * (recipe.mask_head_convs + 1),  # the last one doubles the size
                conv_norm=recipe.head_norm,
            ),
        }
    return StandardROIHeads(
        num_classes=num_classes,
        batch_size_per_image=recipe.roi_samples,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=names,
        box_pooler=pooler(recipe.box_pool),
        box_head=box_head,
        box_predictor=FastRCNNOutputLayers(
            box_head.output_shape,
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            num_classes=num_classes,
            test_score_thresh=recipe.score_threshold,
            test_topk_per_image=recipe.detections,
            cls_agnostic_bbox_reg=recipe.class_agnostic,
        ),
        **mask_parts,
    )


def train_detector(
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    loader: PlainErrors,
    *,
    recipe: CocoRecipe,
    first_iter: int,
    seed: int,
    run: RunDir,
    save: Callable[[int, dict[str, float]], None],
) -> None:
    """Train with Detectron2's loop from an iteration to the recipe's last.

    Args:
        save: called with the iterations done and the last one's losses.

    Raises:
        DivergedError: a loss or a predicted box is not finite; the last checkpoint stays.
        InterruptedRun: SIGINT or SIGTERM came; all that was done is saved.
    """
    trainer = SimpleTrainer(model, loader, optimizer)
    with (
        stop_on_signals() as stop,
        run.display.task("coco", recipe.max_iters) as task,
    ):
        task.advance(first_iter)
        hook = RunHook(recipe, schedule, seed, run, task, stop, save)
        trainer.register_hooks([hook])
        try:
            trainer.train(first_iter, recipe.max_iters)
        except FloatingPointError as error:  # Detectron2 checks losses and proposals
            raise DivergedError(
                f"coco: the loss is not finite at iteration {trainer.iter + 1}; "
                f"lower base_lr {recipe.base_lr:g} with -o base_lr=..."
            ) from error


class RunHook(HookBase):
    """What happens around Detectron2's step: seed, rate, clipping, figures, saving, stopping."""

    def __init__(
        self,
        recipe: CocoRecipe,
        schedule: Schedule,
        seed: int,
        run: RunDir,
        task: Task,
        stop: StopRequest,
        save: Callable[[int, dict[str, float]], None],
    ) -> None:
        self.recipe, self.schedule, self.seed = recipe, schedule, seed
        self.run, self.task, self.stop, self.save = run, task, stop, save
        self.lr = self.grad_norm = 0.0
        self.started = time.monotonic()

    def before_step(self) -> None:
        """Seed the sampling of anchors and regions by the iteration: a resumed run draws the same."""
        torch.manual_seed(self.seed * 1_000_003 + self.trainer.iter)
        self.lr = self.schedule.apply(self.trainer.optimizer, self.trainer.iter)

    def after_backward(self) -> None:
        """Clip the norm of the whole gradient."""
        limit = self.recipe.clip_grad or math.inf
        self.grad_norm = float(nn.utils.clip_grad_norm_(self.trainer.model.parameters(), limit))

    def after_step(self) -> None:
        """Report and save; end the loop where a signal asked for it."""
        done, last = self.trainer.iter + 1, self.recipe.max_iters
        losses = {
            name.replace("total_loss", "loss"): float(value)
            for name, (value, _) in self.trainer.storage.latest().items()
            if name.startswith("loss_") or name == "total_loss"
        }
        self.task.advance(1, loss=losses["loss"])
        if done % METRICS_EVERY == 0 or done == last:
            seen = (done - self.trainer.start_iter) * self.recipe.batch_size
            rate = round(seen / (time.monotonic() - self.started), 1)
            self.run.metrics(
                done, lr=self.lr, grad_norm=self.grad_norm, images_per_s=rate, **losses
            )
        if done % SAVE_EVERY == 0 or done == last or self.stop.number is not None:
            self.save(done, losses)
        if self.stop.number is not None and done < last:
            raise InterruptedRun(
                f"coco: stopped by {signal.Signals(self.stop.number).name}; {done} of {last} iterations "
                "are saved, go on with --resume.",
                self.stop.number,
            )


def detect(
    model: GeneralizedRCNN, loader: PlainErrors, split: CocoSplit, task: Task, keep: int
) -> tuple[list[dict[str, Any]], list[Instances], int]:
    """Give all detections as COCO results, the first `keep` images' as instances, and the images seen."""
    collector = ResultCollector(split.category_ids, task, keep)
    inference_on_dataset(model, loader, collector)
    return collector.results, collector.kept, collector.images


class ResultCollector(DatasetEvaluator):
    """Gather detections in COCO's form, with the category ids of the annotation file."""

    def __init__(self, category_ids: Sequence[int], task: Task, keep: int) -> None:
        self.category_ids, self.task, self.keep = category_ids, task, keep
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.results: list[dict[str, Any]] = []
        self.kept: list[Instances] = []
        self.images = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Instances]]) -> None:
        """Take a batch of images and what was found in them."""
        for image, found in zip(inputs, outputs, strict=True):
            instances = found["instances"].to("cpu")
            for result in instances_to_coco_json(instances, image["image_id"]):
                category_id = self.category_ids[result["category_id"]]
                self.results.append({**result, "category_id": category_id})
            if len(self.kept) < self.keep:
                self.kept.append(instances)
            self.images += 1
        self.task.advance(len(inputs))


def find_adapter(model: GeneralizedRCNN) -> SimMIMBackbone:
    """Find our backbone's adapter within a detector."""
    (adapter,) = (m for m in model.modules() if isinstance(m, SimMIMBackbone))
    return adapter
