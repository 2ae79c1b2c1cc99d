"""Masks over boxes become masks of images as torchvision makes them."""

import numpy as np
import pytest
import torch

from utils.masks import BoxMasks
from utils.structures import Detections


def test_a_full_grid_covers_its_box():
    masks = BoxMasks(
        torch.ones(2, 28, 28), torch.tensor([[10.0, 5.0, 38.0, 33.0], [-10.0, 20.0, 10.0, 60.0]]), (50, 40)
    )
    first, second = masks.whole()
    # Half of the border cell, of one pixel, is more covered than not; the last row and column belong to a box.
    assert np.flatnonzero(first.any(axis=0))[[0, -1]].tolist() == [10, 38]
    assert np.flatnonzero(first.any(axis=1))[[0, -1]].tolist() == [5, 33]
    assert second[21:, :9].all() and not second[:19].any() and not second[:, 12:].any()


@pytest.mark.parametrize("side", [28, 14, 1])
def test_as_torchvision_pastes_them(side):
    heads = pytest.importorskip("torchvision.models.detection.roi_heads", exc_type=(ImportError, RuntimeError))
    generator = torch.Generator().manual_seed(side)
    grids = torch.rand(40, side, side, generator=generator)
    corners = torch.rand(40, 2, 2, generator=generator) * torch.tensor([130.0, 90.0]) - 5
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    low, high = torch.minimum(low, torch.tensor([117.0, 77.0])), high.clamp(min=2)  # all reach into the image
    boxes = torch.cat((low, high), dim=1)
    boxes[0, 2:] = boxes[0, :2]
    theirs = heads.paste_masks_in_image(grids[:, None], boxes, (80, 120))[:, 0] > 0.5
    assert np.array_equal(BoxMasks(grids, boxes, (120, 80)).whole(), theirs.numpy())


def test_detections_take_their_shapes_along():
    masks = BoxMasks(torch.rand(3, 4, 4), torch.rand(3, 4), (9, 9))
    points = torch.rand(3, 5, 3)
    found = Detections(torch.rand(3, 4), torch.rand(3), torch.arange(3), masks=masks, key_points=points)
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        some = found.select(index).cpu()
        assert torch.equal(some.masks.grids, masks.grids[index]) and torch.equal(some.key_points, points[index])
        assert torch.equal(some.masks.boxes_xyxy, masks.boxes_xyxy[index]) and some.track_ids is None
