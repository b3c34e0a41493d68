"""The steps of `simmim-bench ablate` and the collection of their results. An ablation pretrains and transfers, so
only the command line's room can hold it; it imports `pretrain` and `transfer` inside functions."""
