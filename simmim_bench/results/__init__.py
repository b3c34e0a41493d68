"""Results: scores from stored predictions, the record of one task, and the results of an ablation.

`metrics.py` and `coco.py` compute scores, `record.py` writes and reads `record.json`, `row_runs.py` reads the runs of a
table's row image by image; `ablation.py`, `ablation_intervals.py` and `ablation_report.py` hold, compare and render
ablations. This package may import `training`, `runs`, `checkpoints`, `models`, `data` and what lies below them;
`diagnostics`, `leaderboard` and `jobs` import it.
"""
