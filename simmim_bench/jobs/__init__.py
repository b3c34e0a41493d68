"""Run the steps of suites and ablations, each in its own process, locally or through SLURM.

Modules may import `runs`, `training` and what lies below; they know nothing about the phases whose commands
they start.
"""
