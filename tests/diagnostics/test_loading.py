"""Claims about loading: what a core loads is measured, and a machine that cannot feed its GPUs is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from simmim_bench.data.datasets import decode_then
from simmim_bench.diagnostics.estimate import check_loading
from simmim_bench.diagnostics.loading import IMAGE, images_per_core, synthetic_jpeg
from simmim_bench.diagnostics.machine import SHARED_PER_GPU, check_shared_memory


def test_the_trial_image_is_as_large_as_imagenets(tmp_path: Path) -> None:
    content = synthetic_jpeg()
    assert 100_000 < len(content) < 120_000  # 138 GiB of 1,281,167 images: 115 kB on average
    (tmp_path / "a.jpg").write_bytes(content)
    assert Image.open(tmp_path / "a.jpg").size == IMAGE[::-1]


def test_a_rate_counts_the_loads_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simmim_bench.diagnostics.loading.TRIAL_S", 0.05)
    sizes = []

    def load(image: Image.Image) -> torch.Tensor:
        sizes.append(image.size)
        time.sleep(0.005)  # so that a rate above 200 would be wrong on any machine
        return torch.zeros(1)

    assert 0 < images_per_core(decode_then(load)) <= 200
    assert set(sizes) == {IMAGE[::-1]}


@pytest.mark.parametrize(
    ("workers", "gpus", "cores", "state", "words"),
    [
        (8, 1, 16, "ok", "a GPU needs 5 workers"),
        (4, 1, 16, "warning", "5 workers, not 4"),
        (
            8,
            8,
            16,
            "warning",
            "but 8 GPUs share 16 cores: training waits for images, and reaches 45% of its rate at best",
        ),
        (5, 1, 1, "warning", "but 1 GPU has 1 core: training waits"),
        (0, 0, 2, "ok", "one machine computes 2,000/s"),
    ],
)
def test_cores_are_compared_with_the_gpus_rate(
    workers: int, gpus: int, cores: float, state: str, words: str
) -> None:
    finding = check_loading(2000.0, 450.0, num_workers=workers, gpus=gpus, cores=cores)
    assert finding.state == state
    assert words in finding.said
    assert (finding.remedy is not None) == (state == "warning")


def test_small_shared_memory_is_named(tmp_path: Path) -> None:
    (roomy,) = check_shared_memory(tmp_path, 1)
    assert roomy.facts["wanted"] == SHARED_PER_GPU == 308_281_344
    many = roomy.facts["free"] // SHARED_PER_GPU + 1
    (small,) = check_shared_memory(tmp_path, many)
    assert (roomy.state, small.state) == ("ok", "warning")
    assert "--shm-size" in (small.remedy or "")
    assert check_shared_memory(tmp_path / "missing", 1) == []
