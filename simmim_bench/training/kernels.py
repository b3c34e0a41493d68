"""The settings of CUDA's kernels that make training fast: TF32, cuDNN's benchmark mode, channels-last weights.

Results on a CPU do not depend on them. With `--precision fp32` or `--deterministic` torch's defaults stay, with
which the official code was run: float32 matrix products in float32, float32 convolutions in TF32.

TF32 rounds the factors of a product to 10 bits of mantissa, as many as float16 has and three more than bfloat16. In a
run of half precision, the products outside of autocast (a detector's heads) are then no coarser than those within.
`full_precision` switches TF32 off where the rounding of a product would change a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from simmim_bench.models.spec import BackboneSpec
from simmim_bench.runs.run_dir import RunDir


@contextmanager
def fast_kernels(
    device: torch.device, precision: str, *, benchmark: bool = False, run: RunDir | None = None
) -> Iterator[None]:
    """Use the settings that are fast in a run's precision for the block.

    Args:
        precision: the recipe's: "auto", "fp32", "bf16" or "fp16". On a GPU "auto" is never "fp32".
        benchmark: whether cuDNN tries its algorithms once per shape. It pays in convolutional networks with images of
            one size. Another run may choose other algorithms, whose results differ by their rounding.
        run: whose `env.json` receives the settings; None to write none.
    """
    wanted = precision != "fp32" and not torch.are_deterministic_algorithms_enabled()
    if device.type != "cuda" or not wanted:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.benchmark
    matmul.allow_tf32, cudnn.benchmark = True, benchmark
    try:
        if run is not None:
            run.write_environment()
        yield
    finally:
        matmul.allow_tf32, cudnn.benchmark = before


def use_channels_last(model: nn.Module, spec: BackboneSpec, device: torch.device) -> None:
    """Store the weights of a convolutional network channels-last on a GPU: for cuDNN's fastest convolutions.

    The embedding of a ViT or Swin is a single convolution, too little to gain anything.
    """
    if device.type == "cuda" and spec.is_convolutional:
        model.to(memory_format=torch.channels_last)
