"""Score fine-tuned models without training them: `simmim-bench evaluate`.

`launch.py` finds out what a CKPT holds, a run of ours or a third-party file, and runs the scoring of its task:
`imagenet.py`, `coco.py` or `ade20k.py`. A run of ours is scored under its own recipe, by the functions that scored it
after training.
"""
