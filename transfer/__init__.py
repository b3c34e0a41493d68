"""Downstream transfer: recipes, runners and the adapters for Detectron2 and MMSegmentation.

A transfer reads a pretrained backbone, trains and scores one task and writes one record. `frozen`, `finetune`,
`detection` and `segmentation` hold a kind of task each, `dense` holds segmentation on frozen features, and `suite` runs
several tasks of one checkpoint. This package may import every layer of `simmim_bench` below its command line; it never
imports `pretrain`.
"""
