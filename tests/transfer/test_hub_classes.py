"""Classification on Hugging Face datasets, which are written to disk with the library itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import fails, run

from simmim_bench.data.class_splits import class_folders, class_images
from simmim_bench.data.hub_classes import describe_empty_classes, hub_classes
from simmim_bench.data.named import DataSet, check_unique
from simmim_bench.diagnostics.data_checks import Reading
from simmim_bench.display import Display
from simmim_bench.errors import DataError
from simmim_bench.results.record import read_record
from transfer.finetune.doctor_checks import check_named

datasets = pytest.importorskip("datasets")


def write_split(
    folder: Path,
    few: Path,
    split: str,
    name: str,
    change: Callable[[Any], Any] = lambda table: table,
) -> None:
    """Write a split of class folders as a parquet file, which `load_dataset` finds by its name."""
    images = class_folders(few, split)
    columns = {
        "photo": [{"bytes": images.read(i), "path": None} for i in range(len(images))],
        "object": images.labels.tolist(),
    }
    features = datasets.Features(
        photo=datasets.Image(), object=datasets.ClassLabel(names=list(images.classes))
    )
    table = change(datasets.Dataset.from_dict(columns, features=features))
    folder.mkdir(exist_ok=True)
    table.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the library in a temporary folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def few(pocket: Path) -> Path:
    """Images in class folders."""
    return pocket / "imagenet"


@pytest.fixture(scope="module")
def hub(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `few` as a dataset with a train and a test split."""
    root = tmp_path_factory.mktemp("hub")
    write_split(root / "set", few, "train", "train")
    write_split(root / "set", few, "val", "test")
    return root / "set"


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_labels_and_classes_are_those_of_the_folders(
    hub: Path, few: Path, split: str
) -> None:
    found, folders = hub_classes(str(hub), split), class_folders(few, split)
    assert found.classes == folders.classes
    np.testing.assert_array_equal(found.labels, folders.labels)
    assert [found.read(i) for i in range(len(found))] == [
        folders.read(i) for i in range(len(folders))
    ]
    part = found.subset([5, 2])
    assert part.labels.tolist() == [folders.labels[5], folders.labels[2]]
    assert part.read(1) == folders.read(2)
    assert describe_empty_classes(found) is None
    assert "no image of" in str(describe_empty_classes(part))


def test_subsets_of_equal_size_have_different_fingerprints(hub: Path) -> None:
    found = hub_classes(str(hub), "train")
    rows = ([0, 1], [1, 2], [1, 0])
    fingerprints = {found.subset(each).fingerprint() for each in rows}
    assert len(fingerprints | {found.fingerprint()}) == 4
    assert found.subset([0, 1]).fingerprint() == found.subset([0, 1]).fingerprint()


@pytest.mark.heavy
@pytest.mark.parametrize("task", ["fewshot", "imagenet"])
def test_scores_equal_those_of_the_folders(hub: Path, few: Path, tmp_path: Path, task: str) -> None:
    more = {
        "imagenet": ("-o", "epochs=1", "-o", "warmup_epochs=0"),
        "fewshot": ("--fraction", "10%"),
    }
    command = ("transfer", task, "--ckpt", "random:vit_pocket", *more[task], "-o", "num_workers=0")
    metrics = []
    for name, data in (("hub", f"hfds:{hub}"), ("folders", few)):
        code, _, err = run(*command, "--data", f"{name}={data}", "--out", tmp_path / name)
        assert code == 0, err
        record = read_record(tmp_path / name / "record.json")
        predictions = np.load(tmp_path / name / record.predictions["file"])
        metrics.append((record.metrics, {key: predictions[key] for key in predictions.files}))
        if name == "hub":
            assert "the test split is scored, as there is no validation split" in err
            assert record.data["split"] == "test"
            assert f"hub=hfds:{hub}" in record.command
    assert metrics[0][0] == metrics[1][0]
    for key, values in metrics[0][1].items():
        np.testing.assert_array_equal(values, metrics[1][1][key])


def test_the_validation_split_comes_before_the_test_split(few: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "set", few, "train", "train")
    write_split(tmp_path / "set", few, "train", "test")
    write_split(tmp_path / "set", few, "val", "validation")
    found = hub_classes(str(tmp_path / "set"), "val")
    assert (found.split, len(found)) == ("validation", len(class_folders(few, "val")))


@pytest.mark.heavy
def test_a_class_without_images_is_a_warning(few: Path, tmp_path: Path) -> None:
    def unused(table: Any) -> Any:
        names = table.features["object"].names
        return table.cast_column("object", datasets.ClassLabel(names=[*names, "unicorn"]))

    write_split(tmp_path / "set", few, "train", "train", unused)
    write_split(tmp_path / "set", few, "val", "test", unused)
    for task in ("linear", "fewshot"):
        fraction = ("--fraction", "10%") if task == "fewshot" else ()
        command = (
            "transfer",
            task,
            "--ckpt",
            "random:vit_pocket",
            *fraction,
            "--out",
            tmp_path / task,
        )
        code, _, err = run(*command, "--data", f"hfds:{tmp_path / 'set'}")
        assert code == 0, err
        assert "(train) has no image of 1 of 11 classes: unicorn" in err


def two_label_columns(table: Any) -> Any:
    coarse = datasets.ClassLabel(names=["even", "odd"])
    return table.add_column("parity", [n % 2 for n in table["object"]]).cast_column(
        "parity", coarse
    )


def as_strings(table: Any) -> Any:
    names = table.features["object"].names
    return table.remove_columns("object").add_column("object", [names[n] for n in table["object"]])


def withheld(table: Any) -> Any:
    return (
        table.remove_columns("object")
        .add_column("object", [-1] * len(table))
        .cast_column("object", table.features["object"])
    )


def one_class(table: Any) -> Any:
    return (
        table.remove_columns("object")
        .add_column("object", [0] * len(table))
        .cast_column("object", datasets.ClassLabel(names=["all"]))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_strings, r"no column of class labels \(ClassLabel\), only photo .*object \(string\)"),
        (lambda t: t.remove_columns("object"), r"no column of class labels"),
        (two_label_columns, r"several columns of class labels, object, parity; .*set#object\.$"),
        (withheld, r"images without a class in column object"),
        (one_class, r"has one class in column object"),
    ],
    ids=["strings", "none", "two", "withheld", "one class"],
)
def test_labels_that_cannot_be_used_are_refused(
    few: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    write_split(tmp_path / "set", few, "train", "train", change)
    with pytest.raises(DataError, match=message):
        hub_classes(str(tmp_path / "set"), "train")
    with pytest.raises(DataError, match="has no split validation or valid or val or test, only"):
        hub_classes(str(tmp_path / "set"), "val")


def test_packed_rows_have_the_datasets_labels_or_a_choice_is_asked_for(
    hub: Path, few: Path, tmp_path: Path
) -> None:
    code, _, err = run("pack", f"hfds:{hub}", tmp_path / "packed", "--num-workers", 1)
    assert code == 0, err
    found, rows = class_images(tmp_path / "packed", "val"), hub_classes(str(hub), "val")
    assert (found.classes, [*found.labels]) == (rows.classes, [*rows.labels])
    assert [found.read(i) for i in range(len(found))] == [rows.read(i) for i in range(len(rows))]
    write_split(tmp_path / "set", few, "train", "train", two_label_columns)
    said = fails(4, "pack", f"hfds:{tmp_path / 'set'}", tmp_path / "two")
    assert "several columns of class labels" in said
    assert "has no column size" in fails(4, "pack", f"hfds:{tmp_path / 'set'}#size", tmp_path / "x")


def test_one_of_several_label_columns_is_chosen_by_name(few: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "set", few, "train", "train", two_label_columns)
    fine, coarse = (hub_classes(f"{tmp_path / 'set'}#{c}", "train") for c in ("object", "parity"))
    assert coarse.classes == ("even", "odd")
    np.testing.assert_array_equal(coarse.labels, fine.labels % 2)
    assert coarse.fingerprint() != fine.fingerprint()
    with pytest.raises(DataError, match=r"no column size of class labels; .* are object, parity"):
        hub_classes(f"{tmp_path / 'set'}#size", "train")


def test_a_split_file_cannot_list_rows(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n")
    command = ("transfer", "fewshot", "--ckpt", "random:vit_pocket", "--out", tmp_path / "run")
    message = fails(2, *command, "--data", f"hfds:{hub}", "--split", tmp_path / "list.txt")
    assert "lists files, and a Hugging Face dataset has none" in message


def test_doctor_checks_named_data_sets_as_a_run_does(
    hub: Path, few: Path, tmp_path: Path, display: Display
) -> None:
    reading = Reading(display=display)
    found = {
        name: check_named(DataSet(Path(root), name), reading)
        for name, root in (("hub", f"hfds:{hub}"), ("folders", few), ("gone", "nowhere"))
    }
    counted = {
        name: [f.facts for f in findings if f.name in ("train", "val")]
        for name, findings in found.items()
    }
    assert len(counted["hub"]) == 2
    assert counted["hub"] == counted["folders"]
    assert not [f for name in ("hub", "folders") for f in found[name] if f.state == "problem"]
    (problem,) = found["gone"]
    command = ("transfer", "knn", "--ckpt", "random:vit_pocket", "--out", tmp_path / "run")
    assert problem.said in fails(4, *command, "--data", "gone=nowhere")
    assert "more than once" in fails(2, "doctor", "--data", "a=x", "--data", "a=y")
    assert "more than once" in fails(2, "doctor", "--data", "x", "--data", "y")
    check_unique(["none", None])
