"""Publish a checkpoint on the Hugging Face Hub, with a model card whose scores come from records.

`folder.py` writes the files of the repository: a checkpoint directory in `simmim-bench/`, timm's `config.json` and
`model.safetensors` where timm has the architecture, and the model card, `README.md`. `upload.py` commits them.
"""
