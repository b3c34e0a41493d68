"""ADE20K transfer through MMSegmentation: layout and checks, data, model, training loop, metric and record.

Only `data`, `hooks`, `loop`, `metric` and `model` use MMSegmentation, and `run` imports them after `require_mmseg` has
passed. The package may import every room of simmim_bench below its command line, `transfer.job` and
`transfer.mmseg_backbone`, but no other task's package.
"""
