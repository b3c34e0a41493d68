"""Render predictions.png of a COCO transfer: ground truth and detections of the first validation images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image

from simmim_bench.data.captions import add_captions
from simmim_bench.data.figures import read_colours
from simmim_bench.data.pixel_format import RGB, PixelFormat
from simmim_bench.files import replacing
from simmim_bench.runs.run_dir import RunDir
from transfer.detection.coco_layout import CocoSplit

if TYPE_CHECKING:
    from detectron2.structures import Instances

IMAGES = 8
TILE_SIDE = 256  # pixels
TILES_PER_ROW, PADDING = 4, 4  # an even number; pixels
MIN_SCORE = 0.3  # detections with a lower score are not plotted
HEADINGS = ("ground truth", f"predictions, score > {MIN_SCORE}")


def write_figure(
    val: CocoSplit, detections: list[Instances], run: RunDir, pixel_format: PixelFormat = RGB
) -> None:
    """Write predictions.png: pairs of the ground truth, on the left, and the detections, on the right.

    Detectron2 labels every box with its class, and a detection with its score in percent.

    Args:
        val: the split.
        detections: of the split's first images, in order.
        run: the figure is also added to its TensorBoard log.
        pixel_format: of the images, as the checkpoint takes them.
    """
    from detectron2.data.catalog import Metadata
    from detectron2.utils.visualizer import Visualizer
    from torchvision.utils import make_grid

    names = Metadata(name="", thing_classes=list(val.class_names))
    tiles = []
    for truth, instances in zip(val.dataset_dicts(), detections, strict=False):
        if not all("segmentation" in annotation for annotation in truth["annotations"]):
            for annotation in truth["annotations"]:  # the Visualizer expects masks of all or none
                annotation.pop("segmentation", None)
        image = read_colours(Path(truth["file_name"]), pixel_format, upright=True)
        scale = TILE_SIDE / max(image.shape[:2])
        confident = instances[instances.scores > MIN_SCORE]
        for rendered in (
            Visualizer(image, names, scale=scale).draw_dataset_dict(truth),
            Visualizer(image, names, scale=scale).draw_instance_predictions(confident),
        ):
            pixels = torch.from_numpy(rendered.get_image().copy()).permute(2, 0, 1) / 255
            height, width = pixels.shape[1:]
            tiles.append(F.pad(pixels, (0, TILE_SIDE - width, 0, TILE_SIDE - height)))
    grid = make_grid(tiles, nrow=TILES_PER_ROW, padding=PADDING, pad_value=1.0)
    pixels = grid.mul(255).round().byte().permute(1, 2, 0).numpy()
    columns = min(TILES_PER_ROW, len(tiles))
    headings = [(i * (TILE_SIDE + PADDING), HEADINGS[i % 2]) for i in range(columns)]
    with replacing(run.path / "predictions.png") as temporary:
        Image.fromarray(add_captions(pixels, headings)).save(temporary, format="PNG")
    run.add_image("predictions", 0, run.path / "predictions.png")
