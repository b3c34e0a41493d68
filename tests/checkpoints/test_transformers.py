"""Tests of folders that the library transformers writes: its models' own features, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.simmim import load_simmim
from simmim_bench.checkpoints.load import encoder_state, restore_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.errors import DataError
from simmim_bench.models.build import build_backbone
from simmim_bench.models.spec import BackboneSpec

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
VIT: dict[str, Any] = {**SIZES, "intermediate_size": 96}
BIAS: dict[str, Any] = {**VIT, "use_relative_position_bias": True}
SHARED: dict[str, Any] = {**VIT, "use_shared_relative_position_bias": True}
SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
DECODER: dict[str, Any] = {
    **{"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    "decoder_intermediate_size": 16,
}
# Model, configuration, method that is read. "fast" ones cover every kind of names.
FAST: list[tuple[str, str, dict[str, Any], str]] = [
    ("ViTModel", "ViTConfig", VIT, "weights"),
    ("ViTForMaskedImageModeling", "ViTConfig", {**VIT, "encoder_stride": 8}, "SimMIM"),
    ("ViTMAEForPreTraining", "ViTMAEConfig", {**VIT, **DECODER, "mask_ratio": 0.0}, "MAE"),
    ("Dinov2Model", "Dinov2Config", {**SIZES, "mlp_ratio": 2}, "DINOv2"),
    ("BeitModel", "BeitConfig", BIAS, "weights"),
    ("BeitForMaskedImageModeling", "BeitConfig", {**SHARED, "vocab_size": 9}, "BEiT"),
    ("SwinForMaskedImageModeling", "SwinConfig", {**SWIN, "encoder_stride": 8}, "SimMIM"),
    (
        "Swinv2ForImageClassification",
        "Swinv2Config",
        {**SWIN, "window_size": 8, "pretrained_window_sizes": [6, 4]},
        "weights",
    ),
]
SLOW: list[tuple[str, str, dict[str, Any], str]] = [
    ("ViTModel", "ViTConfig", {**VIT, "qkv_bias": False}, "weights"),
    ("ViTModel", "ViTConfig", {**VIT, "image_size": [32, 48]}, "weights"),
    ("ViTModel", "ViTConfig", {**VIT, "layer_norm_eps": 1e-6}, "weights"),
    ("ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5}, "weights"),
    ("ViTMAEModel", "ViTMAEConfig", {**VIT, "mask_ratio": 0.0}, "MAE"),
    ("ViTMSNModel", "ViTMSNConfig", VIT, "MSN"),
    ("ViTMSNForImageClassification", "ViTMSNConfig", VIT, "MSN"),
    ("Dinov2ForImageClassification", "Dinov2Config", SIZES, "DINOv2"),
    ("BeitModel", "BeitConfig", SHARED, "weights"),
    ("BeitModel", "BeitConfig", {**BIAS, "use_mean_pooling": False}, "weights"),
    ("BeitModel", "BeitConfig", {**VIT, "use_absolute_position_embeddings": True}, "weights"),
    ("BeitForImageClassification", "BeitConfig", BIAS, "weights"),
    ("SwinModel", "SwinConfig", SWIN, "weights"),
    ("SwinModel", "SwinConfig", {**SWIN, "qkv_bias": False}, "weights"),
    ("SwinModel", "SwinConfig", {**SWIN, "window_size": 7}, "weights"),  # pads its maps
    ("SwinModel", "SwinConfig", {**SWIN, "window_size": 8}, "weights"),  # as large as the last map
    ("SwinModel", "SwinConfig", {**SWIN, "image_size": [64, 96]}, "weights"),
    ("SwinForImageClassification", "SwinConfig", SWIN, "weights"),
    ("Swinv2Model", "Swinv2Config", {**SWIN, "pretrained_window_sizes": [0, 0]}, "weights"),
    ("Swinv2Model", "Swinv2Config", {**SWIN, "window_size": 16}, "weights"),  # cut to the last map
    ("Swinv2Model", "Swinv2Config", {**SWIN, "window_size": 7}, "weights"),
    ("Swinv2Model", "Swinv2Config", {**SWIN, "qkv_bias": False}, "weights"),
    ("Swinv2Model", "Swinv2Config", {**SWIN, "image_size": [64, 96]}, "weights"),
    ("Swinv2ForMaskedImageModeling", "Swinv2Config", {**SWIN, "encoder_stride": 8}, "SimMIM"),
]


def build(model: str, config: str, sizes: dict[str, Any]) -> Any:
    """Build a small model whose weights are nowhere at their initial values."""
    sizes = {**sizes, "attn_implementation": "eager"}
    if config == "Swinv2Config":
        sizes = {"pretrained_window_sizes": [0, 0], **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()
        for parameter in built.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return built


def size_of(model: Any) -> tuple[int, int]:
    size = model.config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def blocks_of(model: Any, images: Tensor) -> list[Tensor]:
    """Return the tokens that leave every block of a ViT or every stage of a Swin, before its downsampling."""
    found: dict[int, Tensor] = {}

    def keep(module: Any, arguments: Any, output: Any) -> None:
        found[len(found)] = output[0] if isinstance(output, tuple) else output

    swin = "Swin" in type(model).__name__
    base = model.base_model
    encoder = getattr(base, "encoder", base)
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    last = [stage.blocks[-1] for stage in layers] if swin else list(layers)
    handles = [module.register_forward_hook(keep) for module in last]
    with torch.no_grad():
        noise = torch.arange(1000.0)[
            None, : model.base_model.embeddings.patch_embeddings.num_patches
        ]
        masked = {"noise": noise.expand(len(images), -1)} if "MAE" in type(model).__name__ else {}
        model(images, **masked)
    for handle in handles:
        handle.remove()
    return list(found.values())[: len(last)]


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@torch.no_grad()
def check(model: str, config: str, sizes: dict[str, Any], method: str, folder: Path) -> None:
    theirs = build(model, config, sizes)
    theirs.save_pretrained(folder)
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.provenance["method"] == method
    assert checkpoint.spec.img_size == size_of(theirs)
    images = torch.randn(2, 3, *size_of(theirs), generator=torch.Generator().manual_seed(1))
    wanted = blocks_of(theirs, images)
    ours: Any = restore_backbone(checkpoint).eval()
    if checkpoint.spec.family == "vit":
        assert checkpoint.spec.num_heads == (4,)
        means = torch.stack([torch.stack([x[:, 1:].mean(1), x[:, 0]], 1) for x in wanted], 1)
        assert close(ours.forward_pooled(images), means)
        maps = ours.forward_tokens(images)
        assert all(close(x.flatten(1, 2), y[:, 1:]) for x, y in zip(maps, wanted, strict=True))
    else:
        last = theirs.base_model(images).last_hidden_state
        *earlier, final = ours.forward_tokens(images)
        assert all(close(x.flatten(1, 2), y) for x, y in zip(earlier, wanted[:-1], strict=True))
        assert close(final.flatten(1, 2), last)
        assert close(ours.forward_features(images), last.mean(1))
    if checkpoint.form == "pretrain" and checkpoint.spec.family == "vit":
        assert checkpoint.state is not None
        encoder: Any = build_backbone(checkpoint.spec, form="pretrain")
        encoder.load_state_dict(encoder_state(checkpoint.state))
        tokens = encoder.eval().encode(encoder.embed(images)).flatten(2).transpose(1, 2)
        last = {"BeitForMaskedImageModeling": "layernorm"}.get(model)
        norm = theirs.layernorm if last else theirs.base_model.layernorm
        assert close(tokens, norm(wanted[-1])[:, 1:])


@pytest.mark.parametrize(("model", "config", "sizes", "method"), FAST, ids=lambda v: str(v)[:20])
def test_a_folder_computes_transformers_features(
    tmp_path: Path, model: str, config: str, sizes: dict[str, Any], method: str
) -> None:
    check(model, config, sizes, method, tmp_path / "hub")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "config", "sizes", "method"), SLOW)
def test_every_folder_computes_transformers_features(
    tmp_path: Path, model: str, config: str, sizes: dict[str, Any], method: str
) -> None:
    check(model, config, sizes, method, tmp_path / "hub")


MASKED = [
    ("ViTForMaskedImageModeling", "ViTConfig", {**VIT, "encoder_stride": 8}),
    ("SwinForMaskedImageModeling", "SwinConfig", {**SWIN, "encoder_stride": 8}),
    ("Swinv2ForMaskedImageModeling", "Swinv2Config", {**SWIN, "encoder_stride": 8}),
]


@pytest.mark.parametrize(("model", "config", "sizes"), MASKED, ids=["vit", "swin", "swinv2"])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.* has no preprocessor_config.json")
def test_masked_image_models_reconstruct_the_same_pixels(
    tmp_path: Path, model: str, config: str, sizes: dict[str, Any]
) -> None:
    """transformers' documentation calls them SimMIM's; microsoft/swin-base-simmim-window6-192 is one."""
    theirs = build(model, config, sizes)
    theirs.save_pretrained(tmp_path / "hub")
    ours = load_simmim(str(tmp_path / "hub")).eval()
    grid = tuple(side // sizes["patch_size"] for side in size_of(theirs))
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, *size_of(theirs), generator=generator)
    mask = (torch.rand(2, *grid, generator=generator) < 0.6).float()
    wanted = theirs(images, bool_masked_pos=mask.flatten(1).bool()).reconstruction
    assert close(ours(images, mask).reconstruction, wanted)


@torch.no_grad()
def test_shards_and_names_in_memory_are_read(tmp_path: Path) -> None:
    """`save_pretrained` writes the names of version 4; a state dict of version 5 has others."""
    theirs = build("SwinForImageClassification", "SwinConfig", SWIN)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    memory = tmp_path / "memory"
    memory.mkdir()
    theirs.config.save_pretrained(memory)
    state = theirs.state_dict()
    assert "swin.encoder.layers.0.blocks.0.attention.q_proj.weight" in state
    torch.save(state, memory / "pytorch_model.bin")
    images = torch.randn(1, 3, 64, 64)
    wanted = theirs.swin(images).pooler_output
    for folder in (tmp_path / "shards", memory):
        checkpoint = read_checkpoint(str(folder))
        assert close(restore_backbone(checkpoint).eval().forward_features(images), wanted)


@torch.no_grad()
def test_a_bare_file_of_transformers_is_no_simmim_model(tmp_path: Path) -> None:
    """Its names begin with `encoder.`, as those of official SimMIM files."""
    theirs = build("ViTMAEForPreTraining", "ViTMAEConfig", {**VIT, **DECODER})
    theirs.vit.save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    checkpoint = read_checkpoint(str(path), Hints(num_heads=4))
    assert checkpoint.provenance["method"] == "weights"
    theirs.save_pretrained(tmp_path / "mae")
    path = tmp_path / "mae" / "model.safetensors"
    assert read_checkpoint(str(path), Hints(num_heads=4)).provenance["method"] == "MAE"


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("SwinConfig", {"hidden_act": "relu"}, "hidden_act relu, but simmim-bench's Swin has gelu"),
        ("SwinConfig", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06, but .* Swin has 1e-5"),
        ("SwinConfig", {"use_absolute_embeddings": True}, "has no absolute position embedding"),
        (
            "SwinConfig",
            {"image_size": 62},
            "image_size 62x62, which is not a multiple of patch_size 4",
        ),
        (
            "SwinConfig",
            {"image_size": [32, 64]},
            "image_size 32x64, for which transformers' windows",
        ),
        ("SwinConfig", {"patch_size": [4, 2]}, "has patches of 4x2 pixels"),
        (
            "Swinv2Config",
            {"window_size": 16, "image_size": [36, 36]},
            "for which transformers' windows",
        ),
        ("Dinov2Config", {"use_swiglu_ffn": True}, "simmim-bench's ViT has no SwiGLU"),
    ],
)
def test_what_computes_other_features_is_refused(
    tmp_path: Path, config: str, change: dict[str, Any], message: str
) -> None:
    model = {"SwinConfig": "SwinModel", "Swinv2Config": "Swinv2Model"}.get(config, "Dinov2Model")
    sizes = SIZES if config == "Dinov2Config" else SWIN
    build(model, config, sizes).save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        read_checkpoint(str(tmp_path / "hub"))


def test_the_windows_that_are_refused_are_not_transformers(tmp_path: Path) -> None:
    """A window of 8 on a map of 4 x 8 tokens shifts by columns in simmim-bench's Swin only."""
    theirs = build(
        "Swinv2Model", "Swinv2Config", {**SWIN, "window_size": 8, "image_size": [32, 96]}
    )
    shifts = [block.shift_size for block in theirs.encoder.layers[0].blocks]
    sizes: dict[str, Any] = {
        "img_size": (32, 96),
        "patch_size": 4,
        "embed_dim": 16,
        "depths": (2, 2),
    }
    spec = BackboneSpec(arch="swinv2", family="swinv2", num_heads=(1, 2), window_size=8, **sizes)
    ours: Any = build_backbone(spec)
    assert shifts == [0, 0]
    assert [block.shift_size for block in ours.layers[0].blocks] == [(0, 0), (0, 4)]


@pytest.mark.parametrize(
    ("pixels", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 0.5, 0.25),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255}, 0.5, 0.25),
        # (255 x / 127.5 - 1) / 1: ViViT's and EfficientNet's processors have such values.
        ({"image_mean": [1] * 3, "image_std": [1] * 3, "rescale_factor": 1 / 127.5}, 0.5, 0.5),
        ({"image_mean": [127.5] * 3, "image_std": [51] * 3, "do_rescale": False}, 0.5, 0.2),
        ({"do_normalize": False}, 0.0, 1.0),
    ],
)
def test_the_processors_scale_is_part_of_the_normalisation(
    tmp_path: Path, pixels: dict[str, Any], mean: float, std: float
) -> None:
    build("ViTModel", "ViTConfig", VIT).save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "preprocessor_config.json"
    path.write_text(json.dumps({"do_rescale": True, "do_normalize": True, **pixels}))
    checkpoint = read_checkpoint(str(tmp_path / "hub"))
    assert checkpoint.mean == pytest.approx((mean,) * 3)
    assert checkpoint.std == pytest.approx((std,) * 3)
    path.write_text(json.dumps({"do_flip_channel_order": True, **pixels}))
    with pytest.raises(DataError, match=r"has do_flip_channel_order, but .* reads images as RGB"):
        read_checkpoint(str(tmp_path / "hub"))
