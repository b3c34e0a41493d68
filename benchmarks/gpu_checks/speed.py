"""Speed checks: images per second of pretraining, fine-tuning, feature extraction, detection and loading.

They fail only where something cannot run; the figures are for the report.
"""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from gpu_checks.commands import finish, start
from gpu_checks.harness import CheckFailed, Setup
from gpu_checks.product import (
    EpochLoader,
    ImageDataset,
    RandomCropFlip,
    any_images,
    autocast,
    load_backbone,
    peak_flops_per_s,
)
from gpu_checks.report import Findings
from gpu_checks.training import CLIP_GRAD, TINY_ARCH, TINY_BATCH, PretrainStep

IMAGENET_SIDES = (500, 375)  # the usual size of an image in ImageNet
JPEG_QUALITY = 92


def matrix_product(setup: Setup) -> Findings:
    """Measure the rate of a large matrix product: the limit for a model's FLOP/s."""
    return {
        f"{precision}_tflop_per_s": peak_flops_per_s(setup.device, precision) / 1e12
        for precision in (("fp32",) if setup.tiny else ("bf16", "fp32"))
    }


def pretrain_vit(setup: Setup) -> Findings:
    """Measure pretraining of ViT-B by batch size."""
    return _by_batch_size(setup, "vit_b", (64, 128, 256, 512))


def pretrain_swin(setup: Setup) -> Findings:
    """Measure pretraining of Swin-B by batch size."""
    return _by_batch_size(setup, "swin_b", (64, 128, 256))


def pretrain_float32(setup: Setup) -> Findings:
    """Measure pretraining of ViT-B in float32, without and with TF32 matrix products."""
    arch, batch_size = _model(setup, "vit_b", 64)
    found = {}
    before = torch.get_float32_matmul_precision()
    try:
        for name, precision in (("float32", "highest"), ("tf32", "high")):
            torch.set_float32_matmul_precision(precision)
            found[name] = PretrainStep(setup, arch, batch_size, precision="fp32").measure(3)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def oversized_batch(setup: Setup) -> Findings:
    """Check that a batch that exceeds the GPU's memory is accumulated over several steps.

    2,048 images are more than 65,535 windows of a Swin, the most that a dimension of a CUDA grid has.
    """
    found = {}
    for arch, wanted in (("vit_b", 3072), ("swin_b", 2048)):
        arch, batch_size = _model(setup, arch, wanted)
        step = PretrainStep(setup, arch, batch_size, accumulation_steps=2 if setup.tiny else None)
        found[arch] = {"accumulation_steps": step.accumulation_steps, **step.measure(1)}
        if not np.isfinite(found[arch]["loss"]):
            raise CheckFailed(f"{arch}: the loss of {batch_size} images is not finite", found)
        del step
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def finetune_and_features(setup: Setup) -> Findings:
    """Measure fine-tuning of ViT-B, and features from pageable and pinned memory, in images per second."""
    arch, batch_size = _model(setup, "vit_b", 256)
    side = 32 if setup.tiny else 224
    model = load_backbone(f"random:{arch}", num_classes=1000, drop_path_rate=0.1).to(setup.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pageable = torch.randn(batch_size, 3, side, side)
    pinned = pageable.pin_memory() if setup.device.type == "cuda" else pageable
    labels = torch.randint(1000, (batch_size,), device=setup.device)

    def finetune() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(setup.device, setup.precision):
            logits = model(pinned.to(setup.device, non_blocking=True))
            loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_GRAD)
        optimizer.step()

    @torch.no_grad()
    def features(images: torch.Tensor) -> None:
        model.eval()
        with autocast(setup.device, setup.precision):
            model.forward_pooled(images.to(setup.device, non_blocking=True)).float().cpu()

    return {
        "finetune": _images_per_s(setup, finetune, batch_size),
        "features_pageable": _images_per_s(setup, partial(features, pageable), batch_size),
        "features_pinned": _images_per_s(setup, partial(features, pinned), batch_size),
    }


def detector_step(setup: Setup) -> Findings:
    """Measure a training step of ViTDet with two images of 1,024 pixels, by `detection_step.py`."""
    figures = setup.scratch / "detection_step.json"
    script = Path(__file__).resolve().parents[1] / "detection_step.py"
    words = ("--rounds", "3", "--json", figures)
    finish([start(setup, "detector_step", *words, launcher=(sys.executable, str(script)))])
    content = json.loads(figures.read_text(encoding="utf-8"))
    seconds = {f"seconds, {t['name']}": t["seconds"] for t in content["timings"]}
    return {**seconds, **content["facts"]}


def loading(setup: Setup) -> Findings:
    """Measure loading JPEGs of ImageNet's size from a directory and a tar file, by worker processes."""
    stored, read = (64, 64) if setup.tiny else (1024, 8192)
    folder, archive = setup.scratch / "jpegs", setup.scratch / "jpegs.tar"
    _write_jpegs(folder, stored)
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    found = {}
    chains = (("directory", folder, 1), ("tar", archive, 1), ("two crops per decoding", folder, 2))
    for name, source, crops in chains:
        images = any_images(source).subset([number % stored for number in range(read)])
        for workers in (2,) if setup.tiny else (8, 16):
            loader = EpochLoader(
                ImageDataset(
                    images,
                    RandomCropFlip((224, 224), (0.67, 1.0), crops_per_decode=crops),
                    keep_last=crops > 1,
                ),
                batch_size=32 if setup.tiny else 256,
                num_workers=workers,
                seed=0,
                crops_per_decode=crops,
            )
            batches = iter(loader.epoch(0))
            next(batches)  # the workers have started
            started = time.perf_counter()
            loaded = sum(len(batch[0]) for batch in batches)
            found[f"{name}, {workers} workers"] = loaded / (time.perf_counter() - started)
    return {"images_per_s": found}


def _by_batch_size(setup: Setup, arch: str, batch_sizes: tuple[int, ...]) -> Findings:
    if setup.tiny:
        arch, batch_sizes = TINY_ARCH, (TINY_BATCH,)
    return {f"batch {size}": PretrainStep(setup, arch, size).measure() for size in batch_sizes}


def _model(setup: Setup, arch: str, batch_size: int) -> tuple[str, int]:
    return (TINY_ARCH, TINY_BATCH) if setup.tiny else (arch, batch_size)


def _images_per_s(setup: Setup, work: Callable[[], None], batch_size: int) -> float:
    rounds = 2 if setup.tiny else 6
    work()
    work()
    setup.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        work()
    setup.synchronize()
    return rounds * batch_size / (time.perf_counter() - started)


def _write_jpegs(folder: Path, number: int) -> None:
    """Write synthetic JPEGs; smooth noise, which compresses about as photographs do."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(number):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(IMAGENET_SIDES, Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.jpg", quality=JPEG_QUALITY)
