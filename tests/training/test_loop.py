"""Test that options of speed and memory do not change results, and what a training run logs and keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretraining import pretrain_pocket
from support.tiny import TINY
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pretrain.flops import forward_flops
from pretrain.masking.masks import sample_masks
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM
from pretrain.train import TrainOptions, pretrain
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.loader import EpochLoader
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import InterruptedRun, UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.attention import select_attention
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.recipe import Precision
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir, open_run
from simmim_bench.training import loop
from simmim_bench.training.accumulation import (
    LossFunction,
    accumulate_gradients,
    find_accumulation_steps,
)
from simmim_bench.training.compilation import compile_blocks
from simmim_bench.training.flops import CPU_SIDE
from simmim_bench.training.precision import (
    SMALL_SIDE,
    bf16_speedup,
    decide_precision,
    default_precision,
    describe_slow_precision,
)
from simmim_bench.training.state import choose_accumulation_steps

CPU = torch.device("cpu")


def gradients(spec: BackboneSpec, change: Callable[[SimMIM], object]) -> dict[str, Tensor]:
    """Return the gradients of one step with dropped paths, after a change to the model."""
    model = SimMIM(spec, drop_path_rate=0.3).double().train()
    change(model)
    torch.manual_seed(5)
    images = torch.randn(3, 3, *spec.img_size, dtype=torch.float64)
    masks = sample_masks(
        3, spec.img_size, mask_patch_size=spec.stride, patch_size=spec.patch_size, mask_ratio=0.5
    )
    model(images, masks).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["checkpointing", "fused"])
def test_gradient_checkpointing_and_fused_attention_give_the_same_gradients(
    tiny_spec: BackboneSpec, form: str
) -> None:
    if tiny_spec.is_convolutional:  # a depthwise convolution in float64 is slow
        tiny_spec = tiny_spec.at((tiny_spec.stride, 2 * tiny_spec.stride))
    plain = gradients(tiny_spec, lambda model: None)

    def change(model: SimMIM) -> None:
        if form == "checkpointing":
            model.encoder.set_grad_checkpointing(True)
        else:
            select_attention(model, training=False)

    other = gradients(tiny_spec, change)
    assert plain.keys() == other.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-9, msg=name)


def test_gradient_checkpointing_saves_fewer_activations(tiny_spec: BackboneSpec) -> None:
    def saved(checkpointing: bool) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        model = SimMIM(tiny_spec).train()
        model.encoder.set_grad_checkpointing(checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.encoder.encode(model.encoder.embed(torch.randn(4, 3, *tiny_spec.img_size)))
        return sum(sizes)

    assert saved(True) < 0.5 * saved(False)


def test_accumulation_steps_are_the_fewest_that_fit() -> None:
    model, tried = nn.Linear(3, 1), list[int]()
    images_and_labels: Any = TensorDataset(torch.zeros(12, 3), torch.zeros(12))
    loader = EpochLoader(images_and_labels, batch_size=12, num_workers=0, seed=0)

    def loss_with_room_for(images: int) -> LossFunction:
        def compute_loss(model: nn.Module, batch: list[Tensor], epoch: int) -> Tensor:
            tried.append(len(batch[0]))
            if len(batch[0]) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss: Tensor = model(batch[0]).mean()
            return loss

        return compute_loss

    def steps(images: int) -> int:
        tried.clear()
        return find_accumulation_steps(
            model, loader.epoch(0), loss_with_room_for(images), "fp32", DistContext()
        )

    assert (steps(12), tried) == (1, [12])
    assert (steps(11), tried) == (2, [12, 6])
    assert (steps(3), tried) == (4, [12, 6, 3])
    assert (steps(1), tried) == (12, [12, 6, 3, 2, 1])
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(UsageError, match="one image does not fit"):
        steps(0)


@pytest.mark.parametrize(
    ("precision", "width", "gain", "wanted"),
    [
        ("fp32", 768, 9.0, "fp32"),
        ("bf16", 64, 0.1, "bf16"),
        ("fp16", 64, 9.0, "fp16"),
        ("auto", 768, 2.5, "bf16"),
        ("auto", 768, 0.6, "fp32"),  # a CPU that supports bfloat16 and is slower with it
        ("auto", 128, 2.5, "fp32"),
    ],
)
def test_a_cpu_computes_in_the_faster_precision(
    precision: Precision, width: int, gain: float, wanted: str
) -> None:
    assert decide_precision(precision, CPU, width, lambda: gain) == wanted


@pytest.mark.parametrize(
    ("native", "scaled", "unscaled"), [(True, "bf16", "bf16"), (False, "fp16", "fp32")]
)
def test_a_gpu_that_emulates_bfloat16_uses_float16_where_gradients_are_scaled(
    monkeypatch: pytest.MonkeyPatch, native: bool, scaled: str, unscaled: str
) -> None:
    def is_supported(
        including_emulation: bool = True,
    ) -> bool:  # as torch answers on an A100 and a V100
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    gpu = torch.device("cuda")
    assert decide_precision("auto", gpu, 64) == scaled
    assert default_precision("auto", gpu, allow_fp16=True) == scaled
    assert default_precision("auto", gpu) == unscaled


@pytest.mark.parametrize(
    ("slower", "tried", "gain"),
    [
        (50.0, [SMALL_SIDE], 0.02),
        (0.5, [SMALL_SIDE, CPU_SIDE], 2.0),
        (2.0, [SMALL_SIDE, CPU_SIDE], 0.5),
    ],
)
def test_a_cpu_without_bfloat16_is_timed_on_a_small_product_alone(
    slower: float, tried: list[int], gain: float
) -> None:
    sides: list[int] = []

    def time_of(matrix: Tensor) -> float:
        if matrix.dtype == torch.bfloat16:
            sides.append(matrix.shape[0])
        return slower if matrix.dtype == torch.bfloat16 else 1.0

    assert bf16_speedup(time_of) == pytest.approx(gain)
    assert sides == tried


def test_flops_equal_the_closed_form() -> None:
    # A ViT's block: 24 L D^2 + 4 L^2 D for L tokens; embedding and head: 2 D p^2 C per patch each.
    spec = find_spec("vit_b").at((224, 224), None)
    tokens, dim, patches = 197, 768, 196
    blocks = 12 * (24 * tokens * dim**2 + 4 * tokens**2 * dim)
    ends = 2 * (2 * patches * dim * 16 * 16 * 3)
    assert forward_flops(spec) == blocks + ends


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run(out: Path, data: Path, epochs: int, options: TrainOptions) -> None:
    recipe = replace(POCKET, epochs=epochs, warmup_epochs=0, batch_size=30)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as opened:
        context = RunContext(run=opened, seed=0)
        pretrain(context, recipe=recipe, deviates={}, data=data, options=options)


@pytest.mark.heavy
def test_every_second_checkpoint_and_the_best_are_kept(tmp_path: Path, pocket: Path) -> None:
    run(tmp_path / "run", pocket / "imagenet", 5, TrainOptions(keep_every=2, visualize_every=3))
    folder = tmp_path / "run" / "checkpoints"
    kept = {p.name: read_checkpoint(str(p)).provenance for p in folder.iterdir()}
    assert kept.keys() == {"last", "previous", "best", "epoch_0002", "epoch_0004"}
    assert (kept["epoch_0002"]["epochs"], kept["epoch_0004"]["epochs"]) == (2, 4)
    lines = metrics(tmp_path / "run")
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert len(held_out) == 5
    assert kept["best"]["held_out_loss"] == min(held_out)
    assert not (folder / "best" / "training.pt").exists()
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    (last,) = re.findall(r"pretrain: epoch=5/5 loss=(\S+) lr=\S+ images_per_s=\S+ time=", log)
    assert 0 < float(last) < 10


@pytest.mark.heavy
def test_the_loss_of_an_epoch_is_the_mean_of_its_steps_since_a_resume(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = list[float]()

    def accumulate(*arguments: Any) -> Tensor:
        losses.append(float(loss := accumulate_gradients(*arguments)))
        return loss

    def stop(*_: Any, save: Any, **__: Any) -> None:
        save()
        raise InterruptedRun("stopped", 15)

    settings = ("epochs=1", "batch_size=4")  # of 12 images
    monkeypatch.setattr(loop, "accumulate_gradients", accumulate)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "raise_if_stopped", stop)
        with pytest.raises(InterruptedRun):
            pretrain_pocket(tmp_path / "run", few, *settings)
    pretrain_pocket(tmp_path / "run", few, *settings, resume=True)
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    mean = (losses[1] + losses[2]) / 2
    assert len(losses) == 3
    assert f"{mean:.4f}" != f"{losses[2]:.4f}"
    assert f"pretrain: epoch=1/1 resumed_after_step=1/3 loss={mean:.4f} lr=" in log


@pytest.mark.heavy
def test_metrics_have_the_rate_of_operations(tmp_path: Path, pocket: Path) -> None:
    run(tmp_path / "run", pocket / "imagenet", 1, TrainOptions())
    spec = find_spec("vit_pocket").at(POCKET.img_size, None)
    line = next(line for line in metrics(tmp_path / "run") if "loss" in line)
    wanted = 3 * forward_flops(spec) * line["images_per_s"] / 1e9
    assert line["gflop_per_s"] == pytest.approx(wanted)
    assert line["flop_share"] > 0


def test_sharding_with_one_process_is_refused(tmp_path: Path, pocket: Path) -> None:
    with pytest.raises(UsageError, match="start them by torchrun"):
        run(tmp_path / "run", pocket / "imagenet", 1, TrainOptions(shard=True))


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_gradients() -> None:
    spec = TINY["vit"]
    # Inductor's dropped paths are other random numbers; without them, the gradients are equal.
    plain = gradients(spec, lambda model: model.encoder.eval())

    def compile_model(model: SimMIM) -> None:
        model.encoder.eval()
        compile_blocks(model.encoder.blocks_in_order)

    compiled = gradients(spec, compile_model)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-9, msg=name)


@pytest.mark.heavy
def test_fewer_gpus_find_the_accumulation_steps_anew(tmp_path: Path) -> None:
    opened = RunDir(tmp_path, Display(quiet=True))

    def steps(
        device: str, processes: int, saved: dict[str, Any] | None, requested: int | None = None
    ) -> int:
        dist = DistContext(size=processes, device=torch.device(device))
        context = RunContext(run=opened, seed=0, dist=dist)
        return choose_accumulation_steps(requested, context, saved, lambda: 8)

    before = {"accumulate": 2, "processes": 4}
    assert steps("cuda", 2, before) == 8
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "processes=2 instead of 4: accumulation_steps=8 instead of 2" in log
    assert steps("cuda", 4, before) == steps("cuda", 8, before) == 2
    assert steps("cuda", 2, before, requested=3) == 3
    assert steps("cuda", 2, {"accumulate": 2}) == 2  # of version 0.2
    assert steps("cuda", 2, {}) == steps("cuda", 2, None) == 8
    assert steps("cpu", 2, before) == 2
    assert steps("cpu", 2, None) == 1
    opened.close()


def test_float16_on_a_cpu_is_advised_against() -> None:
    (line,) = describe_slow_precision("fp16", CPU)
    assert "use --precision fp32" in line
    for precision, device in (("fp16", torch.device("cuda")), ("bf16", CPU), ("auto", CPU)):
        assert not describe_slow_precision(precision, device)
