"""Mask generation: `masks.py` samples masks by strategy, `strategies.py` and `content.py` hold the strategies.

`avg_dist.py` measures how far hidden pixels are from visible ones. The room imports `pretrain.recipes` and the
lower layers of `simmim_bench`, and knows neither models nor targets.
"""
