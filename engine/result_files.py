"""Files of detections that hold many pictures: COCO's JSON, CSV, Darknet's JSON and VOC texts, and MOT's tracks.

They grow while pictures are looked at, so that a long video does not fill the memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.labels.annotations import category_ids_for
from data.letterbox import letterbox_meta
from data.video import Picture
from evaluation.results import coco_results
from utils.files import GrowingFile, atomic_path, printable
from utils.structures import Detections

VOC_LINES = 1000  # that wait in memory until they are written together


@dataclass(frozen=True)
class Found:
    """What was found in one picture, and what its files are called."""

    picture: Picture
    detections: Detections
    stem: str  # of files of this picture alone
    video_stem: str = ""  # of files of its video; empty for an image

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        height, width = self.picture.image_bgr.shape[:2]
        return width, height

    @property
    def track_ids(self) -> list[int | None]:
        """The number of each detection's track, None where it has none."""
        if self.detections.track_ids is None:
            return [None] * len(self.detections)
        return [number or None for number in self.detections.track_ids.tolist()]

    def rows(self) -> list[tuple[int, float, list[float]]]:
        """Label, score and box (corners, pixels) of each detection, strongest first."""
        found = self.detections
        return list(zip(found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True))


class ResultFile(Protocol):
    """A file, or several, to which each picture is added."""

    def add(self, found: Found) -> None:
        """Append what was found in a picture."""

    def close(self) -> None:
        """Give the file its name."""


class CocoFile:
    """``detections.json``: COCO results, with the file's name, and frame and track where there are any."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._file = GrowingFile(folder / "detections.json")
        self._category_ids = category_ids_for(names)
        self._separator = "["

    def add(self, found: Found) -> None:
        """Append; an image whose name is a number has that as id, as in COCO."""
        path = Path(found.picture.path)
        width, height = found.size_wh
        meta = letterbox_meta(0, found.picture.path, (width, height), (height, width))  # its id is replaced below
        results = coco_results(found.detections, meta, self._category_ids)
        for result, track_id in zip(results, found.track_ids, strict=True):
            is_number = path.stem.isdecimal() and not found.video_stem
            result["image_id"] = int(path.stem) if is_number else printable(path.stem)
            result["file_name"] = printable(path.name)
            if found.video_stem:
                result["frame"] = found.picture.frame
            if found.detections.track_ids is not None:
                result["track_id"] = track_id
            self._file.add(self._separator + json.dumps(result, allow_nan=False))
            self._separator = ", "

    def close(self) -> None:
        """End the list; without any detection it is an empty one."""
        self._file.add("]\n" if self._separator == ", " else "[]\n")
        self._file.close()


class CsvFile:
    """``detections.csv``: a line per detection."""

    COLUMNS = ("file", "frame", "label", "name", "score", "x1", "y1", "x2", "y2", "track_id")

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._file = GrowingFile(folder / "detections.csv")
        self._names = names
        self._write(self.COLUMNS)

    def add(self, found: Found) -> None:
        """Append; an image has no frame, and only tracked objects have a track."""
        frame = found.picture.frame if found.video_stem else ""
        for (label, score, box), track_id in zip(found.rows(), found.track_ids, strict=True):
            corners = [f"{value:.2f}" for value in box]
            path = printable(found.picture.path)
            self._write((path, frame, label, self._names[label], f"{score:.6f}", *corners, track_id or ""))

    def close(self) -> None:
        """Give the file its name."""
        self._file.close()

    def _write(self, values: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        self._file.add(line.getvalue())


class DarknetJsonFile:
    """``result.json`` as ``darknet detector test -out result.json`` writes it (AlexeyAB/darknet ``src/network.c``)."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._file = GrowingFile(folder / "result.json")
        self._names = names
        self._num_pictures = 0

    def add(self, found: Found) -> None:
        """Append; pictures are counted from 1, and boxes are centre and size as shares of the picture."""
        self._file.add(", \n" if self._num_pictures else "[\n")
        self._num_pictures += 1
        width, height = found.size_wh
        objects = []
        for label, score, (x1, y1, x2, y2) in found.rows():
            center_x, center_y = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            objects.append(
                f'  {{"class_id":{label}, "name":{json.dumps(self._names[label], ensure_ascii=False)}, '
                f'"relative_coordinates":{{"center_x":{center_x:f}, "center_y":{center_y:f}, '
                f'"width":{(x2 - x1) / width:f}, "height":{(y2 - y1) / height:f}}}, "confidence":{score:f}}}'
            )
        name = json.dumps(printable(found.picture.path), ensure_ascii=False)
        head = f'{{\n "frame_id":{self._num_pictures}, \n "filename":{name}, \n "objects": [ \n'
        self._file.add(head + ", \n".join(objects) + "\n ] \n}")

    def close(self) -> None:
        """End the list."""
        self._file.add("\n]" if self._num_pictures else "[\n\n]")
        self._file.close()


class VocFiles:
    """``results/comp4_det_test_<class>.txt`` of PASCAL VOC, as ``darknet detector valid`` writes them.

    A line is ``image score xmin ymin xmax ymax``. The first pixel is 1, and boxes end at the picture's border
    (AlexeyAB/darknet ``src/detector.c: print_detector_detections``).
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._paths = [folder / "results" / f"comp4_det_test_{in_file_name(name)}.txt" for name in names]
        self._lines: list[list[str]] = [[] for _ in names]  # that wait: there may be more classes than open files
        self._num_waiting = 0
        self._stack = ExitStack()
        self._unfinished: dict[Path, Path] = {}  # the file -> its temporary name

    def add(self, found: Found) -> None:
        """Add a line to those of each detection's class."""
        width, height = found.size_wh
        for label, score, (x1, y1, x2, y2) in found.rows():
            corners = (max(x1 + 1, 1), max(y1 + 1, 1), min(x2 + 1, width), min(y2 + 1, height))
            numbers = " ".join(f"{value:f}" for value in (score, *corners))
            self._lines[label].append(f"{found.stem} {numbers}\n")
            self._num_waiting += 1
        if self._num_waiting >= VOC_LINES:
            self._append()

    def close(self) -> None:
        """Give the files their names; a class of which nothing was found has an empty one."""
        with self._stack:
            self._append()

    def _append(self) -> None:
        """Write the lines that wait."""
        for path, lines in zip(self._paths, self._lines, strict=True):
            mode = "a" if path in self._unfinished else "w"
            if mode == "w":
                self._unfinished[path] = self._stack.enter_context(atomic_path(path))
            with self._unfinished[path].open(mode, encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
            lines.clear()
        self._num_waiting = 0


class MotFiles:
    """``<video>.txt``, the tracks of a video as MOT16 has them (arXiv 1603.00831); images have none.

    A line is ``frame,track,left,top,width,height,score,-1,-1,-1``; frames and pixels count from 1.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, GrowingFile] = {}

    def add(self, found: Found) -> None:
        """Append a line for each detection that has a track."""
        if not found.video_stem:
            return
        if found.video_stem not in self._files:
            if found.picture.seconds is None:  # no stream: videos come one after the other, perhaps thousands
                self.close()
            self._files[found.video_stem] = GrowingFile(self._folder / f"{found.video_stem}.txt")
        file = self._files[found.video_stem]
        file.add("")
        for (_, score, (x1, y1, x2, y2)), track_id in zip(found.rows(), found.track_ids, strict=True):
            if track_id:
                box = f"{x1 + 1:.2f},{y1 + 1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
                file.add(f"{found.picture.frame + 1},{track_id},{box},{score:.6f},-1,-1,-1\n")

    def close(self) -> None:
        """Give the files their names."""
        for file in self._files.values():
            file.close()
        self._files.clear()


SAVE_AS: dict[str, Callable[[Path, Sequence[str]], ResultFile]] = {  # --save-as -> what writes it
    "darknet-json": DarknetJsonFile,
    "voc": VocFiles,
}


def in_file_name(name: str) -> str:
    """Return the name of a class as part of a file's name."""
    return "".join("_" if letter in '/\\:*?"<>|' or not letter.isprintable() else letter for letter in name)[:80]
