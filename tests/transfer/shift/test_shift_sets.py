"""Test the sets of `transfer shift` on images that spell their class, against independent computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shift import reader, scored, write_classes, write_image
from timm.data import ImageNetInfo, RealLabelsImagenet

from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.named import DataSet
from simmim_bench.errors import DataError
from simmim_bench.results.metrics import scores_from_predictions, write_logits
from transfer.shift.check import check_set
from transfer.shift.classifier import StoredPredictions
from transfer.shift.imagenet_classes import classes_of, imagenet_classes
from transfer.shift.scores import score_corruptions, score_folder, score_real

IDS = ImageNetInfo().label_names()


def test_the_classes_are_those_of_timm_and_two_hundred_of_them_for_a_and_r() -> None:
    assert list(imagenet_classes()) == IDS == sorted(IDS)
    for name in ("a", "r"):
        assert len(set(classes_of(name))) == 200
        assert set(classes_of(name)) < set(IDS)
    # hendrycks/natural-adv-examples: eval.py, the first indices of thousand_k_to_200 that are not -1, and
    # hendrycks/imagenet-r: eval.py, imagenet_r_indices.
    assert [IDS.index(w) for w in classes_of("a")][:9] == [6, 11, 13, 15, 17, 22, 23, 27, 30]
    assert [IDS.index(w) for w in classes_of("r")][:9] == [1, 2, 4, 6, 8, 9, 11, 13, 22]


def test_v2_numbers_its_folders_and_they_are_not_in_the_order_of_strings(tmp_path: Path) -> None:
    v2 = write_classes(tmp_path / "v2", ((str(k), k) for k in range(1000)))
    score = scored(score_folder, tmp_path / "run", reader(IDS), DataSet(v2, "v2"))
    with np.load(score.predictions) as stored:
        in_order = sorted(map(str, range(1000)))  # "10" comes before "2"
        assert stored["labels"].tolist() == [int(name) for name in in_order]
    assert scores_from_predictions("shift-v2", score.predictions, None)["top1"] == 100.0
    # A model whose classes have another order is scored by their names.
    turned = reader(IDS[::-1], torch.eye(1024, 1000).flip(1))
    score = scored(score_folder, tmp_path / "turned", turned, DataSet(v2, "v2"))
    assert scores_from_predictions("shift-v2", score.predictions, None)["top1"] == 100.0
    assert (score.evaluated, score.expected) == (1000, 10_000)  # one of ten images of each class


@pytest.mark.parametrize("name", ["a", "r"])
def test_the_logits_of_the_two_hundred_classes_alone_are_compared(
    name: str, tmp_path: Path
) -> None:
    own = classes_of(name)
    table = torch.randn(1024, 1000, generator=torch.Generator().manual_seed(0))
    table[:, [k for k, known in enumerate(IDS) if known not in own]] += 10  # outside classes win
    table[range(100), [IDS.index(known) for known in own[:100]]] += 5
    root = write_classes(tmp_path / name, ((known, k) for k, known in enumerate(own)))
    score = scored(score_folder, tmp_path / "run", reader(IDS, table), DataSet(root, name))
    found = scores_from_predictions(f"shift-{name}", score.predictions, None)
    # The authors' eval.py: net(data)[:, mask], and the labels of ImageFolder.
    mask = [known in set(own) for known in IDS]
    masked = table[:200, torch.tensor(mask)]
    best = masked.topk(5).indices
    truth = torch.arange(200)[:, None]
    assert found["top1"] == 100 * (best[:, :1] == truth).any(1).double().mean().item()
    assert found["top5"] == 100 * (best == truth).any(1).double().mean().item()
    assert found["top1"] > 45
    assert (table[:200].argmax(1) == torch.tensor([IDS.index(k) for k in own])).sum() == 0


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Forty of ImageNet's validation images by name, in two class folders; three have no ReaL label."""
    for number in range(1, 41):
        folder = tmp_path / "imagenet" / "val" / IDS[number % 2]
        # Never decoded where the predictions are stored; an image that spells its number otherwise.
        write_image(folder / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return tmp_path / "imagenet"


def test_real_counts_as_timm_does_from_stored_predictions(real: Path, tmp_path: Path) -> None:
    images = class_folders(real, "val")
    names = [Path(name).name for name in images.paths.names]
    labels = RealLabelsImagenet([""] * 50_000).real_labels
    logits = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    for row, name in enumerate(names[:30]):  # some of the labels lead, some are among the best
        for label in labels[name][:1]:
            logits[row, label] += 10.0 if row % 2 else 3.0
    path = tmp_path / "logits.npz"
    write_logits(path, logits.numpy(), images.labels)
    stored = StoredPredictions(path=path, fingerprint=images.fingerprint())
    # The model is not run: its table has no rows.
    model = reader(IDS, torch.zeros(0, 1000), stored=stored)
    score = scored(score_real, tmp_path / "run", model, DataSet(real, "real"))

    first = [labels[f"ILSVRC2012_val_{number:08d}.JPEG"] for number in range(1, 41)]
    (tmp_path / "real.json").write_text(json.dumps(first))
    timms = RealLabelsImagenet(names, real_json=str(tmp_path / "real.json"))
    timms.add_result(logits)
    found = scores_from_predictions("shift-real", score.predictions, None)
    assert found["top1"] == pytest.approx(timms.get_accuracy(1))
    assert found["top5"] == pytest.approx(timms.get_accuracy(5))
    assert 20 < found["top1"] < found["top5"]
    assert score.evaluated == sum(map(bool, first)) < 40
    assert (score.expected, score.forwarded) == (46_837, 0)

    other = StoredPredictions(path=path, fingerprint="0" * 64)
    with pytest.raises(DataError, match=r"is not the validation set that reader was scored on"):
        scored(score_real, tmp_path / "b", reader(IDS, stored=other), DataSet(real, "real"))


def test_real_forwards_the_images_of_a_file_and_wants_imagenets_names(
    real: Path, tmp_path: Path
) -> None:
    table = torch.zeros(1024, 1000)
    labels = RealLabelsImagenet([""] * 50_000).real_labels
    for number in range(1, 41):
        for label in labels[f"ILSVRC2012_val_{number:08d}.JPEG"][-1:]:
            table[number, label] = 1.0
    score = scored(score_real, tmp_path / "run", reader(IDS, table), DataSet(real, "real"))
    assert scores_from_predictions("shift-real", score.predictions, None)["top1"] == 100.0
    assert score.forwarded == 40
    write_image(real / "val" / IDS[0] / "cat.JPEG", 1)
    with pytest.raises(DataError, match=r"cat.JPEG is not named as in ImageNet's validation set"):
        check_set("real", real, IDS, "reader")
    (real / "val" / IDS[0] / "cat.JPEG").unlink()
    with pytest.raises(DataError, match="not those of ImageNet-1k"):
        check_set("real", real, IDS[:10], "reader")


def write_corrupted(root: Path, conditions: dict[str, int]) -> Path:
    """Write two classes of two images per condition, of which some images spell a wrong class."""
    for condition, wrong in conditions.items():
        for number in range(4):
            code = number % 2 if number >= wrong else 1 - number % 2
            write_image(root / condition / "ab"[number % 2] / f"{number}.ppm", code)
    return root


def test_corruptions_are_averaged_over_conditions_in_any_layout(tmp_path: Path) -> None:
    conditions = {
        "noise/shot_noise/1": 1,
        "shot_noise/9": 0,
        "weather/fog/5": 4,
        "extra/spatter/2": 4,
    }
    conditions |= {"noise/shot_noise/3": 2, "brightness/1": 0}
    root = write_corrupted(tmp_path / "c", conditions)
    (root / "shot_noise" / "9").rename(tmp_path / "elsewhere")
    (root / "shot_noise").rmdir()
    score = scored(score_corruptions, tmp_path / "run", reader(["a", "b"]), DataSet(root, "c"))
    # shot_noise (25 % + 50 %) / 2, fog 100 %, brightness 0 %; spatter is in no mean.
    found = scores_from_predictions("shift-c", score.predictions, None)
    assert found == {"top1": pytest.approx(100 * (1 - (0.375 + 1 + 0) / 3))}
    assert (score.evaluated, score.expected) == (16, 4 * 75)
    by_corruption = score.details["top1_by_corruption"]
    assert by_corruption["shot_noise"] == [75.0, None, 50.0, None, None]
    assert by_corruption["spatter"][1] == 0.0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "71 of 75 conditions are missing (gaussian_noise/1, gaussian_noise/2, " in log


@pytest.mark.parametrize(
    ("name", "folders", "said"),
    [
        ("v2", [str(k) for k in range(10)], "has 10 of the 1,000 class folders of ImageNet-V2"),
        (
            "v2",
            [str(k) for k in range(1, 1001)],
            "1 of 1,000 class folders of .* no class .*: 1000;",
        ),
        ("v2", ["07", "7"], "names a class that another folder"),
        ("a", [*classes_of("r")], "are those of ImageNet-R, not of ImageNet-A; use --data r="),
        ("r", [*classes_of("a")], "are those of ImageNet-A, not of ImageNet-R; use --data a="),
        (
            "a",
            [*classes_of("a")[1:], IDS[0]],
            "1 of 200 class folders .* ImageNet-A, .*: n01440764",
        ),
        ("a", IDS, "800 of 1,000 class folders of .* name no class of ImageNet-A"),
        ("sketch", IDS[1:], "has 999 of the 1,000 class folders of ImageNet-Sketch"),
        ("mine", ["cat", IDS[3]], "1 of 2 class folders of .* no class that reader knows: cat;"),
        ("mine", ["1", "2"], "2 of 2 class folders of .* use --data v2="),
        ("mine", [], "has no class folders"),
        ("c", ["fog"], "has no folder CORRUPTION/SEVERITY"),
    ],
)
def test_folders_that_name_no_class_are_refused_in_one_line(
    name: str, folders: list[str], said: str, tmp_path: Path
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=said) as caught:
        check_set(name, tmp_path, IDS, "reader")
    assert "\n" not in str(caught.value)


def test_a_set_of_classes_that_the_classifier_does_not_know_is_refused(tmp_path: Path) -> None:
    for folder in classes_of("a"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=r"does not know 199 of the 200 classes of ImageNet-A: n0"):
        check_set("a", tmp_path, IDS[:10], "reader")


def test_conditions_of_different_classes_are_refused(tmp_path: Path) -> None:
    root = write_corrupted(tmp_path / "c", {"fog/1": 0, "fog/2": 0})
    write_image(root / "fog" / "2" / "c" / "0.ppm", 0)
    with pytest.raises(DataError, match=r"class folders of .*fog/2 and .*fog/1 differ: c;"):
        check_set("c", root, ["a", "b", "c"], "reader")


def test_a_class_folder_without_images_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a" / "0.ppm", 0)
    (tmp_path / "set" / "b").mkdir()
    with pytest.raises(DataError, match="b has no images"):
        scored(score_folder, tmp_path / "run", reader(["a", "b"]), DataSet(tmp_path / "set", "x"))
