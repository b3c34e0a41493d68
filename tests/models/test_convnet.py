"""Tests of ConvNeXt and ResNet as encoders: hidden pixels, features, layers, checkpoints and transfer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.tiny import TINY
from torch import Tensor, nn
from torchvision.models import resnet

from pretrain.design import Design
from pretrain.masking.masks import sample_masks
from pretrain.recipes import POCKET, for_arch
from pretrain.run import TrainOptions
from pretrain.simmim import SimMIM
from pretrain.train import pretrain
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import write_checkpoint
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.compare import check_same_features
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.models.buffers import preserve_buffers
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.recipe import Recipe
from simmim_bench.runs.context import RunContext
from simmim_bench.runs.run_dir import open_run
from transfer.detection.own_recipes import COCO_POCKET
from transfer.frozen.recipes import LINEAR_POCKET
from transfer.job import TransferJob
from transfer.segmentation.recipes import ADE20K_POCKET
from transfer.tasks import load_function, runner_of

CONVNETS = ("convnext", "resnet")
POCKETS = ("convnext_pocket", "resnet_pocket")
both = pytest.mark.parametrize("family", CONVNETS)


def perturb(model: nn.Module) -> Any:
    """Perturb norms, layer scales, statistics and other vectors, which are initialised to constants."""
    generator = torch.Generator().manual_seed(0)
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point() and value.ndim == 1:
            value.data += 0.1 * torch.rand(value.shape, generator=generator)
    return model.eval()


def masks(spec: BackboneSpec, count: int) -> Tensor:
    return sample_masks(
        count,
        spec.img_size,
        mask_patch_size=8,
        patch_size=spec.patch_size,
        mask_ratio=0.6,
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("encoder_input", ["tokens", "zeros"])
def test_hidden_pixels_do_not_change_the_features(
    tiny_spec: BackboneSpec, encoder_input: Any, training: bool
) -> None:
    """The features, and in training mode BatchNorm's running statistics, are bit-identical."""
    mask = masks(tiny_spec, 3)
    patch = tiny_spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    images = torch.randn(3, 3, *tiny_spec.img_size)
    others = torch.where(hidden > 0, 9 * torch.randn_like(images), images)
    results = []
    for batch in (images, others):
        model = perturb(SimMIM(tiny_spec, Design(encoder_input=encoder_input))).train(training)
        results.append((model(batch, mask).features, dict(model.named_buffers())))
    (features, buffers), (other_features, other_buffers) = results
    assert torch.equal(features, other_features)
    assert all(torch.equal(value, other_buffers[name]) for name, value in buffers.items())


def test_a_resnets_stem_overlaps_neighbouring_cells() -> None:
    """Without blanking, cells next to hidden ones would depend on hidden pixels."""
    encoder = perturb(build_backbone(TINY["resnet"]))
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    encoder.embed(images)[0, 8, 8].sum().backward()
    assert images.grad is not None
    rows = images.grad[0].abs().sum((0, 2)).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (13, 19)  # 7 rows around the cell's rows 16 and 17


@both
def test_the_mask_token_replaces_hidden_cells(family: str) -> None:
    model = perturb(SimMIM(TINY[family]))
    images, mask = torch.randn(2, 3, 32, 32), masks(model.spec, 2)
    blanked = images * nn.functional.interpolate(1 - mask.unsqueeze(1), scale_factor=2)
    tokens = model.encoder.embed(blanked)
    assert tokens.shape == (2, 16, 16, model.spec.stem_dim)
    for image, row, column in mask.nonzero().tolist():
        tokens[image, row, column] = model.mask_token[0, 0]
    torch.testing.assert_close(model(images, mask).features, model.encoder.encode(tokens))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arch", "name"), [("convnext_t", "convnext_tiny"), ("resnet50", "resnet50")]
)
def test_features_and_logits_equal_timms(arch: str, name: str, tmp_path: Path) -> None:
    theirs: Any = perturb(timm.create_model(name, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    checkpoint = read_checkpoint(str(tmp_path / "net.pth"))
    assert (checkpoint.spec, checkpoint.form) == (find_spec(arch), "transfer")
    ours = load_backbone(checkpoint, num_classes=5).eval()
    assert not ours.load_report.missing  # type: ignore[union-attr]
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        pooled = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(ours.forward_features(images), pooled.flatten(1))
        torch.testing.assert_close(ours(images), theirs(images))
        *_, last = ours.forward_pooled(images).unbind(1)
        torch.testing.assert_close(last[:, 0], pooled.flatten(1))


@pytest.mark.heavy
def test_a_variant_with_the_same_weight_names_is_refused(tmp_path: Path) -> None:
    blurred = perturb(timm.create_model("resnetaa50", num_classes=5)).eval()
    plain = perturb(timm.create_model("resnet50", num_classes=5)).eval()
    assert blurred.state_dict().keys() == plain.state_dict().keys()
    torch.save(blurred.state_dict(), tmp_path / "net.pth")
    checkpoint = read_checkpoint(str(tmp_path / "net.pth"))
    plain.load_state_dict(blurred.state_dict())
    check_same_features(checkpoint, plain)
    with pytest.raises(DataError, match="is a variant of resnet50"):
        check_same_features(checkpoint, blurred)


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's ResNet-50 for five classes; nobody may write into it."""
    path = tmp_path_factory.mktemp("resnet50") / "model.safetensors"
    save_file(perturb(timm.create_model("resnet50", num_classes=5)).state_dict(), path)
    return path


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"architecture": "resnet50"}, None),
        ({"architecture": "resnetaa50"}, None),
        ({"architecture": "resnet50", "model_args": {"act_layer": "silu"}}, None),
        ({"architecture": "resnet50_by_a_fork"}, "timm cannot build the model of .*config.json"),
    ],
)
def test_a_timm_folder_of_a_variant_is_computed_by_timm(
    config: dict[str, Any], problem: str | None, tmp_path: Path, resnet50_file: Path
) -> None:
    """Operations without weights may differ, so the model of config.json is built and compared."""
    shutil.copyfile(resnet50_file, tmp_path / "model.safetensors")
    is_plain = config == {"architecture": "resnet50"}
    cfg = {} if is_plain else {"input_size": [3, 64, 64]}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "num_classes": 5, "pretrained_cfg": cfg})
    )
    if problem is not None:
        with pytest.raises(DataError, match=problem):
            read_checkpoint(str(tmp_path))
        return
    checkpoint = read_checkpoint(str(tmp_path))
    assert (checkpoint.spec == find_spec("resnet50")) == is_plain
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    found = load_backbone(checkpoint).eval().forward_features(images)
    torch.testing.assert_close(found, theirs.forward_head(theirs.forward_features(images), True))


def test_torchvisions_resnet_is_read_with_or_without_batchnorm_counters(tmp_path: Path) -> None:
    theirs = perturb(resnet.ResNet(resnet.Bottleneck, [1, 1, 2, 1]))
    images = torch.randn(1, 3, 64, 64)
    for number, counters in enumerate((True, False)):
        state = {k: v for k, v in theirs.state_dict().items() if counters or "num_batches" not in k}
        torch.save(state, tmp_path / f"{number}.pth")
        ours = load_backbone(str(tmp_path / f"{number}.pth"), num_classes=1000).eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (37, 51), (33, 16)])
@both
def test_maps_equal_the_outputs_of_the_stages(family: str, size: tuple[int, int]) -> None:
    """Compare with timm's modules applied stage by stage, also at sizes that no stride divides."""
    model = perturb(build_backbone(TINY[family]))
    images = torch.randn(1, 3, *size)
    maps = model.forward_maps(images)
    if family == "resnet":
        x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        for number, level in enumerate(maps, start=1):
            x = getattr(model, f"layer{number}")(x)
            assert torch.equal(level, x)
        return
    x = model.stem(nn.functional.pad(images, (0, size[1] % 2, 0, size[0] % 2)))
    for number, level in enumerate(maps):
        if number:
            x = nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = model.stages[number](x)
        normed = nn.functional.layer_norm(x.movedim(1, 3), x.shape[1:2], eps=1e-6).movedim(3, 1)
        torch.testing.assert_close(level, model.norm(x) if number == 3 else normed)


def test_every_block_is_a_layer() -> None:
    convnext, resnet = (build_backbone(TINY[family], num_classes=2) for family in CONVNETS)
    wanted = {
        "stem.0.weight": 0,
        "stages.0.blocks.0.gamma": 1,
        "stages.1.downsample.1.weight": 1,  # with the block before it
        "stages.2.blocks.1.conv_dw.bias": 4,
        "norm.weight": 6,
        "head.bias": 6,
        "mask_token": 0,
    }
    assert {name: convnext.layer_id(name) for name in wanted} == wanted
    wanted = {
        "conv1.weight": 0,
        "bn1.bias": 0,
        "layer1.0.conv1.weight": 1,
        "layer2.0.downsample.0.weight": 3,
        "layer4.1.bn3.weight": 8,
        "head.weight": 9,
    }
    assert {name: resnet.layer_id(name) for name in wanted} == wanted


@both
def test_a_window_size_is_refused(family: str) -> None:
    with pytest.raises(UsageError, match=r"window_size=7 does not apply to .* window_size=none"):
        TINY[family].at((64, 64), 7)
    assert TINY[family].at((64, 64)).img_size == (64, 64)


def test_recomputation_does_not_change_batchnorm_statistics() -> None:
    states = []
    for checkpointing in (False, True):
        model = SimMIM(TINY["resnet"]).train()
        model.encoder.set_grad_checkpointing(checkpointing)
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        for _ in range(2):
            model(images, masks(model.spec, 4)).loss.backward()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_preserve_buffers_restores_batchnorm_statistics() -> None:
    model = build_backbone(TINY["resnet"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with preserve_buffers(model):
        model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_batchnorm_keeps_its_statistics() -> None:
    model = build_backbone(TINY["resnet"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.layer_id(name) > 2)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()(torch.randn(4, 3, 32, 32))
    changed = {
        name for name, value in model.named_buffers() if not torch.equal(value, before[name])
    }
    assert changed == {name for name in before if not name.startswith(("bn1.", "layer1."))}


def run(out: Path, data: Path, arch: str, *, resume: bool = False, epochs: int = 2) -> Path:
    recipe = replace(for_arch(POCKET, arch), epochs=epochs, batch_size=20, warmup_epochs=0)
    options = {"deviates": {}, "arguments": {}, "display": Display(quiet=True)}
    with open_run(out, recipe=recipe, resume=resume, **options) as opened:  # type: ignore[arg-type]
        return pretrain(
            RunContext(run=opened, seed=0, resume=resume),
            recipe=recipe,
            deviates={},
            data=data,
            options=TrainOptions(accumulate=2, visualize_every=9),
        )


@pytest.fixture(scope="module", params=POCKETS)
def pretrained(
    request: pytest.FixtureRequest, pocket: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return run(tmp_path_factory.mktemp("run") / "run", pocket / "imagenet", request.param)


TASKS: dict[str, Recipe] = {
    "linear": replace(LINEAR_POCKET, epochs=2),
    "coco": replace(COCO_POCKET, max_iters=2, warmup_iters=1, batch_size=2),
    "ade20k": replace(ADE20K_POCKET, max_iters=2, warmup_iters=1, batch_size=2),
}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "task",
    # tests/pretrain/test_every_choice.py covers every other choice.
    [
        pytest.param(task, marks=[] if task == "coco" else pytest.mark.slow)
        for task in sorted(TASKS)
    ],
)
def test_a_pretrained_checkpoint_is_transferred_to_every_kind_of_task(
    task: str, pretrained: Path, pocket: Path, tmp_path: Path
) -> None:
    if task == "coco":
        pytest.importorskip("detectron2")
    if task == "ade20k":
        pytest.importorskip("mmseg")
    recipe = TASKS[task]
    data = pocket / {"linear": "imagenet"}.get(task, task)
    checkpoint = read_checkpoint(str(pretrained))
    with open_run(
        tmp_path / "run", recipe=recipe, deviates={}, arguments={}, display=Display(quiet=True)
    ) as opened:
        job = TransferJob(
            task=task,
            checkpoint=checkpoint,
            data=data,
            recipe=recipe,
            deviates={},
            options={"features": tmp_path / "features"} if task == "linear" else {},
        )
        record = load_function(runner_of(recipe).run)(RunContext(run=opened, seed=0), job)
    assert record is not None
    assert record.checkpoint["sha256"] == checkpoint.sha256
    if task != "linear":
        trained = load_backbone(str(tmp_path / "run"))
        started = load_backbone(checkpoint)
        changed = [
            name
            for name, value in trained.state_dict().items()
            if not torch.equal(value, started.state_dict()[name])
        ]
        statistics = [name for name, _ in trained.named_buffers()]
        assert set(statistics) <= set(changed)


class Killed(Exception):
    pass


@pytest.mark.heavy
@pytest.mark.parametrize("pretrained", ["resnet_pocket"], indirect=True)
def test_a_resumed_resnet_equals_an_uninterrupted_one(
    pretrained: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_die(*arguments: Any, **named: Any) -> None:
        write_checkpoint(*arguments, **named)
        raise Killed

    monkeypatch.setattr("pretrain.checkpoints.write_checkpoint", write_and_die)
    with pytest.raises(Killed):
        run(tmp_path / "run", pocket / "imagenet", "resnet_pocket")
    monkeypatch.undo()
    again = run(tmp_path / "run", pocket / "imagenet", "resnet_pocket", resume=True)
    whole, resumed = (read_checkpoint(str(path)).state for path in (pretrained, again))
    assert whole is not None
    assert resumed is not None
    assert "encoder.layer4.1.bn3.running_var" in whole
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
