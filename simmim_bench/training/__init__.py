"""Train a model: the loop, its state, and what it needs from the machine.

The package holds the training loop that pretraining and fine-tuning share, the state that their checkpoints
restore, gradient accumulation, precision, optimizer groups and schedules, memory and FLOP measurements, and
the handling of signals. Modules may import `runs`, `checkpoints`, `models`, `data` and what lies below;
`results`, `jobs` and both phases (`pretrain`, `transfer`) import from here.
"""
