"""The stages of a Cascade R-CNN as MMDetection has them, with Detectron2's modules.

Follows arXiv 1712.00726 and mmdet/models/roi_heads/cascade_roi_head.py of Swin's detection repository. It differs from
Detectron2's `CascadeROIHeads`: every stage samples its regions, and adds the objects' own boxes to them; boxes may be
predicted per class; every stage has a mask head; losses of later stages weigh less, and gradients to the pyramid are
not scaled; in tests the stages' logits, and their masks, are averaged.

Imports Detectron2 at the top: import this module after `framework.require_detectron2` has passed.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

# Swin-OD: configs/_base_/models/cascade_mask_rcnn_swin_fpn.py:45
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
# Swin-OD: the same file, lines 61, 77 and 93; Detectron2's weights are the inverses.
BOX_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))

Predictions = tuple[Tensor, Tensor]  # class logits (R, K + 1) and box offsets (R, 4) or (R, 4 K)


class MMDetCascadeROIHeads(CascadeROIHeads):
    """Heads of a Cascade R-CNN of three stages; `mask_head` is a list of one per stage."""

    def forward(
        self,
        images: Any,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return proposals and losses in training, detections and no losses otherwise."""
        if not self.training:
            found: tuple[list[Instances], dict[str, Tensor]] = super().forward(
                images, features, proposals
            )
            return found
        assert targets is not None
        box_features = [features[name] for name in self.box_in_features]
        losses: dict[str, Tensor] = {}
        regions = [_new_regions(p.image_size, p.proposal_boxes) for p in proposals]
        for stage, weight in enumerate(STAGE_WEIGHTS):
            with get_event_storage().name_scope(f"stage{stage}"):
                self.proposal_matcher = self.proposal_matchers[stage]
                sampled = self.label_and_sample_proposals(regions, targets)
                predictions = self._run_stage(box_features, sampled, stage)
                own = self.box_predictor[stage].losses(predictions, sampled)
                own.update(self._mask_losses(features, sampled, stage))
            losses.update({f"{name}_stage{stage}": weight * loss for name, loss in own.items()})
            refined = self._refine(predictions, sampled, stage)
            # Only an object's own box has an objectness here; the next stage adds it anew.
            regions = [r[s.objectness_logits <= 0] for r, s in zip(refined, sampled, strict=True)]
        return proposals, losses

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> Predictions:
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        predictions: Predictions = self.box_predictor[stage](self.box_head[stage](pooled))
        return predictions

    @torch.no_grad()
    def _refine(
        self, predictions: Predictions, proposals: list[Instances], stage: int
    ) -> list[Instances]:
        """Return regions with the predicted boxes, of the object's class or else of the most probable one."""
        counts = [len(p) for p in proposals]
        best = predictions[0][:, :-1].argmax(1).split(counts)
        boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
        refined = []
        for own, label, proposal in zip(boxes, best, proposals, strict=True):
            if self.training:
                label = torch.where(
                    proposal.gt_classes == self.num_classes, label, proposal.gt_classes
                )
            by_class = own.view(len(own), own.shape[1] // 4, 4)
            if by_class.shape[1] == 1:
                label = torch.zeros_like(label)
            chosen = Boxes(by_class[torch.arange(len(own), device=own.device), label])
            chosen.clip(proposal.image_size)
            refined.append(_new_regions(proposal.image_size, chosen))
        return refined

    def _mask_losses(
        self, features: dict[str, Tensor], sampled: list[Instances], stage: int
    ) -> dict[str, Tensor]:
        if not self.mask_on:
            return {}
        positive, _ = select_foreground_proposals(sampled, self.num_classes)
        levels = [features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler(levels, [p.proposal_boxes for p in positive])
        losses: dict[str, Tensor] = self.mask_head[stage](pooled, positive)
        return losses

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: Any = None
    ) -> list[Instances]:
        """Return the detections of the last stage's boxes with the class logits' mean over the stages."""
        levels = [features[name] for name in self.box_in_features]
        predictions = self._run_stage(levels, proposals, 0)
        logits = [predictions[0]]
        for stage in range(1, self.num_cascade_stages):
            proposals = self._refine(predictions, proposals, stage - 1)
            predictions = self._run_stage(levels, proposals, stage)
            logits.append(predictions[0])
        mean = torch.stack(logits).mean(0)
        found: list[Instances]
        found, _ = self.box_predictor[-1].inference((mean, predictions[1]), proposals)
        return found

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add the mean of the stages' masks to the detections."""
        if not self.mask_on:
            return instances
        levels = [features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler(levels, [i.pred_boxes for i in instances])
        by_stage = [[i.pred_masks for i in head(pooled, instances)] for head in self.mask_head]
        for image, masks in zip(instances, zip(*by_stage, strict=True), strict=True):
            image.pred_masks = torch.stack(masks).mean(0)
        return instances


def _new_regions(image_size: tuple[int, int], boxes: Boxes) -> Instances:
    regions = Instances(image_size)
    regions.proposal_boxes = boxes
    regions.objectness_logits = boxes.tensor.new_zeros(len(boxes))
    return regions
