"""Networks of timm's in detection, segmentation and the dense probes: levels, recipes, rates, sizes, refusals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import detection
from support import segmentation as seg
from support.dense import KNN, probe
from support.timm_archs import ALL, create_perturbed
from timm.layers import DropPath, resample_abs_pos_embed, resample_patch_embed
from timm.optim import param_groups_layer_decay
from torch import nn

from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.checkpoints.load import restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.external import import_timm_network
from simmim_bench.distributed import DistContext
from simmim_bench.errors import UsageError
from simmim_bench.models.build import build_backbone
from simmim_bench.models.external_spec import ExternalSpec
from simmim_bench.models.shapes import shapes_only
from simmim_bench.models.spec import MapOptions
from simmim_bench.pocket.write import PocketCounts, write_pocket
from simmim_bench.training.optim import parameter_groups
from transfer.detection.any_recipes import COCO_ANY
from transfer.detection.fit import fit_to_backbone
from transfer.detection.recipes import CocoRecipe
from transfer.detection.vitdet_recipes import COCO_VITDET_B
from transfer.finetune.any_recipes import IMAGENET_ANY
from transfer.pyramid import default_strides
from transfer.recipes import choose_recipe
from transfer.segmentation.any_recipes import ADE20K_ANY
from transfer.segmentation.mmseg_recipes import ADE20K_MAE_VIT_B, ADE20K_SWIN_W7
from transfer.segmentation.run import check_sizes

SEGMENT = replace(
    ADE20K_ANY,
    img_size=(64, 64),
    resize_within=(),
    max_iters=2,
    warmup_iters=0,
    batch_size=2,
    head_channels=16,
    auxiliary_channels=8,
    slide_stride=None,
    num_workers=0,
)
DETECT = replace(
    COCO_ANY,
    img_size=(64, 64),
    test_size=None,
    max_iters=1,
    warmup_iters=0,
    batch_size=2,
    neck_channels=16,
    box_head_convs=1,
    box_head_dim=16,
    mask_head_convs=1,
    pre_nms_topk=(50, 20),
    post_nms_topk=(20, 10),
    num_workers=0,
)
# Architectures, and the recipe's fields that they need: plain with patches of 16, 14, 8 and 32, of a fixed size, with
# three, four, five and six stages, with and without BatchNorm and stochastic depth.
ARCHS: dict[str, Mapping[str, Any]] = {
    "test_vit": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 16},
    "eva02_tiny_patch14_224": {"patch_size": 16},
    "deit3_small_patch16_224": {},
    "xcit_nano_12_p8_224": {},
    "beit_base_patch16_224": {},
    "cait_xxs24_224": {},
    "mixer_s32_224": {"img_size": (128, 128)},
    "hiera_tiny_224": {},
    "levit_128s": {},
    "maxvit_rmlp_pico_rw_256": {},
    "visformer_tiny": {},
    "efficientformer_l1": {"img_size": (224, 224)},
    "swin_tiny_patch4_window7_224": {},
    "mvitv2_tiny": {},
    "pvt_v2_b0": {},
    "test_convnext": {},
    "convnextv2_atto": {},
    "regnety_002": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "repvit_m0_9": {},
    "densenet121": {},
    "vgg11": {},
    "dla34": {},
    "test_resnet": {},
}
QUICK = {"test_efficientnet": ARCHS["test_efficientnet"]}
DETECTED = (
    "test_efficientnet",
    "vit_small_patch14_reg4_dinov2",
    "xcit_nano_12_p8_224",
    "hiera_tiny_224",
    "levit_128s",
    "dla34",
)


@lru_cache
def checkpoint_of(arch: str) -> Checkpoint:
    """Read a checkpoint without weights; the measured spec is kept."""
    return read_checkpoint(f"random:{arch}")


def with_weights(arch: str) -> Checkpoint:
    """Return a checkpoint with random weights."""
    checkpoint = checkpoint_of(arch)
    return replace(checkpoint, state=dict(build_backbone(checkpoint.spec, seed=4).state_dict()))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and two validation images for each framework; nobody may write into them."""
    root = tmp_path_factory.mktemp("any_backbone") / "pocket"
    few = dict.fromkeys(("imagenet_train", "imagenet_val"), 10)
    counts = PocketCounts(coco_train=3, coco_val=2, ade20k_train=3, ade20k_val=2, **few)
    write_pocket(root, counts=counts)
    return root


def segment(out: Path, images: Path, arch: str, changes: Mapping[str, Any]) -> None:
    recipe = replace(SEGMENT, **changes)
    seg.transfer(out, images / "ade20k", recipe, ckpt=f"random:{arch}")
    seg.assert_counts_every_labelled_pixel(out, images / "ade20k")


@pytest.mark.heavy
@pytest.mark.parametrize("arch", QUICK)
def test_a_network_learns_segmentation(images: Path, tmp_path: Path, arch: str) -> None:
    pytest.importorskip("mmseg")
    segment(tmp_path / "run", images, arch, QUICK[arch])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_network_learns_segmentation(images: Path, tmp_path: Path, arch: str) -> None:
    pytest.importorskip("mmseg")
    segment(tmp_path / "upernet", images, arch, ARCHS[arch])
    size = ARCHS[arch].get("img_size", KNN.img_size)
    knn = replace(KNN, img_size=size)
    record = probe(tmp_path / "knn", images / "ade20k", knn, f"random:{arch}")
    assert record.metrics["miou"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, arch in ALL.items() if arch.kind != "none"])
def test_every_listed_network_with_maps_labels_patches(
    images: Path, tmp_path: Path, name: str
) -> None:
    model = create_perturbed(name, ALL[name])
    checkpoint = import_timm_network(model, name=name, label=name)
    recipe = replace(KNN, img_size=checkpoint.spec.img_size)
    record = probe(tmp_path / "knn", images / "ade20k", recipe, checkpoint)
    assert record.metrics["miou"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", DETECTED)
def test_networks_learn_detection(images: Path, tmp_path: Path, arch: str) -> None:
    pytest.importorskip("detectron2")
    recipe = replace(DETECT, **ARCHS[arch])
    if arch == "levit_128s":  # BatchNorm of more than one cell at a stride of 64
        recipe = replace(recipe, img_size=(128, 128))
    record = detection.run(tmp_path / "run", images / "coco", recipe, arch=f"random:{arch}")
    assert set(record.metrics) >= {"box_ap", "mask_ap"}
    strides = ",".join(map(str, fit_to_backbone(recipe, checkpoint_of(arch).spec).strides))
    assert f"pyramid strides={strides}" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k", "linear", "knn", "attentive"])
def test_networks_of_other_code_have_default_recipes(task: str) -> None:
    spec = checkpoint_of("test_efficientnet").spec
    general = task not in ("imagenet", "coco", "ade20k")
    for family in ("timm", "python"):
        name = choose_recipe(task, replace(spec, family=family), None).recipe.name
        assert name == (task if general else f"{task}_any")


def spec_with(levels: tuple[tuple[int, int], ...], **fields: Any) -> ExternalSpec:
    spec = checkpoint_of("test_efficientnet").spec
    assert isinstance(spec, ExternalSpec)
    return replace(spec, levels=levels, patch_size=levels[0][1], **fields)


def test_a_pyramid_has_the_strides_of_its_network() -> None:
    for strides, wanted in (
        ((16,) * 12, (4, 8, 16, 32, 64)),  # ViTDet's
        ((8,) * 12, (4, 8, 16, 32)),
        ((32,) * 8, (8, 16, 32, 64, 128)),
        ((2, 4, 8, 16, 32), (4, 8, 16, 32, 64)),  # FPN's
        ((1, 2, 4, 8, 16, 32), (4, 8, 16, 32, 64)),
        ((16, 32, 64), (16, 32, 64, 128)),
        ((8, 16, 32), (8, 16, 32, 64)),
        ((4, 16, 32), (16, 32, 64)),
        ((4, 8, 8, 16), (4, 8, 16, 32)),
    ):
        spec = spec_with(tuple((8, stride) for stride in strides))
        assert default_strides(spec) == wanted
        fitted = fit_to_backbone(COCO_ANY, spec)
        assert (fitted.strides, fitted.anchor_sizes) == (wanted, tuple(8 * s for s in wanted))
    # With patches of 16 pixels, ViTDet's own.
    fitted = fit_to_backbone(COCO_ANY, spec_with(((8, 16),) * 12))
    assert fitted.strides == COCO_VITDET_B.strides
    assert fitted.anchor_sizes == COCO_VITDET_B.anchor_sizes


def test_stages_whose_maps_round_up_keep_their_strides() -> None:
    # 224 pixels at strides of 16, 32 and 64 are 14, 7 and 3.5 cells.
    levels = checkpoint_of("levit_128s").spec.feature_levels
    assert [level.stride for level in levels] == [16, 32, 64]


@pytest.mark.parametrize(
    ("recipe", "changes", "fix"),
    [
        (COCO_ANY, {"levels": ((8, 14),) * 12}, "-o patch_size=16"),
        (COCO_ANY, {"levels": ((8, 14),) * 12, "family": "python"}, "another backbone"),
        (COCO_ANY, {"levels": ((8, 4), (8, 12))}, "another backbone"),
    ],
)
def test_strides_that_are_no_powers_of_two_are_refused(
    recipe: CocoRecipe, changes: dict[str, Any], fix: str
) -> None:
    with pytest.raises(UsageError, match=f"powers of two; use {fix}"):
        fit_to_backbone(recipe, spec_with(**changes))


def test_networks_of_a_fixed_size_need_images_of_one_size() -> None:
    spec = spec_with(((8, 4), (8, 8)), sizing="fixed", sized=True)
    assert fit_to_backbone(replace(COCO_ANY, img_size=(64, 96), test_size=None), spec).img_size == (
        96,
        96,
    )
    for changes in ({"square_pad": False}, {"test_size": (800, 1333)}):
        with pytest.raises(UsageError, match="of one size alone; use -o square_pad=true"):
            fit_to_backbone(replace(COCO_ANY, **changes), spec)
    check_sizes(ADE20K_ANY, spec, DistContext())
    with pytest.raises(UsageError, match="use -o test_mode=slide"):
        check_sizes(replace(ADE20K_ANY, test_mode="whole"), spec, DistContext())
    unsized = replace(spec, sized=False, img_size=(224, 224))
    with pytest.raises(UsageError, match="use -o img_size=224,224"):
        check_sizes(ADE20K_ANY, unsized, DistContext())


def test_published_recipes_name_what_does_not_apply() -> None:
    spec = checkpoint_of("test_vit").spec
    with pytest.raises(
        UsageError,
        match="use -o rel_pos=own -o layer_scale=none -o position=antialiased, or no --recipe",
    ):
        spec.with_maps(ADE20K_MAE_VIT_B.maps, spec)
    with pytest.raises(UsageError, match="use -o rel_pos=own -o position=antialiased, or no"):
        spec.with_maps(COCO_VITDET_B.maps, spec)
    for recipe in (COCO_VITDET_B, ADE20K_SWIN_W7):
        with pytest.raises(UsageError, match="use -o window_size=none"):
            spec.at(recipe.img_size, recipe.window_size)
    assert spec.with_maps(ADE20K_SWIN_W7.maps, spec).map_norm == "affine"


def test_resized_patches_equal_timms_resampling() -> None:
    checkpoint = with_weights("test_vit")
    net = timm.create_model("test_vit", num_classes=0, patch_size=8, img_size=96)
    assert checkpoint.state is not None
    state = {name.removeprefix("net."): value for name, value in checkpoint.state.items()}
    kernels = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = resample_patch_embed(kernels, [8, 8])
    prefix = net.num_prefix_tokens if not net.no_embed_class else 0
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"], [12, 12], num_prefix_tokens=prefix
    )
    net.load_state_dict(state)
    ours = restore_backbone(checkpoint, (96, 96), maps=MapOptions(patch_size=8)).eval()
    assert isinstance(ours.spec, ExternalSpec)
    assert dict(ours.spec.arguments)["patch_size"] == 8
    assert ours.feature_levels[-1] == (64, 8)
    images = torch.randn(2, 3, 96, 96)
    wanted = net.eval().forward_intermediates(images, indices=[5], intermediates_only=True)
    torch.testing.assert_close(ours.forward_tokens(images)[-1].movedim(-1, 1), wanted[0])


def test_patches_of_another_size_are_refused_where_timm_has_none() -> None:
    for arch in ("test_efficientnet", "mixer_s32_224"):
        checkpoint = checkpoint_of(arch)
        with pytest.raises(UsageError, match=r"patch_size=8 does not apply .* -o patch_size=none"):
            restore_backbone(checkpoint, maps=MapOptions(patch_size=8))


def scales_by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet", "levit_128s", "hiera_tiny_224"])
def test_layer_decay_equals_timms(arch: str) -> None:
    with shapes_only():
        theirs = timm.create_model(arch)
        backbone = build_backbone(checkpoint_of(arch).spec, num_classes=2)
    groups = param_groups_layer_decay(theirs, layer_decay=0.7)
    wanted = scales_by_name(theirs, groups)
    found = scales_by_name(
        backbone, parameter_groups(backbone, backbone, lr=1, weight_decay=0, layer_decay=0.7)
    )
    net = {name.removeprefix("net."): s for name, s in found.items() if name.startswith("net.")}
    assert net == {name: pytest.approx(wanted[name]) for name in net}
    assert found["head.weight"] == 1
    assert len(set(net.values())) > 3


def test_a_rate_of_0_replaces_the_architectures_own_stochastic_depth() -> None:
    def rates(model: nn.Module) -> list[float]:
        return [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]

    with shapes_only():
        assert max(rates(timm.create_model("swin_tiny_patch4_window7_224"))) > 0
        spec = spec_with(((8, 4),), source="swin_tiny_patch4_window7_224")
        assert rates(build_backbone(spec)) == []
        assert max(rates(build_backbone(spec, drop_path_rate=0.3))) == pytest.approx(0.3)


def test_synchronised_norms_keep_their_activations() -> None:
    pytest.importorskip("mmseg")
    from transfer.segmentation.model import build_segmentor

    checkpoint, images = checkpoint_of("test_efficientnet"), torch.randn(2, 3, 64, 64)
    models = [build_segmentor(checkpoint, SEGMENT, 3, 0, synced=s) for s in (False, True)]
    for model in models:
        model.eval()
    wanted, found = (model.backbone(images) for model in models)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in models[1].backbone.modules())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "arch",
    [
        "test_efficientnet",
        *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("test_vit", "levit_128s")),
    ],
)
def test_adapters_in_configs_of_users_declare_the_levels(arch: str) -> None:
    pytest.importorskip("mmseg")
    pytest.importorskip("detectron2")
    from detectron2.config import LazyCall as L
    from detectron2.config import get_cfg, instantiate
    from detectron2.modeling import build_backbone as build_from_yaml
    from mmseg.registry import MODELS

    from transfer import detectron2_backbone as det
    from transfer.mmseg_backbone import SimMIMBackbone

    levels = checkpoint_of(arch).spec.feature_levels
    ckpt = f"random:{arch}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mmseg = MODELS.build({"type": "SimMIMBackbone", "ckpt": ckpt, "img_size": (64, 64)})
        with pytest.raises(UsageError, match="frozen_stages=1 does not apply"):
            MODELS.build({"type": "SimMIMBackbone", "ckpt": ckpt, "frozen_stages": 1})
        net = L(det.SimMIMBackbone)(ckpt=ckpt, img_size=(64, 64))
        lazy = instantiate(L(det.build_pyramid)(net=net, strides=(), channels=8, square_pad=64))
        cfg = get_cfg()
        det.add_simmim_config(cfg, ckpt)
        cfg.MODEL.BACKBONE.NAME = "build_simmim_pyramid"
        cfg.MODEL.SIMMIM.IMG_SIZE, cfg.MODEL.SIMMIM.STRIDES = [64, 64], []
        yaml = build_from_yaml(cfg)
    assert isinstance(mmseg, SimMIMBackbone)
    assert tuple(zip(mmseg.channels, mmseg.strides, strict=True)) == levels
    wanted = default_strides(checkpoint_of(arch).spec)
    for pyramid in (lazy, yaml):
        shapes = pyramid.output_shape()
        assert tuple(shape.stride for shape in shapes.values()) == wanted
        maps = pyramid.eval()(torch.randn(1, 3, 64, 64))
        assert {name: 64 // shapes[name].stride or 1 for name in maps} == {
            name: x.shape[-1] for name, x in maps.items()
        }


def test_default_recipes_train_networks_without_stochastic_depth() -> None:
    spec = spec_with(((8, 4),), source="ghostnet_100", arch="ghostnet_100")
    with shapes_only():
        for recipe in (IMAGENET_ANY, COCO_ANY, ADE20K_ANY):
            build_backbone(spec, drop_path_rate=recipe.drop_path_rate)
        with pytest.raises(UsageError, match="use -o drop_path_rate=0"):
            build_backbone(spec, drop_path_rate=0.1)
