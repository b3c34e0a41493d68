"""Third-party checkpoints: SimMIM's and Swin's official files, MAE, BEiT, timm, torchvision and MMPretrain.

Every family has a module that renames its weights and infers its spec from their shapes. This package may import
the rest of `simmim_bench.checkpoints`, except `read`, which calls it.
"""
