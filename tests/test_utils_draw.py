"""Boxes, captions and sheets of pictures, found again in their pixels."""

import itertools

import cv2
import numpy as np
import pytest
import torch

from utils.draw import (
    DrawStyle,
    class_color,
    draw_batch,
    draw_box,
    draw_detections,
    draw_key_points,
    draw_predictions,
    write_image,
)
from utils.masks import BoxMasks
from utils.structures import Batch, Detections, ImageMeta, Targets


def grey(height=120, width=200):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def test_a_box_is_drawn_on_its_edges_and_not_inside():
    image = grey()
    draw_box(image, (50, 40, 150, 100), "", (255, 0, 0))
    # (x, y) of the four corners, each on a line of the box; the middle stays grey.
    for x, y in ((50, 40), (150, 40), (50, 100), (150, 100)):
        assert image[y, x].tolist() == [255, 0, 0]
    assert image[70, 100].tolist() == [128, 128, 128] and image[20, 100].tolist() == [128, 128, 128]


def test_text_stands_above_the_box_or_inside_at_the_top():
    low, high = grey(), grey()
    draw_box(low, (50, 60, 150, 100), "cat 0.50", (0, 255, 255))
    assert (low[45:58, 60:90] != 128).any() and (low[70:95, 60:140] == 128).all()
    draw_box(high, (50, 0, 150, 100), "cat 0.50", (0, 255, 255))
    assert (high[3:12, 60:90] != 128).any()


@pytest.mark.parametrize("name", ["cat", "Fußgänger", "кошка", "自行车", "", "a" * 300, "line\nbreak"])
@pytest.mark.parametrize(
    "box", [(5, 5, 60, 40), (-50, -50, 500, 500), (190, 110, 199, 119), (3e9, -3e9, 3e9, 3e9), (7, 7, 7, 7)]
)
def test_any_name_and_any_box_can_be_drawn(name, box):
    image = grey()
    draw_detections(image, Detections(torch.tensor([box]).float(), torch.tensor([0.5]), torch.tensor([0])), [name])
    assert image.shape == (120, 200, 3)


def test_tiny_images_and_classes_without_a_name():
    image = grey(3, 2)
    found = Detections(torch.tensor([[0.0, 0, 2, 3]]), torch.tensor([0.5]), torch.tensor([7]))
    draw_detections(image, found, ["only"])
    assert (image != 128).any()


def test_colors_tell_classes_apart():
    colors = [class_color(label) for label in range(80)]
    assert len(set(colors)) == 80
    for first, second in itertools.pairwise(colors):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 60


def batch_of(count, height=64, width=96):
    targets = Targets(torch.tensor([0, count - 1]), torch.tensor([0, 1]), torch.tensor([[0.5, 0.5, 0.5, 0.5]] * 2))
    metas = tuple(ImageMeta(i, f"/some/where/{i}.jpg", (width * 2, height * 2), (0.5, 0.5)) for i in range(count))
    images = torch.full((count, 3, height, width), 128, dtype=torch.uint8)
    images[:, 0] = 200  # red, to see that the colours are not swapped
    return Batch(images, targets, Targets.empty(), metas)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_sheets(tmp_path, count):
    batch = batch_of(count)
    draw_batch(tmp_path / "batch.png", batch, ["a", "b"])
    sheet = cv2.imread(str(tmp_path / "batch.png"))
    assert sheet.shape[0] % 64 == 0 and sheet.shape[1] % 96 == 0
    assert sheet[60, 70].tolist() == [128, 128, 200]  # B G R
    # The first image's object spans x 24..72 and y 16..48.
    assert sheet[48, 48].tolist() == list(class_color(0 if count > 1 else 1))  # of one image, the later is on top
    assert (batch.images[:, 0] == 200).all()  # the batch itself stays as it is


def test_predictions_stand_beside_the_truth(tmp_path):
    batch = batch_of(2)
    # Original pixels are twice the network's: x 40..120, y 20..100 -> 20..60, 10..50, in the right half from column 96.
    found = Detections(
        torch.tensor([[40.0, 20, 120, 100], [0, 0, 9, 9]]), torch.tensor([0.9, 0.01]), torch.tensor([1, 0])
    )
    empty = found.select(torch.tensor([False, False]))
    draw_predictions(tmp_path / "p.png", batch, [found, empty], ["a", "b"])
    sheet = cv2.imread(str(tmp_path / "p.png"))
    assert sheet[50, 96 + 40].tolist() == list(class_color(1))
    assert sheet[48, 48].tolist() == list(class_color(0))
    assert sheet[4, 96 + 4].tolist() == [128, 128, 200]  # the weak one is left out


def test_an_unwritable_image_is_an_error(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        write_image(tmp_path / "picture.nonsense", grey())
    assert list(tmp_path.iterdir()) == []


def test_text_of_a_box():
    for style, text in (
        (DrawStyle(), "#7 dog 0.88"),
        (DrawStyle(scores=False), "#7 dog"),
        (DrawStyle(labels=False), ""),
    ):
        assert style.text("dog", 0.876, track_id=7) == text
    assert DrawStyle().text("dog", 0.876) == "dog 0.88"


def test_line_width_and_hidden_text():
    found = Detections(torch.tensor([[20.0, 20, 80, 70]]), torch.tensor([0.5]), torch.tensor([0]))
    drawn = []
    for width in (1, 3, 7):
        image = np.zeros((100, 120, 3), np.uint8)
        draw_detections(image, found, ["dog"], DrawStyle(width, labels=False))
        drawn.append(image[45, :60].any(axis=1).sum())  # the left edge, in the middle of the box
        assert not image[:15].any()  # no plate above the box
    assert drawn[0] == 1 and 3 <= drawn[1] < drawn[2]  # OpenCV's lines of 3 pixels are 5 wide
    image = np.zeros((100, 120, 3), np.uint8)
    draw_detections(image, found, ["dog"])
    assert image[:20].any()


def test_a_mask_tints_its_pixels_and_no_others():
    image, plain = grey(), grey()
    box = torch.tensor([[50.0, 40.0, 150.0, 100.0]])
    found = Detections(box, torch.tensor([0.5]), torch.tensor([0]))
    grids = torch.zeros(1, 28, 28)
    grids[:, :, :14] = 1  # the left half
    draw_detections(plain, found, ["x"])
    draw_detections(image, Detections(*vars(found).values()).select(slice(0, 1)), ["x"])
    assert np.array_equal(image, plain)
    image = grey()
    masked = Detections(box, found.scores, found.labels, masks=BoxMasks(grids, box, (200, 120)))
    draw_detections(image, masked, ["x"])
    tinted = [round(0.6 * 128 + 0.4 * value) for value in class_color(0)]
    assert np.abs(image[80, 70].astype(int) - tinted).max() <= 1
    assert np.array_equal(image[60:95, 105:145], plain[60:95, 105:145]) and np.array_equal(image[:, :45], plain[:, :45])


def test_key_points_are_drawn_where_they_are():
    image = grey()
    shown = np.array([True, False, True])
    draw_key_points(image, np.array([[20.0, 30.0], [60, 30], [3e9, -3e9]]), shown, (255, 0, 0))
    assert (image[28:33, 18:23] != 128).any() and (image[28:33, 55:65] == 128).all()
    person, points = grey(), np.tile([[100.0, 60.0]], (17, 1))
    points[15], points[13] = (20, 20), (180, 20)  # a lower leg across the picture
    draw_key_points(person, points, np.arange(17) >= 13, (255, 0, 0))
    assert person[20, 100, 0] > 230 and person[20, 100, 2] < 30 and (person[100:] == 128).all()


def test_sheets_show_masks_and_points(tmp_path):
    images = torch.full((1, 3, 64, 96), 128, dtype=torch.uint8)
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[0, 40:50, 60:70] = 1  # far from its box
    points = torch.tensor([[[80.0, 55.0, 2.0]]])
    box = torch.tensor([[0.25, 0.25, 0.2, 0.2]])
    targets = Targets(torch.tensor([0]), torch.tensor([0]), box, masks, points)
    meta = ImageMeta(0, "a.png", (192, 128), (0.5, 0.5))
    batch = Batch(images, targets, Targets.empty(), (meta,))
    draw_batch(tmp_path / "batch.png", batch, ["x"])
    sheet = cv2.imread(str(tmp_path / "batch.png"))
    assert (sheet[42:44, 62:68] != 128).any(axis=2).all() and (sheet[53:58, 78:83] != 128).any()
    net_box = torch.tensor([[20.0, 60.0, 60.0, 80.0]])  # original pixels
    found = Detections(
        net_box, torch.tensor([0.9]), torch.tensor([0]), masks=BoxMasks(torch.ones(1, 4, 4), net_box, (192, 128)),
        key_points=torch.tensor([[[160.0, 110.0, 1.0]]]),
    )  # fmt: skip
    draw_predictions(tmp_path / "both.png", batch, [found], ["x"])
    predicted = cv2.imread(str(tmp_path / "both.png"))[:, 96:]
    assert (predicted[33:37, 13:27] != 128).any(axis=2).all() and (predicted[53:58, 78:83] != 128).any()
