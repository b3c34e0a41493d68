"""Masking strategies that depend on the image: whole regions, or units alike in colour, position or texture.

Each strategy maps a `MaskRequest` with images (B, C, H, W) to masks (B, rows, columns). Colours are standardised per
image and channel, so that uint8 and normalised pixels give the same masks. Nothing is learnt and no label is read.
Rounding errors of an image's features may differ between devices and, rarely, change a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.masking.strategies import MaskRequest, first_hidden

# All values are ours.
REGIONS = 16  # approximate number per image
MAP_SIDE = 32  # cells along the longer side of a segmentation map: 6 pixels each at 192
KMEANS_STEPS = 5  # regions hardly change afterwards
POSITION_WEIGHT = 0.5  # the spacing of the seeds, in standard deviations of colour
ROUNDS = 6  # of the multi-modal mask: two by colour, two by position, two by texture
FLAT = 1e-5  # standard deviations of colour below this are rounding errors


def regions(request: MaskRequest) -> Tensor:
    """Hide whole regions of the image in random order; of the last region, hide its first units.

    A unit belongs to the region that covers most of it (`region_map`).
    """
    images, rows, columns = _images(request), request.rows, request.columns
    side = max(1, min(images.shape[2] // rows, round(MAP_SIDE / max(rows, columns))))
    labels = region_map(images, (rows * side, columns * side)).cpu()
    cells = labels.view(-1, rows, side, columns, side).transpose(2, 3).flatten(3)
    region_of_unit = F.one_hot(cells).sum(3).argmax(-1).flatten(1)
    noise = torch.stack([torch.rand(2 * REGIONS, generator=own) for own in request.generators])
    return first_hidden(noise.gather(1, region_of_unit).argsort(dim=1, stable=True), request)


def region_map(images: Tensor, cells: tuple[int, int]) -> Tensor:
    """Segment images by k-means over colour and position, from seeds on a grid, as SLIC does.

    SLIC (Achanta et al., TPAMI 2012, section 3) limits the search to the surroundings of each seed and merges isolated
    pixels into their neighbours. Ours, which works on whole batches, does neither: a region may be disconnected.

    Args:
        images: (B, C, H, W), in any scale.
        cells: (h, w) of the map.

    Returns:
        (B, h, w) indices of about 16 regions, from 0, always below 32.
    """
    height, width = cells
    spacing = (height * width / REGIONS) ** 0.5
    seeds = [min(side, REGIONS, max(1, round(side / spacing))) for side in cells]
    y, x = (torch.arange(side, device=images.device) / spacing * POSITION_WEIGHT for side in cells)
    position = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(images), -1, -1, -1)
    colour = _standardise(F.adaptive_avg_pool2d(images, cells))
    features = torch.cat([colour, position], dim=1).flatten(2).transpose(1, 2)
    at_y, at_x = (
        (torch.arange(n) * 2 + 1) * side // (2 * n) for n, side in zip(seeds, cells, strict=True)
    )
    centres = features[:, (at_y[:, None] * width + at_x).flatten()]
    number = torch.arange(centres.shape[1], device=images.device).view(1, -1, 1)
    labels = _nearest_centre(features, centres)
    for _ in range(KMEANS_STEPS):
        # A matrix product, because scattered sums are not deterministic on a GPU.
        member = (labels.unsqueeze(1) == number).to(features)
        count = member.sum(2, keepdim=True)
        centres = torch.where(count > 0, member @ features / count.clamp(min=1), centres)
        labels = _nearest_centre(features, centres)
    return labels.view(-1, height, width)


def _nearest_centre(features: Tensor, centres: Tensor) -> Tensor:
    """Return, for each feature of (B, n, d), the index of the nearest centre of (B, k, d): (B, n)."""
    product = centres @ features.transpose(1, 2)
    return (centres.square().sum(-1, keepdim=True) - 2 * product).min(1).indices


def unit_colours(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the standardised mean colour of every unit, (B, units, C)."""
    return _standardise(F.adaptive_avg_pool2d(images, grid)).flatten(2).transpose(1, 2)


def unit_positions(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the row and the column of every unit, (B, units, 2)."""
    index = torch.arange(grid[0] * grid[1], device=images.device)
    positions = torch.stack([index // grid[1], index % grid[1]], dim=1)
    return positions.to(images).expand(len(images), -1, -1)


def unit_textures(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return every unit's contrast, (B, units, 1): variance relative to the whole image, averaged over channels."""
    mean, square = (F.adaptive_avg_pool2d(x, grid) for x in (images, images.square()))
    whole = square.mean((2, 3), keepdim=True) - mean.mean((2, 3), keepdim=True).square()
    contrast = (square - mean.square()) / whole.clamp(min=FLAT)
    return contrast.clamp(min=0).mean(1, keepdim=True).flatten(2).transpose(1, 2)


UNIT_FEATURES: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "colour": unit_colours,
    "space": unit_positions,
    "texture": unit_textures,
}


def multimodal(request: MaskRequest) -> Tensor:
    """Hide units in rounds that select by colour, by position and by texture in turn.

    No paper describes it: it is our interpretation of an iterative multi-modal mask. Each round samples a visible unit
    and hides it together with the visible units that are most similar in the feature of the round. The distance is the
    largest difference of a channel of the mean colour, of row or column (which gives a block), or of contrast; ties
    are broken at random. The units to hide are divided evenly between six rounds, or fewer if there are fewer units.
    """
    images = _images(request)
    units = request.rows * request.columns
    noise = torch.stack([torch.rand(ROUNDS, units, generator=own) for own in request.generators])
    grid = (request.rows, request.columns)
    features = [compute(images, grid).cpu() for compute in UNIT_FEATURES.values()]
    masks, hidden = torch.zeros(len(images), units), 0
    for number in range(ROUNDS):
        count = -(-(request.hidden - hidden) // (ROUNDS - number))
        priority = noise[:, number].masked_fill(masks.bool(), torch.inf)
        order = priority.argsort(dim=1)
        feature = features[number % len(features)]
        seed = feature.gather(1, order[:, :1, None].expand(-1, -1, feature.shape[2]))
        distance = (feature - seed).abs().amax(-1).masked_fill(masks.bool(), torch.inf)
        nearest = distance.gather(1, order).argsort(dim=1, stable=True)
        masks.scatter_(1, order.gather(1, nearest[:, :count]), 1.0)
        hidden += count
    return masks.view(-1, request.rows, request.columns)


def _images(request: MaskRequest) -> Tensor:
    assert request.images is not None
    return request.images.float()


def _standardise(colours: Tensor) -> Tensor:
    """Standardise each channel of (B, C, h, w) to mean 0 and standard deviation 1; a constant channel becomes 0."""
    deviation, mean = torch.std_mean(colours, dim=(2, 3), correction=0, keepdim=True)
    # The standard deviation of a constant channel is a rounding error, not a scale.
    flat = deviation <= FLAT * (mean.abs() + 1)
    return ((colours - mean) / deviation.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
