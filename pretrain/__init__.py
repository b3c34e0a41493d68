"""SimMIM pretraining: masking, model, target and loss, recipes, the run and its checkpoints.

`simmim.py` names the module of every step. This package may import everything in `simmim_bench` but
`simmim_bench.cli`, and never `transfer`: the two meet in the checkpoint.
"""
