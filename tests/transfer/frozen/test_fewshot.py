"""Few-shot splits are balanced or listed by a file, hashed, and refused if they are invalid."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simmim_bench.cli.main import cli
from simmim_bench.data.datasets import balanced_subset
from simmim_bench.data.sources import ImageList, class_folders, image_list
from simmim_bench.errors import BenchError, DataError
from simmim_bench.leaderboard.protocols import protocol_id
from simmim_bench.results.record import Record, read_record
from transfer.fewshot import few_shot_images, split_sha256
from transfer.split_description import describe_split


def images(classes: int, per_class: int, root: str = "data") -> ImageList:
    paths = [
        (c, Path(root, "train", f"c{c}", f"c{c}_{i}.jpg"))
        for c in range(classes)
        for i in range(per_class)
    ]
    return image_list(
        Path(root),
        tuple(path for _, path in paths),
        tuple(c for c, _ in paths),
        tuple(f"c{c}" for c in range(classes)),
    )


def listed(folder: Path, names: list[str]) -> Path:
    (folder / "split.txt").write_text("\n".join(names) + "\n")
    return folder / "split.txt"


def test_a_sampled_split_is_balanced_and_depends_on_the_seed() -> None:
    train = images(5, 300)
    chosen = few_shot_images(train, 0.01, 0)
    assert Counter(train.labels[i] for i in chosen) == dict.fromkeys(range(5), 3)
    assert few_shot_images(train, 0.01, 0) == chosen != few_shot_images(train, 0.01, 1)


def imagenet_labels() -> list[int]:
    """Labels of ImageNet's size: 1,281,167 images in 1,000 classes of 732 to 1,300; 895 classes have 1,300."""
    sizes = [1300] * 895 + [732] + [1124] * 103
    sizes.append(1_281_167 - sum(sizes))
    assert 732 <= sizes[-1] <= 1300
    return np.repeat(np.arange(1000), sizes).tolist()


@pytest.mark.parametrize(
    ("fraction", "images_per_class"),
    # google-research/simclr@383d414: imagenet_subsets/1percent.txt and 10percent.txt, counted by class
    [(0.01, {13: 811, 12: 189}), (0.1, {129: 116, 128: 884})],
)
def test_a_sampled_split_of_imagenet_has_the_counts_of_simclrs_lists(
    fraction: float, images_per_class: dict[int, int]
) -> None:
    labels = np.array(imagenet_labels())
    counts = np.bincount(labels[balanced_subset(labels.tolist(), fraction, 0)])
    assert Counter(counts.tolist()) == images_per_class
    assert counts.sum() == {0.01: 12_811, 0.1: 128_116}[fraction]


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.5, 0.93, 1.0])
def test_classes_that_are_too_small_are_made_up_for_by_the_others(fraction: float) -> None:
    sizes = [1, 40, 3, 40, 16]
    labels = np.repeat(np.arange(5), sizes)
    counts = np.bincount(labels[balanced_subset(labels.tolist(), fraction, 4)], minlength=5)
    expected = [0] * 5
    for _ in range(round(100 * fraction)):
        room = [c for c in range(5) if expected[c] < sizes[c]]
        expected[min(room, key=lambda c: expected[c])] += 1
    assert sorted(counts) == sorted(expected)
    assert ((counts <= sizes) & (counts >= 1)).all()


@pytest.mark.parametrize(("classes", "per_class"), [(10, 4500), (10, 400), (3, 300)])
@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_an_even_split_is_that_of_earlier_versions(
    classes: int, per_class: int, fraction: float
) -> None:
    """Committed records are of 45,000 and 4,000 images in ten classes."""
    labels = np.arange(classes * per_class) % classes
    generator = np.random.Generator(np.random.PCG64(5))
    expected = [
        i
        for c in range(classes)
        for i in generator.permutation(np.flatnonzero(labels == c))[: round(per_class * fraction)]
    ]
    assert balanced_subset(labels.tolist(), fraction, 5) == sorted(expected)


def test_only_an_uneven_sampled_split_is_described(tmp_path: Path) -> None:
    even, uneven = images(3, 100), images(3, 110)
    assert describe_split(even.subset(few_shot_images(even, 0.1, 0)), None) == {}
    chosen = uneven.subset(few_shot_images(uneven, 0.05, 0))
    assert describe_split(chosen, None) == {"sampled_images": 16}


def test_a_listed_split_has_the_images_of_the_file(tmp_path: Path) -> None:
    train = images(3, 20)
    names = [f"c{c}_{i}.jpg" for c in range(3) for i in (7, 2)]
    chosen = few_shot_images(train, 0.1, 0, listed(tmp_path, [*names, names[0], ""]))
    assert sorted(train.paths[i].name for i in chosen) == sorted(names)


def test_images_of_one_name_are_distinguished_by_their_class(tmp_path: Path) -> None:
    named = [Path("data", "train", f"c{c}", f"{i}.jpg") for c in range(3) for i in range(20)]
    train = image_list(Path("data"), tuple(named), images(3, 20).labels, ("c0", "c1", "c2"))
    lines = [f"{above}c{c}/{i}.jpg" for c, above in enumerate(("", "train/", "")) for i in (7, 2)]
    chosen = few_shot_images(train, 0.1, 0, listed(tmp_path, lines))
    assert chosen == [2, 7, 22, 27, 42, 47]
    with pytest.raises(DataError, match=r"names 2.jpg, which matches 3 images, .* CLASS/NAME"):
        few_shot_images(train, 0.1, 0, listed(tmp_path, [*lines[:5], "2.jpg"]))
    with pytest.raises(DataError, match=r"names 1 images that do not exist below .*: c3/2.jpg"):
        few_shot_images(train, 0.1, 0, listed(tmp_path, [*lines[:5], "c3/2.jpg"]))


def test_the_hash_depends_on_the_images_and_not_on_their_folder() -> None:
    here, there = images(3, 20), images(3, 20, root="/mnt/other")
    assert split_sha256(here) == split_sha256(there)
    assert split_sha256(here.subset([3, 1])) == split_sha256(here.subset([1, 3]))
    assert split_sha256(here.subset([3, 1])) != split_sha256(here.subset([3, 2]))


@pytest.mark.parametrize(
    ("names", "fraction", "message", "code"),
    [
        (
            None,
            0.01,
            "1% of 60 images in 3 classes is less than one image per class; use --fraction",
            4,
        ),
        (
            None,
            0.1,
            "10% of 60 images in 20 classes is less than one image per class; use more images",
            4,
        ),
        (["c0_1.jpg", "gone.jpg", "c1_1.jpg", "c2_1.jpg"], 0.1, "names 1 images .* gone.jpg", 4),
        ([f"c{i % 2}_{i}.jpg" for i in range(6)], 0.1, "lists no image of 1 classes: c2", 4),
        (
            [f"c{c}_{i}.jpg" for c in range(3) for i in range(2)],
            0.01,
            "lists 10.0% .* --fraction is 1%",
            2,
        ),
    ],
    ids=["too few", "too few of 10%", "missing image", "missing class", "another fraction"],
)
def test_an_invalid_split_is_refused(
    tmp_path: Path, names: list[str] | None, fraction: float, message: str, code: int
) -> None:
    file = None if names is None else listed(tmp_path, names)
    shape = (20, 3) if "20 classes" in message else (3, 20)
    with pytest.raises(BenchError, match=message) as error:
        few_shot_images(images(*shape), fraction, 0, file)
    assert error.value.exit_code == code


def fewshot(out: Path, pocket: Path, *more: str) -> Record:
    arguments = ["transfer", "fewshot", "--fraction", "10%", "--ckpt", "random:vit_pocket"]
    arguments += ["--data", str(pocket / "imagenet"), "--out", str(out), "--quiet", *more]
    assert CliRunner().invoke(cli, arguments).exception is None
    return read_record(out / "record.json")


@pytest.mark.parametrize("recipe", ["logistic_pocket", "imagenet_pocket"])
def test_a_listed_split_is_a_separate_protocol_and_a_sampled_one_is_not(
    tmp_path: Path, pocket: Path, recipe: str
) -> None:
    train = class_folders(pocket / "imagenet", "train")
    protocols = []
    for seed in (0, 1):
        more = ["--recipe", recipe, "--seed", str(seed)]
        protocols.append(protocol_id(fewshot(tmp_path / f"sampled{seed}", pocket, *more)))
        chosen = train.subset(few_shot_images(train, 0.1, seed))
        more += ["--split", str(listed(tmp_path, [path.name for path in chosen.paths]))]
        protocols.append(protocol_id(fewshot(tmp_path / f"listed{seed}", pocket, *more)))
    assert protocols[0] == protocols[2]
    assert len(set(protocols)) == 3


@pytest.mark.parametrize("recipe", ["logistic_pocket", "imagenet_pocket"])
def test_both_classifiers_score_a_listed_split(tmp_path: Path, pocket: Path, recipe: str) -> None:
    train = class_folders(pocket / "imagenet", "train")
    chosen = train.subset(few_shot_images(train, 0.1, 3))
    file = listed(tmp_path, [path.name for path in chosen.paths])
    record = fewshot(tmp_path / "run", pocket, "--split", str(file), "--recipe", recipe)
    assert record.task == "fewshot-10%"
    assert record.details["train_images"] == len(chosen) == 10
    assert record.details["train_split_sha256"] == split_sha256(chosen)
    assert record.recipe["name"] == recipe
    uneven = replace(record, data={**record.data, "sampled_images": 10})
    assert protocol_id(uneven) != protocol_id(record)


def test_random_crops_do_not_depend_on_features_that_other_tasks_stored(
    tmp_path: Path, pocket: Path
) -> None:
    more = ["--recipe", "linear_beit", "--seed", "2"]
    for change in ("img_size=32", "epochs=4", "crops=2", "blocks=2", "num_workers=0"):
        more += ["-o", change]
    alone = fewshot(tmp_path / "alone", pocket, *more)
    features = ["--features", str(tmp_path / "features")]
    arguments = ["transfer", "linear", *more, *features, "-o", "crops=0", "--quiet"]
    arguments += ["--ckpt", "random:vit_pocket", "--data", str(pocket / "imagenet")]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "linear")])
    assert done.exception is None
    shared = fewshot(tmp_path / "shared", pocket, *more, *features)
    assert shared.details["features_sha256"] != alone.details["features_sha256"]
    logits = []
    for name in ("alone", "shared"):
        with np.load(tmp_path / name / "predictions" / "logits.npz") as stored:
            by_class = np.zeros(stored["logits"].shape, np.float32)
            np.put_along_axis(by_class, stored["ranked"].astype(int), stored["logits"], axis=1)
            logits.append(by_class)
    assert np.ptp(logits[0]) > 0.1
    np.testing.assert_allclose(logits[0], logits[1], rtol=2e-3, atol=2e-3)
