"""Letterbox geometry by hand, its inverse, and the pixels where the geometry says."""

import numpy as np
import torch

from data.letterbox import PADDING, letterbox_meta, place_images, resize_as_darknet, smallest_input, stretch_meta


def test_letterbox_by_hand():
    # 640 x 480 into 320 wide, 416 high: ratio min(320/640, 416/480) = .5: 320 x 240, border (416 - 240) / 2 = 88.
    meta = letterbox_meta(3, "p", (640, 480), (416, 320))
    assert (meta.scale_xy, meta.offset_xy, meta.image_id, meta.path) == ((0.5, 0.5), (0.0, 88.0), 3, "p")
    box = meta.to_network(torch.tensor([[10.0, 20.0, 30.0, 40.0]]))
    assert box.tolist() == [[5, 98, 15, 108]]
    assert meta.to_original(box).tolist() == [[10, 20, 30, 40]]


def test_rounding_is_part_of_the_scale():
    # 333 x 500 into 416: ratio .832: 277.056 -> 277 wide; so scale_x is 277 / 333, not .832; border (416-277)//2 = 69.
    meta = letterbox_meta(1, "", (333, 500), (416, 416))
    assert meta.scale_xy == (277 / 333, 416 / 500)
    assert meta.offset_xy == (69.0, 0.0)


def test_stretch_by_hand():
    meta = stretch_meta(1, "", (640, 480), (240, 320))
    assert (meta.scale_xy, meta.offset_xy) == ((0.5, 0.5), (0.0, 0.0))
    assert stretch_meta(1, "", (100, 50), (200, 100)).scale_xy == (1.0, 4.0)


def test_thin_images_keep_one_pixel():
    meta = letterbox_meta(1, "", (10000, 3), (64, 64))
    assert meta.scale_xy == (64 / 10000, 1 / 3)


def test_pixels_lie_where_the_frame_says():
    image = np.zeros((48, 64, 3), np.uint8)
    image[10:20, 8:40] = (200, 100, 50)
    for hw in ((64, 64), (32, 96), (160, 128)):
        meta = letterbox_meta(1, "", (64, 48), hw)
        batch = place_images([image], [meta], hw)
        assert batch.shape == (1, 3, *hw) and batch.dtype == torch.uint8
        assert batch.is_contiguous(memory_format=torch.channels_last)
        found = (batch[0, 0] > 150).nonzero()  # rows, columns
        y1, x1 = found.min(dim=0).values.tolist()
        y2, x2 = (found.max(dim=0).values + 1).tolist()
        expected = meta.to_network(torch.tensor([[8.0, 10.0, 40.0, 20.0]]))[0]
        assert (torch.tensor([x1, y1, x2, y2]) - expected).abs().max() <= 1
        left, top = (int(value) for value in meta.offset_xy)
        assert (batch[0, :, :top] == PADDING).all() and (batch[0, :, :, :left] == PADDING).all()


def test_batch_equals_single():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((30, 50), (64, 64), (90, 20))]
    metas = [letterbox_meta(i, "", (im.shape[1], im.shape[0]), (64, 96)) for i, im in enumerate(images)]
    batch = place_images(images, metas, (64, 96))
    for image, meta, row in zip(images, metas, batch, strict=True):
        assert torch.equal(row, place_images([image], [meta], (64, 96))[0])
    assert torch.equal(batch[1, :, :, 16:80], torch.from_numpy(images[1]).permute(2, 0, 1))


def test_smallest_input_by_hand():
    # 640 x 426 at 416: 416 x 276.9 -> 277 -> 9 strides of 32 = 288 high. With 500 x 375: 312 -> 320.
    assert smallest_input(np.array([[640, 426]]), (416, 416), 32) == (288, 416)
    assert smallest_input(np.array([[640, 426], [500, 375]]), (416, 416), 32) == (320, 416)
    assert smallest_input(np.array([[426, 640]]), (416, 416), 32) == (416, 288)
    assert smallest_input(np.array([[640, 480]]), (256, 416), 32) == (256, 352)  # 256/480: 341.3 wide


def test_darknets_resize_puts_corners_on_corners_and_looks_at_two_pixels_only():
    row = np.repeat(np.array([[0, 10, 20, 90]], np.uint8)[:, :, None], 3, axis=2)  # 1 4 3
    # 4 -> 7 pixels: steps of (4 - 1) / (7 - 1) = 0.5
    assert resize_as_darknet(row, (7, 1))[0, :, 0].tolist() == [0, 5, 10, 15, 20, 55, 90]
    # 4 -> 3: steps of 1.5, so between 10 and 20; an average over areas would see the 90 earlier
    assert resize_as_darknet(row, (3, 1))[0, :, 1].tolist() == [0, 15, 90]
    column = row.transpose(1, 0, 2)
    assert resize_as_darknet(column, (2, 3))[:, :, 2].tolist() == [[0, 0], [15, 15], [90, 90]]
    assert resize_as_darknet(row, (1, 1)).tolist() == [[[0, 0, 0]]]
