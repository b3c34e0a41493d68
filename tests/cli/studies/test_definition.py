"""Claims about study files: what they may say, and the errors that name the key and what is allowed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from simmim_bench.cli.studies.definition import Study
from simmim_bench.cli.studies.read import read_study
from simmim_bench.errors import BenchError, DataError, UsageError

PARTS = {
    "data": "{cifar: {imagenet: cifar}, camvid: {ade20k: camvid}}",
    "checkpoints": "{ours: {arch: vit_s}}",
    "tasks": "{linear: {}}",
}


def read(folder: Path, **parts: str) -> Study:
    """Read a study whose parts are those above, and others."""
    for name in ("cifar", "camvid", "pets"):
        (folder / name).mkdir(exist_ok=True)
    path = folder / "study.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in (PARTS | parts).items() if value))
    return read_study(path)


def test_a_study_has_what_its_file_says(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        out="../results",
        seed="5",
        baselines="[random]",
        checkpoints="{big: {arch: vit_b, seeds: [3, 4]}, small: {arch: vit_s, seeds: 2, teacher: big,"
        " init_from: timm:x, overrides: {betas: [0.9, 0.95], base_lr: 1e-3, aggregate: yes}}}",
        tasks="{ade20k: {seeds: 2, options: {label_maps: true}}, fewshot: {recipe: {vit_b: a}}}",
    )
    assert study.out == tmp_path.parent / "results"
    assert (study.seed, study.baselines, study.reference) == (5, ("random",), None)
    assert study.data["camvid"] == {"ade20k": tmp_path / "camvid"}
    big, small = study.checkpoints
    assert (big.seeds, small.seeds) == ((3, 4), (0, 1))
    assert (small.teacher, small.init_from, small.data) == ("big", "timm:x", tmp_path / "cifar")
    assert small.overrides == ("betas=0.9,0.95", "base_lr=1e-3", "aggregate=True")
    # In the order in which suites run them, with the variants of a task.
    assert [task.name for task in study.tasks] == ["fewshot-1%", "fewshot-10%", "ade20k"]
    assert [task.data for task in study.tasks] == [("cifar",), ("cifar",), ("camvid",)]
    assert study.tasks[0].recipes == {"vit_b": "a"}
    assert (study.tasks[2].seeds, study.tasks[2].options) == (2, {"label_maps": True})


def test_a_row_may_be_scored_by_some_tasks(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        tasks="{linear: {}, knn: {}, fewshot: {}}",
        checkpoints="{a: {arch: vit_s}, b: {arch: vit_s, tasks: [knn, fewshot]}, c: {arch: vit_s, tasks: []}}",
    )
    of_rows = [one.tasks for one in study.checkpoints]
    assert of_rows == [None, ("knn", "fewshot-1%", "fewshot-10%"), ()]
    with pytest.raises(
        UsageError, match=r"checkpoints\.a\.tasks: unknown name coco; known: linear"
    ):
        read(tmp_path, checkpoints="{a: {arch: vit_s, tasks: coco}}")


def test_a_varied_setting_makes_a_row_for_each_value(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        checkpoints="{a: {arch: vit_s, overrides: {mask_ratio: 0.5}, vary: {epochs: [10, 20]}},"
        " b: {arch: vit_s, vary: [{arch: vit_ti}, {arch: vit_b, epochs: 3}]}}",
    )
    found = {one.name: (one.arch, one.overrides) for one in study.checkpoints}
    assert found == {
        "a-epochs-10": ("vit_s", ("mask_ratio=0.5", "epochs=10")),
        "a-epochs-20": ("vit_s", ("mask_ratio=0.5", "epochs=20")),
        "b-arch-vit_ti": ("vit_ti", ()),
        "b-arch-vit_b": ("vit_b", ("epochs=3",)),
    }


@pytest.mark.parametrize(
    ("parts", "kind", "says"),
    [
        ({"task": "{}"}, UsageError, "study.yaml: task: unknown key; did you mean 'tasks'?"),
        ({"tasks": ""}, UsageError, "tasks: missing or no mapping; write tasks: {linear: {}"),
        ({"tasks": "[liner]"}, UsageError, "tasks.liner: unknown key; did you mean 'linear'?"),
        ({"tasks": "{knn: {seed: 1}}"}, UsageError, "tasks.knn.seed: unknown key; did you mean"),
        ({"tasks": "{knn: {seeds: 0}}"}, UsageError, "tasks.knn.seeds: 0 is not a whole number"),
        ({"tasks": "{coco: {}}"}, UsageError, "tasks.coco.data: no data set has coco: DIR"),
        ({"tasks": "{knn: {data: cifr}}"}, UsageError, "did you mean 'cifar'?"),
        ({"tasks": "{knn: {overrides: [k=1]}}"}, UsageError, "is not a mapping, such as {epochs"),
        ({"tasks": "{knn: {options: {split: x}}}"}, UsageError, "knn has none in a study"),
        ({"tasks": "{fewshot: {}, fewshot-1%: {}}"}, UsageError, "fewshot-1% is given twice"),
        ({"data": "{a: {imagnet: x}}"}, UsageError, "data.a.imagnet: unknown key; did you mean"),
        ({"data": "{a: {imagenet: x}}"}, DataError, "data.a.imagenet: "),
        ({"data": "{'a b': {imagenet: cifar}}"}, UsageError, "data: a b is not a name"),
        ({"checkpoints": "{}"}, UsageError, "write checkpoints: {NAME: {arch: ARCH}}"),
        ({"checkpoints": "{a: vit_s}"}, UsageError, "checkpoints.a: vit_s is not a mapping"),
        ({"checkpoints": "{a: {}}"}, UsageError, "checkpoints.a.arch: missing; add it"),
        ({"checkpoints": "{a: {arhc: x}}"}, UsageError, "did you mean 'arch'?"),
        ({"checkpoints": "{a: {arch: x, ckpt: y}}"}, UsageError, "checkpoints.a.arch: unknown key"),
        ({"checkpoints": "{a: {arch: x, seeds: -1}}"}, UsageError, "seeds: -1 is neither a number"),
        ({"checkpoints": "{a: {arch: x, seeds: [0, 0]}}"}, UsageError, "list of different seeds"),
        (
            {"checkpoints": "{a: {arch: x, vary: 3}}"},
            UsageError,
            "checkpoints.a.vary: 3 is neither",
        ),
        ({"checkpoints": "{a: {arch: x, teacher: b}}"}, UsageError, "teacher: b is neither a row"),
        (
            {"checkpoints": "{a: {arch: x, task: knn}}"},
            UsageError,
            "unknown name knn; known: image",
        ),
        (
            {"checkpoints": "{a: {arch: x, task: imagenet, teacher: timm:x}}"},
            UsageError,
            "checkpoints.a.teacher: unknown key",
        ),
        (
            {"checkpoints": "{random-b: {arch: x}}"},
            UsageError,
            "random-b is the name of a baseline",
        ),
        (
            {"checkpoints": "{a: {arch: x, vary: {teacher: ['timm:a']}}}"},
            UsageError,
            "a-teacher-timm:a cannot name a row",
        ),
        ({"checkpoints": "{a: {arch: x}, a: {arch: y}}"}, DataError, "key 'a' is given twice"),
        ({"baselines": "[rnd]"}, UsageError, "baselines: unknown name rnd; did you mean"),
        ({"reference": "our"}, UsageError, "reference: unknown name our; did you mean 'ours'?"),
        ({"figures": "[epoch]"}, UsageError, "did you mean 'epochs'?"),
        ({"seed": "one"}, UsageError, "seed: one is not a whole number from 0 to"),
        ({"out": "[a]"}, UsageError, "out: ['a'] is not a text."),
        ({"out": "{"}, DataError, "cannot be read as YAML"),
        ({"out": "!!python/name:os.system"}, DataError, "cannot be read as YAML"),
        ({"checkpoints": "{a: {ckpt: 'py:a:b'}}"}, UsageError, "a.ckpt: py:a:b names code to run"),
        (
            {"checkpoints": "{a: {arch: x, overrides: {teacher: 'py:a:b'}}}"},
            UsageError,
            "overrides.teacher: py:a:b names code to run",
        ),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(
    parts: dict[str, str], kind: type[BenchError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as error:
        read(tmp_path, **parts)
    assert says in str(error.value)
    assert str(tmp_path / "study.yaml") in str(error.value)


def test_the_images_of_a_pretraining_are_named_where_there_are_several(tmp_path: Path) -> None:
    two = "{cifar: {imagenet: cifar}, pets: {imagenet: pets, images: camvid}}"
    with pytest.raises(UsageError, match=r"ours\.data: missing; name one of cifar, pets"):
        read(tmp_path, data=two)
    study = read(tmp_path, data=two, checkpoints="{ours: {arch: vit_s, data: pets}}")
    assert study.checkpoints[0].data == tmp_path / "camvid"
    assert study.tasks[0].data == ("cifar", "pets")
    with pytest.raises(UsageError, match="imagenet takes one data set; name one of cifar, pets"):
        read(tmp_path, data=two, checkpoints="{a: {arch: x, data: pets}}", tasks="[imagenet]")


def test_a_subset_is_a_data_set_for_pretraining_alone(tmp_path: Path) -> None:
    data = "{cifar: {imagenet: cifar}, few: {subset_of: cifar, count: 20}}"
    study = read(tmp_path, data=data, checkpoints="{a: {arch: x, data: few}}")
    (subset,) = study.subsets
    assert (subset.source, subset.count, subset.seed) == (tmp_path / "cifar", 20, 0)
    assert study.checkpoints[0].data == subset.folder == study.out / "data" / "few"
    assert study.tasks[0].data == ("cifar",)
    for changed, says in (
        ("subset_of: cifr, count: 2", "data.few.subset_of: unknown name cifr; did you mean"),
        ("subset_of: cifar", "data.few.count: missing"),
        ("subset_of: cifar, count: 0", "data.few.count: 0 is not a whole number from 1"),
        ("subset_of: cifar, count: 2, imagenet: cifar", "data.few.imagenet: unknown key"),
    ):
        with pytest.raises(UsageError) as error:
            read(tmp_path, data=f"{{cifar: {{imagenet: cifar}}, few: {{{changed}}}}}")
        assert says in str(error.value)


def test_a_file_that_does_not_exist_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_study(tmp_path / "none.yaml")


def test_the_example_shows_every_key(tmp_path: Path) -> None:
    text = resources.files("simmim_bench.cli.studies").joinpath("example.yaml").read_text("utf-8")
    for layout in ("imagenet", "coco", "ade20k"):
        (tmp_path / "pocket" / layout).mkdir(parents=True)
    (tmp_path / "study.yaml").write_text(text)
    study = read_study(tmp_path / "study.yaml")
    assert len(study.checkpoints) == 3
    # What is commented out is valid as well.
    more = [line.replace("# ", "", 1) for line in text.splitlines() if line.startswith("  # ")]
    entries = [line for line in more if line.strip().startswith(("distilled", "imagenet", "coco"))]
    assert len(entries) == 3
    assert all(isinstance(yaml.safe_load(line), dict) for line in entries)
