"""Backbone architectures: specs, modules of every family, position biases, and building a module from a spec.

The modules are built on timm's. This package may import `simmim_bench.errors` and the leaf modules below it;
it knows nothing of checkpoints, data or training.
"""
