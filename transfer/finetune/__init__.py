"""End-to-end fine-tuning for classification.

The package holds the recipes, the training, the evaluation and the estimate of `imagenet` and of `fewshot`
with all weights trained. Modules may import `simmim_bench` below its command line, and `transfer.job`,
`transfer.fewshot` and `transfer.inference`.
"""
