"""Whatever a program hands over as images becomes the same pixels; what is no image is refused in one line."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import open_pictures
from data.sources import ImageFiles
from data.video import Picture
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three small PNG files, all different."""
    generator = np.random.default_rng(0)
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), generator.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_kind_of_image_gives_the_same_pixels(folder):
    pixels_bgr = cv2.imread("a.png")
    pixels_rgb = pixels_bgr[..., ::-1]
    picture = Picture(pixels_bgr, "x", 7)
    kinds = [
        "a.png", folder / "a.png", pixels_bgr, Image.open("a.png"), Image.open("a.png").convert("RGBA"),
        torch.from_numpy(pixels_rgb.transpose(2, 0, 1).copy()), picture,
    ]  # fmt: skip
    for kind in kinds:
        (alone,) = open_pictures(kind)
        assert np.array_equal(alone.image_bgr, pixels_bgr) and alone.image_bgr.flags.c_contiguous
    assert [p.path for p in open_pictures(kinds)] == ["a.png", str(folder / "a.png"), "", "", "", "", "x"]
    (from_rgb,) = open_pictures(pixels_rgb, color="rgb")
    assert np.array_equal(from_rgb.image_bgr, pixels_bgr)
    assert next(open_pictures(picture)) is picture and next(open_pictures(pixels_bgr)).image_bgr is pixels_bgr


def test_color_speaks_of_arrays_only(folder):
    pixels_bgr = cv2.imread("a.png")
    others = ["a.png", Image.open("a.png"), torch.from_numpy(pixels_bgr[..., ::-1].transpose(2, 0, 1).copy())]
    for picture in open_pictures(others, color="rgb"):
        assert np.array_equal(picture.image_bgr, pixels_bgr)


def test_grey_and_palette_images_of_pil(folder):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    (picture,) = open_pictures(Image.fromarray(grey))
    assert np.array_equal(picture.image_bgr, np.repeat(grey[..., None], 3, axis=2))
    (picture,) = open_pictures(Image.fromarray(grey).convert("P"))
    assert picture.image_bgr.shape == (4, 6, 3)


def test_folders_globs_lists_and_mixtures_keep_their_order(folder):
    (folder / "list.txt").write_text("c.png\na.png\n")
    for images, names in (
        (".", "abc"),
        ("[bc].png", "bc"),
        ("list.txt", "ca"),
        (["c.png", ".", cv2.imread("b.png"), "list.txt"], "cabcbca"),
        ((name for name in ("b.png", "a.png")), "ba"),
        (ImageFiles(("b.png", "c.png")), "bc"),
        (np.stack([cv2.imread("c.png"), cv2.imread("a.png")]), "ca"),
    ):
        expected = [cv2.imread(f"{name}.png") for name in names]
        found = [picture.image_bgr for picture in open_pictures(images)]
        assert len(found) == len(expected) and all(map(np.array_equal, found, expected))


def test_tensors_may_come_as_a_batch_and_with_gradients(folder):
    batch = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    found = [picture.image_bgr for picture in open_pictures(batch)]
    assert [image.shape for image in found] == [(4, 5, 3)] * 2
    assert np.array_equal(found[1][2, 3], batch[1, [2, 1, 0], 2, 3])


def test_files_are_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("a.png").save("turned.jpg", exif=exif, quality=95)
    (picture,) = open_pictures("turned.jpg")
    assert picture.image_bgr.shape == (6, 4, 3)
    (as_it_is,) = open_pictures(Image.open("turned.jpg"))
    assert as_it_is.image_bgr.shape == (4, 6, 3)


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((4, 4, 3), dtype=np.float32), r"image 0: has the shape \[4 4 3\] of float32; give an array"),
        (np.zeros((4, 4), dtype=np.uint8), r"\[4 4\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\[0 4 3\]"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"\[4 4 4\]"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"\[4 4 3\] of uint8; give a tensor \[3 h w\]"),
        (torch.zeros(3, 4, 4), r"\[3 4 4\] of float32"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), r"\[3 4 4\] of bfloat16"),
        (torch.zeros(4, 4, requires_grad=True), r"\[4 4\] of float32"),
        (torch.zeros(4, dtype=torch.uint8), r"\[4\] of uint8"),
        (["a.png", 7], "image 1: a int is no path"),
        (["a.png", None], "image 1: a NoneType"),
        ("nothing.png", "nothing.png: no such file"),
        ("empty.png", "empty.png"),
        (7, "a int is no image"),
    ],
)
def test_what_is_no_image_is_refused_in_its_turn(folder, images, words):
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=words) as caught:
        list(open_pictures(images))
    assert "\n" not in str(caught.value)


def test_a_pil_image_that_is_cut_off(folder):
    data = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="image 0: PIL cannot decode it"):
        list(open_pictures(Image.open("cut.png")))
    with pytest.raises(UserError, match="hsv"):
        open_pictures("a.png", color="hsv")
