"""Find images with their masks: of Roboflow, CVAT, Pascal VOC, and in folders of images and masks.

    Roboflow     {train,valid,test}/NAME.jpg, NAME_mask.png, _classes.csv
    CVAT         JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/*.txt, labelmap.txt
    Pascal VOC   the same, without labelmap.txt
    others       images/[SPLIT/]NAME.jpg and masks/[SPLIT/]NAME.png; SPLIT/images and SPLIT/masks; SPLIT and SPLITannot

A mask has the path and name of its image; suffixes of any case and an ending such as `_mask` are recognised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from simmim_bench.data.listing import list_tree, suffix_of
from simmim_bench.display import first_names, plural
from simmim_bench.errors import DataError
from transfer.layouts.class_table import ClassTable, read_class_table
from transfer.layouts.source import MaskData, MaskPair
from transfer.layouts.splits import SPLITS, common_name
from transfer.layouts.voc_files import list_voc, stem_below
from transfer.segmentation.ade20k_layout import MAP_SUFFIX

ROBOFLOW_CLASSES, ROBOFLOW_MASK = "_classes.csv", "_mask"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir")
MASK_FOLDERS = (
    *(
        "masks",
        "mask",
        "labels",
        "label",
        "annotations",
        "annotation",
        "ann_dir",
        "gt",
        "groundtruth",
    ),
    *("ground_truth", "segmentations", "segmentation", "labelmaps"),
)
# Of the folder of masks next to that of a split's images: `trainannot` of SegNet's CamVid, `train_labels` of others.
FOLDER_ENDINGS = ("annot", "_labels", "_label", "_masks", "_mask", "_annotations", "_gt")
NAME_ENDINGS = (
    "",
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_segmentation",
    "_L",
    "-mask",
)
CLASS_FILES = (
    "labelmap.txt",
    "class_names.txt",
    "classes.txt",
    "class_dict.csv",
    "label_colors.txt",
)
CVAT_CLASSES = "labelmap.txt"
VOC_VOID = 255  # the border of objects, which is not scored (VOC2012 devkit, devkit_doc, section 5)
# Labels 0 to 20 of Pascal VOC (VOC2012 devkit, VOCinit.m).
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def voc_table() -> ClassTable:
    """Return Pascal VOC's classes."""
    return ClassTable(where="Pascal VOC", names=dict(enumerate(VOC_CLASSES)))


def find_class_file(root: Path) -> Path | None:
    """Return the class table of a source under one of its usual names; None if it has none."""
    return next((root / name for name in CLASS_FILES if (root / name).is_file()), None)


def has_roboflow_masks(root: Path) -> bool:
    """Return whether a split's folder has Roboflow's class table and a mask."""
    return any(
        next(path.parent.glob(f"*{ROBOFLOW_MASK}{MAP_SUFFIX}"), None)
        for path in root.glob(f"*/{ROBOFLOW_CLASSES}")
    )


def read_roboflow_masks(root: Path) -> MaskData:
    """Find the images and masks of Roboflow's semantic segmentation export.

    Raises:
        DataError: an image has no mask, or splits have different classes.
    """
    splits: dict[str, list[MaskPair]] = {}
    tables = []
    for path in sorted(root.glob(f"*/{ROBOFLOW_CLASSES}")):
        tables.append(read_class_table(path))
        if tables[-1].names != tables[0].names:
            raise DataError(
                f"class tables {tables[0].where} and {path} have different classes; export all splits together."
            )
        folder = path.parent
        files = list(list_tree(folder).images)
        masks = [
            f for f in files if f.stem.endswith(ROBOFLOW_MASK) and suffix_of(f.name) == MAP_SUFFIX
        ]
        images = [f for f in files if f not in set(masks)]
        splits[folder.name] = _pair(images, folder, masks, folder, (ROBOFLOW_MASK,))
    return MaskData(splits=splits, table=tables[0])


def has_voc_masks(root: Path) -> bool:
    """Return whether a folder has `SegmentationClass/*.png`, at any depth below."""
    folder = root / "SegmentationClass"
    return folder.is_dir() and any(suffix_of(path.name) == MAP_SUFFIX for path in folder.rglob("*"))


def read_voc_masks(root: Path, *, cvat: bool) -> MaskData:
    """Find the images and masks in Pascal VOC's layout.

    Args:
        cvat: whether CVAT wrote it, whose lists have images that nobody annotated and that have no mask
            (datumaro/plugins/voc_format/converter.py: `segm_list`). They are left out.

    Raises:
        DataError: a list names a file that does not exist, or an image or mask is missing.
    """
    folder, images = root / "SegmentationClass", root / "JPEGImages"
    if not images.is_dir():
        raise DataError(
            f"image folder {images} does not exist; {folder} has the masks of the images in it. CVAT exports images "
            "with 'Save images'."
        )
    by_stem: dict[str, list[Path]] = {}
    for path in list_tree(images).images:
        by_stem.setdefault(stem_below(path, images), []).append(path)
    splits: dict[str, list[MaskPair]] = {}
    unannotated: list[str] = []
    listed = list_voc(root, "SegmentationClass", MAP_SUFFIX, all_exist=not cvat)
    for split, names in listed.items():
        splits[split] = []
        for name in names:
            mask, found = folder / f"{name}{MAP_SUFFIX}", by_stem.get(name, [])
            if not mask.is_file():
                unannotated.append(name)
                continue
            if len(found) != 1:
                raise DataError(
                    f"mask {mask} has {len(found) or 'no'} image{'s' * (len(found) > 1)} {images / name}.jpg, .png or "
                    "another suffix; keep one."
                )
            image = found[0]
            splits[split].append(
                MaskPair(image=image, mask=mask, name=image.relative_to(images).as_posix())
            )
    notes = []
    if unannotated:
        notes.append(
            f"{plural(len(unannotated), 'image')} without an annotation left out: {first_names(unannotated)}"
        )
    file = find_class_file(root)
    table = read_class_table(file) if file else voc_table() if _has_voc_objects(root) else None
    return MaskData(splits=splits, table=table, background="class", void=(VOC_VOID,), notes=notes)


def _has_voc_objects(root: Path) -> bool:
    """Return whether a folder is Pascal VOC's own, by its name: the classes of others have other names."""
    return root.resolve().name.upper() in {f"VOC{year}" for year in range(2007, 2013)}


def find_mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of the images and of the masks by split; "all" where there are no splits."""
    folders = {path.name.lower(): path for path in _folders(root)}
    for image_name in IMAGE_FOLDERS:
        for mask_name in MASK_FOLDERS:
            if image_name not in folders or mask_name not in folders:
                continue
            images, masks = folders[image_name], folders[mask_name]
            splits = {
                p.name: (p, masks / p.name) for p in _folders(images) if (masks / p.name).is_dir()
            }
            splits = {name: pair for name, pair in splits.items() if common_name(name) in SPLITS}
            found = splits or {"all": (images, masks)}
            if all(_has_images(masks) for _, masks in found.values()):
                return found
    return _split_folders(folders)


def _split_folders(folders: dict[str, Path]) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and masks by split, where a split's folder has both or is next to its masks."""
    found = {}
    for name, folder in folders.items():
        if common_name(name) not in SPLITS:
            continue
        inside = {path.name.lower(): path for path in _folders(folder)}
        images = next((inside[n] for n in IMAGE_FOLDERS if n in inside), None)
        masks = next((inside[n] for n in MASK_FOLDERS if n in inside), None)
        if images is None or masks is None:
            beside = [folders[name + end] for end in FOLDER_ENDINGS if name + end in folders]
            images, masks = folder, beside[0] if beside else None
        if masks is not None and _has_images(masks):
            found[folder.name] = (images, masks)
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _has_images(folder: Path) -> bool:
    return any(suffix_of(path.name) == MAP_SUFFIX for path in folder.rglob("*"))


def read_mask_folders(root: Path) -> MaskData:
    """Find the images and masks of folders; see `find_mask_folders`.

    Raises:
        DataError: an image has no mask.
    """
    splits = {
        split: _pair(list_tree(images).images, images, list_tree(masks).images, masks, NAME_ENDINGS)
        for split, (images, masks) in find_mask_folders(root).items()
    }
    path = find_class_file(root)
    return MaskData(splits=splits, table=read_class_table(path) if path else None)


def _pair(
    images: Sequence[Path],
    image_folder: Path,
    masks: Sequence[Path],
    mask_folder: Path,
    endings: Sequence[str],
) -> list[MaskPair]:
    """Return every image with its mask.

    Args:
        endings: by which the name of a mask may be longer than that of its image; one for all.
    """
    if not images:
        raise DataError(f"image folder {image_folder} has no images; add them.")
    by_name: dict[str, Path] = {}
    for mask in masks:
        name = mask.relative_to(mask_folder).with_suffix("").as_posix()
        if name in by_name:
            raise DataError(
                f"masks {by_name[name]} and {mask} have the same name; remove one of them."
            )
        by_name[name] = mask
    names = [image.relative_to(image_folder).with_suffix("").as_posix() for image in images]
    missing = {end: [n for n in names if n + end not in by_name] for end in endings}
    ending = min(endings, key=lambda end: len(missing[end]))
    if missing[ending]:
        unused = sorted(set(by_name) - {name + ending for name in names})
        raise DataError(
            f"mask {mask_folder / missing[ending][0]}{ending}{MAP_SUFFIX} does not exist ({len(missing[ending])} of "
            f"{len(images)} images of {image_folder} have no mask); add it or remove the image"
            + (f"; masks without an image: {first_names(unused)}." if unused else ".")
        )
    pairs = list(_checked(images, [by_name[name + ending] for name in names], image_folder))
    stems = {Path(pair.name).with_suffix("") for pair in pairs}
    if len(stems) < len(pairs):
        twice = next(p for i, p in enumerate(pairs) if p.mask in {q.mask for q in pairs[:i]})
        raise DataError(
            f"image {twice.image} and another one have the same mask, {twice.mask}; remove or rename one of them."
        )
    return pairs


def _checked(images: Sequence[Path], masks: Sequence[Path], folder: Path) -> Iterator[MaskPair]:
    for image, mask in zip(images, masks, strict=True):
        yield MaskPair(image=image, mask=mask, name=image.relative_to(folder).as_posix())
