"""A pretraining step as `pretrain` takes it, and its speed, on synthetic images."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from gpu_checks.harness import Setup
from gpu_checks.product import (
    GIB,
    BackboneSpec,
    DistContext,
    FiniteCheck,
    PretrainRecipe,
    SimMIM,
    accumulate_gradients,
    autocast,
    compile_blocks,
    count_flops,
    default_recipe,
    find_accumulation_steps,
    find_spec,
    masked_loss,
    parameter_groups,
    sample_image_mask,
    step_unless,
)
from gpu_checks.report import Findings

FORWARD_AND_BACKWARD = 3  # the backward pass has two matrix products for each of the forward pass
CLIP_GRAD = 5.0
WARM_UP = 2  # steps
TINY_ARCH, TINY_BATCH = "vit_pocket", 8


class PretrainStep:
    """A training step: normalisation, forward and backward pass, clipping, AdamW unless something is not finite.

    Args:
        precision: of the step; that of the setup by default.
        accumulation_steps: chunks of the batch; None for as few as fit in the GPU's memory.
    """

    def __init__(
        self,
        setup: Setup,
        arch: str,
        batch_size: int,
        *,
        precision: str | None = None,
        compiled: bool = False,
        accumulation_steps: int | None = 1,
    ) -> None:
        self.setup, self.batch_size, self.steps = setup, batch_size, 0
        self.recipe = default_recipe(arch)
        self.precision = precision or setup.precision
        self.spec = find_spec(self.recipe.arch).at(self.recipe.img_size, self.recipe.window_size)
        self.model = SimMIM(
            self.spec, self.recipe.design, drop_path_rate=self.recipe.drop_path_rate
        )
        self.model.to(setup.device).train()
        if compiled:
            compile_blocks(self.model.encoder.blocks_in_order)
        self.finite = FiniteCheck(DistContext(device=setup.device))
        self.optimizer = torch.optim.AdamW(
            parameter_groups(
                self.model, self.model.encoder, lr=1e-4, weight_decay=0.05, pretraining=True
            ),
            fused=True,
        )
        pixels = torch.randint(0, 256, (batch_size, 3, *self.recipe.img_size), dtype=torch.uint8)
        masks = [
            sample_image_mask(self.recipe, self.spec.patch_size, image, 0, 0, index)
            for index, image in enumerate(pixels)
        ]
        # On the device, as the training loop copies a batch while the step before it runs.
        self.batch = [
            pixels.to(setup.device),
            torch.zeros(batch_size, device=setup.device),  # labels
            torch.arange(batch_size, device=setup.device),  # indices
            torch.stack(masks).to(setup.device),
        ]
        self._compute_loss = partial(masked_loss, None, setup.device)
        self.accumulation_steps = accumulation_steps or find_accumulation_steps(
            self.model,
            [self.batch],
            self._compute_loss,
            self.precision,
            DistContext(device=setup.device),
        )

    def __call__(self, batch: list[Tensor] | None = None) -> Tensor:
        """Take a step with a batch on the device; return the mean loss without waiting for it."""
        batch = batch or self.batch
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradients(
            self.model,
            batch,
            0,
            self._compute_loss,
            self.precision,
            self.setup.device,
            self.accumulation_steps,
        )
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_GRAD)
        scale = torch.ones((), device=self.setup.device)
        step_unless(self.finite.skip(self.steps, batch, loss, norm, scale), self.optimizer)
        self.steps += 1
        return loss

    @torch.no_grad()
    def evaluate(self) -> None:
        """Run the forward pass in evaluation mode."""
        self.model.eval()
        with autocast(self.setup.device, self.precision):
            self._compute_loss(self.model, self.batch, 0)
        self.model.train()

    def measure(self, steps: int | None = None) -> Findings:
        """Measure images per second, FLOP/s and peak memory over some steps, after warming up."""
        steps = steps or (2 if self.setup.tiny else 8)
        cuda = self.setup.device.type == "cuda"
        first = self._seconds(1)
        self._seconds(WARM_UP)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = self._seconds(steps) / steps
        found: Findings = {
            "images_per_s": self.batch_size / seconds,
            "step_ms": 1e3 * seconds,
            "first_step_s": first,
            "tflop_per_s": training_flops(self.spec, self.recipe)
            * self.batch_size
            / seconds
            / 1e12,
            "loss": self().item(),
        }
        if cuda:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        return found

    def _seconds(self, steps: int) -> float:
        self.setup.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            self()
        self.setup.synchronize()
        return time.perf_counter() - started


def training_flops(spec: BackboneSpec, recipe: PretrainRecipe) -> int:
    """Count the floating-point operations of an image's training step, on shapes alone."""
    with torch.device("meta"):
        model = SimMIM(spec, recipe.design)
        image, mask = torch.empty(1, 3, *spec.img_size), torch.zeros(1, *spec.grid)
    return FORWARD_AND_BACKWARD * count_flops(lambda: model(image, mask))
