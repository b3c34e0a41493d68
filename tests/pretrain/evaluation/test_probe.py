"""Probing while pretraining changes nothing of the run, and its scores are those of `transfer` on the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from support.commands import two_processes
from support.pretraining import pretrain_first_epoch, pretrain_pocket

import pretrain.evaluation.probe as probe_module
from pretrain.evaluation.probe import describe_cost, load_probe_images, probe_blocks
from pretrain.recipes import POCKET
from pretrain.train import TrainOptions
from simmim_bench.cli.main import cli
from simmim_bench.display import Display
from simmim_bench.models.archs import find_spec
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run


def probes(out: Path) -> list[dict[str, float]]:
    """Return the probes' scores, in order."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: x for key, x in line.items() if key.startswith("probe_") and key != "probe_s"}
        for line in lines
        if "probe_s" in line
    ]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--quiet"])


# A ViT, and a network whose BatchNorm has running statistics.
@pytest.mark.heavy
@pytest.mark.parametrize("arch", ["vit_pocket", "resnet_pocket"])
def test_probing_changes_no_weight_and_resumes(
    arch: str, tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, recipe = pocket / "imagenet", [f"arch={arch}", "precision=fp32"]
    options = TrainOptions(probe_data=data)
    plain = pretrain_pocket(tmp_path / "plain", data, *recipe)
    probed = pretrain_pocket(tmp_path / "probed", data, *recipe, options=options)
    assert_same_weights(plain, probed)
    first, last = probes(tmp_path / "probed")
    assert first.keys() == {f"probe_{c}_block{b}" for c in ("knn", "logistic") for b in (2, 3, 4)}
    stored = json.loads((probed / "meta.json").read_text())["provenance"]["probe"]
    assert {f"probe_{name}": score for name, score in stored.items()} == {**last, "probe_epoch": 2}
    if arch == "resnet_pocket":
        return
    out = tmp_path / "resumed"
    pretrain_first_epoch(out, data, *recipe, options=options, monkeypatch=monkeypatch)
    assert probes(out) == [first]
    resumed = pretrain_pocket(out, data, *recipe, options=options, resume=True)
    assert_same_weights(plain, resumed)
    assert probes(out) == [first, last]


def assert_same_weights(one: Path, other: Path) -> None:
    one_state, other_state = (load_file(path / "model.safetensors") for path in (one, other))
    assert one_state.keys() == other_state.keys()
    assert all(torch.equal(one_state[name], other_state[name]) for name in one_state)


@pytest.mark.heavy
def test_scores_are_those_of_transfer_on_the_same_images(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "FRACTION", 10)  # all images
    data = pocket / "imagenet"
    options = TrainOptions(probe_data=data, probe_every=2)
    ckpt = pretrain_pocket(tmp_path / "run", data, "precision=fp32", options=options)
    (found,) = probes(tmp_path / "run")
    for name, task, setting in (
        ("knn", ("knn",), "k=20"),
        ("logistic", ("linear", "--recipe", "logistic_pocket"), "l2=0.001"),
    ):
        out = tmp_path / name
        chosen = ("blocks=3", "pooling=mean", "norm=batch", "precision=fp32", setting)
        more = [word for setting in chosen for word in ("-o", setting)]
        done = invoke(
            *("transfer", *task, "--ckpt", str(ckpt), "--data", str(data), "--out", str(out)), *more
        )
        assert done.exit_code == 0, done.output
        top1 = json.loads((out / "record.json").read_text())["metrics"]["top1"]
        # Stored features are float16, which may decide a tie otherwise: one of 30 images.
        assert found[f"probe_{name}_block3"] == pytest.approx(top1, abs=100 / 30 + 0.01)
    assert len(set(found.values())) > 1


def test_the_middle_three_quarters_and_the_last_block_are_probed() -> None:
    assert probe_blocks(find_spec("vit_b")) == [6, 9, 12]
    assert probe_blocks(find_spec("vit_l")) == [12, 18, 24]
    assert probe_blocks(find_spec("swin_b")) == [2, 3, 4]  # stages


def test_few_images_are_sampled_of_every_class(tmp_path: Path, pocket: Path) -> None:
    recipe, quiet = POCKET, Display(quiet=True)
    with open_run(tmp_path, recipe=recipe, deviates={}, arguments={}, display=quiet) as run:
        context = RunContext(run=run, seed=5)
        sampled = [
            load_probe_images(context, pocket / "imagenet", recipe, count, shard=False)
            for count in (10, 500, 500)
        ]
    few, more, again = sampled
    assert few is not None
    assert more is not None
    assert again is not None
    assert (few.learnt, len(few.labels)) == (10, 20)  # one of each class
    # 6 % of 500 images: 20 to learn and 10 to score.
    assert (more.learnt, len(more.labels), more.classes) == (20, 30, 10)
    assert more.labels[:20].bincount().tolist() == [2] * 10
    assert more.pixels.shape == (30, 3, *recipe.img_size)
    assert torch.equal(more.pixels, again.pixels)


def test_images_without_a_validation_split_are_held_out(tmp_path: Path, pocket: Path) -> None:
    recipe, quiet = POCKET, Display(quiet=True)
    with open_run(tmp_path, recipe=recipe, deviates={}, arguments={}, display=quiet) as run:
        context, data = RunContext(run=run, seed=5), pocket / "imagenet" / "train"
        found = load_probe_images(context, data, recipe, 500, shard=False)
    assert found is not None
    assert (found.learnt, found.classes) == (20, 10)
    assert len(found.labels) > found.learnt
    assert "held out fraction=0.1 of every class" in (tmp_path / "log.txt").read_text()


def test_a_large_fraction_of_the_time_is_reported_with_its_remedy() -> None:
    assert describe_cost(4.0, 100.0, 1) == "fraction=4.0% of the run's time"
    assert "--probe-every 3 " in describe_cost(12.0, 100.0, 1)
    assert "--probe-every 5 " in describe_cost(12.0, 100.0, 2)


def test_unusable_options_end_the_command_before_training(tmp_path: Path, pocket: Path) -> None:
    data = tmp_path / "probe"
    shutil.copytree(pocket / "imagenet", data)
    shutil.rmtree(next((data / "val").iterdir()))
    command = ["pretrain", "--arch", "vit_pocket", "--data", str(pocket / "imagenet")]
    command += ["--out", str(tmp_path / "run")]
    for more, code, message in (
        (("--probe-data", str(tmp_path / "none")), 4, "does not exist"),
        (("--probe-data", str(data)), 4, "missing in val/"),
        (("--probe-every", "2"), 2, "needs --probe-data"),
        (("--probe-data", str(pocket / "imagenet"), "--probe-every", "0"), 2, "--probe-every"),
        (("--probe-data", str(pocket / "imagenet"), "--probe-every", "-1"), 2, "--probe-every"),
    ):
        done = invoke(*command, *more)
        assert getattr(done.exception, "exit_code", done.exit_code) == code
        assert message in done.output + str(done.exception)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--shard",)], ids=["copies", "shards"])
def test_two_processes_probe_as_one(tmp_path: Path, pocket: Path, how: tuple[str, ...]) -> None:
    command = ["pretrain", "--arch", "vit_pocket", "--data", str(pocket / "imagenet")]
    command += ["-o", "epochs=1", "-o", "warmup_epochs=0", "-o", "batch_size=30", "--quiet"]
    command += ["-o", "precision=fp32", "--probe-data", str(pocket / "imagenet")]
    invoke(*command, "--out", str(tmp_path / "one"))
    two_processes(*command, "--out", str(tmp_path / "two"), *how)
    (one,), (two,) = probes(tmp_path / "one"), probes(tmp_path / "two")
    assert two == pytest.approx(one, abs=20)  # of ten images, two may be decided by rounding
