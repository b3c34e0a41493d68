"""Images for training and evaluation: where they are stored, decoding, augmentation, and reproducible loaders.

This package may import `simmim_bench.distributed`, `files` and `errors`. It knows nothing of models or tasks.
"""
