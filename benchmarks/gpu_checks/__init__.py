"""The checks of `benchmarks/gpu_check.py`: numerics, commands and speed of this project on one GPU."""
