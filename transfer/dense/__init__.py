"""Segmentation by k-nearest neighbours and logistic regression on frozen patch features, without a framework.

`run.py` is the runner of the task `ade20k` under the recipes of `recipes.py`. `windows.py` loads images as windows,
`patches.py` computes and samples patch features, `classifiers.py` scores patches, `label_map.py` assembles the scores
of windows to a label map. This package may import `transfer.segmentation` (its modules without MMSegmentation),
`transfer.frozen`, `transfer.job` and every layer of `simmim_bench` below its command line; it never imports `pretrain`.
"""
