"""Classifiers on the features of a frozen backbone: k-nearest neighbours, and logistic regression by L-BFGS.

They take tensors and know no recipe: `transfer.frozen` applies them to a checkpoint's features, and
`pretrain.evaluation` to those of the model under training.
"""
