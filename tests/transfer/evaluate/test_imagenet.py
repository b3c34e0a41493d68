"""Test that classifiers are scored as training, timm, torchvision and the official codes score them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from support.cli import fails, run
from support.commands import two_processes
from timm.data import create_transform, resolve_data_config
from timm.models import VisionTransformer, save_for_hf
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.swin import shift_downsample
from simmim_bench.data.class_splits import class_files
from simmim_bench.data.subsets import limit_images
from simmim_bench.files import sha256_file
from transfer.evaluate import torchvision_models
from transfer.evaluate.load import _official_preprocessing, load_classifier

CLASSES = 10  # of the synthetic images


def perturb(model: nn.Module, scale: float = 0.1) -> Any:
    """Perturb all parameters, because some are initialised to constants."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def evaluate(ckpt: object, data: Path, out: Path, *more: object) -> dict[str, Any]:
    """Evaluate by the command line and return the record."""
    arguments = ("evaluate", "imagenet", "--ckpt", ckpt, "--data", data, "--out", out, *more)
    code, stdout, err = run(*arguments, "--json", "--quiet", "-o", "num_workers=0")
    assert code == 0, err
    return json.loads(stdout)


def stored(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "predictions" / "logits.npz") as content:
        return dict(content)


@torch.no_grad()
def loop(model: nn.Module, data: Path, transform: Callable[[Image.Image], Tensor]) -> np.ndarray:
    """Compute logits as a plain evaluation loop does: torchvision's folder and a transform, image by image."""
    images = ImageFolder(str(data / "val"), transform)
    return torch.cat([model.eval()(image[None]) for image, _ in images]).numpy()


def assert_scores(record: dict[str, Any], out: Path, logits: np.ndarray, data: Path) -> None:
    """Check stored predictions and scores against independent logits (N, K)."""
    labels = np.array(ImageFolder(str(data / "val")).targets)
    order = np.argsort(-logits, axis=1, kind="stable")
    found = stored(out)
    best = np.take_along_axis(logits, order[:, :10], axis=1)
    assert np.allclose(found["logits"], best, rtol=2e-3, atol=2e-3)  # stored in half precision
    assert (found["ranked"][:, :1] == order[:, :1]).all()
    assert record["metrics"]["top1"] == 100 * float(np.mean(order[:, 0] == labels))
    hits = (order[:, :5] == labels[:, None]).any(1)
    assert record["metrics"]["top5"] == 100 * float(np.mean(hits))
    nll = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert record["metrics"]["nll"] == pytest.approx(nll, rel=1e-3)


@pytest.fixture(scope="session", params=["vit_pocket", "swin_pocket"])
def trained(request: pytest.FixtureRequest, few: Path, tmp_path_factory: Any) -> Path:
    """A fine-tuned run of ours; the Swin's weights are a moving average."""
    out = Path(tmp_path_factory.mktemp("trained")) / "run"
    averaged = ["-o", "ema_decay=0.5"] if request.param == "swin_pocket" else []
    code, _, err = run(
        *("transfer", "imagenet", "--ckpt", f"random:{request.param}", "--data", few),
        *("--out", out, "--seed", 3, "--quiet", "-o", "epochs=1", "-o", "batch_size=5"),
        *("-o", "warmup_epochs=0", "-o", "base_lr=0.05", *averaged),
    )
    assert code == 0, err
    return out


@pytest.mark.heavy
def test_a_run_of_ours_gets_the_recorded_score_to_the_last_digit(
    trained: Path, few: Path, tmp_path: Path
) -> None:
    recorded = json.loads((trained / "record.json").read_text())
    out = tmp_path / "evaluated"
    code, stdout, err = run(
        *("evaluate", "imagenet", "--ckpt", trained, "--data", few, "--out", out, "--quiet")
    )
    assert code == 0, err
    record = json.loads((out / "record.json").read_text())
    assert record["metrics"] == recorded["metrics"]
    assert f"(training recorded {recorded['metrics']['top1']:.2f})" in stdout
    found, wanted = stored(out), stored(trained)
    assert all((found[key] == wanted[key]).all() for key in ("ranked", "logits", "labels"))
    assert (record["status"], record["seed"]) == ("reproduced", 3)
    assert record["recipe"] == recorded["recipe"]
    assert record["deviates"] == recorded["deviates"]
    assert record["command"][:3] == ["simmim-bench", "evaluate", "imagenet"]


@pytest.mark.slow
def test_two_processes_score_every_image_once(trained: Path, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    two_processes(
        *("evaluate", "imagenet", "--ckpt", str(trained), "--data", str(few), "--quiet"),
        *("--out", str(out)),
    )
    recorded, record = (json.loads((run / "record.json").read_text()) for run in (trained, out))
    assert (record["evaluated"], record["cost"]["devices"]) == (10, 2)
    assert record["metrics"] == recorded["metrics"]


@pytest.mark.heavy
def test_the_evaluated_row_stands_in_the_trained_ones_group_and_passes_the_check(
    trained: Path, few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluated"
    evaluate(trained / "checkpoints" / "last", few, out)
    tables = tmp_path / "tables"
    roots = (trained, out)
    assert run("leaderboard", "build", *roots, "--out", tables)[0] == 0
    code, stdout, err = run("leaderboard", "check", *roots, "--out", tables)
    assert (code, "2 records" in stdout) == (0, True), err
    _, shown, _ = run("leaderboard", "show", *roots, "--json")
    groups = {row["group"] for row in json.loads(shown)["rows"]}
    # num_workers is no part of the protocol, so that both rows are ranked together.
    assert groups == {"A"}


@pytest.mark.heavy
def test_a_finished_evaluation_is_resumed_refused_and_replaced(
    trained: Path, few: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", "imagenet", "--ckpt", trained, "--data", few, "--quiet")
    out = ("--out", tmp_path / "out")
    assert run(*arguments, *out)[0] == 0
    before = (tmp_path / "out" / "record.json").read_text()
    assert "is not empty" in fails(2, *arguments, *out)
    assert run(*arguments, *out, "--resume")[0] == 0
    assert (tmp_path / "out" / "record.json").read_text() == before
    assert run(*arguments, *out, "--overwrite")[0] == 0
    message = fails(2, *arguments, "--out", trained, "--overwrite")
    assert "would delete" in message
    assert (trained / "record.json").is_file()


TIMM = {
    "vit": ("test_vit", {}),
    "convnext": ("test_convnext", {}),
    "resnet": ("test_resnet", {}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
    ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("family", TIMM)
def test_a_timm_folder_is_scored_as_timm_does(family: str, few: Path, tmp_path: Path) -> None:
    name, arguments = TIMM[family]
    model = perturb(timm.create_model(name, num_classes=CLASSES, **arguments), 0.02)
    size = arguments.get("img_size", 48)
    config = {
        **{"input_size": (3, size, size), "crop_pct": 0.9, "interpolation": "bilinear"},
        **{"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "num_classes": CLASSES},
    }
    if family == "vit":
        model.set_input_size((size, size))
        arguments = {"img_size": size}
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    folder = tmp_path / "model"
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    record = evaluate(folder, few, tmp_path / "out")
    read = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = create_transform(**resolve_data_config({}, model=read, use_test_size=True))
    assert_scores(record, tmp_path / "out", loop(read, few, transform), few)
    assert record["recipe"]["name"] == "evaluate_imagenet"
    assert record["deviates"]["test_crop_ratio"] == 0.9
    assert (record["details"]["code"], record["status"]) == ("timm", "reproduced")
    assert record["checkpoint"]["sha256"] == sha256_file(folder / "model.safetensors")


@pytest.mark.heavy
def test_a_timm_file_with_its_models_name_is_scored_as_timm_does(few: Path, tmp_path: Path) -> None:
    model = perturb(timm.create_model("test_efficientnet", num_classes=CLASSES), 0.02)
    file = tmp_path / "model.pth"
    torch.save({"state_dict": model.state_dict()}, file)
    assert "--model timm:NAME" in fails(
        4, "evaluate", "imagenet", "--ckpt", file, "--data", few, "--out", tmp_path / "none"
    )
    out = tmp_path / "out"
    record = evaluate(file, few, out, "--model", "timm:test_efficientnet.r160_in1k")
    named = timm.create_model("test_efficientnet.r160_in1k", num_classes=CLASSES)
    transform = create_transform(**resolve_data_config({}, model=named, use_test_size=True))
    assert_scores(record, out, loop(model, few, transform), few)
    code, _, err = run("leaderboard", "build", out, "--out", tmp_path / "tables")
    assert code == 0, err
    code, _, err = run("leaderboard", "check", out, "--out", tmp_path / "tables")
    assert code == 0, err


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_a_timm_model_is_scored_at_its_test_size(name: str, few: Path, tmp_path: Path) -> None:
    """As timm's validate.py does; 291 of timm's published weights have a size for tests alone."""
    arguments = {"img_size": 32} if name == "test_vit" else {}
    model = perturb(timm.create_model(name, num_classes=CLASSES, **arguments), 0.02)
    sizes = {"input_size": (3, 32, 32), "test_input_size": (3, 48, 48), "test_crop_pct": 1.0}
    model.pretrained_cfg = {**model.pretrained_cfg, **sizes, "crop_pct": 0.9}
    folder = tmp_path / "model"
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    record = evaluate(folder, few, tmp_path / "out")
    read = timm.create_model(f"local-dir:{folder}", pretrained=True)
    if name == "test_vit":
        read.set_input_size((48, 48))
    config = resolve_data_config({}, model=read, use_test_size=True)
    assert (config["input_size"], config["crop_pct"]) == ((3, 48, 48), 1.0)
    assert_scores(record, tmp_path / "out", loop(read, few, create_transform(**config)), few)


def test_overrides_change_the_preprocessing(few: Path, tmp_path: Path) -> None:
    model = perturb(timm.create_model("test_convnext", num_classes=CLASSES), 0.02)
    folder = tmp_path / "model"
    save_for_hf(model, str(folder), safe_serialization=True)
    overrides = ("img_size=40", "test_crop_ratio=1.0", "mean=0.5,0.5,0.5", "std=0.25,0.25,0.25")
    out = tmp_path / "out"
    options = [word for text in overrides for word in ("-o", text)]
    record = evaluate(folder, few, out, *options, "-o", "crop_mode=squash")
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(
                (40, 40), torchvision.transforms.InterpolationMode.BICUBIC
            ),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )
    assert_scores(record, out, loop(model, few, transform), few)
    assert record["deviates"]["mean"] == [0.5, 0.5, 0.5]


def test_a_limit_scores_the_part_that_a_transfer_scores(pocket: Path, tmp_path: Path) -> None:
    folder, data = tmp_path / "model", pocket / "imagenet"
    model = timm.create_model("test_convnext", num_classes=CLASSES)
    save_for_hf(model, str(folder), safe_serialization=True)
    record = evaluate(folder, data, tmp_path / "out", "--limit", 20)
    part = limit_images(class_files(data, "val"), 20, "val")
    assert (record["evaluated"], record["expected"], len(part)) == (20, 20, 20)
    assert record["data"]["fingerprint"] == part.fingerprint()
    assert record["deviates"]["limit"] == 20
    assert (stored(tmp_path / "out")["labels"] == part.labels).all()


def test_a_vit_with_class_token_is_scored_as_deit_does(few: Path, tmp_path: Path) -> None:
    model = perturb(
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=CLASSES
        )
    )
    file = tmp_path / "deit.pth"
    torch.save({"model": model.state_dict()}, file)
    out = tmp_path / "out"
    record = evaluate(file, few, out)
    # facebookresearch/deit: datasets.py, build_transform (is_train False)
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(
                int((256 / 224) * 32), torchvision.transforms.InterpolationMode.BICUBIC
            ),
            torchvision.transforms.CenterCrop(32),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert_scores(record, out, loop(model, few, transform), few)
    assert record["deviates"] == {"img_size": [32, 32]}


def test_a_linear_classifier_on_moco_v3s_vit_has_its_attention_heads(tmp_path: Path) -> None:
    # MoCo v3: vits.py, vit_small has 12 heads, where other ViTs of its width have 6.
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 384, "depth": 1, "num_classes": CLASSES}
    model = perturb(VisionTransformer(**sizes, num_heads=12))
    angles = torch.arange(4)[:, None] / 10000 ** (torch.arange(96) / 96)
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves.repeat_interleave(4, 0), waves.repeat(4, 1)
    model.pos_embed.data = F.pad(torch.cat([rows, columns], 1), (0, 0, 1, 0))[None]
    file = tmp_path / "linear.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = load_classifier(str(file)).model.eval()(images), model(images)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_file_that_records_its_normalisation_is_evaluated_with_it(tmp_path: Path) -> None:
    model = VisionTransformer(**{**VIT, "depth": 1})
    file = tmp_path / "model.pth"
    args = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}  # as timm's train.py records them
    torch.save({"state_dict": model.state_dict(), "args": args}, file)
    found = load_classifier(str(file)).preprocessing
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_prefixes_of_all_names_are_removed(pool: Any, tmp_path: Path) -> None:
    model = perturb(VisionTransformer(**{**VIT, "depth": 1}, global_pool=pool))
    file = tmp_path / "model.ckpt"
    state = {f"_orig_mod.model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, file)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = load_classifier(str(file)).model.eval()(images), model(images)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("side", "mode", "ratio"), [(224, "center", 0.875), (384, "squash", 1.0)])
def test_convnext_is_preprocessed_as_its_code_does(side: int, mode: str, ratio: float) -> None:
    # ConvNeXt: datasets.py:76-90
    found = _official_preprocessing(read_checkpoint("random:convnext_t"), (side, side))
    assert (found.crop_mode, found.test_crop_ratio) == (mode, ratio)


def test_a_torchvision_file_is_scored_as_torchvision_does(few: Path, tmp_path: Path) -> None:
    name = "mobilenet_v3_small"
    model = perturb(torchvision.models.get_model(name, num_classes=CLASSES), 0.01)
    file = tmp_path / "trained.pth"
    torch.save(model.state_dict(), file)
    out = tmp_path / "out"
    record = evaluate(file, few, out)
    weights = next(iter(torchvision.models.get_model_weights(name)))
    assert_scores(record, out, loop(model, few, weights.transforms()), few)
    assert (record["checkpoint"]["arch"], record["details"]["code"]) == (name, "torchvision")


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "vit_b_16", "swin_v2_t", "resnet18", "maxvit_t", "regnet_y_400mf"]
)
def test_torchvisions_models_are_recognised_by_their_weights(name: str) -> None:
    device = "cpu" if name.startswith("regnet") else "meta"
    with torch.device(device):
        state = torchvision.models.get_model(name, num_classes=7).state_dict()
    assert torchvision_models.recognise(state, 7) == name
    del state[next(iter(state))]
    assert torchvision_models.recognise(state, 7) is None


def test_torchvisions_published_files_are_recognised_by_their_hash() -> None:
    # torchvision: models/resnet.py, ResNet50_Weights: resnet50-0676ba61.pth and resnet50-11ad3fa6.pth
    for digits, resized in (("0676ba61", 256), ("11ad3fa6", 232)):
        sha256 = digits + 56 * "0"
        assert torchvision_models.published_as(sha256) == "resnet50"
        found = torchvision_models._preprocessing(Path("f"), "resnet50", sha256, None, None)
        assert int(224 / found.test_crop_ratio) == resized
        assert not found.warning
    assert torchvision_models.published_as(64 * "0") is None


def official_swin(model: nn.Module) -> dict[str, Tensor]:
    """Rename timm's weights to the official names (Swin-Transformer: models/swin_transformer.py)."""
    state = model.state_dict()
    return {shift_downsample(k, -1).replace("head.fc.", "head."): v for k, v in state.items()}


VIT: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3},
    "num_classes": CLASSES,
}
SWIN: dict[str, Any] = {
    **{"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)},
    **{"window_size": 8, "num_classes": CLASSES},
}


def simmims_config(tag: str) -> Any:
    """SimMIM saves its configuration (utils.py, save_checkpoint)."""
    return {"TAG": tag, "MODEL": {"TYPE": "vit"}}


OFFICIAL = ("SimMIM", "BEiT", "MAE", "Swin", "Swin V2")


def official_model(kind: str) -> tuple[Any, Callable[[Any], Any], float]:
    """Return a fine-tuned model of another project, the content of its file, and its mean."""
    beit = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
    tag = "simmim_finetune__vit_base__img224__800ep"
    return {
        "SimMIM": (
            Beit(**VIT, **beit),
            lambda m: {"model": m.state_dict(), "config": simmims_config(tag)},
            0.485,
        ),
        "BEiT": (Beit(**VIT, **beit), lambda m: {"model": m.state_dict()}, 0.5),
        "MAE": (
            VisionTransformer(**VIT, global_pool="avg"),
            lambda m: {"model": m.state_dict()},
            0.485,
        ),
        "Swin": (SwinTransformer(**SWIN), lambda m: {"model": official_swin(m)}, 0.485),
        "Swin V2": (
            SwinTransformerV2(**SWIN),
            lambda m: {"model": official_swin(m) | dict(m.named_buffers())},
            0.485,
        ),
    }[kind]


@pytest.mark.parametrize("kind", OFFICIAL)
def test_official_files_compute_the_official_logits(kind: str, tmp_path: Path) -> None:
    built, content, mean = official_model(kind)
    model = perturb(built)
    file = tmp_path / "official.pth"
    torch.save(content(model), file)
    found = load_classifier(str(file))
    side = built.patch_embed.img_size[0]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = found.model.eval()(images), model(images)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert (found.code, found.num_classes) == ("simmim-bench", CLASSES)
    assert (found.preprocessing.img_size, found.preprocessing.mean[0]) == ((side, side), mean)
    assert found.preprocessing.test_crop_ratio == 224 / 256


def test_a_published_score_is_printed_next_to_the_score(few: Path, tmp_path: Path) -> None:
    built, content, _ = official_model("SimMIM")
    file = tmp_path / "official.pth"
    torch.save(content(perturb(built)), file)
    arguments = ("evaluate", "imagenet", "--ckpt", file, "--data", few)
    quiet = ("--quiet", "-o", "num_workers=0")
    _, stdout, _ = run(*arguments, *quiet, "--out", tmp_path / "a")
    assert "published: top-1 83.8 after vit_b_800ep" in stdout
    recipe = ("--recipe", "imagenet_mae_vit_b", "-o", "img_size=32")
    _, stdout, _ = run(*arguments, *quiet, "--out", tmp_path / "b", *recipe)
    assert "published:" not in stdout  # at another image size
    record = json.loads((tmp_path / "b" / "record.json").read_text())
    assert record["recipe"]["name"] == "imagenet_mae_vit_b"
    assert record["deviates"] == {"img_size": [32, 32]}


@pytest.mark.heavy
def test_a_ckpt_without_head_says_to_fine_tune_first(few: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.pth"
    torch.save(Beit(**{**VIT, "num_classes": 0}, use_rel_pos_bias=True).state_dict(), file)
    pretrained = tmp_path / "pretrained"
    code, _, err = run(
        *("pretrain", "--arch", "vit_mini_pocket", "--data", few, "--out", pretrained, "--quiet"),
        *("-o", "epochs=1", "-o", "batch_size=6", "-o", "warmup_epochs=0"),
    )
    assert code == 0, err
    for ckpt in (file, pretrained):
        message = fails(
            4, "evaluate", "imagenet", "--ckpt", ckpt, "--data", few, "--out", tmp_path / "out"
        )
        assert "no classification head" in message
        assert f"simmim-bench transfer imagenet --ckpt {ckpt}" in message
    assert "random weights" in fails(
        2, "evaluate", "imagenet", "--ckpt", "random:vit_pocket", "--data", few
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [(7, "7 outputs, but .* 10 class folders"), (21841, "21,841 outputs, but .* 10 class")],
)
def test_another_number_of_classes_is_refused(
    classes: int, message: str, few: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth"
    vit = VisionTransformer(**{**VIT, "depth": 1, "num_classes": classes})
    torch.save(vit.state_dict(), file)
    error = fails(4, "evaluate", "imagenet", "--ckpt", file, "--data", few, "--out", tmp_path / "o")
    assert message.split(" .* ")[0] in error
    assert message.split(" .* ")[1] in error


def test_wrong_options_and_files_are_reported(trained: Path, few: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 and nothing more")
    common = ("--data", few, "--out", tmp_path / "out")
    of_run = ("evaluate", "imagenet", "--ckpt", trained, *common)
    assert "is damaged" in fails(4, "evaluate", "imagenet", "--ckpt", damaged, *common)
    assert "is a run of imagenet, not of coco" in fails(
        4, "evaluate", "coco", "--ckpt", trained, *common
    )
    assert "changes the training" in fails(2, *of_run, "-o", "base_lr=1")
    assert "by which it is evaluated" in fails(2, *of_run, "--recipe", "imagenet_vit_b_800ep")
    assert "did you mean" in fails(2, *of_run, "-o", "img_siz=32")
    assert "is for a weights file" in fails(
        2, "evaluate", "imagenet", "--ckpt", "timm:x", *common, "--model", "timm:y"
    )
    assert "does not exist" in fails(4, *of_run[:4], "--data", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_options_and_models_that_do_not_fit_are_reported(few: Path, tmp_path: Path) -> None:
    folders = {}
    for channels in (1, 3):
        model = timm.create_model("test_resnet", num_classes=CLASSES, in_chans=channels)
        folders[channels] = tmp_path / f"model{channels}"
        arguments = {"in_chans": channels}
        save_for_hf(model, str(folders[channels]), model_args=arguments, safe_serialization=True)
    common = ("--data", few, "--out", tmp_path / "out", "-o", "num_workers=0")
    gray, colour = (("evaluate", "imagenet", "--ckpt", folders[n], *common) for n in (1, 3))
    assert "has 3 values" in fails(2, *gray, "-o", "mean=0.5,0.5,0.5")
    assert "is computed by timm" in fails(2, *colour, "-o", "window_size=7")
    assert "has 2 values" in fails(2, *colour, "-o", "mean=0.5,0.5")
    assert not (tmp_path / "out").exists()
