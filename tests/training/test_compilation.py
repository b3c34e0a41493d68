"""Test that compiled blocks compute what eager ones do, without graph breaks, and when a run is compiled."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from support.tiny import TINY

from pretrain.simmim import SimMIM
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext
from simmim_bench.models.archs import find_spec
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.compilation import (
    WORTHWHILE_STEPS,
    compile_blocks,
    decide_compile,
    uncompiled,
)


def loss_of(model: SimMIM, images: int = 1) -> torch.Tensor:
    """Return the loss of random images with dropped paths, the same in every call."""
    torch.manual_seed(0)
    inputs = torch.randn(images, 3, *model.spec.img_size)
    masks = (torch.rand(images, *model.spec.grid) < 0.6).float()
    return model(inputs, masks).loss


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "side", "window"), [("vit_b", 224, None), ("swin_b", 192, 6), ("swinv2_b", 192, 6)]
)
def test_every_block_is_one_graph_that_gives_the_eager_loss(
    arch: str, side: int, window: int | None
) -> None:
    torch.compiler.reset()
    model = SimMIM(find_spec(arch).at((side, side), window), drop_path_rate=0.1).train()
    before = graphs()
    with torch.no_grad():
        eager = loss_of(model)
        compile_blocks(model.encoder.blocks_in_order, backend="eager", fullgraph=True)
        assert float(loss_of(model) - eager) == pytest.approx(0, abs=1e-6)
    assert graphs() - before == model.spec.num_blocks  # their drop-path rates differ


@pytest.mark.slow
def test_compiled_blocks_that_recompute_activations_give_the_eager_gradients(
    tiny_spec: BackboneSpec,
) -> None:
    torch.compiler.reset()
    eager = SimMIM(tiny_spec, drop_path_rate=0.1).train()
    compiled = deepcopy(eager)
    compiled.encoder.set_grad_checkpointing(True)
    compile_blocks(compiled.encoder.blocks_in_order, backend="aot_eager", fullgraph=True)
    for model in (eager, compiled):
        loss_of(model, 2).backward()
    wanted = dict(eager.named_parameters())
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for name, parameter in compiled.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, msg=name)
    for name, buffer in compiled.named_buffers():  # BatchNorm's statistics are updated once
        torch.testing.assert_close(buffer, eager.get_buffer(name), msg=name)


@pytest.mark.heavy
def test_another_batch_size_compiles_once_and_evaluation_never() -> None:
    torch.compiler.reset()
    model = SimMIM(TINY["vit"]).train()
    blocks = model.encoder.blocks_in_order
    compile_blocks(blocks, backend="eager", fullgraph=True)
    counted = []
    for images in (4, 3, 4, 3, 4):
        before = graphs()
        loss_of(model, images)
        counted.append(graphs() - before)
    assert counted[0] == counted[1] > 0
    assert counted[2:] == [0, 0, 0]
    before = graphs()
    with uncompiled(blocks), torch.no_grad():
        loss_of(model.eval(), 7)
    loss_of(model.train(), 4)
    assert graphs() == before


def test_a_run_is_compiled_on_request_or_where_a_gpu_earns_the_time_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path, Display(quiet=True))
    on_cpu = RunContext(run=run, seed=0, dist=DistContext())
    assert decide_compile(True, on_cpu, "train", 1)
    assert not decide_compile(None, on_cpu, "train", 10**6)
    on_gpu = RunContext(run=run, seed=0, dist=DistContext(device=torch.device("cuda")))
    assert decide_compile(True, on_gpu, "train", 1)
    assert not decide_compile(False, on_gpu, "train", 10**6)
    assert not decide_compile(None, on_gpu, "train", WORTHWHILE_STEPS - 1)
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "train: torch.compile=on: as requested" in log
    assert "train: torch.compile=off: steps=4,999 are below 5,000; --compile enables it" in log
    long_run = decide_compile(None, on_gpu, "train", WORTHWHILE_STEPS)
    assert long_run == torch.cuda.is_available()
    if not long_run:  # what cannot be compiled is no reason to fail
        log = (tmp_path / "log.txt").read_text(encoding="utf-8")
        assert "torch.compile=off: it fails on this machine (" in log
    run.close()
