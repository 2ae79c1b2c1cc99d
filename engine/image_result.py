"""What a Python program gets for each image: the detections, and all that is made of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.labels.annotations import category_ids_for
from engine.writers import WRITABLE
from evaluation.results import coco_results
from utils.draw import draw_detections, write_image
from utils.errors import UserError
from utils.files import printable
from utils.structures import Detections, ImageMeta
from utils.words import how_many

if TYPE_CHECKING:
    import supervision

ROW_FIELDS = ("file", "frame", "label", "name", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, eq=False, repr=False)
class ImageResult:
    """What was found in one image, strongest first; keeping it keeps the image's pixels, too."""

    detections: Detections  # tensors on the CPU
    image_bgr: np.ndarray  # [h w 3] uint8: the array that was given, where it was one in BGR; never drawn into
    names: tuple[str, ...]  # of all classes of the network; a label is an index of it
    path: str = ""  # the file, camera or stream; empty for what came from memory
    frame: int | None = None  # of a video, from 0; None for an image

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        place = printable(self.path) or "image"
        place += "" if self.frame is None else f" frame {self.frame}"
        width, height = self.size_wh
        return f"<result {place}, {width}x{height}: {how_many(len(self), 'detection')}>"

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        height, width = self.image_bgr.shape[:2]
        return width, height

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """[N 4] float32: left, top, right and bottom of each box in pixels of the image, inside it."""
        return self.detections.boxes_xyxy.float().numpy()

    @property
    def scores(self) -> np.ndarray:
        """[N] float32, 0..1: objectness x class probability."""
        return self.detections.scores.float().numpy()

    @property
    def labels(self) -> np.ndarray:
        """[N] int64: class index."""
        return self.detections.labels.numpy()

    @property
    def masks(self) -> np.ndarray | None:
        """[N h w] bool: the pixels of each object, made anew each time; None where the network finds boxes alone."""
        return None if self.detections.masks is None else self.detections.masks.whole()

    @property
    def key_points(self) -> np.ndarray | None:
        """[N K 3] float32: x, y in pixels of the image and a score, any number; None where the network finds none."""
        points = self.detections.key_points
        return None if points is None else points.float().numpy()

    def plot(self) -> np.ndarray:
        """Return the image with what was found drawn in: a new array [h w 3] uint8, BGR."""
        drawn = self.image_bgr.copy()
        draw_detections(drawn, self.detections, self.names)
        return drawn

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the drawn image, whole or not at all, in the format of the suffix; return where it is.

        Args:
            path: of the file; or a folder that exists, where the image gets the name of its own file.

        Raises:
            UserError: a suffix that is not written, or a folder for an image that has no file's name.
            OSError: the folder cannot be written.
        """
        path = Path(path)
        if path.is_dir() and self.path and self.frame is None:
            own = Path(self.path)
            path = path / (own.name if own.suffix.lower() in WRITABLE else f"{own.stem}.jpg")
        if path.suffix.lower() not in WRITABLE:
            raise UserError(f"{printable(str(path))}: name a file that ends in one of {' '.join(WRITABLE)}")
        write_image(path, self.plot())
        return path

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat record per detection, with the keys ROW_FIELDS: a line of a CSV file, a row of a table."""
        found = self.detections
        columns = zip(found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
        return [
            dict(
                zip(ROW_FIELDS, (printable(self.path), self.frame, label, self.names[label], score, *box), strict=True)
            )
            for label, score, box in columns
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return file, frame, width, height and the list of detections, with shapes as COCO's, ready for JSON."""
        width, height = self.size_wh
        keys = ("label", "name", "score")
        detections = [
            {**{key: row[key] for key in keys}, "box_xyxy": [row[side] for side in ("x1", "y1", "x2", "y2")]}
            for row in self.to_rows()
        ]
        for detection, result in zip(detections, self._coco_results(), strict=True):
            detection |= {shape: result[shape] for shape in ("segmentation", "keypoints") if shape in result}
        return {
            "file": printable(self.path),
            "frame": self.frame,
            "width": width,
            "height": height,
            "detections": detections,
        }

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return COCO results as ``detect.py --save-json`` writes them.

        Args:
            image_id: None: the number that the file's name is, as in COCO, else the name without its suffix.

        Raises:
            UserError: no id, and no file to name the image.
        """
        path = Path(self.path)
        if image_id is None:
            if not path.stem:
                raise UserError("to_coco: this image came without a file; give it an image_id")
            is_number = path.stem.isdecimal() and self.frame is None
            image_id = int(path.stem) if is_number else printable(path.stem)
        named: dict[str, Any] = {"image_id": image_id}
        named |= {"file_name": printable(path.name)} if path.name else {}
        named |= {} if self.frame is None else {"frame": self.frame}
        return [result | named for result in self._coco_results()]

    def _coco_results(self) -> list[dict[str, Any]]:
        """Return COCO results whose image has no id yet."""
        return coco_results(self.detections, ImageMeta(0, self.path, self.size_wh), category_ids_for(self.names))

    def to_supervision(self) -> supervision.Detections:
        """Return the detections as those of the package ``supervision``, names and all.

        Raises:
            UserError: it is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(f"to_supervision needs a package: pip install supervision ({error})") from error
        names = np.array([self.names[label] for label in self.labels], dtype=str)
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": names},
        )
