"""Fuzz what `leaderboard build` and `check` read: records, predictions and COCO's files.

FUZZ_SECONDS and FUZZ_SEED set the length and the seed of the long run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from support.fuzz import (
    EXTREMES,
    LENGTHS,
    Mutation,
    check,
    fuzz,
    mutate_bytes,
    mutate_zip,
)
from support.records import make_record

from simmim_bench.leaderboard.board import build_board
from simmim_bench.leaderboard.check import check_records
from simmim_bench.leaderboard.page_data import page_data
from simmim_bench.leaderboard.published import add_published
from simmim_bench.leaderboard.reported import read_reported
from simmim_bench.leaderboard.tables import to_csv, to_json, to_latex, to_markdown
from simmim_bench.results.coco import evaluate_coco
from simmim_bench.results.coco_file import read_instances
from simmim_bench.results.metrics import scores_from_predictions, write_confusion
from simmim_bench.results.record import read_record
from transfer.detection.coco_faults import entry_faults, find_bad, reference_faults
from transfer.detection.coco_images import image_faults, resolve_names
from transfer.recipes import RECIPES

# Values at which code that computes, formats or looks up breaks.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, 1e-320, 1e308, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400),
    *(float("nan"), float("inf"), -float("inf"), "", "a", "0", "..", "/", "\n", "\0", "\udc80"),
    *("\ud800", "\x1b[1m", "1e9", "x" * 5000, [], {}, [[]], [{}], {"": []}, [0] * 50),
]


def mutate_json(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Replace, remove or copy values of a JSON text; change its bytes in one of ten cases."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(random, content, others)
    if random.random() < 0.1:
        return mutate_bytes(random, content, others)
    for _ in range(random.randint(1, 3)):
        value = _change(random, value)
    try:
        return json.dumps(value).encode()
    except RecursionError:  # nested again and again
        return mutate_bytes(random, content, others)


def _change(random: Random, root: Any) -> Any:
    places: list[tuple[Any, Any]] = []
    level = [root] if isinstance(root, dict | list) else []
    while level:
        node = level.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        level += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if not places or random.random() < 0.01:
        return copy.deepcopy(random.choice(VALUES))
    node, key = random.choice(places)
    change = random.randrange(6)
    if change == 0:
        del node[key]
    elif change == 1:
        other, name = random.choice(places)
        try:
            node[key] = json.loads(json.dumps(other[name]))
        except (
            KeyError,
            IndexError,
            ValueError,
            RecursionError,
        ):  # removed before, or nested too deeply
            node[key] = None
    elif change == 2:
        for _ in range(random.choice((2, 70, 400))):
            node[key] = [node[key]]
    elif change == 3 and isinstance(node, list):
        node += node[: random.randint(1, 20)]
    else:
        node[key] = copy.deepcopy(random.choice(VALUES))
    return root


def mutate_array(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Mutate an .npy file; in two of five cases its values alone, behind NumPy's header of 128 bytes."""
    if random.random() >= 0.4 or len(content) <= 128:
        return mutate_bytes(random, content, others)
    at = random.randrange(128, len(content))
    extreme = random.choice(EXTREMES)
    return content[:at] + (extreme + content[at + len(extreme) :])[: len(content) - at]


mutate_npz = partial(mutate_zip, mutate=mutate_array)


def run(
    target: Callable[[Path], object], seeds: list[bytes], path: Path, long: bool, mutate: Mutation
) -> None:
    check(fuzz(target, seeds, path, long=long, mutate=mutate))


@LENGTHS
def test_records(tmp_path: Path, long: bool) -> None:
    path = make_record(tmp_path)
    seeds = [path.read_bytes()]
    reported = read_reported()

    def show(path: Path) -> None:
        records = {path: read_record(path)}
        board = add_published(build_board(records), reported)
        for table in (to_markdown(board), to_csv(board), to_latex(board)):
            table.encode(errors="backslashreplace")
        json.loads(to_json(board))
        page_data(board)
        problems = check_records(records, RECIPES)
        assert not any("cannot be checked" in problem for problem in problems), problems

    run(show, seeds, path, long, mutate_json)


@LENGTHS
def test_predictions(tmp_path: Path, long: bool) -> None:
    ranking = make_record(tmp_path).parent / "predictions" / "logits.npz"
    write_confusion(tmp_path / "c.npz", [np.eye(3, dtype=int)] * 2, ["a", "b", "c"])
    with np.load(tmp_path / "c.npz") as stored:
        np.savez(tmp_path / "c.npz", **stored)
    with np.load(ranking) as stored:
        np.savez(ranking, **stored)
    for task, seed in (("linear", ranking), ("knn", ranking), ("ade20k", tmp_path / "c.npz")):

        def score(path: Path, task: str = task) -> None:
            for metric, value in scores_from_predictions(task, path, None).items():
                assert 0 <= value <= (3.5e38 if metric == "nll" else 100)

        run(score, [seed.read_bytes()], tmp_path / "x.npz", long, mutate_npz)


def truth() -> dict[str, Any]:
    shape = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 4, "width": 4 + n} for n in (1, 2)],
        "categories": [{"id": n, "name": f"c{n}"} for n in (1, 2)],
        "annotations": [
            {"id": 1, **shape, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
            {"id": 2, **shape, "segmentation": {"size": [4, 5], "counts": [0, 16, 4]}},
            {"id": 3, **shape, "category_id": 2, "segmentation": {"size": [4, 5], "counts": "0d0"}},
        ],
    }


@LENGTHS
def test_coco_annotations(tmp_path: Path, long: bool) -> None:
    results = tmp_path / "results.json"
    found = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
    results.write_text(json.dumps([found | {"segmentation": {"size": [4, 5], "counts": "0d0"}}]))
    images = tmp_path / "data" / "val2017"
    images.mkdir(parents=True)
    (images / "1.png").touch()

    def read(path: Path) -> None:
        evaluate_coco(path, results)
        content = read_instances(path).content
        if not [*entry_faults(path, content), *reference_faults(path, content)]:
            resolve_names(content, images)
            list(image_faults(path, content, images))
            find_bad(content)

    run(read, [json.dumps(truth()).encode()], tmp_path / "truth.json", long, mutate_json)


@LENGTHS
def test_coco_results(tmp_path: Path, long: bool) -> None:
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps(truth()))
    found = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
    mask = {"segmentation": {"size": [4, 5], "counts": "0d0"}}
    seeds = [json.dumps([found | mask, found]).encode(), json.dumps([found] * 3).encode()]
    run(lambda p: evaluate_coco(annotations, p), seeds, tmp_path / "r.json", long, mutate_json)
