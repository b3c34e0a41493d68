from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from timm.models import VisionTransformer

from simmim_bench.cli.main import cli
from simmim_bench.errors import BenchError
from transfer.visualize import principal_components


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    features = torch.randn(3, 12, 6, 5, generator=torch.Generator().manual_seed(0))
    features *= torch.arange(12, 0, -1).view(1, 12, 1, 1)  # no two components are alike
    found = principal_components(features).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    vectors = features.permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
    _, _, rows = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    for number, row in enumerate(rows[:3]):
        projected = vectors @ (row * np.sign(row[np.abs(row).argmax()]))
        low, high = np.quantile(projected, [0.01, 0.99])
        expected = np.clip((projected - low) / (high - low), 0, 1)
        np.testing.assert_allclose(found[:, number], expected, atol=1e-5)


def test_equal_features_have_equal_colours_in_all_images() -> None:
    features = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    features[1, :, 0, 0] = features[0, :, 3, 3]
    colours = principal_components(features)
    assert torch.allclose(colours[1, :, 0, 0], colours[0, :, 3, 3], atol=1e-6)
    assert torch.allclose(principal_components(features.flip(0)).flip(0), colours, atol=1e-6)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images: the left half red, the right half blue; and one the other way round."""
    (tmp_path / "images").mkdir()
    for name, colours in (("a", [(250, 20, 20), (20, 20, 250)]), ("b", [(20, 20, 250)] * 2)):
        image = Image.new("RGB", (32, 32))
        for side, colour in enumerate(colours):
            image.paste(colour, (16 * side, 0, 16 + 16 * side, 32))
        image.save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def visualize(images: Path, ckpt: str, *more: str) -> BaseException | None:
    out = str(images.parent / "grid.png")
    fixed = ["--ckpt", ckpt, "--images", str(images), "--out", out]
    return CliRunner().invoke(cli, ["visualize", *fixed, *more]).exception


@pytest.mark.parametrize("arch", ["vit_pocket", "swin_pocket", "convnext_pocket"])
@pytest.mark.parametrize("block", ["-1", "1"])
def test_features_are_shown_beside_the_images(images: Path, arch: str, block: str) -> None:
    more = ("--what", "pca", "--block", block, "--img-size", "64")
    assert visualize(images, f"random:{arch}", *more) is None
    grid = np.asarray(Image.open(images.parent / "grid.png").convert("RGB"))
    tile = 2 * 64 + 4  # tiles of 64 pixels, enlarged by 2, and their border
    assert grid.shape == (tile + 4, 4 * tile + 4, 3)
    left, right = grid[20, 20], grid[20, tile - 20]
    assert left[0] > 200 > right[0]  # the image itself: red, then blue
    assert (grid[20, tile + 20] != grid[20, 2 * tile - 20]).any()  # its features differ as well


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--what", "pca", "--block", "99"], "vit_pocket has no block 99; choose from 1 to"),
        (["--what", "pca", "--block", "0"], "vit_pocket has no block 0"),
        (["--what", "pca", "--img-size", "33"], "33"),
        (["--what", "pca", "--mask", "square"], "--mask does not apply to --what pca"),
        (["--img-size", "64"], "--img-size does not apply to --what reconstruction"),
        (["--what", "attention", "--block", "1"], "--block does not apply to --what attention"),
    ],
)
def test_options_that_do_not_fit_are_refused(images: Path, more: list[str], message: str) -> None:
    error = visualize(images, "random:vit_pocket", *more)
    assert isinstance(error, BenchError)
    assert error.exit_code == 2
    assert message in str(error)
    assert not (images.parent / "grid.png").exists()


def test_what_a_file_leaves_open_is_printed(images: Path, tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 1, "num_heads": 3}
    torch.save(VisionTransformer(num_classes=0, **sizes).state_dict(), tmp_path / "vit.pth")
    with pytest.warns(UserWarning, match="3 are used, as in the published ViT"):
        assert visualize(images, str(tmp_path / "vit.pth"), "--what", "pca") is None
