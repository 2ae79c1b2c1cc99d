"""Image files as they are met: turned, cut off, of many kinds and depths, too large, behind links."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from data.image_files import decode_image, image_header, is_cut_off, list_files, read_image, to_eight_bits
from data.jpeg import END, end_of_jpeg, jpeg_frame
from data.sources import open_source
from utils.errors import UserError


def smooth_picture(width=96, height=64, seed=0):
    """A picture [h w 3] uint8 that compresses to little and differs under every flip and turn."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 64)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation, width, height, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(smooth_picture(width, height)).save(path, kind, exif=exif)
    header = image_header(str(path))
    found = read_image(str(path), (header.width, header.height), header.orientation)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))[..., ::-1]
    assert header.orientation == orientation and found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 3  # two JPEG decoders may round differently
    (turned,) = open_source(str(path))[0]  # as detect.py shows it
    assert np.array_equal(turned.image_bgr, found)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_is_none_is_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth_picture()).save(tmp_path / "a.jpg", exif=exif)
    assert image_header(str(tmp_path / "a.jpg"))[:3] == (96, 64, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_read_bit_for_bit(tmp_path, options, missing):
    whole, path = jpeg(smooth_picture(), **options), tmp_path / "a.jpg"
    path.write_bytes(whole)
    wanted = decode_image(str(path))
    path.write_bytes(whole[:-missing])
    assert np.array_equal(decode_image(str(path)), wanted) and not is_cut_off(str(path))
    path.write_bytes(whole + b"\0 rubbish behind the end")
    assert np.array_equal(decode_image(str(path)), wanted) and not is_cut_off(str(path))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_jpeg_that_is_cut_off_is_refused_and_one_with_an_end_marker_is_known(tmp_path, options, share):
    whole, path = (
        jpeg(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8), **options),
        tmp_path / "a",
    )
    part = whole[: int(len(whole) * share)].rstrip(b"\xff")
    path.write_bytes(part)
    with pytest.raises(UserError, match="a: the JPEG file is cut off; replace or remove it"):
        decode_image(str(path))
    path.write_bytes(part + END)
    assert decode_image(str(path)).shape == (64, 96, 3)  # its lower part is grey
    assert is_cut_off(str(path))


def test_the_end_marker_of_a_thumbnail_is_not_that_of_the_picture():
    thumbnail, whole = jpeg(smooth_picture(16, 16)), jpeg(smooth_picture())
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    nested = whole[:2] + segment + whole[2:]
    assert nested.count(END) == 2 and end_of_jpeg(nested) == len(nested) - 2
    assert end_of_jpeg(nested[:-2]) == len(nested) - 2  # not that of the thumbnail
    assert jpeg_frame(nested) == (96, 64, False)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<!DOCTYPE html><html></html>", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_one_line(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (image_header, decode_image):
        with pytest.raises(
            UserError, match=r"a\.jpg: (not an image that can be read|the JPEG file is cut off)"
        ) as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


FORMATS = [("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.mpo", "MPO"), ("a.gif", "GIF"), ("a.jp2", "JPEG2000"),
           ("a.avif", "AVIF"), ("a.webp", "WEBP"), ("a.tif", "TIFF"), ("a.ppm", "PPM"), ("a.dib", "DIB")]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), FORMATS)
def test_pictures_of_many_kinds_are_found_and_read(tmp_path, name, kind):
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    second = [Image.fromarray(smooth_picture(seed=1))]
    several = {"save_all": True, "append_images": second} if kind in ("MPO", "GIF") else {}
    Image.fromarray(smooth_picture()).save(tmp_path / name, kind, **several)
    assert list_files(tmp_path).images == [str(tmp_path / name)]
    assert image_header(str(tmp_path / name))[:2] == (96, 64)
    found = read_image(str(tmp_path / name), (96, 64))
    with Image.open(tmp_path / name) as image:  # of several pictures the first
        wanted = np.asarray(image.convert("RGB"))[..., ::-1]
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - wanted).mean() < 2


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_pictures_are_scaled_by_their_own_depth(tmp_path, bits, name):
    ramp = np.linspace(0, (1 << bits) - 1, 64 * 96).astype(np.uint16).reshape(64, 96)
    cv2.imwrite(str(tmp_path / name), ramp)
    found = read_image(str(tmp_path / name), (96, 64))
    assert image_header(str(tmp_path / name)).is_deep
    assert found.shape == (64, 96, 3) and np.array_equal(found[..., 0], ramp >> (bits - 8))
    assert found.min() == 0 and found.max() == 255


def test_values_that_are_no_whole_numbers_are_left_to_others():
    assert to_eight_bits(np.zeros((2, 2), np.float32)) is None
    assert np.array_equal(to_eight_bits(np.full((2, 2), 7, np.uint8)), np.full((2, 2), 7))


def png_of_size(width, height):
    """A PNG whose header says a size, as a file of some hundred kilobytes can truly have."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of_size(width, height):
    data = jpeg(smooth_picture())
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize("make", [png_of_size, jpeg_of_size])
@pytest.mark.parametrize("width_height", [(30_000, 30_000), (65_535, 65_535), (60_000, 4_000)])
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path, make, width_height):
    path = tmp_path / "huge.img"
    path.write_bytes(make(*width_height))
    size = "x".join(map(str, width_height))
    for read in (image_header, decode_image, lambda one: decode_image(one, 8)):
        with pytest.raises(UserError, match=rf"huge\.img: {size} pixels are too many to decode \(at most \d+ million"):
            read(str(path))


def test_links_that_point_upwards_add_nothing(tmp_path):
    root = tmp_path / "set"
    for folder in ("a", "a/b"):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / "0.png"), np.zeros((2, 2, 3), np.uint8))
    wanted = list_files(root).images
    (root / "a/b/up").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root / "a", target_is_directory=True)
    (root / "a/itself").symlink_to(root / "a/itself")
    (root / "round").symlink_to(root / "back")
    (root / "back").symlink_to(root / "round")
    assert list_files(root).images == wanted and len(wanted) == 2
    (tmp_path / "elsewhere").mkdir()
    cv2.imwrite(str(tmp_path / "elsewhere/1.png"), np.zeros((2, 2, 3), np.uint8))
    for name in ("first", "second"):  # one folder behind two links is visited once
        (root / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list_files(root).images == sorted([*wanted, str(root / "first/1.png")])


def test_files_of_kinds_that_are_not_read_are_counted_by_suffix(tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((2, 2, 3), np.uint8))
    for name in ("1.heic", "2.HEIC", "3.dng", "4.txt", ".hidden.heic", "no_suffix", "5.mp4"):
        (tmp_path / name).touch()
    found = list_files(tmp_path)
    assert [os.path.basename(path) for path in found.images] == ["0.png"]
    assert dict(found.unknown) == {".heic": 2, ".dng": 1}


def test_of_two_pictures_in_a_file_the_end_of_the_first_counts():
    first, second = jpeg(smooth_picture()), jpeg(smooth_picture(seed=1))
    assert end_of_jpeg(first + second) == len(first) - 2
