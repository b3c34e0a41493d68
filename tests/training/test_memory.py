"""Test the memory estimate of a training step."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simmim_bench.training.memory import (
    GIB,
    StepMemory,
    available_memory,
    optimizer_bytes,
    step_memory,
    trial_memory,
)

CPU = torch.device("cpu")


def test_saved_activations_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 4))
    images = torch.randn(8, 16)
    memory = step_memory(model, lambda: model(images).sum(), 8, CPU)
    # Each of the three layers saves its input.
    assert memory.per_image == 4 * (16 + 40 + 40)
    weights = sum(p.nbytes for p in model.parameters())
    assert memory.fixed == 4 * weights
    model[0].requires_grad_(False)
    frozen = step_memory(model, lambda: model(images).sum(), 8, CPU)
    assert frozen.fixed == weights + 3 * 4 * (40 * 4 + 4)
    assert frozen.per_image == 4 * 40  # the input of the last layer


class Biased(nn.Module):
    """Adds to a layer's output a product with something that does not depend on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(16, 40), nn.Parameter(torch.ones(40))

    def forward(self, images: Tensor) -> Tensor:
        return (self.layer(images) * self.table.exp()).sum()


def test_what_does_not_grow_with_the_images_is_counted_once() -> None:
    model = Biased()
    memory = step_memory(
        model,
        lambda: model(torch.ones(8, 16)),
        8,
        CPU,
        forward_double=lambda: model(torch.ones(16, 16)),
    )
    # Saved are the layer's input and output, and the exponential.
    assert (memory.per_image, memory.shared) == (4 * (16 + 40), 4 * 40)
    alone = step_memory(model, lambda: model(torch.ones(8, 16)), 8, CPU)
    assert alone.per_image == 4 * (16 + 40) + 4 * 40 / 8


def test_a_measurement_does_not_advance_the_generator() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    step_memory(model, lambda: model(torch.ones(2, 4)), 2, CPU)
    assert torch.equal(torch.rand(1), wanted)


def test_accumulation_steps_are_the_fewest_that_fit() -> None:
    memory = StepMemory(fixed=2 * GIB, per_image=0.9 * GIB, available=20 * GIB)
    # 18 of 20 GiB are usable and 2 are fixed: 16 images of 0.9 GiB, a tenth more in the backward pass.
    assert [memory.accumulation_steps(n) for n in (1, 16, 17, 32, 33, 128)] == [1, 1, 2, 2, 4, 8]
    tight = StepMemory(fixed=2 * GIB, per_image=8 * GIB, available=14 * GIB)
    assert [tight.accumulation_steps(n) for n in (1, 2, 3, 6)] == [1, 2, 3, 6]
    assert StepMemory(fixed=1, per_image=1.0, available=None).accumulation_steps(1000) == 1

    assert (
        StepMemory(fixed=2 * GIB, per_image=8 * GIB, available=10 * GIB).accumulation_steps(4)
        is None
    )


def test_processes_share_a_cpus_memory() -> None:
    model = nn.Linear(4, 4)
    one = step_memory(model, lambda: model(torch.ones(2, 4)), 2, CPU)
    four = step_memory(model, lambda: model(torch.ones(2, 4)), 2, CPU, processes=4)
    assert four.fixed == one.fixed
    if one.available is not None and four.available is not None:
        assert four.available < one.available / 2


def test_a_containers_limit_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if available_memory(CPU) is None:
        pytest.skip("only Linux reports free memory")
    (tmp_path / "limit").write_text("9000000\n")
    (tmp_path / "used").write_text("2000000\n")
    files = (str(tmp_path / "limit"), str(tmp_path / "used"))
    monkeypatch.setattr("simmim_bench.training.memory.CONTAINER", (files,))
    assert available_memory(CPU) == 7_000_000
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 800000\n")
    assert available_memory(CPU) == 7_800_000
    (tmp_path / "limit").write_text("max\n")
    assert (available_memory(CPU) or 0) > 7_000_000


@pytest.mark.parametrize(
    ("processes", "shard", "steps", "copies"),
    [
        (1, False, 1, 3),
        (8, False, 4, 3),  # DDP's buckets are the gradients; see test_processes.py
        (8, True, 1, 3 / 8),
        (8, True, 4, 1 + 3 / 8),  # whole gradients are accumulated
    ],
)
def test_gradients_and_moments_are_counted_per_process(
    processes: int, shard: bool, steps: int, copies: float
) -> None:
    model = nn.Linear(64, 64, bias=False)
    found = optimizer_bytes(model, processes, shard=shard, accumulation_steps=steps)
    assert found == copies * 4 * 64 * 64


@pytest.mark.parametrize(("name", "index"), [("cuda:1", 1), ("cuda", 0)])
def test_a_trial_leaves_room_and_no_trace_in_the_peak(
    monkeypatch: pytest.MonkeyPatch, name: str, index: int
) -> None:
    calls: list[tuple[object, ...]] = []
    # What torch.cuda's functions call in the end, so that they check the device themselves.
    for function in ("emptyCache", "setMemoryFraction", "resetPeakMemoryStats"):
        monkeypatch.setattr(
            torch._C,
            f"_cuda_{function}",
            lambda *given, function=function: calls.append((function, *given)),
            raising=False,
        )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda.memory, "is_initialized", lambda: True)
    with suppress(torch.OutOfMemoryError), trial_memory(torch.device(name)):
        assert calls[-1] == ("setMemoryFraction", 0.92, index)
        raise torch.OutOfMemoryError
    assert calls[-3:-1] == [("setMemoryFraction", 1.0, index), ("emptyCache",)]
    assert calls[-1][0] == "resetPeakMemoryStats"
