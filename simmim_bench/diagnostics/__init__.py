"""The checks behind `simmim-bench doctor`: frameworks, machine, a checkpoint, and the estimated cost of a run. Each
returns `Finding`s. The checks of data sets use the readers of the runs and are in `pretrain/doctor_checks.py` and
`transfer/*/doctor_checks.py`.
This room may import everything in `simmim_bench` except `cli`, `jobs` and `leaderboard`."""
