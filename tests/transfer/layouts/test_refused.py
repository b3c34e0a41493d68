"""Damaged and ambiguous exports: each is refused in one line that names the file and the remedy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import exports
from support.cli import fails, run

from simmim_bench.errors import DataError
from simmim_bench.untrusted.xml_text import parse_xml, read_xml
from transfer.layouts.class_table import read_class_table
from transfer.layouts.splits import common_name, split_by_hash

SIZE = (12, 16)  # (H, W) of the images


def voc(root: Path) -> Path:
    """Three images with a box each in Pascal VOC's layout; returns the first XML file."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{name}.jpg")
        image = {"file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        box = {"bbox": [2, 3, 5, 4], "category_id": 1, "iscrowd": 0}
        text = exports.voc_xml(image, [box], {1: "cat"}, exports.voc_corners, "")
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Main/val.txt").write_text("c\n")
    return root / "Annotations/a.xml"


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "Annotations/a.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return damage


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def outside(root: Path) -> None:
    replaced("a.jpg", "../../secret.jpg")(root)
    (root / "JPEGImages/a.jpg").unlink()


VOC = {
    "not XML": (
        written("Annotations/a.xml", "<annotation>"),
        r"a\.xml cannot be read as XML: no elem",
    ),
    "empty": (written("Annotations/a.xml", b""), r"a\.xml cannot be read as XML: no element found"),
    "document type": (
        written("Annotations/a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'),
        r"a\.xml cannot be read as XML: it has a document type .* remove it",
    ),
    "UTF-16 document type": (
        written("Annotations/a.xml", "<!DOCTYPE a><annotation/>".encode("utf-16")),
        r"a\.xml cannot be read as XML: it has a document type",
    ),
    "encoding": (
        written("Annotations/a.xml", b'<?xml version="1.0" encoding="nonsense"?><annotation/>'),
        r"a\.xml cannot be read as XML: .*encoding",
    ),
    "nested": (
        written("Annotations/a.xml", "<annotation>" * 100 + "</annotation>" * 100),
        r"a\.xml cannot be read as XML: its elements are nested more than 64 deep",
    ),
    "another root": (written("Annotations/a.xml", "<svg/>"), r"a\.xml has the root element <svg>"),
    "no name": (replaced("<name>cat</name>", ""), r"a\.xml has an object without a name"),
    "text as a number": (
        replaced("<xmin>3<", "<xmin>three<"),
        r"a\.xml has an object 'cat' .* not four numbers",
    ),
    "not a number": (
        replaced("<xmin>3<", "<xmin>nan<"),
        r"a\.xml has an object 'cat' .* not four numbers",
    ),
    "infinite": (
        replaced("<xmax>7<", "<xmax>1e999<"),
        r"a\.xml has an object 'cat' .* not four numbers",
    ),
    "no box": (replaced("bndbox", "box"), r"a\.xml cannot be read as XML: mismatched tag"),
    "swapped": (
        replaced("<xmin>3<", "<xmin>9<"),
        r"a\.xml has an object 'cat' .* below its minimum",
    ),
    "another size": (
        replaced("<width>16<", "<width>17<"),
        r"image .*a\.jpg is 16 x 12 pixels, but its entry in the annotations is 17 x 12",
    ),
    "image missing": (
        lambda root: (root / "JPEGImages/a.jpg").unlink(),
        r"a\.xml has no image .*JPEGImages/a\.jpg, \.png .* add it or remove the annotation",
    ),
    "image damaged": (
        written("JPEGImages/a.jpg", b"\xff\xd8nothing"),
        r"image .*a\.jpg cannot be read",
    ),
    "image outside": (
        outside,
        r"filename in .*a\.xml names '\.\./\.\./secret\.jpg', which is not a path",
    ),
    "list of a missing file": (
        written("ImageSets/Main/train.txt", "a\nz\n"),
        r"line 2 of image list .*train\.txt names z, but .*z\.xml does not exist",
    ),
    "list outside": (
        written("ImageSets/Main/train.txt", "../a\n"),
        r"line 1 of image list .*train\.txt names '\.\./a\.xml', which is not a path below",
    ),
    "list with a name twice": (
        written("ImageSets/Main/train.txt", "a\na\n"),
        r"line 2 of image list .*train\.txt names a for the second time",
    ),
    "list that is not UTF-8": (
        written("ImageSets/Main/train.txt", b"\xff\xfe"),
        r"image list .*train\.txt cannot be read: byte 0 is not UTF-8",
    ),
    "image in both lists": (
        written("ImageSets/Main/val.txt", "c\na\n"),
        r"image .*a\.jpg is in the splits 'train' and 'val' of .*; remove it from one",
    ),
    "empty list": (written("ImageSets/Main/val.txt", "\n"), r"split 'val' of .* has no images"),
    "no images": (
        lambda root: shutil.rmtree(root / "JPEGImages"),
        r"image folder .*JPEGImages does not exist",
    ),
    "class that the table lacks": (
        written("classes.txt", "dog\nhorse\n"),
        r"class table .*classes\.txt lacks 'cat'",
    ),
}


@pytest.mark.parametrize("name", VOC)
def test_damaged_voc_files_are_named(name: str, tmp_path: Path) -> None:
    damage, pattern = VOC[name]
    root = tmp_path / "voc"
    voc(root)
    damage(root)
    message = fails(4, "data", "convert", root, tmp_path / "out", "--from", "voc", "--to", "coco")
    assert re.search(pattern, message), message
    assert not (tmp_path / "out").exists()


def masks(root: Path, classes: str | None = "sky\nroad\n") -> None:
    """Four images with masks of labels 0, 1 and 2."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", SIZE[::-1]).save(root / "images" / f"{name}.jpg")
        labels = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE) % 3
        Image.fromarray(labels).save(root / "masks" / f"{name}.png")
    if classes is not None:
        (root / "classes.txt").write_text(classes)


def mask(image: Image.Image, kind: str = "PNG") -> Callable[[Path], None]:
    return lambda root: image.save(root / "masks/a.png", kind)


def painted(root: Path, *others: Image.Image) -> None:
    """Masks of a sky in colour, but for the last ones."""
    sky = Image.new("RGB", SIZE[::-1], (1, 2, 3))
    images = [sky] * (4 - len(others)) + list(others)
    for name, image in zip("abcd", images, strict=True):
        image.save(root / f"masks/{name}.png")
    (root / "classes.txt").write_text(COLOURS)


def photograph() -> Image.Image:
    values = np.arange(SIZE[0] * SIZE[1] * 3) * 7 % 256
    return Image.fromarray(values.astype(np.uint8).reshape(*SIZE, 3))


COLOURS = "sky 1 2 3\nroad 4 5 6\n"
MASKS: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, str]] = {
    "which label is first": (
        lambda _: None,
        (),
        2,
        r"does not say which label .* --keep-zero .* --ignore-label 0",
    ),
    "which label is first, with colours": (
        written("label_colors.txt", "128 128 128\tsky\n128 64 128\troad\n0 0 192\tpath\n"),
        ("--colours", "label_colors.txt"),
        2,
        r"label_colors\.txt does not say which label its first line, 'sky', .* --ignore-label 0",
    ),
    "which label is first, from 1 with colours": (
        written("classes.txt", "name,r,g,b\nsky,128,128,128\nroad,128,64,128\n"),
        (),
        2,
        r"does not say which label its first line, 'sky', .* --ignore-label 0",
    ),
    "background": (
        written("classes.txt", "background\nsky\nroad"),
        (),
        2,
        r"has a class 'background' \(label 0\): use --keep-zero .* or --ignore-label 0",
    ),
    "no classes": (
        lambda root: (root / "classes.txt").unlink(),
        ("--keep-zero",),
        4,
        r"does not name the classes of its masks; list them in .*classes\.txt",
    ),
    "label without a class": (
        lambda _: None,
        ("--keep-zero",),
        4,
        r"label 2 \(256 pixels in 4 masks, the first is .*a\.png\); ignore it with --ignore-label 2",
    ),
    "unknown class": (
        lambda _: None,
        ("--ignore-label", "sea"),
        2,
        r"--ignore-label sea: .* has no such class",
    ),
    "one class": (
        written("classes.txt", "background\nsky"),
        ("--ignore-label", "0"),
        4,
        r"has 1 class not ignored; .* with --keep-zero the background is a class",
    ),
    "colours without a table": (
        mask(Image.new("RGB", SIZE[::-1], (1, 2, 3))),
        ("--ignore-label", "0"),
        4,
        r"a\.png holds colours, and .*classes\.txt has none; name the colour .* --colours FILE",
    ),
    "unknown colour": (
        lambda root: painted(root, Image.new("RGB", SIZE[::-1], (9, 9, 9))),
        (),
        4,
        r"colour 9,9,9 \(192 pixels in 1 mask, the first is .*d\.png\); add it, as `NAME 9 9 9`",
    ),
    "photograph as a mask": (
        lambda root: painted(root, photograph()),
        (),
        4,
        r"masks have what class table .* colour .* others; add it",
    ),
    "transparent": (
        mask(Image.new("RGBA", SIZE[::-1], (1, 2, 3, 0))),
        ("--ignore-label", "0"),
        4,
        r"a\.png has transparent pixels",
    ),
    "JPEG": (
        mask(Image.new("L", SIZE[::-1]), "JPEG"),
        ("--ignore-label", "0"),
        4,
        r"a\.png is a JPEG, whose lossy compression changes labels",
    ),
    "another size": (
        mask(Image.new("L", (5, 5))),
        ("--ignore-label", "0"),
        4,
        r"annotation .*a\.png is 5x5 pixels \(HxW\), its image 12x16; make both the same size",
    ),
    "reordered grey palette": (
        lambda root: _reordered(root / "masks/a.png"),
        ("--ignore-label", "0"),
        4,
        r"a\.png is a palette image in which index 0 is shown as grey 2",
    ),
    "damaged": (
        written("masks/a.png", b"\x89PNG"),
        ("--ignore-label", "0"),
        4,
        r"a\.png cannot be read",
    ),
    "mask missing": (
        lambda root: (root / "masks/b.png").unlink(),
        (),
        4,
        r"mask .*masks/b\.png does not exist \(1 of 4 images",
    ),
    "two images of a mask": (
        lambda root: shutil.copy(root / "images/a.jpg", root / "images/a.jpeg"),
        (),
        4,
        r"have the same mask, .*a\.png; remove or rename one",
    ),
    "two masks of an image": (
        lambda root: shutil.copy(root / "masks/a.png", root / "masks/a.bmp"),
        (),
        4,
        r"masks .*a\.\w+ and .*a\.\w+ have the same name",
    ),
    "one image": (
        lambda root: _keep_one(root),
        ("--ignore-label", "0"),
        4,
        r"has 1 image to train on, which cannot be split",
    ),
    "option without effect": (
        lambda _: None,
        ("--boxes", "voc"),
        2,
        r"--boxes has no effect on folders of images",
    ),
    "contradiction": (
        lambda _: None,
        ("--keep-zero", "--ignore-label", "0"),
        2,
        r"--keep-zero and --ignore-label 0 contradict",
    ),
    "split that does not exist": (
        lambda _: None,
        ("--val", "dev"),
        2,
        r"--val dev: .* has no such split",
    ),
    "no test split": (
        lambda _: None,
        ("--ignore-label", "0", "--test"),
        2,
        r"has no test split .* remove --test",
    ),
}


def _reordered(path: Path) -> None:
    image = Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE) % 3)
    image.putpalette([2, 2, 2, 1, 1, 1, 0, 0, 0])
    image.save(path)


def _keep_one(root: Path) -> None:
    for path in [*(root / "images").iterdir(), *(root / "masks").iterdir()]:
        if path.stem != "a":
            path.unlink()


@pytest.mark.parametrize("name", MASKS)
def test_damaged_and_ambiguous_masks_are_named(name: str, tmp_path: Path) -> None:
    damage, options, code, pattern = MASKS[name]
    masks(tmp_path / "data")
    damage(tmp_path / "data")
    options = tuple(str(tmp_path / "data" / o) if o.endswith(".txt") else o for o in options)
    message = fails(code, "data", "convert", tmp_path / "data", tmp_path / "out", *options)
    assert re.search(pattern, message), message
    assert not (tmp_path / "out").exists()


LINES = "sky 128 128 128\nroad 128 64 128\npath 0 0 192\n"
CSV = "id,name,r,g,b\n0,sky,128,128,128\n1,road,128,64,128\n2,path,0,0,192\n"
CVAT = "sky:128,128,128::\nroad:128,64,128::\npath:0,0,192::\n"


@pytest.mark.parametrize(
    ("text", "options", "new"),
    [
        pytest.param(LINES, ("--keep-zero",), [1, 2, 3], id="from 0"),
        pytest.param(LINES, ("--ignore-label", "0"), [0, 1, 2], id="from 1"),
        pytest.param(CSV, (), [1, 2, 3], id="with ids"),
        pytest.param(CVAT, (), [1, 2, 3], id="labelmap of CVAT"),
        pytest.param(f"void 0 0 0\n{LINES}", (), [0, 1, 2], id="void first"),
    ],
)
def test_grey_masks_with_a_table_of_colours(
    text: str, options: tuple[str, ...], new: list[int], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    masks(data, text)
    assert run("data", "convert", data, out, "--quiet", *options)[0] == 0
    path = next((out / "annotations/training").iterdir())
    labels = np.asarray(Image.open(data / "masks" / path.name))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.array(new)[labels])
    assert "sky" in (out / "classes.txt").read_text().splitlines()[0]


@pytest.mark.parametrize("options", [(), ("--keep-zero",), ("--ignore-label", "0")])
def test_masks_in_colour_do_not_depend_on_the_first_label(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    masks(data, LINES)
    colours = np.array([[128, 128, 128], [128, 64, 128], [0, 0, 192]], np.uint8)
    for path in (data / "masks").iterdir():
        Image.fromarray(colours[np.asarray(Image.open(path))]).save(path)
    assert run("data", "convert", data, out, "--quiet", *options)[0] == 0
    path = next((out / "annotations/training").iterdir())
    found = np.asarray(Image.open(path))
    painted = np.asarray(Image.open(data / "masks" / path.name))
    np.testing.assert_array_equal(colours[found - 1], painted)


TABLES = {
    "empty": ("# nothing\n\n", r"has no classes; write one per line"),
    "name twice": (
        "sky 1 2 3\nsky 4 5 6\n",
        r"line 2 of .* has the name 'sky' for the second time",
    ),
    "colour twice": (
        "sky 1 2 3\nroad 1 2 3\n",
        r"line 2 .* has colour 1,2,3, which is that of 'sky'",
    ),
    "label twice": ("1,sky\n1,road\n", r"line 2 .* has label 1, which is that of 'sky'"),
    "value too large": (
        "sky 1 2 3\nroad 4 5 300\n",
        r"line 2 .* has colour 4,5,300; the values are 0",
    ),
    "another form": ("sky 1 2 3\nroad 4 5\nsea 7 8 9\n", r"line 2, 'road 4 5', has another form"),
    "header without blue": ("name,r,g\nsky,1,2\n", r"lacks one of r, g and b"),
    "too few values": ("name,r,g,b\nsky,1,2\n", r"line 2 has 3 values, its header 4"),
    "text as a value": (
        "name,r,g,b\nsky,1,2,x\n",
        r"line 2 has b 'x', which is not a whole number",
    ),
    "open quotation": ('name,r,g,b\n"sky,1,2,3\n', r"unexpected end of data"),
    "binary": ("\0\0", r"is not a text file"),
}


@pytest.mark.parametrize("name", TABLES)
def test_damaged_class_tables_are_named(name: str, tmp_path: Path) -> None:
    text, pattern = TABLES[name]
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=pattern) as caught:
        read_class_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names", "colours"),
    [
        ("# label:rgb\nbackground:0,0,0::\ncar: big:1,2,3:wheel:drive\n", ["background", "car: big"], 2),
        ("background:0,0,0::\ncar:::\n", ["background", "car"], 1),
        ("sky 128 128 128\ntraffic light 1 2 3\n", ["sky", "traffic light"], 2),
        ("64 128 64\tAnimal\n192 0 128\t\tArchway\n", ["Animal", "Archway"], 2),
        ("r,g,b,name\n0,0,0,\"a, b\"\n1,1,1,c\n", ["a, b", "c"], 2),
        ("Pixel Value, Class\n0, background\n1, zone 3\n", ["background", "zone 3"], 0),
        ("\ufeffzone 3\r\nzone 4\r\n", ["zone 3", "zone 4"], 0),
    ],
)  # fmt: skip
def test_class_tables_of_every_form_are_read(
    text: str, names: list[str], colours: int, tmp_path: Path
) -> None:
    path = tmp_path / "classes"
    path.write_text(text, encoding="utf-8")
    table = read_class_table(path)
    assert list(table.names.values()) == names
    assert len(table.colours) == colours


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ("voc", [9.5, 19.25, 21, 31]),
        ("roboflow", [9.5, 19.25, 20, 30]),
        ("cvat", [10.5, 20.25, 20, 30]),
    ],
)
def test_boxes_of_three_conventions(boxes: str, expected: list[float], tmp_path: Path) -> None:
    # x from 10.5 to 30.5 and y from 20.25 to 50.25 as they are written.
    voc(tmp_path / "voc")
    for name in "abc":
        Image.new("RGB", (64, 64)).save(tmp_path / f"voc/JPEGImages/{name}.jpg")
        image = {"file_name": f"{name}.jpg", "height": 64, "width": 64}
        box = {"bbox": [10.5, 20.25, 20, 30], "category_id": 1, "iscrowd": 0}
        text = exports.voc_xml(image, [box], {1: "cat"}, exports.cvat_corners, "")
        (tmp_path / f"voc/Annotations/{name}.xml").write_text(text)
    options = ("--from", "voc", "--boxes", boxes, "--quiet")
    assert run("data", "convert", tmp_path / "voc", tmp_path / "out", *options)[0] == 0
    found = exports.read_instances(tmp_path / "out", "train")["annotations"][0]
    assert found["bbox"] == expected
    assert found["area"] == expected[2] * expected[3]


@pytest.mark.parametrize("value", ["<xmin>0<", "<xmax>17<"])
def test_boxes_that_contradict_their_convention_are_asked_about(value: str, tmp_path: Path) -> None:
    xml = voc(tmp_path / "voc")
    tag = value[: value.index(">") + 1]
    xml.write_text(re.sub(rf"{tag}\d+<", value, xml.read_text()))
    message = fails(2, "data", "convert", tmp_path / "voc", tmp_path / "out")
    assert "a.xml" in message
    assert "--boxes voc" in message
    assert "cvat" in message
    assert (
        run("data", "convert", tmp_path / "voc", tmp_path / "out", "--boxes", "cvat", "--quiet")[0]
        == 0
    )


def test_coco_files_are_refused_in_the_words_of_a_run(pocket: Path, tmp_path: Path) -> None:
    exports.cvat_coco(pocket / "coco", tmp_path / "data", {"train": "default"})
    path = tmp_path / "data/annotations/instances_default.json"
    content = path.read_text()
    for old, new, pattern in (
        (content, "{", r"annotation file .*instances_default\.json cannot be read as JSON"),
        (content, "[]", r"instances_default\.json has no list of images; it is not a COCO"),
        ('"image_id": 1,', '"image_id": 999,', r"has image_id 999, which is not in images"),
        ('"bbox": [', '"bbox": [0, ', r"which is not a box"),
        ("000000000001.jpg", "gone.jpg", r"image .*gone\.jpg does not exist"),
        (
            "000000000001.jpg",
            "../../../x.jpg",
            r"image .*x\.jpg does not exist|is outside of the data",
        ),
    ):
        assert old in content
        path.write_text(content.replace(old, new))
        message = fails(4, "data", "convert", tmp_path / "data", tmp_path / "out")
        assert re.search(pattern, message), message
    assert not (tmp_path / "out").exists()


def test_nothing_recognised_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "data/pictures").mkdir(parents=True)
    message = fails(4, "data", "convert", tmp_path / "data", tmp_path / "out")
    assert "has none of these layouts (roboflow: {train,valid,test}/" in message
    assert message.endswith("it has pictures/.")
    (tmp_path / "file.zip").write_bytes(b"PK")
    message = fails(4, "data", "convert", tmp_path / "file.zip", tmp_path / "out")
    assert "file.zip is an archive or file; unpack it" in message
    assert "does not exist" in fails(4, "data", "convert", tmp_path / "none", tmp_path / "out")
    masks(tmp_path / "masks")
    inside = tmp_path / "masks/out"
    assert "are within each other" in fails(2, "data", "convert", tmp_path / "masks", inside)


def test_expanding_entities_are_refused_at_once(tmp_path: Path) -> None:
    levels = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 20))
    laughs = f'<!DOCTYPE a [<!ENTITY a0 "ha">{levels}]><annotation>&a19;</annotation>'
    file = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'
    for text in (laughs, file):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(DataError, match="has a document type"):
            read_xml(tmp_path / "a.xml", "annotation")
    root = parse_xml("<annotation a='1'>x&amp;y<b/> z</annotation>".encode("utf-16"))
    assert (root.text, root[0].tail, root.attrib) == ("x&y", " z", {"a": "1"})


def test_names_of_splits_and_their_halves() -> None:
    for name, expected in (
        *(("Train", "train"), ("training", "train"), ("train2017", "train"), ("valid", "val")),
        *(("Validation", "val"), ("default", "default"), ("trainval", "trainval")),
    ):
        assert common_name(name) == expected
    names = [f"{i}.jpg" for i in range(1000)]
    train, val = split_by_hash(names, 0.2, 0)
    assert 150 < len(val) < 250
    assert sorted(train + val) == sorted(names)
    assert set(split_by_hash(names[:500], 0.2, 0)[1]) <= set(val)
    assert split_by_hash(names, 0.2, 1)[1] != val
    assert tuple(map(len, split_by_hash(names[:2], 0.01, 0))) == (1, 1)


def test_the_json_of_a_conversion_is_complete(tmp_path: Path) -> None:
    masks(tmp_path / "data")
    options = ("--ignore-label", "0", "--quiet", "--json")
    code, out, _ = run("data", "convert", tmp_path / "data", tmp_path / "out", *options)
    report = json.loads(out)
    assert code == 0
    assert report["classes"] == ["sky", "road"]
    assert report["to"] == "ade20k"


def test_links_to_images_are_followed(tmp_path: Path) -> None:
    # Storage is often mounted that way.
    voc(tmp_path / "voc")
    (tmp_path / "voc/JPEGImages").rename(tmp_path / "storage")
    (tmp_path / "voc/JPEGImages").symlink_to(tmp_path / "storage")
    (tmp_path / "voc/Annotations/a.xml").rename(tmp_path / "a.xml")
    (tmp_path / "voc/Annotations/a.xml").symlink_to(tmp_path / "a.xml")
    assert run("data", "convert", tmp_path / "voc", tmp_path / "out", "--quiet")[0] == 0
    assert not (tmp_path / "out/train2017/a.jpg").is_symlink()


def test_no_file_is_written_outside_of_the_result(pocket: Path, tmp_path: Path) -> None:
    exports.cvat_coco(pocket / "coco", tmp_path / "data/inner", {"train": "default"})
    root = tmp_path / "data/inner"
    file = root / "annotations/instances_default.json"
    content = json.loads(file.read_text())
    shutil.copy(root / "images/default/000000000001.jpg", tmp_path / "data/x.jpg")
    content["images"][0]["file_name"] = "../x.jpg"
    file.unlink()
    (root / "all.json").write_text(json.dumps(content))
    for path in (root / "images/default").iterdir():
        path.rename(root / path.name)
    shutil.rmtree(root / "images")
    message = fails(4, "data", "convert", root, tmp_path / "data/out")
    assert "x.jpg is outside of the data folder" in message
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["inner", "x.jpg"]
