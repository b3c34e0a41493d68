"""COCO transfer through Detectron2: layout and checks, data, model, training loop, prediction and record.

Only `data`, `loop`, `model`, `memory` and `predict` use Detectron2, and `run` imports them after
`framework.require_detectron2` has passed. The package may import every room of simmim_bench below its command
line, `transfer.job` and `transfer.detectron2_backbone`, but no other task's package.
"""
