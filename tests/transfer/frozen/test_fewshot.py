"""Few-shot splits are balanced or listed by a file, hashed, and refused if they are invalid."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simmim_bench.cli.main import cli
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.sources import ImageList, image_list
from simmim_bench.data.subsets import balanced_subset, sample_subset
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.errors import BenchError, DataError, UsageError
from simmim_bench.leaderboard.protocols import protocol_id
from simmim_bench.recipe import Draw
from simmim_bench.results.record import Record, read_record
from transfer.fewshot import (
    describe_draw,
    expected_draw_warnings,
    few_shot_images,
    split_sha256,
)
from transfer.finetune.doctor_checks import check_imagenet
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


@pytest.mark.heavy
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


SIZES = {
    "two": [900, 100],
    "zipf": [1000 // rank for rank in range(1, 60)],
    "single": [1] * 20 + [300, 7, 1, 45, 300],
    "even": [45] * 10,
}


def quotas(sizes: list[int], total: int) -> list[Fraction]:
    """Share `total` images in proportion to the sizes; a class with less than one image has one."""
    ones: set[int] = set()
    while True:
        rest = total - len(ones)
        whole = sum(s for c, s in enumerate(sizes) if c not in ones)
        below = {c for c, s in enumerate(sizes) if c not in ones and rest * s < whole}
        if not below:
            return [
                Fraction(1 if c in ones else Fraction(rest * s, whole)) for c, s in enumerate(sizes)
            ]
        ones |= below


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", SIZES)
def test_both_draws_have_the_requested_fraction_of_unequal_classes(
    name: str, fraction: float
) -> None:
    sizes = SIZES[name]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    total = max(len(sizes), int(Fraction(str(fraction)) * len(labels)))
    drawn: dict[Draw, list[int]] = {
        draw: np.bincount(labels[sample_subset(labels, fraction, 7, draw)]).tolist()
        for draw in ("balanced", "proportional")
    }
    shares = quotas(sizes, total)
    more = [c - int(share) for c, share in zip(drawn["proportional"], shares, strict=True)]
    remainders = sorted((share % 1 for share in shares), reverse=True)
    assert set(more) <= {0, 1}
    rounded_up = [share % 1 for share, extra in zip(shares, more, strict=True) if extra]
    assert sorted(rounded_up, reverse=True) == remainders[: sum(more)]
    for counts in drawn.values():
        assert sum(counts) == total
        assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    short = max(drawn["balanced"]) - 1
    assert all(c >= short or c == s for c, s in zip(drawn["balanced"], sizes, strict=True))
    if name == "two" and fraction == 0.5:
        assert drawn == {"balanced": [400, 100], "proportional": [450, 50]}


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.37])
def test_both_draws_of_equal_classes_are_the_same_images(fraction: float) -> None:
    labels = np.arange(10 * 45) % 10
    chosen = sample_subset(labels, fraction, 3, "proportional")
    assert chosen == balanced_subset(labels, fraction, 3)
    assert chosen != sample_subset(labels, fraction, 4, "proportional")


def warned(sizes: list[int], fraction: float, draw: Draw) -> list[str]:
    return expected_draw_warnings([f"c{n}" for n in range(len(sizes))], sizes, fraction, draw)


def test_a_draw_that_differs_from_its_name_is_reported() -> None:
    """The classes of SimCLR's lists differ by an image, which is no finding."""
    assert warned([130] * 9 + [129], 0.1, "balanced") == []
    assert warned([900, 100], 0.1, "balanced") == []
    (line,) = warned([900, 100], 0.5, "balanced")
    assert line.startswith("1 class has fewer images than the 400 that are sampled of the largest")
    assert "taken whole: c1 (100); -o draw=proportional" in line
    assert warned([900, 100], 0.5, "proportional") == []
    (line,) = warned([900, 3, 4], 0.1, "proportional")
    assert line.startswith("2 classes have less than one image in 9.92% of the images")
    (line,) = warned([7] * 20, 0.1, "balanced")
    assert line == "one image of each class is 14.29% of the training images, more than 10%"
    # Classes without an image, as in a Hugging Face dataset, have none to sample.
    assert warned([100, 0, 100], 0.1, "balanced") == []


def test_a_record_has_the_counts_of_every_class() -> None:
    described = describe_draw(["a", "b", "c", "d"], [900, 100, 0, 9], [4, 4, 0, 9], "listed")
    assert described == {
        "draw": "listed",
        "fraction": 17 / 1009,
        "images_per_class": {"min": 4, "median": 4.0, "max": 9},
        "classes_by_images": {"4": 2, "9": 1},
        "classes": {"a": "4 of 900", "b": "4 of 100", "c": "0 of 0", "d": "9 of 9"},
    }
    assert "classes" not in describe_draw(["a"] * 101, [2] * 101, [1] * 101, "balanced")


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


@pytest.mark.heavy
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


def unequal(pocket: Path, folder: Path, sizes: Sequence[int]) -> Path:
    """Link the images of some classes, repeatedly, to a folder with classes of the given sizes."""
    for source, size in zip(sorted((pocket / "imagenet" / "train").iterdir()), sizes, strict=False):
        images = itertools.cycle(sorted(source.iterdir()))
        (folder / "imagenet" / "train" / source.name).mkdir(parents=True)
        for number in range(size):
            image = folder / "imagenet" / "train" / source.name / f"{source.name}_{number}.png"
            image.symlink_to(next(images))
        val = folder / "imagenet" / "val" / source.name
        val.parent.mkdir(exist_ok=True)
        val.symlink_to(pocket / "imagenet" / "val" / source.name)
    return folder


@pytest.mark.heavy
def test_a_run_records_its_draw_and_logs_what_doctor_reports(tmp_path: Path, pocket: Path) -> None:
    data = unequal(pocket, tmp_path, (120, 20, 2))
    train = class_folders(data / "imagenet", "train")
    expected: dict[Draw, list[int]] = {"balanced": [6, 6, 2], "proportional": [11, 2, 1]}
    reading = Reading(display=Display(quiet=True))
    found = [f for f in check_imagenet(data / "imagenet", reading) if f.name.startswith("fewshot")]
    records = []
    for draw, counts in expected.items():
        more = ["-o", f"draw={draw}", "-o", "blocks=-1", "-o", "l2=0.01"]
        record = fewshot(tmp_path / draw, data, *more)
        described = record.details["few_shot"]
        assert (described["draw"], described["fraction"]) == (draw, 14 / 142)
        sizes = zip(counts, (120, 20, 2), strict=True)
        assert [*described["classes"].values()] == [f"{n} of {size}" for n, size in sizes]
        chosen = train.subset(few_shot_images(train, 0.1, 0, draw=draw))
        assert record.details["train_split_sha256"] == split_sha256(chosen)
        assert record.data["sampled_images"] == len(chosen) == record.details["train_images"]
        log = (tmp_path / draw / "log.txt").read_text()
        assert f"fraction=9.86% draw={draw} per_class={min(counts)} to {max(counts)}" in log
        for line in expected_draw_warnings(train.classes, (120, 20, 2), 0.1, draw):
            assert f"fewshot: warning: {line}" in log
            assert (line in [f.said for f in found]) == (draw == "balanced")
        records.append(record)
    assert len({protocol_id(record) for record in records}) == 2
    assert "draw=proportional" in records[1].command
    assert [f.name for f in found] == ["fewshot 1%", "fewshot 10%"]
    with pytest.raises(DataError) as refused:
        few_shot_images(train, 0.01, 0)
    assert found[0].said == str(refused.value)


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("linear", (), "draw=proportional is for fewshot, but linear learns from all"),
        ("imagenet", (), "draw=proportional is for fewshot, but imagenet learns from all"),
        ("fewshot", ("--split", "list.txt"), "--split list.txt lists them; remove one of the two"),
    ],
)
def test_a_draw_without_effect_is_refused(
    task: str, more: Sequence[str], message: str, tmp_path: Path
) -> None:
    arguments = ["transfer", task, "--ckpt", "random:vit_pocket", "--data", str(tmp_path)]
    arguments += ["--out", str(tmp_path / "run"), "-o", "draw=proportional", *more]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


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
    assert record.details["few_shot"]["draw"] == "listed"
    assert record.details["few_shot"]["classes_by_images"] == {"1": 10}
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
