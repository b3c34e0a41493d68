"""Claims about the memory of a training step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simmim_bench.errors import UsageError
from simmim_bench.memory import GIB, StepMemory, available_memory, step_memory

CPU = torch.device("cpu")


def test_what_is_kept_for_the_backward_pass_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 4))
    images = torch.randn(8, 16)
    memory = step_memory(model, lambda: model(images).sum(), 8, CPU)
    # The first layer keeps its input, GELU its own, the last layer its own.
    assert memory.per_image == 4 * (16 + 40 + 40)
    weights = sum(p.nbytes for p in model.parameters())
    assert memory.fixed == 4 * weights
    model[0].requires_grad_(False)
    frozen = step_memory(model, lambda: model(images).sum(), 8, CPU)
    assert frozen.fixed == weights + 3 * 4 * (40 * 4 + 4)
    assert frozen.per_image == 4 * 40  # what the last layer keeps


def test_a_measurement_leaves_the_generator_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    step_memory(model, lambda: model(torch.ones(2, 4)), 2, CPU)
    assert torch.equal(torch.rand(1), wanted)


def test_a_batch_is_cut_into_as_few_parts_as_fit() -> None:
    memory = StepMemory(fixed=2 * GIB, per_image=0.8 * GIB, available=20 * GIB)
    # Of 20 GiB 18 are used, of which 2 are taken: 16 images of 0.8 GiB, a quarter more going backward.
    assert [memory.parts(n) for n in (1, 16, 17, 32, 33, 128)] == [1, 1, 2, 2, 4, 8]
    assert StepMemory(fixed=1, per_image=1.0, available=None).parts(1000) == 1


def test_an_image_that_does_not_fit_is_refused() -> None:
    memory = StepMemory(fixed=2 * GIB, per_image=8 * GIB, available=10 * GIB)
    with pytest.raises(UsageError, match=r"one image needs about 12.0 GiB, 9.0 GiB can be used"):
        memory.parts(4)


def test_the_systems_memory_is_known_on_linux() -> None:
    available = available_memory(CPU)
    assert available is None or 2**24 < available < 2**50
