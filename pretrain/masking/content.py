"""Masks that follow what is in the image: its regions, or its colours, places and textures in turn.

In: a `MaskRequest` with images (B, C, H, W). Out: masks (B, rows, columns), as of `mask_strategies`.
Colours are compared in deviations of their channel within the image, so that bytes and normalised pixels
give the same masks. Nothing is learnt and no label is read. On another device an image's features may
differ by a rounding error, and with it, rarely, a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.masking.strategies import MaskRequest, first_hidden

# Ours, all of them.
REGIONS = 16  # about so many in an image
MAP_SIDE = 32  # cells on the longer side of a segmentation map: 6 pixels each at 192
MEAN_STEPS = 5  # of k-means: regions hardly move any more
PLACE_WEIGHT = 0.5  # a seed's distance to the next, in deviations of colour
ROUNDS = 6  # of the multi-modal mask: two by colour, two by place, two by texture
FLAT = 1e-5  # deviations of colour below it are none


def regions(request: MaskRequest) -> Tensor:
    """Hide whole regions of the image, in random order; of the last one its first units.

    A unit belongs to the region that most of it lies in (`region_map`).
    """
    images, rows, columns = _images(request), request.rows, request.columns
    side = max(1, min(images.shape[2] // rows, round(MAP_SIDE / max(rows, columns))))
    labels = region_map(images, (rows * side, columns * side)).cpu()
    cells = labels.view(-1, rows, side, columns, side).transpose(2, 3).flatten(3)
    belongs = F.one_hot(cells).sum(3).argmax(-1).flatten(1)
    noise = torch.stack([torch.rand(2 * REGIONS, generator=own) for own in request.generators])
    return first_hidden(noise.gather(1, belongs).argsort(dim=1, stable=True), request)


def region_map(images: Tensor, cells: tuple[int, int]) -> Tensor:
    """Segment images by k-means over colour and place, from seeds on a grid, as SLIC does.

    SLIC (Achanta et al., TPAMI 2012, section 3) searches around each seed alone and joins stray pixels
    to their neighbours; ours, for whole batches, does neither: a region may have several parts.

    Args:
        images: (B, C, H, W), in any scale.
        cells: (h, w) of the map.

    Returns:
        (B, h, w) numbers of about 16 regions, from 0, always below 32.
    """
    height, width = cells
    spacing = (height * width / REGIONS) ** 0.5
    seeds = [min(side, REGIONS, max(1, round(side / spacing))) for side in cells]
    y, x = (torch.arange(side, device=images.device) / spacing * PLACE_WEIGHT for side in cells)
    place = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(images), -1, -1, -1)
    colour = _standardised(F.adaptive_avg_pool2d(images, cells))
    features = torch.cat([colour, place], dim=1).flatten(2).transpose(1, 2)
    at_y, at_x = (
        (torch.arange(n) * 2 + 1) * side // (2 * n) for n, side in zip(seeds, cells, strict=True)
    )
    centres = features[:, (at_y[:, None] * width + at_x).flatten()]
    number = torch.arange(centres.shape[1], device=images.device).view(1, -1, 1)
    labels = _nearest(features, centres)
    for _ in range(MEAN_STEPS):
        # A product, as sums that are scattered come out otherwise from run to run on a GPU.
        member = (labels.unsqueeze(1) == number).to(features)
        count = member.sum(2, keepdim=True)
        centres = torch.where(count > 0, member @ features / count.clamp(min=1), centres)
        labels = _nearest(features, centres)
    return labels.view(-1, height, width)


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    """Give each feature of (B, n, d) the number of the nearest of the centres (B, k, d)."""
    product = centres @ features.transpose(1, 2)
    return (centres.square().sum(-1, keepdim=True) - 2 * product).min(1).indices


def colour_of_units(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give the mean colour of every unit, (B, units, C)."""
    return _standardised(F.adaptive_avg_pool2d(images, grid)).flatten(2).transpose(1, 2)


def place_of_units(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give the row and the column of every unit, (B, units, 2)."""
    index = torch.arange(grid[0] * grid[1], device=images.device)
    places = torch.stack([index // grid[1], index % grid[1]], dim=1)
    return places.to(images).expand(len(images), -1, -1)


def texture_of_units(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give every unit's contrast, (B, units, 1): the mean variance of its channels over the image's."""
    mean, square = (F.adaptive_avg_pool2d(x, grid) for x in (images, images.square()))
    whole = square.mean((2, 3), keepdim=True) - mean.mean((2, 3), keepdim=True).square()
    share = (square - mean.square()) / whole.clamp(min=FLAT)
    return share.clamp(min=0).mean(1, keepdim=True).flatten(2).transpose(1, 2)


GUIDES: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "colour": colour_of_units,
    "space": place_of_units,
    "texture": texture_of_units,
}


def multimodal(request: MaskRequest) -> Tensor:
    """Hide units in rounds that go by colour, by place and by texture in turn.

    Described by no paper: our reading of an iterative multi-modal mask. A round takes a visible unit at
    random, and hides it with the visible units that are most like it in what the round goes by: by their
    largest difference in a channel of the mean colour, in rows or columns (which gives a block), or in
    contrast. Of units that are equally like it the choice is random. Six rounds share the units out
    evenly; there are fewer where fewer units are to be hidden.
    """
    images = _images(request)
    units = request.rows * request.columns
    noise = torch.stack([torch.rand(ROUNDS, units, generator=own) for own in request.generators])
    features = [guide(images, (request.rows, request.columns)).cpu() for guide in GUIDES.values()]
    masks, hidden = torch.zeros(len(images), units), 0
    for turn in range(ROUNDS):
        share = -(-(request.hidden - hidden) // (ROUNDS - turn))
        liking = noise[:, turn].masked_fill(masks.bool(), torch.inf)
        order = liking.argsort(dim=1)
        feature = features[turn % len(features)]
        seed = feature.gather(1, order[:, :1, None].expand(-1, -1, feature.shape[2]))
        distance = (feature - seed).abs().amax(-1).masked_fill(masks.bool(), torch.inf)
        nearest = distance.gather(1, order).argsort(dim=1, stable=True)
        masks.scatter_(1, order.gather(1, nearest[:, :share]), 1.0)
        hidden += share
    return masks.view(-1, request.rows, request.columns)


def _images(request: MaskRequest) -> Tensor:
    assert request.images is not None
    return request.images.float()


def _standardised(colours: Tensor) -> Tensor:
    """Bring each channel of (B, C, h, w) to mean 0 and deviation 1; a flat one to 0."""
    deviation, mean = torch.std_mean(colours, dim=(2, 3), correction=0, keepdim=True)
    # A flat channel's deviation is a rounding error, not a scale.
    flat = deviation <= FLAT * (mean.abs() + 1)
    return ((colours - mean) / deviation.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
