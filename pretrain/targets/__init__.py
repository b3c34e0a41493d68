"""Prediction targets: what the loss compares with the head's prediction.

`base.py` defines a target and its loss, `table.py` lists the targets by name, and `pixels.py`, `classes.py`,
`tokens.py` and `teacher.py` hold them; `models.py` loads teachers and tokenizers. The room imports `pretrain.design`,
`pretrain.masking` and the lower layers of `simmim_bench`; `models.py` alone imports `pretrain.simmim` as well.
"""
