"""Claims about `doctor`: it lists every fault, and its estimates are right where they can be checked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli import fails, run
from support.commands import forked_interpreter
from support.tiny import TINY
from torch import nn

from pretrain.estimate import plan_pretraining
from pretrain.recipes import RECIPES as PRETRAINING
from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.class_splits import class_folders
from simmim_bench.diagnostics import frameworks
from simmim_bench.diagnostics.checkpoint import check_checkpoint
from simmim_bench.diagnostics.data_checks import SAMPLE, Reading
from simmim_bench.diagnostics.estimate import PUBLISHED, DataSize, Work, data_size, estimate
from simmim_bench.diagnostics.findings import Finding, exit_code
from simmim_bench.diagnostics.frameworks import FRAMEWORKS, Framework, check_frameworks
from simmim_bench.diagnostics.machine import HIDING, check_gpus
from simmim_bench.display import Display
from simmim_bench.errors import UsageError
from simmim_bench.models.build import build_backbone
from simmim_bench.overrides import override
from simmim_bench.training.memory import GIB, StepMemory
from transfer.detection.doctor_checks import check_coco
from transfer.finetune.doctor_checks import check_imagenet
from transfer.recipes import RECIPES as TRANSFER_RECIPES
from transfer.segmentation.doctor_checks import check_ade20k
from transfer.tasks import load_function, runner_of

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path, pocket: Path) -> Path:
    """A copy of the synthetic data, to be damaged."""
    return Path(shutil.copytree(pocket, tmp_path / "data"))


@pytest.fixture
def reading(display: Display) -> Reading:
    return Reading(display=display)


def all_text(findings: list[Finding], *states: str) -> str:
    chosen = [f for f in findings if f.state in (states or ("ok", "warning", "problem"))]
    return "\n".join(" ".join((f.name, f.said, *f.items, f.remedy or "")) for f in chosen)


def change_coco(data: Path, split: str, change: Any) -> None:
    path = data / "coco" / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_fault_is_reported_in_one_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "simmim_bench.diagnostics.frameworks.check_frameworks", lambda *_: []
    )  # seconds of imports
    classes = sorted(p.name for p in (data / "imagenet" / "train").iterdir())
    shutil.rmtree(data / "imagenet" / "val" / classes[0])
    for image in (data / "imagenet" / "train" / classes[1]).iterdir():
        image.unlink()
    cut = sorted((data / "imagenet" / "train" / classes[2]).iterdir())[0]
    cut.write_bytes(cut.read_bytes()[:200])

    missing = sorted((data / "coco" / "train2017").iterdir())[0]
    missing.unlink()

    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["image_id"] = 987654
        content["annotations"][1]["bbox"][2] = 0

    change_coco(data, "train", spoil)
    resized = sorted((data / "coco" / "val2017").iterdir())[0]
    Image.new("RGB", (7, 9)).save(resized)

    maps = sorted((data / "ade20k" / "annotations" / "training").iterdir())
    labels = np.asarray(Image.open(maps[0])).copy()
    labels[0, 0] = 211
    Image.fromarray(labels).save(maps[0])
    Image.fromarray(labels[:5]).save(maps[1])
    Image.new("RGB", labels.shape[::-1]).save(maps[2])
    maps[3].unlink()
    damaged = tmp_path / "weights.pth"
    damaged.write_text("hello")

    folders = [f"--{kind}={data / kind}" for kind in ("imagenet", "coco", "ade20k")]
    code, out, err = run("doctor", *folders, "--ckpt", damaged)
    assert code == 4
    for named in (
        f"1 class of train/ is missing in val/: {classes[0]}",
        f"class folder {data / 'imagenet' / 'train' / classes[1]} has no images",
        f"image {cut} cannot be read",
        f"image {missing} does not exist",
        "has image_id 987654, which is not in images",
        "1 annotations with a box without area",
        f"image {resized} is 7 x 9 pixels, but its entry in the annotations is 32 x 32",
        f"{maps[0]} has label 211, but the largest label of 16 classes is 16",
        f"{maps[1]} is 5x32 pixels (HxW), its image 32x32",
        f"{maps[2]} has 3 channels",
        f"- {maps[3]}",
        f"weights file {damaged} is damaged",
    ):
        assert named in out, named
    assert "Traceback" not in err


@pytest.mark.heavy
def test_valid_data_are_counted_and_reported_as_json(
    pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torch is not imported once more: that an interpreter is started is tested with a broken framework.
    forked = SimpleNamespace(run=forked_interpreter)
    monkeypatch.setattr("simmim_bench.diagnostics.frameworks.subprocess", forked)
    folders = [f"--{kind}={pocket / kind}" for kind in ("imagenet", "coco", "ade20k")]
    folders.append(f"--data=named={pocket / 'imagenet'}")
    code, out, _ = run("doctor", "--json", *folders, "--recipe", "pocket", "-o", "epochs=3")
    answer = json.loads(out)
    facts = {(f["group"], f["name"]): f["facts"] for f in answer["findings"] if f["facts"]}
    bad = {f["group"] for f in answer["findings"] if f["state"] == "problem"}
    assert bad <= {"frameworks", "machine"}
    assert code == answer["exit_code"] == (3 if bad else 0)
    assert {name for group, name in facts if group == "frameworks"} == {e.name for e in FRAMEWORKS}
    assert facts["frameworks", "torch"]["version"] == torch.__version__
    content = json.loads((pocket / "coco/annotations/instances_train2017.json").read_text())
    seen = {a["image_id"] for a in content["annotations"]}
    assert facts["imagenet", "train"]["images"] == 60
    assert facts["named", "train"] == facts["imagenet", "train"]
    assert facts["coco", "train"]["annotations"] == len(content["annotations"])
    assert facts["coco", "train"]["images_without_annotations"] == 8 - len(seen)
    assert facts["ade20k", "validation"]["pairs"] == 6
    assert facts["estimate", "time"]["steps"] == 3 * (60 // 16)  # a last small batch is dropped
    assert facts["machine", "disk"]["free"] > 0


def test_objects_that_runs_can_skip_are_a_warning(data: Path, reading: Reading) -> None:
    def flatten(content: dict[str, Any]) -> None:
        content["annotations"][1]["bbox"][2] = 0

    change_coco(data, "train", flatten)
    findings = check_coco(data / "coco", reading)
    assert "bad_annotations=skip" in all_text(findings, "warning")
    assert exit_code(findings) == 0


def test_objects_that_scoring_would_misread_are_a_problem(data: Path, reading: Reading) -> None:
    def shorten(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
        content["annotations"][0]["iscrowd"] = 0

    change_coco(data, "val", shorten)
    found = all_text(check_coco(data / "coco", reading), "problem")
    assert "1 annotations with a polygon that is not three corners" in found


def test_every_key_that_coco_entries_lack_is_named(data: Path, reading: Reading) -> None:
    def strip(content: dict[str, Any]) -> None:
        del content["annotations"][0]["image_id"]
        del content["annotations"][2]["category_id"]
        del content["images"][1]["height"]

    change_coco(data, "train", strip)
    found = all_text(check_coco(data / "coco", reading), "problem")
    for named in (
        "entry 0 of annotations lacks 'image_id'",
        "entry 2 of annotations lacks 'category_id'",
        "entry 1 of images lacks 'height'",
    ):
        assert named in found


def test_splits_of_other_categories_are_a_problem(data: Path, reading: Reading) -> None:
    def add(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 77, "name": "zebra"})

    change_coco(data, "val", add)
    found = all_text(check_coco(data / "coco", reading), "problem")
    assert "id 77 is in one of them only" in found


def test_unused_files_are_a_warning(data: Path, reading: Reading) -> None:
    image = next((data / "imagenet" / "train").rglob("*.JPEG"))
    stray = shutil.copy(image, data / "imagenet" / "train" / "stray.JPEG")
    lonely = data / "ade20k" / "annotations" / "validation" / "lonely.png"
    Image.new("L", (32, 32)).save(lonely)
    findings = check_imagenet(data / "imagenet", reading)
    findings += check_ade20k(data / "ade20k", reading)
    chosen = all_text(findings, "warning")
    assert Path(stray).name in chosen
    assert lonely.name in chosen
    assert exit_code(findings) == 0


@pytest.mark.parametrize("examine", [check_imagenet, check_coco, check_ade20k])
def test_missing_folders_are_named(examine: Any, tmp_path: Path, reading: Reading) -> None:
    findings = examine(tmp_path / "nowhere", reading)
    assert str(tmp_path / "nowhere") in all_text(findings, "problem")
    assert exit_code(findings) == 4


def test_large_splits_are_sampled_unless_every_file_is_requested(display: Display) -> None:
    chosen = Reading(display=display).choose(100_000)
    assert len(set(chosen)) == SAMPLE
    assert chosen == Reading(display=display).choose(100_000)
    assert max(chosen) > 90_000
    assert Reading(display=display, every_file=True).choose(100_000) == list(range(100_000))


def write_tiny(folder: Path, spoil: Any = None) -> Path:
    spec = TINY["vit"]
    state = build_backbone(spec, seed=0).state_dict()
    if spoil is not None:
        spoil(state)
    write_checkpoint(
        folder,
        state=state,
        spec=spec,
        form="transfer",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        provenance={"label": "tiny"},
    )
    return folder


def test_a_checkpoint_is_described_and_matched_with_architectures(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny")
    checkpoint, findings = check_checkpoint(str(path))
    assert checkpoint is not None
    weights = len(build_backbone(TINY["vit"]).state_dict())
    (fit,) = [f for f in findings if "matched" in f.facts]
    assert len(fit.facts["matched"]) == weights
    assert exit_code(findings) == 0
    # It is named vit_pocket, but the registered vit_pocket is four times as wide.
    assert "embed_dim 32" in all_text(findings)
    for other in ("swin_pocket", "vit_b"):
        _, findings = check_checkpoint(str(path), other)
        assert f"does not fit {other}" in all_text(findings, "problem")
        assert "use --arch vit_pocket, its own architecture" in all_text(findings, "problem")
        assert exit_code(findings) == 4


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["blocks.2.mlp.fc1.weight"][3, 1] = torch.nan

    _, findings = check_checkpoint(str(write_tiny(tmp_path / "tiny", spoil)))
    assert "blocks.2.mlp.fc1.weight" in all_text(findings, "problem")
    assert exit_code(findings) == 4


def test_a_damaged_or_absent_checkpoint_is_a_problem(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for ckpt, said in ((path, "is damaged"), (tmp_path / "none", "does not exist")):
        checkpoint, findings = check_checkpoint(str(ckpt))
        assert checkpoint is None
        assert said in all_text(findings, "problem")


def test_a_missing_framework_is_a_problem_only_where_it_is_needed() -> None:
    absent = Framework(
        "no_such_package", "nothing", "import no_such_package", "pip install it", True
    )
    (finding,) = check_frameworks([absent])
    assert (finding.state, finding.remedy) == ("warning", "pip install it")
    assert exit_code([finding]) == 0
    (finding,) = check_frameworks([absent], ["no_such_package"])
    assert finding.state == "problem"
    assert exit_code([finding]) == 3


def test_a_broken_framework_does_not_affect_the_others(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "halting.py").write_text("import os; os._exit(7)")
    (tmp_path / "torn.py").write_text("import no_such_part")
    (tmp_path / "shy.py").write_text("import sys\nif 'torn' in sys.argv[1]: raise OSError('shy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    names = ("torn", "shy", "halting", "json")
    frameworks = [
        Framework(n, "tests", f"import {n}; v = '1.0'", f"install {n}", True) for n in names
    ]
    found = {f.name: f for f in check_frameworks(frameworks)}
    assert "broken: its import ends Python with code 7" in found["halting"].said
    # What an installed package lacks makes it broken, not missing.
    assert "broken: ModuleNotFoundError: No module named 'no_such_part'" in found["torn"].said
    assert found["torn"].state == found["halting"].state == "problem"
    assert found["json"].state == found["shy"].state == "ok"


def test_a_missing_framework_takes_precedence_over_bad_data() -> None:
    def problem(group: str) -> Finding:
        return Finding(group=group, name="x", state="problem", said="broken")

    assert exit_code([problem("coco"), problem("frameworks")]) == 3
    assert exit_code([problem("coco")]) == 4
    assert exit_code([]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")
def test_a_gpu_that_torch_cannot_use_is_reported_with_a_fix(
    tmp_path: Path, monkeypatch: Any
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA Test, 8192 MiB, 470.1 CUDA Version: 11.4'\n")
    driver.chmod(0o755)
    monkeypatch.delenv(HIDING, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    findings = check_gpus()
    assert "NVIDIA Test" in all_text(findings, "problem")
    assert "built for" in (findings[0].remedy or "")
    assert exit_code(findings) == 3
    monkeypatch.setenv(HIDING, "")
    assert f"unset {HIDING}" in all_text(check_gpus(), "warning")


def test_options_that_need_each_other_are_checked() -> None:
    assert "did you mean 'vit_b_800ep'" in fails(2, "doctor", "--recipe", "vit_b_80ep")
    assert "choose one with --arch or with --ckpt" in fails(2, "doctor", "--recipe", "coco_pocket")
    assert "needs --recipe" in fails(2, "doctor", "-o", "epochs=3")
    assert "needs --ckpt or --recipe" in fails(2, "doctor", "--arch", "vit_b")


@pytest.mark.heavy
def test_pretraining_takes_the_estimated_steps_and_disk(
    tmp_path: Path, pocket: Path, reading: Reading
) -> None:
    recipe = override(PRETRAINING["pocket"], ["epochs=2", "warmup_epochs=0"])
    data = pocket / "imagenet"
    size = data_size("imagenet", check_imagenet(data, reading))
    assert (size.train, size.val, size.classes) == (60, 30, 10)
    work = plan_pretraining(recipe, size, CPU)
    code, _, err = run(
        *("pretrain", "--arch", "vit_pocket", "--data", data, "--out", tmp_path / "run"),
        *("-o", "epochs=2", "-o", "warmup_epochs=0", "--quiet"),
    )
    assert code == 0, err
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] + 1 == work.steps
    check_disk(work, tmp_path / "run" / "checkpoints")


def check_disk(work: Work, written: Path) -> None:
    """Check that the estimate is an upper bound, and not more than four times what was written."""
    used = sum(p.stat().st_size for p in written.rglob("*") if p.is_file())
    assert work.disk / 4 < used <= work.disk


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("task", "name", "changes", "written"),
    [
        (
            "imagenet",
            "imagenet_pocket",
            ["epochs=1", "warmup_epochs=0", "batch_size=4"],
            "run/checkpoints",
        ),
        ("knn", "knn_pocket", ["forward_batch_size=16"], "features"),
        (
            "coco",
            "coco_pocket",
            ["max_iters=1", "warmup_iters=0", "batch_size=2"],
            "run/checkpoints",
        ),
        (
            "ade20k",
            "ade20k_pocket",
            ["max_iters=1", "warmup_iters=0", "batch_size=2"],
            "run/checkpoints",
        ),
    ],
)
def test_transfers_take_no_more_disk_than_estimated(
    task: str, name: str, changes: list[str], written: str, tmp_path: Path, pocket: Path
) -> None:
    if task in ("coco", "ade20k"):
        pytest.importorskip({"coco": "detectron2", "ade20k": "mmseg"}[task])
    kind = task if task in ("coco", "ade20k") else "imagenet"
    recipe = override(TRANSFER_RECIPES[name], changes)
    size = DataSize(60, 30, {"imagenet": 10, "coco": 10, "ade20k": 16}[kind], "these")
    plan = load_function(runner_of(recipe).estimate)
    work = plan(recipe, read_checkpoint("random:vit_pocket"), size, CPU)
    code, _, err = run(
        *("transfer", task, "--ckpt", "random:vit_pocket", "--data", pocket / kind),
        *("--out", tmp_path / "run", "--quiet"),
        *(word for change in changes for word in ("-o", change)),
    )
    assert code == 0, err
    check_disk(work, tmp_path / written)
    findings = estimate(work, device=CPU, folder=tmp_path)
    loading = [] if task in ("coco", "ade20k") else ["loading"]
    assert [f.name for f in findings] == ["memory", "time", *loading, "disk"]
    facts = findings[1].facts
    assert facts["seconds"] == pytest.approx(facts["steps"] * facts["seconds_per_step"])


def test_a_recipe_that_does_not_fit_in_memory_or_disk_is_reported(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    common: dict[str, Any] = {
        "model": model,
        "forward": lambda images: model(torch.ones(images, 4)).sum(),
        "precision": "fp32",
        "batch_size": 64,
        "steps": 10,
        "counted": "10 steps",
        "written": "nothing",
    }

    def findings_for(cut: str | None, gib: float, disk: int) -> list[Finding]:
        memory = StepMemory(fixed=GIB, per_image=GIB, available=round(gib * GIB))
        work = Work(**common, cut=cut, memory=lambda: memory, disk=disk)
        return estimate(work, device=CPU, folder=tmp_path)

    # 0.9 of 30 GiB hold the fixed one and 16 images of 1.25, but not 32.
    memory, _, disk = findings_for("--accumulate", 30, 1 << 60)
    assert "--accumulate 4, which needs 18.60 GiB for 16" in (memory.remedy or "")
    assert memory.state == disk.state == "problem"
    memory, _, disk = findings_for("by itself", 30, 0)
    assert memory.state == disk.state == "ok"
    assert "splits its batches into 4 gradient-accumulation steps" in memory.said
    memory, _, _ = findings_for(None, 30, 0)
    assert "batch_size=16" in (memory.remedy or "")
    # Not even one image: no step is tried.
    assert [f.name for f in findings_for("--accumulate", 2, 0)] == ["memory", "disk"]


def test_real_folders_are_reported_in_the_words_of_a_run(
    data: Path, reading: Reading, tmp_path: Path
) -> None:
    root = data / "imagenet"
    first, second = sorted((root / "train").iterdir())[:2]
    image = sorted(first.iterdir())[0]
    shutil.copy(image, second / "copy.jpg")
    shutil.copy(image, root / "val" / first.name / "leaked.jpg")
    (first / "scan.heic").write_bytes(b"x")
    (first / ".ipynb_checkpoints").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.effect_noise((40, 30), 60).save(first / "phone.jpg", exif=exif)
    twelve_bits = np.random.default_rng(0).integers(0, 4096, (30, 40)).astype(np.uint16)
    Image.fromarray(twelve_bits).save(first / "scan.png")
    found = all_text(check_imagenet(root, reading), "warning")
    left_out = class_folders(root, "train").left_out.describe()
    assert "1 file is not an image that can be read: .heic 1 (scan.heic)" in left_out
    for named in (
        left_out,
        "1 image has an EXIF orientation",
        "1 image is nearly black",
        "images is a copy of another one",
        "1 image of val/ is in train/ as well",
    ):
        assert named in found, named


def test_missing_folders_are_logged_before_the_frameworks_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise UsageError("the frameworks are tried")

    monkeypatch.setattr(frameworks, "check_frameworks", stop)
    (tmp_path / "valid").mkdir()
    code, _, err = run("doctor", "--imagenet", tmp_path, "--coco", tmp_path / "nothing")
    assert code == 2
    before, _, after = err.partition("the frameworks are tried")
    assert f"data folder {tmp_path / 'train'} does not exist" in before
    assert f"--coco {tmp_path / 'nothing'} does not exist" in before
    assert f"{tmp_path / 'val'}" not in err
    assert after.strip() == ""


def test_an_estimate_is_of_the_images_that_a_limit_leaves() -> None:
    whole = PUBLISHED["ade20k"]
    assert whole.limited(None) == whole
    part = whole.limited(3000)
    assert (part.train, part.val, part.classes) == (3000, 2000, 150)
