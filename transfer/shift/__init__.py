"""Score a fitted classifier on further validation sets: `simmim-bench transfer shift`.

`classifier.py` reads the classifier of a run or a file, `class_maps.py` relates class folders to its outputs,
`corruptions.py` finds the conditions of ImageNet-C and `real.py` the labels of ReaL, and `run.py` scores. This package
may import `transfer.evaluate`, `transfer.frozen` and every layer of `simmim_bench` below its command line.
"""
