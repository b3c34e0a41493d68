"""Checkpoints: the on-disk format, loading into backbones, third-party files (`third_party/`), and conversion.

This package may import `simmim_bench.models` and the layers below it. It does not know how a checkpoint was
trained or what it will be evaluated on.
"""
