"""Check what the encoder receives: mask tokens, zeros or the visible patches, and the feature levels it returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.pretraining import half_masks, pixel_mask, smooth_images
from support.tiny import TINY

from pretrain.build import check_sizes
from pretrain.design import Design
from pretrain.encoder_input import count_visible, visible_patches
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM
from simmim_bench.errors import UsageError
from simmim_bench.models.vit import ViT, sincos_position
from simmim_bench.overrides import override


def perturbed(model: SimMIM) -> SimMIM:
    """Perturb every weight, because position biases and class tokens are initialised to zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def test_visible_patches_are_encoded_independently_of_hidden_ones() -> None:
    """Full attention with hidden patches masked out gives the visible ones the same features."""
    spec = replace(TINY["vit"], img_size=(16, 24), abs_pos_embed=True)
    model = perturbed(SimMIM(spec, Design(encoder_input="visible")))
    encoder: Any = model.encoder
    mask = half_masks(spec, 3)
    images = smooth_images(spec, 3).double()
    found = model(images, mask).features
    hidden = mask.flatten(1).bool()
    for b in range(3):
        kept = (~hidden[b]).nonzero()[:, 0]
        bias = encoder.rel_pos_bias(spec.grid).clone()
        bias[:, :, :, 1 + hidden[b].nonzero()[:, 0]] = -torch.inf
        x = encoder.embed(images[b : b + 1]) + sincos_position(spec.grid, spec.embed_dim)
        x = torch.cat([encoder.cls_token, x.flatten(1, 2)], dim=1) + encoder.pos_embed
        for block in encoder.blocks:
            x = block(x, spec.grid, bias)
        whole = encoder.norm(x[0, 1:]).T
        torch.testing.assert_close(found[b].flatten(1)[:, kept], whole[:, kept])
        assert (found[b].flatten(1)[:, hidden[b]] == 0).all()


def test_levels_of_visible_patches_end_in_the_features() -> None:
    model = perturbed(SimMIM(TINY["vit"], Design(encoder_input="visible")))
    images, mask = smooth_images(model.spec).double(), half_masks(model.spec)
    everything = torch.arange(64).expand(2, -1)
    encoder = model.encoder
    assert isinstance(encoder, ViT)
    tokens = encoder.embed(images)
    maps = encoder.encode_visible(tokens, everything)
    for one, other in zip(maps, encoder.encode_levels(tokens), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(maps[-1], encoder.encode(tokens))
    indices = visible_patches(mask, count_visible(mask))
    assert torch.equal(indices[1], (mask[1].flatten() == 0).nonzero()[:, 0])


@pytest.mark.parametrize("family", sorted(TINY))
def test_levels_equal_the_maps_for_detection(family: str) -> None:
    model = perturbed(SimMIM(TINY[family], Design(aggregate=True)))
    images = smooth_images(model.spec).double()
    levels = model.encoder.encode_levels(model.encoder.embed(images))
    assert [m.shape[1] for m in levels] == [level.channels for level in model.spec.feature_levels]
    torch.testing.assert_close(levels[-1], model.encoder.encode(model.encoder.embed(images)))
    for one, other in zip(levels[:-1], model.encoder.forward_maps(images), strict=False):
        torch.testing.assert_close(one, other)


def test_zeroed_pixels_are_the_mean_colour() -> None:
    model = perturbed(SimMIM(TINY["vit"], Design(encoder_input="zeros")))
    images, mask = smooth_images(model.spec).double(), half_masks(model.spec)
    grey = torch.where(pixel_mask(mask, model.spec).unsqueeze(1) > 0, 0.0, images)
    torch.testing.assert_close(
        model(images, mask).features, model.encoder.encode(model.encoder.embed(grey))
    )


def test_different_numbers_of_visible_patches_are_rejected() -> None:
    model = SimMIM(TINY["vit"], Design(encoder_input="visible"))
    mask = half_masks(model.spec)
    mask[0, 0] = 1 - mask[0, 0, 0]
    with pytest.raises(UsageError, match="the same number of hidden patches in every image"):
        model(smooth_images(model.spec), mask)


@pytest.mark.parametrize("units", [("masking=pixels",), ("img_size=32", "mask_patch_size=2")])
def test_visible_input_rejects_partially_hidden_patches(units: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="not a multiple of vit_pocket's patch size 4"):
        check_sizes(override(POCKET, [*units, "encoder_input=visible"]))
