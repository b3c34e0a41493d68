"""A step of a study that pretrains: the work of one process, and the command that runs it alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.build import check_sizes
from pretrain.launch import pretraining_status, run_pretraining
from pretrain.recipes import PretrainRecipe, resolve_recipe
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import DataError
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.recipe import deviations
from simmim_bench.runs.status import RunStatus
from simmim_bench.untrusted.json_text import read_json


@dataclass(frozen=True, kw_only=True)
class PretrainStep:
    """One pretraining with one seed.

    Attributes:
        title: the step, as messages name it.
        recipe, named: the recipe with and without the overrides.
        words: the arguments of `simmim-bench` that choose the recipe.
        out: the run directory, which is also the CKPT of the result.
        log: file with the process's output.
        init_from: CKPT of the initial weights; None to initialise them from the seed.
    """

    title: str
    recipe: PretrainRecipe
    named: PretrainRecipe
    words: tuple[str, ...]
    data: Path
    seed: int
    out: Path
    log: Path
    init_from: str | None = None

    def __str__(self) -> str:
        return self.title

    @property
    def exclusive_resource(self) -> str | None:
        """None: it shares nothing."""
        return None

    @property
    def spec(self) -> BackboneSpec:
        """The spec of the backbone.

        Raises:
            UsageError: sizes that do not divide each other, or a design that the backbone cannot have.
        """
        return check_sizes(self.recipe)

    @property
    def deviates(self) -> dict[str, Any]:
        """Every difference from the named recipe."""
        return deviations(self.recipe, self.named)

    @property
    def kind(self) -> str:
        """The recipe and the images, with which duration and memory go."""
        own = f" {self.recipe.sha256()[:8]}" if self.deviates else ""
        return f"pretrain {self.named.name}{own} {self.recipe.arch} {self.data}"

    def statuses(self) -> list[tuple[RunStatus, str]]:
        """Return the status of the run, and the reason where it is blocked."""
        return [
            pretraining_status(
                run_dir=self.out,
                recipe=self.recipe,
                named=self.named,
                data=self.data,
                seed=self.seed,
                init_from=self.init_from,
            )
        ]

    def arguments(self) -> list[str]:
        """Return the arguments of `simmim-bench` that do the remaining work."""
        start = [] if self.init_from is None else ["--init-from", self.init_from]
        run = ["--data", str(self.data), "--seed", str(self.seed), "--out", str(self.out)]
        return ["pretrain", *self.words, *start, *run, "--resume"]

    def command(self) -> str:
        """Return the command that runs the step alone, ready to be pasted into a shell."""
        return shlex.join(["simmim-bench", *self.arguments()])

    def run(self, display: Display, dist: DistContext) -> None:
        """Run what is left of the step, in this process."""
        run_pretraining(
            recipe=self.recipe,
            named=self.named,
            data=self.data,
            out=self.out,
            seed=self.seed,
            display=display,
            dist=dist,
            init_from=self.init_from,
            resume=True,
        )

    def expected_checkpoint(self) -> Checkpoint:
        """Return what is known of the checkpoint before it exists: everything but weights and their hash.

        Raises:
            UsageError: see `spec`.
        """
        mean, std = self.recipe.statistics
        return Checkpoint(
            name=str(self.out),
            spec=self.spec,
            form="pretrain",
            state=None,
            sha256="",
            mean=mean,
            std=std,
            value_range=self.recipe.value_range,
            provenance={"label": self.title, "recipe": {"name": self.recipe.name}},
        )


def make_pretrain_step(
    *,
    title: str,
    arch: str,
    recipe: str | None,
    overrides: Sequence[str],
    data: Path,
    seed: int,
    out: Path,
    log: Path,
    init_from: str | None = None,
) -> PretrainStep:
    """Resolve the recipe of a pretraining, and return its step.

    Raises:
        UsageError: an unknown arch or recipe, or an override that the recipe does not have.
    """
    resolved, named = resolve_recipe(arch=arch, recipe=recipe, overrides=overrides)
    words = ["--arch", arch, *(["--recipe", recipe] if recipe else [])]
    words += [word for text in overrides for word in ("-o", text)]
    return PretrainStep(
        title=title,
        recipe=resolved,
        named=named,
        words=tuple(words),
        data=data,
        seed=seed,
        out=out,
        log=log,
        init_from=init_from,
    )


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """Read what a pretraining's last checkpoint says of the run; empty if there is none."""
    meta = run_dir / "checkpoints" / "last" / "meta.json"
    try:
        provenance: dict[str, Any] = read_json(meta, "checkpoint file", finite=False)["provenance"]
    except DataError:
        return {}
    return provenance
