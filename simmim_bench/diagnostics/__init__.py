"""The checks behind `simmim-bench doctor`: frameworks, machine, a checkpoint, and the estimated cost of a run. Each
returns `Finding`s. It may import everything in `simmim_bench` except `cli`, `jobs` and `leaderboard`; the checks
of data sets, which use the readers of the transfers, live in `transfer`."""
