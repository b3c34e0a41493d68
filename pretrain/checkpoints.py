"""Write the checkpoints of a pretraining, and evaluate held-out images whenever an epoch has ended.

The figure of reconstructions is plotted after a minute as well, where the first epoch takes longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from pretrain.evaluation.held_out import held_out_metrics, visualize_held_out
from pretrain.evaluation.probe import ProbeImages, describe_cost, probe_features, probe_scores
from pretrain.run import Pretraining
from simmim_bench.checkpoints.checkpoint import keep_checkpoint, write_checkpoint
from simmim_bench.display import format_duration
from simmim_bench.training.compilation import uncompiled
from simmim_bench.training.memory import peak_memory

EARLY_S = 60.0  # ours: seconds of training after which the first reconstructions are plotted


def is_finished(provenance: Mapping[str, Any]) -> bool:
    """Return whether a run has ended: its total cost is the last thing that its checkpoint receives."""
    return "wall_time_s" in provenance


class CheckpointWriter:
    """Write a run's checkpoints, and evaluate held-out images at the end of every epoch.

    Args:
        constant_loss: loss of the best constant prediction, logged with the held-out loss.
        provenance: what the checkpoint stores about the run; figures are added as they are known.
    """

    def __init__(
        self, pretraining: Pretraining, *, constant_loss: float, provenance: dict[str, Any]
    ) -> None:
        self.pretraining = pretraining
        self.constant_loss = constant_loss
        self.provenance = provenance
        self.best = min(pretraining.context.run.read_metric("held_out_loss"), default=math.inf)
        self.probe_s = sum(pretraining.context.run.read_metric("probe_s"))
        self._began = time.monotonic()
        self.figure = pretraining.context.run.path / "reconstructions.png"
        self._shown = self._logged = self.figure.is_file()  # a resumed run has one
        self._keep_resumed()

    def show_early(self) -> None:
        """Plot reconstructions once after a minute, where the first epoch takes longer.

        Rank 0 alone has the whole model, so that a sharded one is first plotted after an epoch.
        """
        if self._shown or time.monotonic() - self._began < EARLY_S:
            return
        self._shown = True
        model = self.pretraining.model
        usable = model.reconstruction_target.can_visualize and not self.pretraining.options.shard
        if not (usable and self.pretraining.context.dist.is_main):
            return
        device = self.pretraining.context.dist.device
        with (
            uncompiled(model.encoder.blocks_in_order),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            self._plot(self.pretraining.state.epochs_done)
        # As the loop does before an epoch; it also drops what a model computes once for evaluation.
        self.pretraining.state.parallel_model.train()

    def _plot(self, epochs: float) -> None:
        """Write the figure of reconstructions; the first one is logged."""
        pretraining, run = self.pretraining, self.pretraining.context.run
        figure = self.figure if pretraining.context.dist.is_main else None
        visualize_held_out(
            pretraining.model,
            pretraining.recipe,
            pretraining.held_out,
            figure,
            skip_unreadable=pretraining.options.skip_unreadable,
        )
        run.add_image("reconstructions", int(epochs), figure)
        if not self._logged:
            self._logged = True
            run.log(f"pretrain: reconstructions {self.figure} after {epochs:.2f} epochs")

    def save(self) -> None:
        """Write the last checkpoint; after an epoch, evaluate it, and copy it to best/ or epoch_NNNN/ if due."""
        context, state = self.pretraining.context, self.pretraining.state
        epoch, inside = divmod(state.step, len(state.loader))
        evaluate = not inside and not is_finished(self.provenance)
        if evaluate and (context.dist.is_main or self.pretraining.options.shard):
            with uncompiled(self.pretraining.model.encoder.blocks_in_order):
                self._evaluate(epoch)
        weights, training = state.state_dict(context.dist)
        if not context.dist.is_main:
            return
        write_checkpoint(
            context.run.last_checkpoint,
            state=weights,
            spec=self.pretraining.spec,
            form="pretrain",
            mean=self.pretraining.recipe.statistics[0],
            std=self.pretraining.recipe.statistics[1],
            value_range=self.pretraining.recipe.value_range,
            provenance={**self.provenance, "epochs": round(state.epochs_done, 3)},
            training=training,
        )
        if evaluate:
            self._keep(epoch, self.provenance["held_out_loss"])

    def _evaluate(self, epoch: int) -> None:
        """Measure the reconstruction of held-out images, and plot some of them."""
        pretraining, context = self.pretraining, self.pretraining.context
        model, recipe, run = pretraining.model, pretraining.recipe, context.run
        metrics = held_out_metrics(
            model,
            recipe,
            pretraining.held_out,
            device=context.dist.device,
            precision=pretraining.state.precision,
            skip_unreadable=pretraining.options.skip_unreadable,
        )
        self.provenance.update(metrics)
        run.metrics(pretraining.state.step - 1, **metrics, trivial_loss=self.constant_loss)
        if pretraining.probe is not None and self._is_due(epoch, pretraining.options.probe_every):
            self._probe(epoch, pretraining.probe)
        due = self._is_due(epoch, pretraining.options.visualize_every)
        if due and model.reconstruction_target.can_visualize:
            self._shown = True
            self._plot(epoch)

    def _is_due(self, epoch: int, every: int) -> bool:
        return epoch % every == 0 or epoch == self.pretraining.recipe.epochs

    def _probe(self, epoch: int, images: ProbeImages) -> None:
        """Score the features on labelled images; log the scores and the time that all probes took so far."""
        pretraining, context = self.pretraining, self.pretraining.context
        run, started = context.run, time.monotonic()
        features = probe_features(
            pretraining.model,
            images.pixels,
            statistics=pretraining.recipe.statistics,
            device=context.dist.device,
            precision=pretraining.state.precision,
        )
        if not context.dist.is_main:
            return
        scores = probe_scores(features, images, pretraining.spec)
        seconds = time.monotonic() - started
        self.probe_s += seconds
        self.provenance["probe"] = {"epoch": epoch, **scores}
        run.metrics(
            pretraining.state.step - 1,
            **{f"probe_{name}": score for name, score in scores.items()},
            probe_s=round(seconds, 3),
        )
        shown = " ".join(f"{name}={score:.2f}" for name, score in scores.items())
        cost = describe_cost(self.probe_s, run.wall_time_s(), pretraining.options.probe_every)
        run.log(f"probe: epoch={epoch} {shown} time={format_duration(seconds)}; {cost}")

    def _keep(self, epoch: int, held_out_loss: float) -> None:
        """Keep the checkpoint of the lowest held-out loss, and one every `keep_every` epochs."""
        last = self.pretraining.context.run.last_checkpoint
        if held_out_loss < self.best:
            self.best = held_out_loss
            keep_checkpoint(last, "best")
        keep_every = self.pretraining.options.keep_every
        if keep_every and epoch % keep_every == 0:
            keep_checkpoint(last, f"epoch_{epoch:04d}")

    def _keep_resumed(self) -> None:
        """Keep the checkpoint that the run continues from, if a kill has come between its writing and this."""
        context, state = self.pretraining.context, self.pretraining.state
        epoch, inside = divmod(state.step, len(state.loader))
        losses = context.run.read_metric("held_out_loss")
        if not (epoch and context.dist.is_main) or inside or len(losses) < epoch:
            return
        self.best = min(losses[:-1], default=math.inf)
        self._keep(epoch, losses[-1])

    def finish(self) -> None:
        """Write the final checkpoint with wall time and device count, whose presence marks the run as finished."""
        context, dataset = self.pretraining.context, self.pretraining.dataset
        run = context.run
        if dataset.skipped:  # counted in this process and its loader's workers
            run.log(f"pretrain: skipped unreadable_images={dataset.skipped}")
            self.provenance["unreadable_images"] = dataset.skipped
        if (
            "held_out_loss" not in self.provenance
        ):  # killed after the last epoch, before its evaluation
            self.save()
        self.provenance["wall_time_s"] = round(run.wall_time_s(), 1)
        self.provenance["devices"] = context.dist.size
        self.provenance["peak_memory_bytes"] = peak_memory(context.dist.device)
        self.save()
        if context.dist.is_main:
            self._log_result()

    def _log_result(self) -> None:
        run, metrics = self.pretraining.context.run, self.provenance
        result = f"pretrain: finished held_out_loss={metrics['held_out_loss']:.4f}"
        if self.pretraining.model.reconstruction_target.can_visualize:
            result += (
                f" psnr={metrics['psnr']:.2f} dB ssim={metrics['ssim']:.3f} of hidden pixels; "
                f"{run.path / 'reconstructions.png'}"
            )
        run.log(result)
