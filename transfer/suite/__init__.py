"""Whole rows of the leaderboard: a suite plans every task of some checkpoints and runs them as separate
processes. It may import everything in `transfer` and `simmim_bench` except `simmim_bench.cli`."""
