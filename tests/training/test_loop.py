"""Claims about how a run is carried out: what changes speed and memory changes no result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import TINY
from torch import Tensor, nn

import simmim_bench.training.precision as kernels
from pretrain.masking.masks import random_masks
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM
from pretrain.train import Execution, _forward_flops, pretrain
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.models.archs import BackboneSpec, find_spec
from simmim_bench.runs.run_dir import open_run
from simmim_bench.training.accumulation import find_accumulation_steps
from simmim_bench.training.precision import decide_precision

CPU = torch.device("cpu")


def gradients(spec: BackboneSpec, change: Callable[[SimMIM], object]) -> dict[str, Tensor]:
    """Give the gradients of one step with dropped paths, after a change to the model."""
    model = SimMIM(spec, drop_path_rate=0.3).double().train()
    change(model)
    torch.manual_seed(5)
    images = torch.randn(3, 3, *spec.img_size, dtype=torch.float64)
    masks = random_masks(
        3, spec.img_size, mask_patch_size=spec.stride, patch_size=spec.patch_size, mask_ratio=0.5
    )
    model(images, masks).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", ["checkpointing", "fused"])
def test_less_memory_and_other_kernels_give_the_same_gradients(
    tiny_spec: BackboneSpec, form: str
) -> None:
    if tiny_spec.is_convolutional:  # a depthwise convolution in float64 is slow
        tiny_spec = tiny_spec.at((tiny_spec.stride, 2 * tiny_spec.stride))
    plain = gradients(tiny_spec, lambda model: None)

    def change(model: SimMIM) -> None:
        if form == "checkpointing":
            model.encoder.set_grad_checkpointing(True)
        else:
            kernels.select_attention(model, training=False)

    other = gradients(tiny_spec, change)
    assert plain.keys() == other.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-9, msg=name)


def test_checkpointing_keeps_less(tiny_spec: BackboneSpec) -> None:
    def kept(checkpointing: bool) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        model = SimMIM(tiny_spec).train()
        model.encoder.set_grad_checkpointing(checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.encoder.encode(model.encoder.embed(torch.randn(4, 3, *tiny_spec.img_size)))
        return sum(sizes)

    assert kept(True) < 0.5 * kept(False)


class FakeLoader:
    """One batch of 12 images."""

    def epoch(self, number: int) -> list[list[Tensor]]:
        return [[torch.zeros(12, 3), torch.zeros(12), torch.arange(12)]]


def test_parts_are_as_few_as_fit() -> None:
    model, request = nn.Linear(3, 1), []

    def loss_with_room_for(images: int) -> Callable[[Any, int], Tensor]:
        def loss_of(batch: list[Tensor], epoch: int) -> Tensor:
            request.append(len(batch[0]))
            if len(batch[0]) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss: Tensor = model(batch[0]).mean()
            return loss

        return loss_of

    def parts(images: int) -> int:
        request.clear()
        return find_accumulation_steps(
            model, FakeLoader(), loss_with_room_for(images), "fp32", DistContext()
        )

    assert (parts(12), request) == (1, [12])
    assert (parts(11), request) == (2, [12, 6])
    assert (parts(3), request) == (4, [12, 6, 3])
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(UsageError, match="one image does not fit"):
        parts(0)


@pytest.mark.parametrize(
    ("precision", "width", "gain", "wanted"),
    [
        ("fp32", 768, 9.0, "fp32"),
        ("bf16", 64, 0.1, "bf16"),
        ("auto", 768, 2.5, "bf16"),
        ("auto", 768, 0.6, "fp32"),  # a processor that has it and is slower with it
        ("auto", 128, 2.5, "fp32"),
    ],
)
def test_a_processor_computes_in_what_is_faster(
    monkeypatch: pytest.MonkeyPatch, precision: str, width: int, gain: float, wanted: str
) -> None:
    monkeypatch.setattr(kernels, "_bf16_gain", lambda: gain)
    assert decide_precision(precision, CPU, width) == wanted


@pytest.mark.parametrize(
    ("slower", "tried", "gain"),
    [(50.0, [256], 0.02), (0.5, [256, 1024], 2.0), (2.0, [256, 1024], 0.5)],
)
def test_a_processor_without_bfloat16_is_not_tried_for_long(
    monkeypatch: pytest.MonkeyPatch, slower: float, tried: list[int], gain: float
) -> None:
    sides: list[int] = []

    def product_time(a: Tensor) -> float:
        if a.dtype == torch.bfloat16 and a.shape[0] not in sides:
            sides.append(a.shape[0])
        return slower if a.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(kernels, "_product_time", product_time)
    assert kernels._bf16_gain() == pytest.approx(gain)
    assert sides == tried


def test_flops_are_those_of_the_formula() -> None:
    # A ViT's block: 24 L D^2 + 4 L^2 D for L tokens; embedding and head: 2 D p^2 C a patch each.
    spec = find_spec("vit_b").at((224, 224), None)
    tokens, dim, patches = 197, 768, 196
    blocks = 12 * (24 * tokens * dim**2 + 4 * tokens**2 * dim)
    ends = 2 * (2 * patches * dim * 16 * 16 * 3)
    assert _forward_flops(spec) == blocks + ends


def figures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run(out: Path, data: Path, epochs: int, execution: Execution) -> None:
    recipe = replace(POCKET, epochs=epochs, batch_size=30)
    with open_run(
        out, recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as opened:
        pretrain(recipe=recipe, deviates={}, data=data, run=opened, seed=0, execution=execution)


def test_checkpoints_are_kept_every_so_often_and_the_best(tmp_path: Path, pocket: Path) -> None:
    run(tmp_path / "run", pocket / "imagenet", 5, Execution(keep_every=2, pictures_every=3))
    folder = tmp_path / "run" / "checkpoints"
    kept = {p.name: read_checkpoint(str(p)).provenance for p in folder.iterdir()}
    assert kept.keys() == {"last", "previous", "best", "epoch_0002", "epoch_0004"}
    assert (kept["epoch_0002"]["epochs"], kept["epoch_0004"]["epochs"]) == (2, 4)
    told = [line["held_out_loss"] for line in figures(tmp_path / "run") if "held_out_loss" in line]
    assert len(told) == 5
    assert kept["best"]["held_out_loss"] == min(told)
    assert not (folder / "best" / "training.pt").exists()


def test_speed_is_told_as_operations_and_a_share(tmp_path: Path, pocket: Path) -> None:
    run(tmp_path / "run", pocket / "imagenet", 1, Execution())
    spec = find_spec("vit_pocket").at(POCKET.img_size, None)
    line = next(line for line in figures(tmp_path / "run") if "loss" in line)
    wanted = 3 * _forward_flops(spec) * line["images_per_s"] / 1e9
    assert line["gflop_per_s"] == pytest.approx(wanted)
    assert line["flop_share"] > 0


def test_sharding_alone_is_refused(tmp_path: Path, pocket: Path) -> None:
    with pytest.raises(UsageError, match="start them by torchrun"):
        run(tmp_path / "run", pocket / "imagenet", 1, Execution(shard=True))


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_gradients() -> None:
    spec = TINY["vit"]
    plain = gradients(spec, lambda model: model.encoder.eval())
    compiled = gradients(spec, lambda model: (model.encoder.eval(), model.compile()))
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-9, msg=name)
