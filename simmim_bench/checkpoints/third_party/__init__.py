"""Third-party checkpoints: official files, timm, torchvision, OpenMMLab, transformers, and their training code.

The encoder is found in a file (`encoders.py`), every family has a module that renames its weights and infers its spec
from their shapes, and what no shape shows comes from configurations, timm's models or the user (`hints.py`). This
package may import the rest of `simmim_bench.checkpoints`, except `read`, which calls it.
"""
