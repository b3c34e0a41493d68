"""The parts of `simmim-bench study`: its file, its rows and steps, and its report. A study pretrains and transfers, so
only the command line's room can hold it; it imports `pretrain` and `transfer` inside functions."""
