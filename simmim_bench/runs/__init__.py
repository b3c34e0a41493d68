"""Run directories: create, lock, describe and inspect them.

The package holds the run directory with its log, metrics and description, its lock, its status, the
environment that it stores, and `RunContext`, which every training function and transfer runner receives.
Modules may import `checkpoints`, `backbones`, `models`, `data` and what lies below.
"""
