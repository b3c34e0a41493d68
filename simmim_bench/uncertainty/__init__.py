"""How sure a score and a difference of scores are: standard errors, intervals, p-values and power.

Nothing here reads a file. `results/per_image.py` reads the predictions of runs into `RunScores`; docs/statistics.md
explains the methods and has their measured coverage.
"""
