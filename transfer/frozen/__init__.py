"""Scores on frozen features: the linear probe, logistic regression and k-nearest neighbours.

`run.py` is the runner of the tasks `linear`, `knn` and `fewshot`. `recipes.py` and `published_recipes.py` hold the
protocols, `linear_probe.py`, `logistic.py` and `knn.py` choose and score the classifiers of `simmim_bench.probes`, and
`feature_store.py` computes each feature once. This package may import `transfer.fewshot`, `transfer.inference`,
`transfer.job` and every layer of `simmim_bench` below its command line; it never imports `pretrain`.
"""
