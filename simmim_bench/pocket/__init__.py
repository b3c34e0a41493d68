"""A synthetic data set in the layouts of ImageNet, COCO and ADE20K, which `simmim-bench pocket` writes.

Shapes make up classes, classes make up scenes, and scenes are rendered and written with their annotations. This
package may import `simmim_bench.files`, `errors`, `processors` and `signals`.
"""
