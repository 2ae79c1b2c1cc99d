"""Tiles of large images with a detector that is known: it finds every bright rectangle, cut off where its view ends."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from engine.tiles import TileOptions, View, detect_in_tiles, merge_views, tiles_of
from models.nms import non_max_suppression
from models.nms_variants import NmsRule
from utils.errors import UserError
from utils.structures import Detections

RULE = NmsRule(iou_threshold=0.45, max_detections=300)
GREY = 40  # of the background; an object of class c has the value 100 + 50 c


def find_rectangles(smallest=0):
    """Return a detector of rectangles of at least so many pixels a side; the larger, the higher the score."""

    def detect(images):
        results = []
        for image in images:
            rows = []
            for label in range(3):
                mask = (image[:, :, 0] == 100 + 50 * label).astype(np.uint8)
                for x, y, w, h, _ in cv2.connectedComponentsWithStats(mask)[2][1:].tolist():
                    if min(w, h) >= smallest:
                        rows.append((w * h / 1e6, label, x, y, x + w, y + h))
            rows.sort(reverse=True)
            table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
            results.append(Detections(table[:, 2:].float(), table[:, 0].float(), table[:, 1].long()))
        return results

    return detect


def scene(size_wh, rectangles):
    image = np.full((size_wh[1], size_wh[0], 3), GREY, np.uint8)
    for label, x1, y1, x2, y2 in rectangles:
        image[y1:y2, x1:x2] = 100 + 50 * label
    return image


def found_boxes(found):
    rows = zip(found.labels.tolist(), found.boxes_xyxy.tolist(), strict=True)
    return sorted((label, *map(round, box)) for label, box in rows)


def test_tiles_by_hand():
    # 250 wide: from 0 and, in one more step of at most 80, evenly to 150; 90 high: one row, as high as the image.
    assert tiles_of((250, 90), 100, 0.2) == [View(x, 0, x + 100, 90) for x in (0, 75, 150)]
    assert tiles_of((100, 100), 100, 0.2) == [] and tiles_of((40, 60), 100, 0.2) == []
    assert tiles_of((101, 20), 100, 0.0) == [View(0, 0, 100, 20), View(1, 0, 101, 20)]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.55])
@pytest.mark.parametrize("size_wh", [(641, 640), (1000, 333), (1920, 1081), (5000, 700)])
def test_tiles_cover_the_image_and_overlap_enough(size_wh, overlap):
    tiles = tiles_of(size_wh, 640, overlap)
    covered = np.zeros(size_wh[::-1], bool)
    for tile in tiles:
        assert 0 <= tile.left < tile.right <= size_wh[0] and 0 <= tile.top < tile.bottom <= size_wh[1]
        assert tile.right - tile.left == min(640, size_wh[0]) and tile.bottom - tile.top == min(640, size_wh[1])
        covered[tile.top : tile.bottom, tile.left : tile.right] = True
    assert covered.all()
    for starts in (sorted({tile.left for tile in tiles}), sorted({tile.top for tile in tiles})):
        assert all(640 - (b - a) >= 640 * overlap - 1 for a, b in pairwise(starts))


def test_objects_wherever_they_lie_are_found_once():
    """Small ones inside tiles, on borders and on corners of tiles, and one that is larger than the overlap."""
    objects = [(0, 10, 10, 30, 25), (1, 70, 20, 95, 44), (2, 145, 140, 160, 158), (0, 60, 60, 130, 150)]
    objects += [(1, 230, 180, 249, 199), (1, 0, 150, 12, 190)]
    image = scene((250, 200), objects)
    found = detect_in_tiles(find_rectangles(), image, TileOptions(tile=100, overlap=0.3), RULE)
    assert found_boxes(found) == sorted(objects)
    assert (found.scores.diff() <= 0).all()


def test_views_in_batches_give_the_same():
    sizes = []

    def detect(images):
        sizes.append(len(images))
        return find_rectangles()(images)

    image = scene((250, 200), [(0, 10, 10, 30, 25), (1, 70, 20, 95, 44)])
    alone, together = (detect_in_tiles(detect, image, TileOptions(tile=100), RULE, size) for size in (1, 5))
    assert torch.equal(alone.boxes_xyxy, together.boxes_xyxy) and sizes == [1] * 10 + [5, 5]


def test_what_only_a_tile_can_see_is_found():
    """The whole image gives only large rectangles, as a network that shrinks it would; tiles find the small ones."""
    objects = [(0, 20, 20, 28, 28), (1, 180, 110, 188, 118), (2, 60, 50, 200, 90)]
    image = scene((250, 200), objects)

    def detect(images):
        return [
            found
            for view in images
            for found in find_rectangles(smallest=30 if view.shape[:2] == (200, 250) else 0)([view])
        ]

    assert found_boxes(detect([image])[0]) == [objects[2]]
    found = detect_in_tiles(detect, image, TileOptions(tile=100, overlap=0.3), RULE)
    assert found_boxes(found) == sorted(objects)


def test_pieces_of_what_no_view_shows_whole_are_kept():
    image = scene((250, 40), [(0, 40, 10, 160, 30)])

    def blind_to_the_whole(images):
        return [
            one if view.shape[1] < 250 else one.select(one.scores < 0)
            for view in images
            for one in find_rectangles()([view])
        ]

    found = detect_in_tiles(blind_to_the_whole, image, TileOptions(tile=100, overlap=0.2), RULE)
    # The tile from 75 shows the last 85 of 120 pixels, the first one shows 40 to 100: 25 of these 60 are covered.
    assert found_boxes(found) == [(0, 40, 10, 100, 30), (0, 75, 10, 160, 30)]


def test_a_piece_does_not_hide_a_neighbour_of_another_class():
    views = [View(0, 0, 200, 100), View(0, 0, 100, 100)]
    whole = Detections(torch.tensor([[50.0, 10, 150, 90]]), torch.tensor([0.5]), torch.tensor([0]))
    cut = Detections(torch.tensor([[50.0, 10, 100, 90]]), torch.tensor([0.9]), torch.tensor([1]))
    assert len(merge_views([whole, cut], views, (200, 100), RULE)) == 2
    agnostic = merge_views([whole, cut], views, (200, 100), NmsRule(0.45, 300, agnostic=True))
    assert agnostic.labels.tolist() == [0]


def test_an_image_that_fits_into_a_tile_is_left_as_it_is():
    image = scene((90, 70), [(0, 5, 5, 25, 25), (1, 40, 30, 90, 70)])
    calls = []

    def detect(images):
        calls.append(len(images))
        return find_rectangles()(images)

    found = detect_in_tiles(detect, image, TileOptions(tile=100), RULE)
    (alone,) = find_rectangles()([image])
    assert torch.equal(found.boxes_xyxy, alone.boxes_xyxy) and torch.equal(found.scores, alone.scores) and calls == [1]


def test_whole_boxes_of_several_views_are_those_of_one_nms():
    """Boxes away from all borders: the result is NMS over all of them, in pixels of the image."""
    generator = torch.Generator().manual_seed(0)
    views = [View(0, 0, 400, 300), View(0, 0, 220, 300), View(180, 0, 400, 300)]
    results = []
    for _ in views:
        low = torch.rand(60, 2, generator=generator) * torch.tensor([120.0, 200.0]) + 10
        boxes = torch.cat((low, low + 20 + 50 * torch.rand(60, 2, generator=generator)), dim=1)
        scores = torch.rand(60, generator=generator).sort(descending=True).values
        results.append(Detections(boxes, scores, torch.randint(3, (60,), generator=generator)))
    merged = merge_views(results, views, (400, 300), RULE)
    boxes = torch.cat(
        [one.boxes_xyxy + torch.tensor([v.left, v.top] * 2) for one, v in zip(results, views, strict=True)]
    )
    scores, labels = (torch.cat([getattr(one, name) for one in results]) for name in ("scores", "labels"))
    kept = non_max_suppression(boxes, scores, labels, 0.45)
    assert torch.equal(merged.boxes_xyxy, boxes[kept]) and torch.equal(merged.scores, scores[kept])
    few = merge_views(results, views, (400, 300), NmsRule(0.45, 5))
    assert torch.equal(few.scores, scores[kept][:5])


@pytest.mark.parametrize("kind", ["diou", "merge"])
def test_whole_boxes_of_several_views_are_suppressed_as_in_one(kind):
    views = [View(0, 0, 200, 100), View(50, 0, 200, 100)]
    boxes = torch.tensor([[80.0, 20, 120, 60]]), torch.tensor([[40.0, 20, 80, 60]])  # 10 apart in the image
    found = [
        Detections(box, torch.tensor([score]), torch.tensor([0])) for box, score in zip(boxes, (0.6, 0.3), strict=True)
    ]
    merged = merge_views(found, views, (200, 100), NmsRule(0.58, 300, kind))
    # IoU 30 / 50; centres 10 apart, the box around both is 50 x 40: less 100 / 4100.
    if kind == "diou":
        assert merged.scores.tolist() == pytest.approx([0.6, 0.3])
    else:
        assert merged.boxes_xyxy.tolist() == [pytest.approx([80 + 10 / 3, 20, 120 + 10 / 3, 60])]


def test_kinds_that_lower_scores_are_refused():
    TileOptions(tile=64).check_nms("merge")
    TileOptions().check_nms("soft-gaussian")
    with pytest.raises(UserError, match=r"--nms soft-gaussian .* leave out --tile"):
        TileOptions(tile=64).check_nms("soft-gaussian")


def test_tiles_are_for_boxes():
    TileOptions().check_finds(frozenset({"masks"}))
    TileOptions(tile=64).check_finds(frozenset())
    with pytest.raises(UserError, match=r"^--tile: leave it out; it is for boxes, and this network finds masks, too"):
        TileOptions(tile=64).check_finds(frozenset({"masks"}))
