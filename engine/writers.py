"""What detect.py leaves behind: drawn images, a drawn video for each video, YOLO label files, COCO results.

No file that a run has written is overwritten by a later one of the same run: two pictures of one name get two files.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from data.labels.annotations import category_ids_for
from data.letterbox import letterbox_meta
from data.sources import Picture
from evaluation.results import coco_results
from utils.draw import write_image
from utils.errors import UserError
from utils.files import atomic_path, printable, utf8_path, write_json_atomically, write_text_atomically
from utils.structures import Detections

WRITABLE = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # others are written as .jpg


class Mp4Writer:
    """One mp4 video, a context manager: opened with its first picture, whole or absent on the disk.

    A block that ends well gives the file its name, a block that raises removes it; without a picture there is no file.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Prepare to write; nothing is touched yet.

        Args:
            path: of the video, with the suffix ``.mp4``; its folder is made where it is missing.
            fps: pictures per second, above 0.
        """
        self.path = path
        self.fps = fps
        self._stack = ExitStack()
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def add(self, image_bgr: np.ndarray) -> None:
        """Append a picture.

        Args:
            image_bgr: [h w 3] uint8; all pictures of a video have the size of the first.

        Raises:
            UserError: OpenCV has no encoder here.
        """
        if self._writer is None:
            self._writer = self._open(image_bgr.shape[:2])
        self._writer.write(image_bgr)

    def _open(self, image_hw: tuple[int, int]) -> cv2.VideoWriter:
        path = self._stack.enter_context(atomic_path(self.path))
        height, width = image_hw
        named = self._stack.enter_context(utf8_path(path))
        writer = cv2.VideoWriter(named, cv2.VideoWriter.fourcc(*"mp4v"), self.fps, (width, height))
        self._stack.callback(writer.release)  # before the file gets its name
        if not writer.isOpened():
            raise UserError(
                f"{self.path}: this OpenCV cannot write mp4 videos; use --nosave with --save-txt or --save-json"
            )
        return writer


class DetectionWriter:
    """Writes what the user wants of each picture: drawn images or frames, YOLO label files, COCO results.

    Attributes:
        num_detections: of all pictures so far, whether they are kept or not.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        pictures: bool = True,
        labels: bool = False,
        scores: bool = False,
        coco: bool = False,
    ) -> None:
        """Prepare to write; nothing is touched yet.

        Args:
            folder: of the run.
            names: class index -> name.
            pictures: write the drawn images into the folder, drawn frames into their video.
            labels: write ``labels/<name>.txt``, one line ``class x y w h`` per detection, relative to the image.
            scores: with the score as sixth number of these lines.
            coco: write ``detections.json``, COCO results with the file's name, when the writer is closed.
        """
        self.folder = folder
        self.names = names
        self.pictures = pictures
        self.labels = labels
        self.scores = scores
        self.coco = coco
        self.num_detections = 0
        self._category_ids = category_ids_for(names)
        self._results: list[dict] = []
        self._picture_stems: set[str] = set()
        self._video_stems: set[str] = set()

    def video_path(self, name: str) -> Path:
        """Return a path for the drawn video of a source, each time another one.

        Args:
            name: a file, a camera or a stream's URL.
        """
        return self.folder / f"{free_stem(safe_stem(name), self._video_stems)}.mp4"

    def write(self, picture: Picture, found: Detections, drawn: np.ndarray | None, video: Mp4Writer | None) -> None:
        """Keep one picture's detections.

        Args:
            picture: an image, or a frame of a video.
            found: in it.
            drawn: [h w 3] uint8 BGR, the picture with its detections; None where pictures are not kept.
            video: takes the drawn frames of the source; None for an image.

        Raises:
            UserError: OpenCV cannot write videos here.
            OSError: the folder cannot be written.
        """
        self.num_detections += len(found)
        stem = f"{video.path.stem}_{picture.frame}" if video else Path(picture.path).stem
        stem = free_stem(stem, self._picture_stems)
        if self.pictures and drawn is not None:
            if video:
                video.add(drawn)
            else:
                suffix = Path(picture.path).suffix
                write_image(self.folder / f"{stem}{suffix if suffix.lower() in WRITABLE else '.jpg'}", drawn)
        if self.labels:
            write_text_atomically(self.folder / "labels" / f"{stem}.txt", self._label_lines(picture, found))
        if self.coco:
            self._results += self._coco_results(picture, found, is_video=video is not None)

    def close(self) -> None:
        """Write what is written once for all pictures."""
        if self.coco:
            write_json_atomically(self.folder / "detections.json", self._results, indent=None)

    def written(self) -> str:
        """Return how many files lie where, as a sentence for the user."""
        files = sum(1 for path in self.folder.rglob("*") if path.is_file())
        return f"{files} files in {self.folder}" if files else "Nothing was to be kept"

    def _label_lines(self, picture: Picture, found: Detections) -> str:
        """Return a line ``class x y w h``, perhaps with the score, for each detection; relative to the picture."""
        height, width = picture.image_bgr.shape[:2]
        lines = []
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            if self.scores:
                values.append(score)
            lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values) + "\n")
        return "".join(lines)

    def _coco_results(self, picture: Picture, found: Detections, is_video: bool) -> list[dict]:
        """Return COCO results with the file's name; an image whose name is a number has that as id, as in COCO."""
        path = Path(picture.path)
        height, width = picture.image_bgr.shape[:2]
        meta = letterbox_meta(0, picture.path, (width, height), (height, width))  # its id is replaced below
        results = coco_results(found, meta, self._category_ids)
        for result in results:
            is_number = path.stem.isdecimal() and not is_video
            result["image_id"] = int(path.stem) if is_number else printable(path.stem)
            result["file_name"] = printable(path.name)
            if is_video:
                result["frame"] = picture.frame
        return results


def free_stem(wanted: str, taken: set[str]) -> str:
    """Return a file name without suffix that is not taken yet, whatever the case of its letters, and take it."""
    stem, number = wanted, 1
    while stem.casefold() in taken:
        number += 1
        stem = f"{wanted}_{number}"
    taken.add(stem.casefold())
    return stem


def safe_stem(name: str) -> str:
    """Return a file name without suffix for a file, a camera or a stream's URL."""
    stem = Path(name).stem if "://" not in name else name.split("://", 1)[1]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:80] or "video"
