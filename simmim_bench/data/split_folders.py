"""Find the splits of a data set of images of classes: folders under any of their usual names, or a label file.

Nothing here loads torch.
"""

from __future__ import annotations

from pathlib import Path

# Names of the splits' folders, the first one preferred: Roboflow exports valid/, and timm reads all of them
# (timm/data/dataset_factory.py, _TRAIN_SYNONYM and _EVAL_SYNONYM).
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}

# Suffixes of label files, which list images with their classes and splits; see `label_file.py`.
LABEL_SUFFIXES = (".csv", ".tsv", ".jsonl")


def is_label_file(data: Path) -> bool:
    """Return whether a data set is a label file, by its name."""
    return data.suffix.lower() in LABEL_SUFFIXES and data.is_file()


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split; if it does not exist under any name, the preferred one.

    Args:
        split: `train` or `val`.
    """
    folders = [root / name for name in SPLIT_FOLDERS[split]]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def split_place(root: Path, split: str) -> Path:
    """Return where a split is, for messages: its folder, or the label file that lists it."""
    return root if is_label_file(root) else split_folder(root, split)


def has_split(root: Path, split: str) -> bool:
    """Return whether a folder has a split, under any of its names."""
    return split_folder(root, split).is_dir()


def describe_missing_split(folder: Path) -> str:
    """Return that the folder of a split does not exist, and what the data set needs."""
    root = folder.parent
    missing = f"data folder {folder} does not exist; "
    files = sorted(path for path in root.glob("*") if is_label_file(path))
    if files and not has_split(root, "train"):
        return f"{missing}to read the label file {files[0].name}, use --data {files[0]}."
    if folder.name in SPLIT_FOLDERS["val"] and has_split(root, "train"):
        return (
            f"{missing}hold out a part of the training images with --val-fraction 0.1, or add it, with one folder per "
            "class."
        )
    return (
        f"{missing}use a folder with train/ and val/, each with one folder per class; if {root} has class folders "
        "alone, --val-fraction 0.1 holds out a part."
    )
