"""What detect.py leaves behind: drawn images, a drawn video for each video, YOLO label files, crops, files of results.

No file that a run has written is overwritten by a later one of the same run: two pictures of one name get two files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.video import Picture
from engine.result_files import SAVE_AS, CocoFile, CsvFile, Found, MotFiles, ResultFile, in_file_name
from engine.video_writer import Mp4Writer
from utils.config import option
from utils.draw import DrawStyle, write_image
from utils.files import write_text_atomically
from utils.structures import Detections
from utils.words import how_many

WRITABLE = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # others are written as .jpg


@dataclass(frozen=True)
class KeepOptions:
    """What is kept of each picture."""

    save_txt: bool = option(False, "write labels/*.txt in YOLO's format")
    save_conf: bool = option(False, "with the score as sixth number of each line of --save-txt")
    save_json: bool = option(False, "write detections.json, COCO results with the file's name")
    save_csv: bool = option(False, "write detections.csv, a line per detection")
    save_as: tuple[str, ...] = option((), "write result.json of Darknet, results/*.txt of PASCAL VOC", tuple(SAVE_AS))
    save_crop: bool = option(False, "write crops/<class>/*.jpg, each detection cut out")
    nosave: bool = option(False, "draw nothing")
    line_width: int = option(0, "width of the drawn boxes in pixels; 0 is one that suits the picture")
    hide_labels: bool = option(False, "draw boxes without text")
    hide_conf: bool = option(False, "draw boxes with the class, without the score")

    def __post_init__(self) -> None:
        if not 0 <= self.line_width <= 100:
            raise ValueError("--line-width must lie between 0 and 100")

    @property
    def style(self) -> DrawStyle:
        """How detections are drawn."""
        return DrawStyle(self.line_width, labels=not self.hide_labels, scores=not self.hide_conf)


def open_writer(folder: Path, names: Sequence[str], options: KeepOptions, tracks: bool = False) -> DetectionWriter:
    """Return a writer of all that the options ask for; with ``tracks``, of MOT's text for each video, too."""
    files: list[ResultFile] = [SAVE_AS[kind](folder, names) for kind in options.save_as]
    files += [CsvFile(folder, names)] if options.save_csv else []
    files += [MotFiles(folder)] if tracks else []
    return DetectionWriter(
        folder,
        names,
        pictures=not options.nosave,
        labels=options.save_txt,
        scores=options.save_conf,
        coco=options.save_json,
        crops=options.save_crop,
        files=files,
    )


class DetectionWriter:
    """Writes what the user wants of each picture: drawn images or frames, labels, crops, and files of many pictures.

    Attributes:
        num_pictures: so far.
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
        crops: bool = False,
        files: Sequence[ResultFile] = (),
    ) -> None:
        """Prepare to write; nothing is touched yet.

        Args:
            folder: of the run.
            names: class index -> name.
            pictures: write the drawn images into the folder, drawn frames into their video.
            labels: write ``labels/<name>.txt``, one line ``class x y w h`` per detection, relative to the image.
            scores: with the score as sixth number of these lines.
            coco: write ``detections.json``, COCO results with the file's name, when the writer is closed.
            crops: write ``crops/<class>/<name>.jpg``, each detection cut out.
            files: to which each picture is added, and which are closed with the writer.
        """
        self.folder = folder
        self.names = names
        self.pictures = pictures
        self.labels = labels
        self.scores = scores
        self.crops = crops
        self.num_pictures = self.num_detections = 0
        self._files = [*files, CocoFile(folder, names)] if coco else list(files)
        self._picture_stems: set[str] = set()
        self._video_stems: set[str] = set()
        self._crop_stems: set[str] = set()

    def video_path(self, name: str) -> Path:
        """Return a path for the drawn video of a source, each time another one.

        Args:
            name: a file, a camera or a stream's URL.
        """
        return self.folder / f"{free_stem(safe_stem(name), self._video_stems)}.mp4"

    def video(self, name: str, fps: float) -> Mp4Writer:
        """Return what takes the drawn frames of a source, with its sound if it is a file."""
        return Mp4Writer(self.video_path(name), fps, name if Path(name).is_file() else "")

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
        self.num_pictures += 1
        self.num_detections += len(found)
        stem = f"{video.path.stem}_{picture.frame}" if video else Path(picture.path).stem
        if self.labels or not video:  # a frame without a file takes no name: a stream may have any number of them
            stem = free_stem(stem, self._picture_stems)
        if self.pictures and drawn is not None:
            if video:
                video.add(drawn, picture.seconds)
            else:
                suffix = Path(picture.path).suffix
                write_image(self.folder / f"{stem}{suffix if suffix.lower() in WRITABLE else '.jpg'}", drawn)
        if self.labels:
            write_text_atomically(self.folder / "labels" / f"{stem}.txt", self._label_lines(picture, found))
        for file in self._files:
            file.add(Found(picture, found, stem, video.path.stem if video else ""))

    def write_crops(self, picture: Picture, found: Detections, video: Mp4Writer | None) -> None:
        """Cut each detection out of a picture on which nothing is drawn yet, by its box rounded out to whole pixels."""
        height, width = picture.image_bgr.shape[:2]
        stem = f"{video.path.stem}_{picture.frame}" if video else Path(picture.path).stem
        for label, (x1, y1, x2, y2) in zip(found.labels.tolist(), found.boxes_xyxy.tolist(), strict=True):
            left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
            right, bottom = min(width, math.ceil(x2)), min(height, math.ceil(y2))
            if left < right and top < bottom:
                folder = self.folder / "crops" / in_file_name(self.names[label])
                name = free_stem(str(folder / stem), self._crop_stems)
                write_image(f"{name}.jpg", picture.image_bgr[top:bottom, left:right])

    def close(self) -> None:
        """Write what is written once for all pictures."""
        for file in self._files:
            file.close()

    def written(self) -> str:
        """Return how many files lie where, as a sentence for the user."""
        files = sum(1 for path in self.folder.rglob("*") if path.is_file())
        return f"{how_many(files, 'file')} in {self.folder}" if files else "Nothing was to be kept"

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
