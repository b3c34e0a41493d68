"""Convert the exports of annotation tools to the layouts that the tasks read: COCO's and ADE20K's.

`convert.py` is the entry point; `detect.py` lists the layouts that are recognised, `coco_export.py`, `voc_boxes.py` and
`mask_pairs.py` read them, and `write.py` writes the result.
"""
