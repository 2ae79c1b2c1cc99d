"""Augmentation: matrices by hand, and a coloured rectangle found again in the pixels where its box went."""

import math

import cv2
import numpy as np
import pytest

from data.augment import (
    AugmentOptions,
    SourceImage,
    crop_sides,
    mosaic_places,
    move_boxes,
    random_colours,
    random_motion,
    still_objects,
    training_picture,
)
from data.letterbox import PADDING
from data.painting import paint_layers, placed_image, recolour
from tests.tiny_project import NO_AUGMENTATION

COLOURS = np.array([(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255)], np.uint8)  # BGR


def source(index: int, width: int = 160, height: int = 120, reduce: int = 1) -> SourceImage:
    """A black image with one rectangle of the index's colour."""
    pixels = np.zeros((height, width, 3), np.uint8)
    box = (20 + 10 * index, 30, 80 + 10 * index, 90)
    pixels[box[1] : box[3], box[0] : box[2]] = COLOURS[index]
    if reduce > 1:
        pixels = cv2.resize(pixels, (width // reduce, height // reduce), interpolation=cv2.INTER_AREA)
    return SourceImage(
        pixels, (width, height), np.array([box], dtype=np.float64), np.array([index]), np.array([index == 3])
    )


def training_sample(index, pool, load, out, options, rng, resize="letterbox"):
    """Paint a training picture into ``out`` and return its objects."""
    drawing, sample = training_picture(index, pool, load, out.shape[:2], options, rng, resize)
    drawing.paint(out)
    return sample


def shift_colours(image_bgr, options, rng):
    recolour(image_bgr, random_colours(options, rng))


def find(image_rgb: np.ndarray, label: int) -> np.ndarray | None:
    """The box around the pixels of a label's colour."""
    distance = np.abs(image_rgb.astype(int) - COLOURS[label][::-1].astype(int)).max(axis=2)
    rows, columns = np.nonzero(distance < 90)
    return None if not len(rows) else np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


STRONG = AugmentOptions(
    degrees=25.0, shear=12.0, translate=0.2, scale=0.4, flipud=0.5, fliplr=0.5, hsv_h=0.0, hsv_s=0.0, hsv_v=0.0
)
PLAIN_COLOURS = AugmentOptions(hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, flipud=0.5)
JITTERED = AugmentOptions(hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, jitter=0.3)


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("options", [STRONG, PLAIN_COLOURS, JITTERED], ids=["strong", "default", "jitter"])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize("reduce", [1, 2])
def test_boxes_follow_the_pixels(options, mosaic, reduce, resize):
    options = AugmentOptions(**{**vars(options), "mosaic": mosaic})
    checked = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        out = np.empty((128, 192, 3), np.uint8)
        indices = rng.permutation(4)
        sample = training_sample(
            int(indices[0]), indices[1:], lambda i: source(i, reduce=reduce), out, options, rng, resize
        )
        for label in set(sample.labels.tolist()):
            rows = np.flatnonzero(sample.labels == label)
            if len(rows) > 1:
                continue  # the same image twice in one mosaic: the pixels are of two boxes
            box = sample.boxes_xyxy[rows[0]]
            found = find(out, label)
            assert found is not None
            # A turned rectangle touches its upright box with corners only, whose tips are blends: 3 pixels.
            error = found - box
            if options.degrees and (box <= 0).any() | (box[2:] >= (192, 128)).any():
                # Cut by the border, the upright box around a turned one is larger than what shows of it.
                error = np.maximum(error * (-1, -1, 1, 1), 0)
            assert np.abs(error).max() <= 3, (seed, label, found, box)
            assert bool(sample.crowd[rows[0]]) == (label == 3)
            checked += 1
    assert checked >= 10


def test_no_augmentation_is_the_letterbox():
    # 160 x 120 into 192 x 128: ratio min(1.2, 1.0667) = 1.0667: 171 x 128, left border (192 - 171) // 2 = 10.
    out = np.empty((128, 192, 3), np.uint8)
    sample = training_sample(0, np.array([0]), source, out, NO_AUGMENTATION, np.random.default_rng(0))
    scale = 171 / 160, 128 / 120
    expected = [20 * scale[0] + 10, 30 * scale[1], 80 * scale[0] + 10, 90 * scale[1]]
    np.testing.assert_allclose(sample.boxes_xyxy, [expected], atol=1e-9)
    assert (out[:, :10] == PADDING).all() and (out[:, 181:] == PADDING).all()
    resized = cv2.cvtColor(cv2.resize(source(0).pixels, (171, 128), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    assert np.abs(out[2:-2, 12:179].astype(int) - resized[2:-2, 2:-2].astype(int)).max() <= 8  # two resamplers


def test_a_flip_mirrors_the_letterboxed_picture():
    # Letterboxed as above; then x' = 192 - x.
    options = AugmentOptions(**{**vars(NO_AUGMENTATION), "fliplr": 1.0})
    out = np.empty((128, 192, 3), np.uint8)
    sample = training_sample(0, np.array([0]), source, out, options, np.random.default_rng(0))
    scale = 171 / 160, 128 / 120
    expected = [192 - (80 * scale[0] + 10), 30 * scale[1], 192 - (20 * scale[0] + 10), 90 * scale[1]]
    np.testing.assert_allclose(sample.boxes_xyxy, [expected], atol=1e-9)


def test_motion_by_hand():
    # Only a flip: x' = 192 - x. Centre (96, 64) stays.
    flip = AugmentOptions(degrees=0.0, translate=0.0, scale=0.0, fliplr=1.0, flipud=1.0)
    matrix = random_motion(flip, (128, 192), (128, 192), np.random.default_rng(0))
    np.testing.assert_allclose(matrix, [[-1, 0, 192], [0, -1, 128], [0, 0, 1]], atol=1e-12)
    # A canvas of twice the size: the middle of it is what one sees.
    none = AugmentOptions(translate=0.0, scale=0.0, fliplr=0.0)
    matrix = random_motion(none, (256, 384), (128, 192), np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ (192, 128, 1), (96, 64, 1))
    np.testing.assert_allclose(matrix[:2, :2], np.eye(2))


def test_motion_stays_within_its_options():
    options = AugmentOptions(degrees=10.0, scale=0.3, translate=0.1, fliplr=0.0)
    rng = np.random.default_rng(5)
    for _ in range(200):
        matrix = random_motion(options, (100, 200), (100, 200), rng)
        zoom = math.sqrt(np.linalg.det(matrix[:2, :2]))
        assert 0.7 <= zoom <= 1.3
        assert abs(math.degrees(math.atan2(matrix[0, 1], matrix[0, 0]))) <= 10
        center = matrix @ (100, 50, 1)
        assert 80 <= center[0] <= 120 and 40 <= center[1] <= 60


def test_mosaic_tiles_meet_at_the_centre_and_do_not_overlap():
    rng = np.random.default_rng(1)
    whs = [(160, 120), (120, 160), (50, 50), (300, 100)]
    for _ in range(50):
        places = mosaic_places(whs, (128, 192), rng)
        corners = [place @ np.array([[0, w], [0, h], [1, 1]]) for place, (w, h) in zip(places, whs, strict=True)]
        (ax, ay), (bx, by) = (corners[0][0, 1], corners[0][1, 1]), (corners[3][0, 0], corners[3][1, 0])
        np.testing.assert_allclose((ax, ay), (bx, by), atol=1e-9)
        assert corners[1][0, 0] == pytest.approx(ax) and corners[1][1, 1] == pytest.approx(ay)
        assert corners[2][0, 1] == pytest.approx(ax) and corners[2][1, 0] == pytest.approx(ay)
        assert 96 <= ax <= 288 and 64 <= ay <= 192


def test_moved_boxes_by_hand():
    # A quarter turn (x, y) -> (-y, x): box 1 2 3 6 -> x -6..-2, y 1..3.
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert move_boxes(np.array([[1.0, 2, 3, 6]]), turn).tolist() == [[-6, 1, -2, 3]]
    both = move_boxes(np.array([[1.0, 2, 3, 6]] * 2), np.stack((turn, np.eye(3))))
    assert both.tolist() == [[-6, 1, -2, 3], [1, 2, 3, 6]]
    assert move_boxes(np.zeros((0, 4)), np.zeros((0, 3, 3))).shape == (0, 4)


def test_slivers_are_dropped_by_the_documented_thresholds():
    before = np.array([[0.0, 0, 100, 100]] * 5)
    after = np.array([
        [0.0, 0, 100, 10.1],  # 10.1 % left: stays
        [0.0, 0, 100, 9.9],  # 9.9 %: goes
        [0.0, 0, 100, 0.0],  # nothing
        [0.0, 0, 100, 100],
        [0.0, 0, 1.9, 100],  # narrower than 2 pixels
    ])  # fmt: skip
    assert still_objects(before, after).tolist() == [True, False, False, True, False]
    thin = np.array([[0.0, 0, 300, 2.5]])  # aspect 120
    assert still_objects(thin, thin).tolist() == [False]


def test_images_without_objects_and_mixup():
    def load(index):
        full = source(index)
        if index == 0:
            return SourceImage(full.pixels, full.original_wh, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
        return full

    out = np.empty((96, 128, 3), np.uint8)
    sample = training_sample(0, np.array([0]), load, out, AugmentOptions(), np.random.default_rng(0))
    assert sample.boxes_xyxy.shape == (0, 4) and sample.labels.shape == (0,)
    options = AugmentOptions(**{**vars(NO_AUGMENTATION), "mixup": 1.0})
    sample = training_sample(1, np.array([2]), load, out, options, np.random.default_rng(0))
    assert sample.labels.tolist() == [1, 2]
    inside = out[50, 45]  # in both rectangles after scaling: a blend of green and blue near one half
    assert (
        inside[0] == 0 and 70 < inside[1] < 185 and 70 < inside[2] < 185 and abs(int(inside[1]) + inside[2] - 255) <= 2
    )


def test_same_generator_same_picture_other_generator_other_picture():
    def make(seed):
        out = np.empty((96, 128, 3), np.uint8)
        sample = training_sample(0, np.array([1, 2, 3]), source, out, AugmentOptions(), np.random.default_rng(seed))
        return out, sample.boxes_xyxy

    first, again, other = make((0, 1, 2)), make((0, 1, 2)), make((0, 1, 3))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_colours():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    plain = image.copy()
    shift_colours(plain, NO_AUGMENTATION, np.random.default_rng(0))
    assert np.array_equal(plain, image[:, :, ::-1])  # RGB, nothing else
    darker = np.full((4, 4, 3), 200, np.uint8)
    options = AugmentOptions(hsv_h=0.0, hsv_s=0.0, hsv_v=0.4)
    factor = 1 + 0.4 * np.random.default_rng(3).uniform(-1, 1, 3)[2]
    shift_colours(darker, options, np.random.default_rng(3))
    assert np.abs(darker.astype(float) - min(200 * factor, 255)).max() <= 1.5


@pytest.mark.parametrize("reduce", [1, 2])
def test_sides_are_cut_off_and_added_by_hand(reduce):
    # 160 x 120 with a box 20 30 80 90. Left 0.25 = 40 off, top 0.5 = 60 added, right 0, bottom 0.1 = 12 off: 120 x 168
    # pixels of the old ones, stretched to 160 x 120: x' = (x - 40) 4 / 3, y' = (y + 60) 5 / 7.
    given = source(0, reduce=reduce)
    cropped = crop_sides(given, np.array([0.25, -0.5, 0, 0.1]))
    assert cropped.original_wh == (160, 120) and cropped.pixels.shape[:2] == (168 // reduce, 120 // reduce)
    np.testing.assert_allclose(cropped.boxes_xyxy, [[0, 90 * 5 / 7, 40 * 4 / 3, 150 * 5 / 7]])
    mean = given.pixels.mean(axis=(0, 1)).astype(np.uint8)
    assert (cropped.pixels[: 60 // reduce] == mean).all()  # what was added
    assert np.array_equal(cropped.pixels[60 // reduce :], given.pixels[: 108 // reduce, 40 // reduce :])
    assert np.array_equal(given.pixels, source(0, reduce=reduce).pixels)


def test_what_is_cut_off_almost_whole_is_no_object_and_nothing_is_left_of_nothing():
    assert crop_sides(source(0), np.array([0.4, 0, 0, 0])).labels.tolist() == [0]  # 64: 16 of 60 columns are left
    assert crop_sides(source(0), np.array([0.47, 0, 0, 0])).labels.tolist() == []  # 75: 5 of 60
    for shares in ([0.5, 0, 0.5, 0], [0, 1.0, 0, -0.5], [0.9, 0.1, 0.3, 0.2]):
        same = crop_sides(source(0), np.array(shares))
        assert np.array_equal(same.pixels, source(0).pixels)


def test_jitter_keeps_each_image_of_a_mosaic_in_its_quarter():
    def flat(index):
        image = source(index)
        return image._replace(pixels=np.broadcast_to(COLOURS[index], image.pixels.shape).copy())

    pictures = []
    for jitter in (0.0, 0.4):
        options = AugmentOptions(**{**vars(NO_AUGMENTATION), "mosaic": 1.0, "jitter": jitter})
        out = np.empty((96, 128, 3), np.uint8)
        training_sample(0, np.array([1, 2, 3]), flat, out, options, np.random.default_rng(4))
        pictures.append(out)
    assert (pictures[0] != pictures[1]).any(axis=2).mean() < 0.01  # a row of pixels at an edge


@pytest.mark.parametrize(
    ("largest", "low", "high"), [(1.5, 1 / 1.5, 1.5), (0.75, 0.75, 1 / 0.75), (1.0, 1, 1)]
)  # fmt: skip
def test_darknets_colours_are_multiplied_or_divided(largest, low, high):
    options = AugmentOptions(**{**vars(NO_AUGMENTATION), "exposure": largest})
    factors = []
    for seed in range(300):
        image = np.full((1, 1, 3), 100, np.uint8)
        shift_colours(image, options, np.random.default_rng(seed))
        factors.append(image[0, 0, 0] / 100)
    assert low - 0.02 <= min(factors) <= low + 0.02 and high - 0.02 <= max(factors) <= high + 0.02
    if largest != 1:
        assert 0.4 < np.mean(np.array(factors) > 1) < 0.6


def test_darknets_hue_turns_around_the_circle():
    options = AugmentOptions(**{**vars(NO_AUGMENTATION), "hue": 0.1, "saturation": 1.5})
    hues = []
    for seed in range(200):
        image = np.zeros((1, 1, 3), np.uint8)
        image[0, 0] = (40, 40, 240)  # BGR: red, hue 0
        shift_colours(image, options, np.random.default_rng(seed))
        hues.append(int(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[0, 0, 0]))
    turned = np.array([hue if hue < 90 else hue - 180 for hue in hues])  # of 180 steps
    assert -19 <= turned.min() < -14 and 14 < turned.max() <= 19


def test_a_strong_reduction_averages_instead_of_picking():
    # Noise of standard deviation 74; the mean of 3.75 x 3.75 pixels has 74 / 3.75 = 20, that of 2 x 2 has 37 or more.
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    out = np.zeros((32, 32, 3), np.uint8)
    paint_layers([placed_image(noise, (120, 120), np.diag((32 / 120, 32 / 120, 1.0)), (32, 32))], out)
    assert 15 < out[1:-1, 1:-1].std() < 30


@pytest.mark.parametrize("bad", [{"mosaic": 1.1}, {"degrees": -1.0}, {"scale": 1.0}, {"fliplr": float("nan")},
                                 {"jitter": -0.1}, {"hue": 1.5}, {"saturation": -1.0}])  # fmt: skip
def test_options_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AugmentOptions(**bad)
