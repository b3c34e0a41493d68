"""Find the folder of a split of images of classes, under any of its usual names.

Nothing here loads torch.
"""

from __future__ import annotations

from pathlib import Path

# Names of the splits' folders, the first one preferred: Roboflow exports valid/, and timm reads all of them
# (timm/data/dataset_factory.py, _TRAIN_SYNONYM and _EVAL_SYNONYM).
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split; if it does not exist under any name, the preferred one.

    Args:
        split: `train` or `val`.
    """
    folders = [root / name for name in SPLIT_FOLDERS[split]]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def describe_missing_split(folder: Path) -> str:
    """Return that the folder of a split does not exist, and what the data set needs."""
    return f"data folder {folder} does not exist; use a folder with train/ and val/, each with one folder per class."
