"""Convert the labels of a data set, in any format that can be read, to COCO JSON or YOLO text.

::

    python -m data.coco_convert --data coco2017.data --split train --to yolo --out datasets/coco-yolo
    python -m data.coco_convert --data bccd.data --split test --to coco --out bccd-test.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.data_file import SPLITS, open_data
from data.labels.annotations import Annotations, summarise_problems
from data.labels.read import read_dataset
from utils.config import option, parse_options
from utils.errors import UserError, run_command
from utils.files import write_json_atomically, write_text_atomically


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert into what."""

    data: str = option("", "a .data file, a COCO JSON, an image list or a folder")
    split: str = option("train", "which part of the data", choices=SPLITS)
    to: str = option("yolo", "the format to write", choices=("coco", "yolo"))
    out: str = option("", "for coco the JSON file, for yolo the folder (new, or without labels of this split)")

    def __post_init__(self) -> None:
        if not self.data or not self.out:
            raise ValueError("name the data with --data and the result with --out")


def write_coco(annotations: Annotations, path: Path) -> str:
    """Write a COCO JSON; image file names are relative to the folder that holds them all.

    Returns:
        One line that says what was written and where the images are.

    Raises:
        UserError: the file exists.
    """
    if path.exists():
        raise UserError(f"{path}: exists; name a new file")
    content = annotations.to_coco()
    folder = ""
    if all(annotations.image_paths):
        paths = [os.path.abspath(image) for image in annotations.image_paths]
        folder = os.path.commonpath([os.path.dirname(image) for image in paths])
        for image, image_path in zip(content["images"], paths, strict=True):
            image["file_name"] = os.path.relpath(image_path, folder).replace(os.sep, "/")
    write_json_atomically(path, content, indent=None)
    images = f"; images in {folder} (train_images=, valid_images= or test_images= in a .data file)" if folder else ""
    return f"{path}: {len(annotations)} images, {len(content['annotations'])} objects{images}"


def write_yolo(annotations: Annotations, folder: Path, split: str) -> str:
    """Write ``labels/<split>/….txt``, links to the images in ``images/<split>``, and a names file.

    YOLO text has no crowd regions: they are left out, and counted in the line that is returned.

    Raises:
        UserError: there are labels of this split already, two images of one name, or the image files are not known.
    """
    labels = folder / "labels" / split
    if labels.is_dir() and any(labels.iterdir()):
        raise UserError(f"{labels}: is not empty; name another folder")
    if not all(annotations.image_paths):
        raise UserError("YOLO labels are named after the image files, and some of those are not on the disk")
    stems = [Path(path).stem for path in annotations.image_paths]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"two images are called '{twice}'; YOLO labels need different names")
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for index, (stem, path) in enumerate(zip(stems, annotations.image_paths, strict=True)):
        link = images / Path(path).name
        if not link.exists():
            link.symlink_to(os.path.abspath(path))
        (labels / f"{stem}.txt").write_text(yolo_text(annotations, index))
    write_text_atomically(folder / "classes.names", "".join(f"{name}\n" for name in annotations.names))
    num_crowd = int(annotations.crowd.sum())
    return (
        f"{labels}: {len(annotations)} files, {len(annotations.labels) - num_crowd} objects "
        f"({num_crowd} crowd regions left out); images linked in {images}"
    )


def yolo_text(annotations: Annotations, index: int) -> str:
    """Return the label file of one image: boxes clipped to it, without crowd regions."""
    rows = annotations.rows_of(index)
    size = annotations.image_wh[index].astype(np.float64)
    boxes = np.clip(annotations.boxes_xyxy[rows], 0, np.tile(size, 2)) / np.tile(size, 2)  # K 4, relative corners
    center, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    lines = [
        f"{label} " + " ".join(f"{value:.8g}" for value in box)
        for label, box, crowd in zip(
            annotations.labels[rows], np.concatenate((center, extent), axis=1), annotations.crowd[rows], strict=True
        )
        if not crowd
    ]
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Convert as the options say."""
    (options,) = parse_options("Convert the labels of a data set to COCO JSON or YOLO text.", ConvertOptions)
    annotations = read_dataset(open_data(options.data), options.split, need_images=options.to == "yolo")
    for line in summarise_problems(annotations.problems):
        print(line)
    out = Path(options.out).expanduser()
    print(write_coco(annotations, out) if options.to == "coco" else write_yolo(annotations, out, options.split))


if __name__ == "__main__":
    run_command(main)
