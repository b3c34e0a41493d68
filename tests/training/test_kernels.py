"""Test the fast settings of CUDA's kernels: when they hold, and that the memory layout does not change results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import TINY

from pretrain.masking.masks import sample_masks
from pretrain.simmim import SimMIM
from simmim_bench.display import Display
from simmim_bench.distributed import DistContext, full_state, load_full_state
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.runs.run_dir import RunDir
from simmim_bench.training.determinism import deterministic_algorithms
from simmim_bench.training.kernels import fast_kernels, use_channels_last
from simmim_bench.training.precision import full_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_fast_settings_hold_for_the_block_and_not_where_products_must_be_exact(
    precision: str,
) -> None:
    before = settings()
    with fast_kernels(GPU, precision):
        assert settings() == (True, False)
        with full_precision(GPU):
            assert settings() == (False, False)
        assert settings() == (True, False)
    with fast_kernels(GPU, precision, benchmark=True):
        assert settings() == (True, True)
    with pytest.raises(ValueError, match="any"), fast_kernels(GPU, precision, benchmark=True):
        raise ValueError("any")
    assert settings() == before == (False, False)


def test_float32_determinism_and_a_cpu_keep_torchs_defaults() -> None:
    for device, precision, deterministic in (
        (GPU, "fp32", False),
        (GPU, "bf16", True),
        (CPU, "bf16", False),
    ):
        with (
            deterministic_algorithms(deterministic),
            fast_kernels(device, precision, benchmark=True),
        ):
            assert settings() == (False, False)


def test_the_environment_of_a_run_has_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    run = RunDir(tmp_path, Display(quiet=True))
    with fast_kernels(GPU, "bf16", benchmark=True, run=run):
        pass
    run.close()
    assert json.loads((tmp_path / "env.json").read_text())["kernels"] == {
        "matmul_tf32": True,
        "cudnn_tf32": True,  # torch's default
        "cudnn_benchmark": True,
        "deterministic": False,
    }


def test_only_convolutional_networks_on_a_gpu_are_channels_last(tiny_spec: BackboneSpec) -> None:
    def changed(device: torch.device) -> bool:
        encoder = SimMIM(tiny_spec).encoder
        use_channels_last(encoder, tiny_spec, device)
        return not all(p.is_contiguous() for p in encoder.parameters())

    assert changed(GPU) == (tiny_spec.family in ("convnext", "resnet"))
    assert not changed(CPU)


def step(model: SimMIM, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """Take a step on random images."""
    torch.manual_seed(seed)
    spec = model.spec
    images = torch.randn(2, 3, *spec.img_size)
    masks = sample_masks(
        2, spec.img_size, mask_patch_size=spec.stride, patch_size=spec.patch_size, mask_ratio=0.5
    )
    optimizer.zero_grad()
    loss = model(images, masks).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["convnext", "resnet"])
@pytest.mark.parametrize("resumed", [GPU, CPU], ids=["becomes", "was"])
def test_a_run_continues_in_another_memory_layout(family: str, resumed: torch.device) -> None:
    spec = TINY[family].at((TINY[family].stride, 2 * TINY[family].stride), None)

    def build(device: torch.device) -> tuple[SimMIM, torch.optim.Optimizer]:
        model = SimMIM(spec, seed=0)
        use_channels_last(model.encoder, spec, device)  # all tensors stay on the CPU
        return model, torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    model, optimizer = build(CPU)
    wanted = [step(model, optimizer, seed) for seed in range(4)]
    model, optimizer = build(CPU if resumed is GPU else GPU)
    found = [step(model, optimizer, seed) for seed in range(2)]
    saved: tuple[Any, Any] = full_state(model, optimizer, DistContext())
    model, optimizer = build(resumed)
    load_full_state(model, optimizer, *saved)
    found += [step(model, optimizer, seed) for seed in range(2, 4)]
    assert found == pytest.approx(wanted, rel=2e-4)
