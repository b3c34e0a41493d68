"""Tests of models that are built without the initialisation of their weights."""

from __future__ import annotations

import torch

from simmim_bench.models.build import build_backbone
from simmim_bench.models.shapes import shapes_only, uninitialised
from simmim_bench.models.spec import BackboneSpec


def test_a_model_of_shapes_alone_has_those_of_a_built_one(tiny_spec: BackboneSpec) -> None:
    with shapes_only():
        model = build_backbone(tiny_spec, num_classes=3)
    wanted = build_backbone(tiny_spec, num_classes=3).state_dict()
    found = model.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in wanted.items()
    }
    assert all(v.is_meta for v in found.values())


def test_an_uninitialised_model_computes_as_another_one_of_the_same_weights(
    tiny_spec: BackboneSpec,
) -> None:
    wanted = build_backbone(tiny_spec, num_classes=3, seed=1).eval()
    with uninitialised():
        model = build_backbone(tiny_spec, num_classes=3).eval()
    model.load_state_dict(wanted.state_dict())
    images = torch.randn(2, 3, *tiny_spec.img_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), wanted(images))
