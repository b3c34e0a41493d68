"""Files enter through `simmim_bench/untrusted/`: nothing else calls what parses their bytes, but for named places."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("simmim_bench", "pretrain", "transfer")
READERS = "simmim_bench/untrusted/"
# What reads a format, by its full name.
PARSERS = re.compile(
    r"""
    torch\.(load|jit\.load|export\.load|(hub|package)\..*) | safetensors\..*(load.*|safe_open|deserialize)
    | (pickle|marshal|shelve|dill|cloudpickle|joblib|plistlib|_pickle)\..*(load.*|open|Unpickler)
    | numpy\.(load|loadtxt|genfromtxt|fromfile|fromregex|lib\.format\.(open_memmap|read_array))
    | json\.(load|loads|JSONDecoder) | (yaml|tomllib|configparser|csv)\..*([Ll]oad|[Rr]ead|[Pp]arse).*
    | (xml|lxml|html|defusedxml)\..*(parse|fromstring|XML|Parser) | PIL\.Image\.open | simplejpeg\.decode.*
    | tifffile\.(imread|memmap|TiffFile|TiffSequence)
    | (cv2|imageio|skimage|torchvision\.io|matplotlib\.image|mmcv)\..*(read|decode|frombytes).*
    | (pandas|pyarrow|datasets|h5py|scipy\.io)\..*(read|load|File|open).*
    | (tarfile|zipfile|gzip|bz2|lzma|zlib)\.(open|TarFile.*|ZipFile|GzipFile|BZ2File|LZMAFile|decompress.*)
    | shutil\.unpack_archive | (hotcoco|pycocotools|faster_coco_eval)\..*COCO | .*\.(load_res|loadRes)
    | timm\..*(load_checkpoint|load_state_dict|load_pretrained|create_model)
    | (mmengine|fvcore|detectron2)\..*(load_checkpoint|Checkpointer|[cC]onfig.*file)
    """,
    re.VERBOSE,
)
# Other places that call one of these, and why they may.
ALLOWED = {
    # Files that this tool, the run that is resumed, or an installed package has written.
    "simmim_bench/checkpoints/formats.py:write_timm": "reads back what it wrote",
    "transfer/export.py:write_detectron2": "reads back what it wrote",
    "transfer/export.py:_write_mmseg_adapter": "reads back what it wrote",
    "simmim_bench/checkpoints/read.py:read_training_state": "a run to resume, by weights_only",
    "simmim_bench/runs/events.py:EventFile": "a figure of this run",
    "transfer/frozen/feature_file.py:create_array": "creates the file",
    "transfer/frozen/feature_file.py:read_array": "features of a run; no pickle, no decompression",
    "transfer/frozen/feature_file.py:write_rows": "the file of `create_array`",
    "simmim_bench/data/listing.py:_read_index": "the index in the user's own cache",
    "simmim_bench/files.py:_read_pending": "JSON below this layer; every entry is checked",
    "simmim_bench/results/record.py:_schema_of": "in the package",
    "simmim_bench/leaderboard/reported.py:read_reported": "in the package",
    "simmim_bench/methods.py:read_methods": "in the package",
    "simmim_bench/jobs/forecast.py:_demo_steps": "in the package",
    "simmim_bench/leaderboard/figures.py:_adapt_to_page": "Matplotlib's output",
    "simmim_bench/diagnostics/frameworks.py:_probe": "output of its own process",
    "simmim_bench/leaderboard/build.py:Leaderboard": "a value of this process",
    "simmim_bench/leaderboard/changes.py:changes_to_markdown": "a value of this process",
    "simmim_bench/runs/run_check.py:describe_run": "a value of this process",
    # Content that was checked before.
    "simmim_bench/results/coco.py:load_objects": "annotations after their check",
    "simmim_bench/results/coco.py:load_detections": "results after their check",
    "simmim_bench/results/coco.py:_load_pycocotools": "results after their check",
    # Images of data sets, by a list of formats.
    "simmim_bench/data/decode.py:open_image": "formats of photographs",
    "simmim_bench/data/decode.py:exif_orientation": "formats of photographs",
    "simmim_bench/data/decode.py:read_header": "formats of photographs, their header",
    "simmim_bench/data/jpeg.py:jpeg_size": "JPEG",
    "simmim_bench/data/pixels.py:png_of_16_bits": "a PNG of 16 bits whose size Pillow has checked",
    "simmim_bench/data/jpeg.py:decode_jpeg": "JPEG",
    "simmim_bench/checkpoints/download.py:find_download": "the name of torch.hub's cache",
    "transfer/segmentation/label_maps.py:decode_map": "formats of label maps",
    # What a user names to be loaded by another library, as docs/threat-model.md says.
    "simmim_bench/checkpoints/third_party/timm.py:read_timm": "timm:NAME, timm's own files",
    "transfer/evaluate/timm_models.py:load_pretrained": "timm:NAME, timm's own files",
    "simmim_bench/data/hub.py:hub_images": "hfds:NAME, by the package datasets",
    "transfer/mmseg_backbone.py:SimMIMBackbone": "init_cfg of the user's MMSegmentation config",
    # Models without weights, or with those that our reader has read.
    "simmim_bench/models/timm_network.py:create_with_weights": "weights in memory",
    "transfer/evaluate/timm_models.py:load_folder": "a model on the meta device",
}


def _parsers_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the function and the parser of every reference to a parser, called or passed on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    yield from _visit(tree, names, "")


def _visit(node: ast.AST, names: dict[str, str], function: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not function:
        function = node.name
    if isinstance(node, ast.Call) and _builds_only(node, names):
        return
    if isinstance(node, ast.Attribute | ast.Name):
        name = _full_name(node, names)
        if PARSERS.fullmatch(name):
            yield function, name
            return
    for child in ast.iter_child_nodes(node):
        yield from _visit(child, names, function)


def _full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _builds_only(node: ast.Call, names: dict[str, str]) -> bool:
    """Return whether a call creates a timm model without weights."""
    given = {
        k.arg: k.value.value if isinstance(k.value, ast.Constant) else None for k in node.keywords
    }
    return (
        _full_name(node.func, names) == "timm.create_model"
        and given.get("pretrained", False) is False
        and "checkpoint_path" not in given
    )


@pytest.mark.heavy
def test_bytes_of_other_people_are_parsed_in_one_place() -> None:
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if not file.startswith(READERS):
                found |= {f"{file}:{function}": name for function, name in _parsers_of(path)}
    others = {place: name for place, name in found.items() if place not in ALLOWED}
    assert others == {}, "read these through simmim_bench/untrusted/"
    assert set(ALLOWED) - set(found) == set(), "these exceptions are no longer needed"


@pytest.mark.parametrize(
    "code",
    [
        "import json as j\ndef f(x): return map(j.load, x)",
        "def f(x):\n    from numpy import load\n    return load(x)",
        "from PIL import Image\nclass f:\n    def g(self, x): return Image.open(x)",
        "import timm\ndef f(x): return timm.create_model('local-dir:x', pretrained=True)",
        "import timm.models as m, timm\ndef f(x): timm.create_model(x, checkpoint_path='x')",
        "import functools, torch\ndef f(x): return functools.partial(torch.load)(x)",
        "import zipfile\ndef f(x): return zipfile.ZipFile(x)",
        "def f(truth): return truth.load_res('x')",
    ],
)
def test_a_reader_is_found_whatever_its_name_is(tmp_path: Path, code: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(code)
    assert [function for function, _ in _parsers_of(path)] == ["f"]
    path.write_text("import timm, json\ndef f(x): return timm.create_model(x), json.dumps(x)")
    assert list(_parsers_of(path)) == []
