"""Outlines and key points move as pixels do: compared with masks that OpenCV warps, and with cases worked by hand."""

import cv2
import numpy as np
import pytest

from data.augment import AugmentOptions, SourceImage, crop_sides, random_motion, training_picture
from data.dataset import BatchPlan, DetectionDataset
from data.labels.annotations import Annotations, KeyPoints
from data.labels.polygons import Polygons, polygons_of_mask
from data.loader import LoaderSettings, training_batches
from data.object_shapes import ObjectShapes
from utils.errors import UserError
from utils.structures import Targets

WIDTH, HEIGHT = 120, 90
NO_MIRROR = np.zeros(0, dtype=np.int64)


def blob(generator):
    """Return a mask [h w] with a hole, of some size, somewhere."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    x, y = int(generator.integers(35, 85)), int(generator.integers(30, 60))
    angle = float(generator.uniform(0, 180))
    cv2.ellipse(mask, (x, y), (int(generator.integers(18, 30)), int(generator.integers(12, 24))), angle, 0, 360, 1, -1)
    cv2.circle(mask, (x, y), 7, 0, -1)
    return mask


def painted(polygons, hw):
    out = np.empty((len(polygons), *hw), dtype=np.uint8)
    polygons.paint(out)
    return out


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def warped(mask, matrix, hw):
    """Return the mask moved by a matrix of continuous coordinates, in OpenCV's, which are those of pixel centres."""
    centers = matrix.copy()
    centers[:2, 2] += matrix[:2, :2] @ (0.5, 0.5) - 0.5
    large = cv2.warpAffine(mask.astype(np.float32), centers[:2], hw[::-1], flags=cv2.INTER_LINEAR)
    return large > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_outlines_move_as_pixels(seed):
    generator = np.random.default_rng(seed)
    options = AugmentOptions(degrees=40.0, shear=15.0, scale=0.4, flipud=0.5, fliplr=0.5)
    masks = [blob(generator) for _ in range(4)]
    matrices = np.stack([random_motion(options, (HEIGHT, WIDTH), (96, 128), generator) for _ in masks])
    polygons = Polygons.of([polygons_of_mask(mask) for mask in masks])
    assert np.array_equal(painted(polygons, (HEIGHT, WIDTH)), np.stack(masks))  # exact where nothing moves
    moved = painted(polygons.moved(matrices), (96, 128))
    for mask, matrix, found in zip(masks, matrices, moved, strict=True):
        assert iou(found.astype(bool), warped(mask, matrix, (96, 128))) > 0.95


def test_holes_and_islands_survive():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:18, 3:25] = 1
    mask[4:8, 5:9] = mask[10:16, 12:22] = 0
    mask[12:14, 15:18] = 1
    polygons = Polygons.of([polygons_of_mask(mask), [], polygons_of_mask(1 - mask)])
    assert np.array_equal(painted(polygons, mask.shape)[[0, 2]], np.stack((mask, 1 - mask)))
    assert polygons.are_given.tolist() == [True, False, True]
    assert [len(one) for one in polygons.to_coco(1)] == []


def test_columns_are_those_of_the_objects():
    triangle, square = np.array([[0, 0], [4, 0], [0, 4.0]]), np.array([[1, 1], [3, 1], [3, 3], [1, 3.0]])
    polygons = Polygons.of([[triangle, square], [], [square + 5]])
    again = Polygons.joined([polygons.select(np.array([2, 0])), polygons.select(np.array([1]))])
    assert [len(again.of_object(index)) for index in range(3)] == [1, 2, 0]
    assert np.array_equal(again.of_object(0)[0], square + 5) and np.array_equal(again.of_object(1)[1], square)
    boxes = np.array([[0, 0, 1, 1], [2, 3, 5, 7], [0, 0, 1, 1.0]])
    assert polygons.filled(boxes).to_coco(1) == [[2, 3, 5, 3, 5, 7, 2, 7]]


def test_what_lies_outside_of_its_image_is_cut_off():
    # A diamond around (0, 5) of an image of 10 x 10: its right half is a triangle of area 4 * 8 / 2 = 16.
    diamond, far = np.array([[-4, 5], [0, 1], [4, 5], [0, 9.0]]), np.array([[20, 20], [22, 20], [22, 25.0]])
    inside = Polygons.of([[diamond], [far], [diamond + 5]]).clipped(np.full((3, 2), 10.0))
    x, y = inside.of_object(0)[0].T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == 16 and x.min() == 0
    assert inside.of_object(1) == [] and len(inside.of_object(2)[0]) == 3


def shapes_of(points, mirrored=NO_MIRROR):
    return ObjectShapes(None, KeyPoints(np.array(points, dtype=np.float64), np.array(mirrored, dtype=np.int64)))


def test_left_and_right_change_places_in_a_mirror():
    # Left eye, right eye, nose at x = 30, 10, 20 of a picture of 100: mirrored, 70, 90, 80, and the left eye is the
    # one at 90.
    face = shapes_of([[[30, 5, 2], [10, 6, 1], [20, 9, 2]]], (1, 0, 2))
    flip = np.array([[[-1, 0, 100], [0, 1, 0], [0, 0, 1.0]]])
    assert face.moved(flip).key_points.points.tolist() == [[[90, 6, 1], [70, 5, 2], [80, 9, 2]]]
    upside_down = np.array([[[1, 0, 0], [0, -1, 50], [0, 0, 1.0]]])
    assert face.moved(upside_down).key_points.points[0, :, 0].tolist() == [10, 30, 20]
    half_turn = flip @ np.array([[[1, 0, 0], [0, -1, 50], [0, 0, 1.0]]])
    assert face.moved(half_turn).key_points.points.tolist() == [[[70, 45, 2], [90, 44, 1], [80, 41, 2]]]


def test_points_outside_are_not_labelled():
    points = shapes_of([[[30, 5, 2], [-1, 6, 1], [20, 50, 2], [100, 40, 1]]]).within(np.array([100, 40]))
    assert points.key_points.points[0, :, 2].tolist() == [2, 0, 0, 1]


def test_sides_that_are_cut_off_take_their_shapes_along():
    pixels = np.zeros((100, 200, 3), dtype=np.uint8)
    square = np.array([[50, 20], [100, 20], [100, 70], [50, 70.0]])
    shapes = ObjectShapes(Polygons.of([[square]]), KeyPoints(np.array([[[60.0, 30, 2], [10, 30, 2]]]), NO_MIRROR))
    source = SourceImage(
        pixels, (200, 100), np.array([[50, 20, 100, 70.0]]), np.zeros(1, int), np.zeros(1, bool), shapes
    )
    # A quarter of the width goes on the left: 50 becomes 0 and 100 becomes 50 * 200 / 150 = 66.7.
    cropped = crop_sides(source, np.array([0.25, 0, 0, 0]))
    corners = cropped.shapes.polygons.of_object(0)[0]
    assert np.allclose(np.concatenate((corners.min(0), corners.max(0))), cropped.boxes_xyxy[0])
    assert np.allclose(cropped.shapes.key_points.points[0], [[10 * 200 / 150, 30, 2], [0, 0, 0]])


def bright_sources(count, generator):
    """Return images that are bright where their objects are, each with its outline."""
    sources = []
    for _ in range(count):
        mask = blob(generator)
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float64)
        shapes = ObjectShapes(Polygons.of([polygons_of_mask(mask)]), None)
        pixels = np.repeat(mask[:, :, None] * 255, 3, axis=2)
        sources.append(SourceImage(pixels, (WIDTH, HEIGHT), box, np.zeros(1, int), np.zeros(1, bool), shapes))
    return sources


@pytest.mark.parametrize("changes", [{"mosaic": 0.0}, {"mosaic": 1.0}, {"mosaic": 1.0, "jitter": 0.2, "degrees": 30.0}])
def test_masks_cover_the_pixels_of_their_objects(changes):
    generator = np.random.default_rng(3)
    sources = bright_sources(5, generator)
    options = AugmentOptions(hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, flipud=0.5, **changes)
    for index in range(5):
        drawing, sample = training_picture(index, np.arange(5), sources.__getitem__, (128, 160), options, generator)
        picture = np.empty((128, 160, 3), dtype=np.uint8)
        drawing.paint(picture)
        masks = painted(sample.shapes.polygons, (128, 160))
        assert len(masks) == len(sample.boxes_xyxy)
        bright = picture[..., 0] > 150
        for mask in masks:
            bright[~mask.astype(bool) & ~masks.any(axis=0)] = False  # of objects too small to be kept
            assert mask.any() and (bright & mask.astype(bool)).sum() > 0.9 * mask.sum()
        assert iou(masks.any(axis=0), bright) > 0.9


def test_mixup_has_the_shapes_of_both():
    generator = np.random.default_rng(4)
    sources = bright_sources(2, generator)
    options = AugmentOptions(mosaic=0.0, mixup=1.0, scale=0.0, translate=0.0)
    _, sample = training_picture(0, np.arange(2), sources.__getitem__, (128, 160), options, generator)
    assert len(sample.shapes.polygons) == len(sample.labels) == 2
    boxes_alone = [source._replace(shapes=None) for source in sources]
    _, sample = training_picture(0, np.arange(2), boxes_alone.__getitem__, (128, 160), options, generator)
    assert sample.shapes is None and len(sample.labels) == 2


def annotations_of(tmp_path, key_points):
    """Return an image with an object and a crowd region."""
    path = tmp_path / "one.png"
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    square = np.array([[10, 20], [40, 20], [40, 60], [10, 60.0]])
    return Annotations(
        [str(path)], np.array([7]), np.array([[WIDTH, HEIGHT]]), np.zeros(2, np.int32),
        np.array([[10, 20, 40, 60], [50, 20, 90, 60.0]]), np.zeros(2, np.int32), np.array([False, True]),
        np.array([1200.0, 1600.0]), np.array([1, 2]), ("thing",), (1,),
        polygons=Polygons.of([[square], [square + np.array([40, 0])]]), key_points=key_points,
    )  # fmt: skip


def test_a_batch_has_masks_and_points_of_its_objects(tmp_path):
    points = KeyPoints(np.array([[[20.0, 30, 2]], [[60, 30, 2]]]), np.array([0]))
    options = AugmentOptions(mosaic=0.0, scale=0.0, translate=0.0, fliplr=1.0)
    dataset = DetectionDataset(annotations_of(tmp_path, points), augment=options)
    batch = dataset.training_batch(BatchPlan((0,), (HEIGHT, WIDTH)), options)
    assert batch.targets.masks.shape == (1, HEIGHT, WIDTH) and batch.targets.masks.sum() == 30 * 40
    assert batch.targets.masks[0, 20:60, WIDTH - 40 : WIDTH - 10].all()
    assert batch.targets.key_points.tolist() == [[[WIDTH - 20, 30, 2]]]
    assert batch.crowd.masks is None and batch.crowd.key_points is None
    assert batch.to("cpu").targets.masks is not None and Targets.empty().to("cpu").masks is None
    tested = DetectionDataset(annotations_of(tmp_path, points)).plain_batch(BatchPlan((0,), (HEIGHT, WIDTH)))
    assert tested.targets.masks is None


def test_a_batch_for_testing_has_them_where_they_are_asked_for(tmp_path):
    points = KeyPoints(np.array([[[20.0, 30, 2], [20, 300, 1]], [[60, 30, 2]] * 2]), np.arange(2))
    dataset = DetectionDataset(annotations_of(tmp_path, points), with_shapes=True)
    targets = dataset.plain_batch(BatchPlan((0,), (2 * WIDTH, 2 * WIDTH))).targets  # twice as large, 30 rows above
    assert targets.masks.sum() == 4 * 30 * 40 and targets.masks[0, 70:150, 20:80].all()
    assert targets.key_points.tolist() == [[[40, 90, 2], [0, 30, 0]]]  # outside of the image nothing is labelled


def test_flips_need_to_know_left_and_right(tmp_path):
    annotations = annotations_of(tmp_path, KeyPoints(np.zeros((2, 3, 3)), NO_MIRROR))
    settings = LoaderSettings((96, 128))
    with pytest.raises(UserError, match=r"^--fliplr: the data do not say which key points are left and right"):
        training_batches(annotations, settings, AugmentOptions())
    training_batches(annotations, settings, AugmentOptions(fliplr=0.0))


def test_outlines_beyond_their_image_cover_no_padding():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    column = np.array([[40, 20], [80, 20], [80, 200], [40, 200.0]])  # ends 110 pixels below the image
    points = KeyPoints(np.array([[[60.0, 30, 2], [60, 100, 2]]]), np.arange(2))
    shapes = ObjectShapes(Polygons.of([[column]]), points)
    pixels, box = np.repeat(mask[:, :, None], 3, axis=2), np.array([[40, 20, 80, 200.0]])
    source = SourceImage(pixels, (WIDTH, HEIGHT), box, np.zeros(1, int), np.zeros(1, bool), shapes)
    options = AugmentOptions(mosaic=0.0, scale=0.0, translate=0.0, fliplr=0.0)
    rng = np.random.default_rng(0)
    # Letterboxed by 4/3 into 160 x 160, the image takes the rows 20 to 140.
    _, sample = training_picture(0, np.arange(1), lambda _: source, (160, 160), options, rng)
    rows = np.flatnonzero(painted(sample.shapes.polygons, (160, 160))[0].any(axis=1))
    assert rows[[0, -1]].tolist() == [47, 139]
    assert sample.shapes.key_points.points[0, :, 2].tolist() == [2, 0]
