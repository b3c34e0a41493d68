"""Fine-tuning by LAMB, binary cross-entropy and repeated augmentation: resumed, accumulated, distributed, few-shot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from support.commands import two_processes
from support.interrupt import InterruptingDisplay
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.cli.main import cli
from simmim_bench.data.class_splits import class_folders
from simmim_bench.data.loader import seed_everything
from simmim_bench.diagnostics.estimate import DataSize
from simmim_bench.display import Display
from simmim_bench.errors import InterruptedRun, UsageError
from simmim_bench.overrides import override
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from simmim_bench.training.accumulation import accumulate_gradients
from transfer.finetune.estimate import plan_finetune
from transfer.finetune.recipes import IMAGENET_POCKET, FinetuneRecipe
from transfer.finetune.run import run_finetune
from transfer.finetune.train import (
    build,
    finetune,
    loss_and_mixing,
    prepare_images,
    training_transform,
)
from transfer.job import TransferJob
from transfer.recipes import RECIPES

# Three steps of 20 images an epoch, of 60.
PROTOCOL = replace(
    IMAGENET_POCKET,
    epochs=2,
    warmup_epochs=1,
    batch_size=20,
    base_lr=0.1,
    clip_grad=1.0,
    mixup=0.1,
    cutmix=1.0,
    optimizer="lamb",
    loss="bce_sum",
    repeated_aug=3,
    lr_rule="mmcv",
    ema_decay=0.5,
    ema_warmup=False,
)


def job_of(recipe: FinetuneRecipe, data: Path) -> TransferJob[FinetuneRecipe]:
    return TransferJob(
        task="imagenet",
        checkpoint=read_checkpoint("random:vit_pocket"),
        data=data,
        recipe=recipe,
        deviates={},
    )


def train(out: Path, data: Path, display: Display) -> None:
    with open_run(
        out, recipe=PROTOCOL, deviates={}, arguments={}, display=display, resume=out.exists()
    ) as run:
        context = RunContext(run=run, seed=0, resume=True)
        finetune(context, job_of(PROTOCOL, data), class_folders(data, "train"))


@pytest.mark.parametrize("auto_augment", ["rand-m9-mstd0.5-inc1", "trivial"])
def test_bytes_that_the_device_normalises_are_the_images_bit_by_bit(
    pocket: Path, auto_augment: str
) -> None:
    recipe = override(IMAGENET_POCKET, [f"auto_augment={auto_augment}", "random_erasing=0"])
    checkpoint = read_checkpoint("random:vit_pocket")
    train = class_folders(pocket / "imagenet", "train")
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        load = training_transform(recipe, checkpoint, device)
        images = []
        for index in range(8):
            seed_everything(index)
            images.append(load(train.read(index), train.name(index)))
        found.append(torch.stack(images))
    floats, pixels = found
    assert (floats.dtype, pixels.dtype) == (torch.float32, torch.uint8)
    prepare = prepare_images(recipe, checkpoint, torch.device("cpu"))
    assert torch.equal(prepare(pixels), floats)
    assert torch.equal(prepare(floats), floats)
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    to_floats = Compose([ToTensor(), Normalize(checkpoint.mean, checkpoint.std)])
    image = Image.fromarray(every[0].permute(1, 2, 0).contiguous().numpy())
    assert torch.equal(prepare(every)[0], to_floats(image))


def test_a_device_erases_as_timm_does_after_normalising() -> None:
    recipe = override(IMAGENET_POCKET, ["random_erasing=0.5"])
    checkpoint = read_checkpoint("random:vit_pocket")
    cpu = torch.device("cpu")
    pixels = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    plain = prepare_images(replace(recipe, random_erasing=0.0), checkpoint, cpu)(pixels)
    found = []
    for _ in range(2):
        seed_everything(3, 7)  # seed and step
        found.append(prepare_images(recipe, checkpoint, cpu)(pixels))
    assert torch.equal(*found)
    seed_everything(3, 7)
    assert torch.equal(found[0], RandomErasing(0.5, mode="pixel", device="cpu")(plain.clone()))
    erased = (found[0] != plain).any(1)
    assert 16 < int(erased.flatten(1).any(1).sum()) < 48  # half of 64 images
    values = found[0].permute(1, 0, 2, 3)[:, erased]
    assert abs(float(values.mean())) < 0.05  # normal noise, not white pixels
    assert float(values.std()) == pytest.approx(1, abs=0.05)


def saved_weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.heavy
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, pocket: Path
) -> None:
    data = pocket / "imagenet"
    train(tmp_path / "whole", data, Display(quiet=True))
    with pytest.raises(InterruptedRun):  # in the middle of an epoch
        train(tmp_path / "cut", data, InterruptingDisplay("fine-tune", 2))
    train(tmp_path / "cut", data, Display(quiet=True))
    whole, cut = saved_weights(tmp_path / "whole"), saved_weights(tmp_path / "cut")
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, rtol=0, atol=0, msg=name)


def test_a_run_repeats_images_and_averages_weights_as_the_recipe_has_it(
    tmp_path: Path, pocket: Path
) -> None:
    data = pocket / "imagenet"
    with open_run(
        tmp_path / "run", recipe=PROTOCOL, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        context = RunContext(run=run, seed=0)
        built = build(context, job_of(PROTOCOL, data), class_folders(data, "train"), 1)
    _, counts = next(iter(built.state.loader.epoch(0)))[2].unique(return_counts=True)
    assert sorted(counts.tolist()) == [2, 3, 3, 3, 3, 3, 3]  # 20 images
    average = built.state.ema
    assert average is not None
    # timm copies the weights of the first step, whatever the decay.
    assert [average.get_decay(step) for step in (1, 2, 3)] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("loss", ["bce", "bce_sum"])
def test_an_accumulated_step_is_that_of_the_whole_batch(loss: str) -> None:
    recipe = override(PROTOCOL, ["mixup=0", "cutmix=0", f"loss={loss}"])
    criterion, mixup = loss_and_mixing(recipe, 5)
    assert mixup is None
    torch.manual_seed(0)
    model = nn.Linear(4, 5).double()
    batch = [torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0, 1])]

    def compute_loss(model: nn.Module, chunk: list[Tensor], epoch: int) -> Tensor:
        result: Tensor = criterion(model(chunk[0]), chunk[1])
        return result

    found = []
    for steps in (1, 3):  # 3, 3 and 1 images
        model.zero_grad()
        total = accumulate_gradients(
            model, batch, 0, compute_loss, "fp32", torch.device("cpu"), steps
        )
        found.append((float(total), [p.grad for p in model.parameters()]))
    (loss_of_batch, gradients), (loss_of_parts, accumulated) = found
    assert loss_of_parts == pytest.approx(loss_of_batch, rel=1e-6)  # summed in float32
    torch.testing.assert_close(accumulated, gradients, rtol=1e-12, atol=1e-14)


OVERRIDES = ["optimizer=lamb", "loss=bce_sum", "repeated_aug=3", "epochs=1", "warmup_epochs=0"]
OVERRIDES += ["batch_size=20", "clip_grad=1", "base_lr=0.1"]


def command(task: str, out: Path, data: Path, *more: str) -> list[str]:
    words = ["transfer", task, "--ckpt", "random:vit_pocket", "--data", str(data), "--quiet"]
    words += ["--recipe", "imagenet_pocket", "--out", str(out), *more]
    return words + [word for one in OVERRIDES for word in ("-o", one)]


def logits(out: Path) -> np.ndarray:
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    with np.load(out / record["predictions"]["file"]) as stored:
        found = np.zeros(stored["logits"].shape, np.float32)
        np.put_along_axis(found, stored["ranked"].astype(int), stored["logits"], axis=1)
        return found


@pytest.mark.heavy
def test_two_processes_train_as_one(tmp_path: Path, pocket: Path) -> None:
    data = pocket / "imagenet"
    one = CliRunner().invoke(cli, command("imagenet", tmp_path / "one", data))
    assert one.exception is None
    two_processes(*command("imagenet", tmp_path / "two", data))
    assert np.allclose(logits(tmp_path / "two"), logits(tmp_path / "one"), rtol=1e-3, atol=1e-3)


def test_few_shot_takes_the_protocol(tmp_path: Path, pocket: Path) -> None:
    words = command("fewshot", tmp_path / "run", pocket / "imagenet", "--fraction", "10%")
    assert CliRunner().invoke(cli, words).exception is None
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["task"] == "fewshot-10%"
    assert record["deviates"]["repeated_aug"] == 3
    assert "images=10 epochs=1 steps_per_epoch=1" in (tmp_path / "run" / "log.txt").read_text()


def test_the_evaluation_has_its_own_size(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(IMAGENET_POCKET, ["test_img_size=48", "epochs=1", "warmup_epochs=0"])
    seen: set[tuple[int, ...]] = set()
    with open_run(
        tmp_path / "run", recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as run:
        context = RunContext(run=run, seed=0)
        job = job_of(recipe, pocket / "imagenet")
        original = nn.Module.__call__

        def look(self: nn.Module, *args: Any, **options: Any) -> Any:
            if type(self).__name__ == "ViT":
                seen.add((int(self.training), *args[0].shape[2:]))
            return original(self, *args, **options)

        monkeypatch.setattr(nn.Module, "__call__", look)
        assert run_finetune(context, job) is not None
    assert seen == {(1, 32, 32), (0, 48, 48)}


@pytest.mark.parametrize("name", ["imagenet_resnet50_rsb_a2", "imagenet_spark_resnet50"])
def test_an_estimate_has_the_recipes_loss(name: str) -> None:
    recipe = override(RECIPES[name], ["img_size=32", "batch_size=4"])
    assert isinstance(recipe, FinetuneRecipe)
    size = DataSize(train=8, val=4, classes=5, known="eight")
    work = plan_finetune(recipe, read_checkpoint("random:resnet_pocket"), size, torch.device("cpu"))
    loss = float(work.forward(4).detach())
    # ln 2 for every class, whose sum or mean is taken, as a new head's logits are small
    classes = 5 if recipe.loss == "bce_sum" else 1
    assert loss == pytest.approx(classes * np.log(2), rel=0.2)
    assert work.steps == recipe.epochs * 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer=sgd", "optimizer=sgd is not one of the allowed values"),
        ("loss=mse", "loss=mse is not one of the allowed values"),
        ("repeated_aug=0", "repeated_aug 0 .* is out of range; use 1 to 100"),
        ("test_img_size=0", "test_img_size .* must be above 0"),
    ],
)
def test_an_impossible_protocol_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(IMAGENET_POCKET, [assignment])


def test_evaluate_takes_the_size_of_the_evaluation(tmp_path: Path, pocket: Path) -> None:
    data = pocket / "imagenet"
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    words = command("imagenet", trained, data, "-o", "test_img_size=48")
    assert CliRunner().invoke(cli, words).exception is None
    words = ["evaluate", "imagenet", "--ckpt", str(trained), "--data", str(data), "--quiet"]
    done = CliRunner().invoke(cli, [*words, "--out", str(evaluated)])
    assert done.exception is None, done.output
    assert np.array_equal(logits(evaluated), logits(trained))
