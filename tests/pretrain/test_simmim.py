"""Check random masking, the model and its loss (SimMIM, section 3)."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.design import Design
from pretrain.masking.masks import check_mask_sizes, sample_masks
from pretrain.simmim import SimMIM
from pretrain.targets.pixels import local_statistics
from simmim_bench.errors import UsageError
from simmim_bench.models.spec import BackboneSpec


def masks_for(spec: BackboneSpec, count: int, ratio: float = 0.6, seed: int = 0) -> torch.Tensor:
    return sample_masks(
        count,
        spec.img_size,
        mask_patch_size=16,
        patch_size=spec.patch_size,
        mask_ratio=ratio,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6, 0.75])
def test_every_mask_hides_exactly_the_ceiling_of_the_ratio(ratio: float) -> None:
    masks = sample_masks(50, (96, 64), mask_patch_size=16, patch_size=8, mask_ratio=ratio)
    assert masks.shape == (50, 12, 8)
    hidden_units = masks.view(50, 6, 2, 4, 2).amax((2, 4))
    # A unit is hidden completely or not at all.
    assert torch.equal(hidden_units, masks.view(50, 6, 2, 4, 2).amin((2, 4)))
    assert (hidden_units.sum((1, 2)) == math.ceil(ratio * 24)).all()


def test_every_unit_is_hidden_equally_often() -> None:
    masks = sample_masks(
        4000,
        (64, 64),
        mask_patch_size=16,
        patch_size=16,
        mask_ratio=0.5,
        generator=torch.Generator().manual_seed(1),
    )
    # The standard deviation of the mean of 4000 samples at 0.5 is 0.008; five of them.
    assert (masks.mean(0) - 0.5).abs().max() < 0.04


def test_every_combination_of_units_is_equally_likely() -> None:
    masks = sample_masks(
        6000,
        (64, 64),
        mask_patch_size=32,
        patch_size=32,
        mask_ratio=0.5,
        generator=torch.Generator().manual_seed(2),
    )
    codes = (masks.flatten(1) * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum(1)
    counts = torch.stack([(codes == code).sum() for code in codes.unique()])
    assert len(counts) == math.comb(4, 2)
    # Chi squared with 5 degrees of freedom exceeds 25.7 for one in ten thousand seeds.
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 25.7


def test_mask_depends_on_its_generator_only(tiny_spec: BackboneSpec) -> None:
    def masks_of(seeds: list[int]) -> torch.Tensor:
        return sample_masks(
            len(seeds),
            tiny_spec.img_size,
            mask_patch_size=8,
            patch_size=tiny_spec.patch_size,
            mask_ratio=0.6,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )

    assert torch.equal(masks_of([3, 5, 8])[1:], masks_of([5, 8, 13])[:2])


def test_local_statistics_are_those_of_every_square() -> None:
    images = torch.randn(1, 2, 7, 9)
    mean, deviation = local_statistics(images, 5)
    for y, x in ((0, 0), (3, 4), (6, 2)):
        square = images[0, 1, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        assert mean[0, 1, y, x].item() == pytest.approx(square.mean().item(), abs=1e-5)
        assert deviation[0, 1, y, x].item() == pytest.approx(square.std().item(), abs=1e-4)


def test_loss_compares_with_the_normalised_target(tiny_spec: BackboneSpec) -> None:
    model = SimMIM(tiny_spec, Design(norm_target=7)).eval()
    images, mask = torch.randn(2, 3, *tiny_spec.img_size), masks_for(tiny_spec, 2)
    output = model(images, mask)
    mean, deviation = local_statistics(images, 7)
    patch = tiny_spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).bool()
    distance = ((images - mean) / deviation - output.reconstruction).abs().mean(1)
    assert output.loss.item() == pytest.approx(distance[hidden].mean().item(), rel=1e-4)


def test_same_seed_gives_the_same_masks(tiny_spec: BackboneSpec) -> None:
    assert torch.equal(masks_for(tiny_spec, 4), masks_for(tiny_spec, 4))
    assert not torch.equal(masks_for(tiny_spec, 4), masks_for(tiny_spec, 4, seed=1))


def test_indivisible_sizes_are_rejected_with_alternatives() -> None:
    with pytest.raises(UsageError, match=r"img_size 200 is not a multiple .* use 192 or 224"):
        check_mask_sizes((200, 200), 32, 16)
    with pytest.raises(UsageError, match="mask_patch_size 20 is not a multiple of patch_size 16"):
        check_mask_sizes((200, 200), 20, 16)


def test_loss_equals_a_naive_loop_over_hidden_pixels(tiny_spec: BackboneSpec) -> None:
    model = SimMIM(tiny_spec).eval()
    images = torch.randn(2, 3, *tiny_spec.img_size)
    mask = masks_for(tiny_spec, 2)
    output = model(images, mask)
    total, count = 0.0, 0
    patch = tiny_spec.patch_size
    for b in range(2):
        for y in range(tiny_spec.img_size[0]):
            for x in range(tiny_spec.img_size[1]):
                if mask[b, y // patch, x // patch]:
                    gap = (images[b, :, y, x] - output.reconstruction[b, :, y, x]).abs()
                    total += gap.sum().item()
                    count += 1
    assert output.loss.item() == pytest.approx(total / count / 3, rel=1e-5)


def test_features_ignore_hidden_pixels(tiny_spec: BackboneSpec) -> None:
    model = SimMIM(tiny_spec).eval()
    images = torch.randn(2, 3, *tiny_spec.img_size)
    mask = masks_for(tiny_spec, 2)
    patch = tiny_spec.patch_size
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    other = images + hidden * torch.randn_like(images)
    assert torch.allclose(model(images, mask).features, model(other, mask).features, atol=1e-6)
    visible_only = images + (1 - hidden) * 7
    before, after = model(images, mask), model(visible_only, mask)
    assert not torch.allclose(before.features, after.features)


def test_output_shapes_follow_the_contract_at_two_sizes(tiny_spec: BackboneSpec) -> None:
    for size in ((32, 32), (32, 48)):
        spec = tiny_spec.at(size)
        output = SimMIM(spec)(torch.randn(2, 3, *size), masks_for(spec, 2))
        assert output.loss.shape == ()
        assert output.reconstruction.shape == (2, 3, *size)
        stride = spec.stride
        assert output.features.shape == (2, spec.num_features, size[0] // stride, size[1] // stride)


def test_every_parameter_has_a_gradient(tiny_spec: BackboneSpec) -> None:
    model = SimMIM(tiny_spec)
    model(torch.randn(2, 3, *tiny_spec.img_size), masks_for(tiny_spec, 2)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_weights_depend_on_the_seed_only(tiny_spec: BackboneSpec) -> None:
    torch.manual_seed(1)
    first = SimMIM(tiny_spec, seed=3).state_dict()
    torch.manual_seed(2)
    second, other = SimMIM(tiny_spec, seed=3).state_dict(), SimMIM(tiny_spec, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["decoder.weight"], other["decoder.weight"])
