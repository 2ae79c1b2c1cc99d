"""Detect and draw: ``python detect.py --source photo.jpg --weights runs/train/exp/best.pt``.

The source is an image, a folder, a glob, a list of images, a video, a camera (its number) or a stream (its URL).
Without arguments it takes the newest run's ``best.pt`` and the validation images of the data that it was trained on.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from data.data_file import open_data
from data.labels.annotations import category_ids_for
from data.letterbox import letterbox_images, letterbox_meta, smallest_input
from data.sources import ImageFiles, Picture, VideoFrames, open_source
from data.splits import open_split
from engine.run_folder import find_newest_checkpoint, new_run_folder
from evaluation.results import coco_results
from models.checkpoints.load import LoadedNetwork, load_network
from models.detector import Detector
from models.network import check_image_size
from utils.class_names import read_names
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.draw import draw_detections, write_image
from utils.errors import UserError, run_command, suggestion
from utils.files import atomic_path, write_json_atomically, write_text_atomically
from utils.structures import Detections

RUNS = "runs/detect"
WITHOUT_SOURCE = 100  # images of the training's data, at most
WRITABLE = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # others are written as .jpg


@dataclass(frozen=True)
class DetectOptions:
    """What to look at, with which network, and what to keep."""

    source: str = option("", "image, folder, glob, list, video, camera number or stream; default: validation images")
    weights: str = option("", "checkpoint, Darknet .weights or official yolov5 .pt; default: the newest run's best.pt")
    cfg: str = option("", "network, looked up here and in cfg/; default: the one that belongs to the weights")
    data: str = option("", "data set whose class names are used; default: the one of the training")
    names: str = option("", "file of class names, one per line")
    img_size: tuple[int, ...] = option((), "side of the network input in pixels; default: that of the training")
    conf_thres: float = option(0.3, "minimum objectness x class probability of a detection")
    iou_thres: float = option(0.45, "NMS drops a box that overlaps a stronger one of its class by a higher IoU")
    max_det: int = option(300, "detections per image")
    classes: tuple[str, ...] = option((), "only these classes, by name or number")
    agnostic_nms: bool = option(False, "boxes of different classes suppress one another, too")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    half: bool = option(False, "float16, on CUDA")
    save_txt: bool = option(False, "write labels/*.txt in YOLO's format")
    save_conf: bool = option(False, "with the score as sixth number of each line of --save-txt")
    save_json: bool = option(False, "write detections.json, COCO results with the file's name")
    nosave: bool = option(False, "draw nothing")
    view_img: bool = option(False, "show the pictures in a window, where there is a display; q ends")
    name: str = option("exp", "results are written to runs/detect/<name>")

    def __post_init__(self) -> None:
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise ValueError("--conf-thres and --iou-thres must lie between 0 and 1")
        if self.max_det < 1 or len(self.img_size) > 1:
            raise ValueError("--max-det must be at least 1, and --img-size takes one side in pixels")


def main() -> None:
    """Detect in every picture of the source; leave drawn pictures, labels and JSON in runs/detect/<name>."""
    (options,) = parse_options(__doc__.splitlines()[0], DetectOptions)
    device = choose_device(options.device)
    use_threads()

    weights = options.weights or str(find_newest_checkpoint())
    loaded = load_network(weights, options.cfg)
    size = input_size(options, loaded)
    names = class_names(options, loaded, weights)
    options = replace(options, weights=weights, data=options.data or loaded.options.get("data", ""))
    sources, shown = choose_sources(options)
    detector = Detector(
        loaded.network.to(device),
        confidence=options.conf_thres,
        iou=options.iou_thres,
        max_detections=options.max_det,
        half=options.half,
        agnostic=options.agnostic_nms,
        classes=class_numbers(options.classes, names),
    )
    folder = new_run_folder(RUNS, options.name)
    print(
        f"detect: {weights} ({loaded.network.cfg_path}) on {shown}, {size} pixels, confidence {options.conf_thres:g} "
        f"-> {folder} ({describe_device(device)})"
    )
    if options.half and device.type != "cuda":
        print("--half means nothing on this device: computing in float32")

    window = Window(options.view_img)
    keeper = Keeper(folder, options, names)
    try:
        for number, source in enumerate(sources, start=1):
            place = f"video {number}/{len(sources)}" if source.is_video else "image"
            if not look_at(source, place, detector, size, loaded.network.max_stride, keeper, window):
                break
    finally:  # what was found is kept, whatever happened to the next picture
        keeper.finish()
    speed = detector.speed()
    print(f"Speed: {speed.inference_ms:.1f}/{speed.nms_ms:.1f}/{speed.total_ms:.1f} ms inference/NMS/total per image")
    print(f"{speed.images} pictures, {keeper.num_detections} detections. {keeper.written()}")
    refuse_unreadable(sources)


def refuse_unreadable(sources: Sequence[ImageFiles | VideoFrames]) -> None:
    """Let the run fail, now that all other images are done, if some could not be read."""
    problems = [problem for source in sources if not source.is_video for problem in source.problems]
    for problem in problems[1:]:
        print(f"passed over: {problem}")
    if problems:
        raise UserError(problems[0] + f" (and {len(problems) - 1} more, listed above)" * (len(problems) > 1))


def input_size(options: DetectOptions, loaded: LoadedNetwork) -> int:
    """Return the longer side of the network input, in pixels."""
    trained = tuple(loaded.options.get("img_size") or ())
    size = (*options.img_size, *trained[-1:], max(loaded.network.input_wh))[0]
    check_image_size(loaded.network, size)
    return size


def class_names(options: DetectOptions, loaded: LoadedNetwork, weights: str) -> tuple[str, ...]:
    """Return the names of the network's classes: of --names, of --data, of the weights, COCO's for 80, or numbers.

    Raises:
        UserError: the file of names has another number of them.
    """
    count = loaded.network.num_classes
    names, origin = loaded.names, weights
    if options.names:
        names, origin = read_names(find_file(options.names, "names file")), options.names
    elif options.data and (of_data := open_data(options.data).names):  # a folder has none
        names, origin = of_data, options.data
    elif not names and count == 80:
        names, origin = read_names(find_file("coco.names", "names file")), "coco.names"
    names = names or tuple(f"class {number}" for number in range(count))
    if len(names) != count:
        raise UserError(f"{origin}: has {len(names)} class names, but {weights} detects {count} classes")
    return names


def class_numbers(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the class indices that the user means by names or numbers.

    Raises:
        UserError: there is no such class.
    """
    numbers = []
    for text in wanted:
        if text in names:
            numbers.append(list(names).index(text))
        elif text.isdecimal() and int(text) < len(names):
            numbers.append(int(text))
        else:
            raise UserError(f"--classes {text}: not a class of this network{suggestion(text, names)}")
    return numbers


def choose_sources(options: DetectOptions) -> tuple[list[ImageFiles | VideoFrames], str]:
    """Return what to look at, and how to call it in the first line."""
    if options.source:
        return open_source(options.source), options.source
    data = options.data or "shapes.data"
    paths = open_split(data, "valid").image_paths[:WITHOUT_SOURCE]
    return [ImageFiles(tuple(paths))], f"the first {len(paths)} validation images of {data}"


def look_at(
    source: ImageFiles | VideoFrames,
    place: str,
    detector: Detector,
    size: int,
    stride: int,
    keeper: Keeper,
    window: Window,
) -> bool:
    """Detect in all pictures of one source; return False when the user closed the window or ended a live source."""
    interrupted = closed = False
    with Film(keeper.folder, keeper.film_stem(source) if source.is_video else "", source) as film:
        try:
            for number, picture in enumerate(source, start=1):
                found, milliseconds = detect_one(detector, picture, size, stride)
                total = f"/{len(source)}" if len(source) else ""
                print(f"{place} {number}{total} {picture.path}: {keeper.in_words(found)}Done. ({milliseconds:.1f} ms)")
                drawn = keeper.keep(picture, found, film, source.is_video, draw_anyway=window.is_open)
                closed = window.show(drawn, source.is_video)
                if closed:
                    break
        except KeyboardInterrupt:
            # The film so far is worth keeping; Ctrl-C is how a camera is ended.
            interrupted = True
    if interrupted and not source.is_live:
        raise KeyboardInterrupt
    return not closed and not interrupted


def detect_one(detector: Detector, picture: Picture, size: int, stride: int) -> tuple[Detections, float]:
    """Return what is found in one picture and the milliseconds of inference and NMS."""
    height, width = picture.image_rgb.shape[:2]
    net_hw = smallest_input(np.array([[width, height]]), (size, size), stride)
    meta = letterbox_meta(0, picture.path, (width, height), net_hw)
    before = detector.seconds_inference + detector.seconds_nms
    (found,) = detector(letterbox_images([picture.image_rgb], [meta], net_hw), [meta])
    return found.cpu(), (detector.seconds_inference + detector.seconds_nms - before) * 1e3


class Keeper:
    """Keeps what the user wants kept: drawn images or a film, YOLO label files, COCO results."""

    def __init__(self, folder: Path, options: DetectOptions, names: Sequence[str]) -> None:
        self.folder = folder
        self.options = options
        self.names = names
        self.category_ids = category_ids_for(names)
        self.results: list[dict] = []
        self.num_detections = 0
        self._pictures: set[str] = set()  # stems of what was written
        self._films: set[str] = set()

    def keep(self, picture: Picture, found: Detections, film: Film, is_video: bool, draw_anyway: bool) -> np.ndarray:
        """Keep one picture's detections; return the picture, drawn on where it is kept or shown, as BGR."""
        self.num_detections += len(found)
        stem = f"{film.stem}_{picture.frame}" if is_video else Path(picture.path).stem
        stem = free_stem(stem, self._pictures)
        image = cv2.cvtColor(picture.image_rgb, cv2.COLOR_RGB2BGR)
        if not self.options.nosave or draw_anyway:
            draw_detections(image, found, self.names)
        if not self.options.nosave:
            if is_video:
                film.add(image)
            else:
                suffix = Path(picture.path).suffix
                write_image(self.folder / f"{stem}{suffix if suffix.lower() in WRITABLE else '.jpg'}", image)
        if self.options.save_txt:
            write_text_atomically(self.folder / "labels" / f"{stem}.txt", self._label_lines(found, image))
        if self.options.save_json:
            self._add_results(picture, found, image, is_video)
        return image

    def finish(self) -> None:
        """Write what is written once for all pictures."""
        if self.options.save_json:
            write_json_atomically(self.folder / "detections.json", self.results, indent=None)

    def written(self) -> str:
        """Say what lies where."""
        files = sum(1 for path in self.folder.rglob("*") if path.is_file())
        return f"{files} files in {self.folder}" if files else "Nothing was to be kept"

    def in_words(self, found: Detections) -> str:
        """Return ``2 persons, 1 dog, `` for the line of a picture."""
        counts = Counter(found.labels.tolist())
        return "".join(f"{n} {self.names[label]}{'s' * (n > 1)}, " for label, n in sorted(counts.items()))

    def film_stem(self, source: VideoFrames) -> str:
        """Return the file name, without suffix, of a video's film."""
        return free_stem(safe_stem(source.name), self._films)

    def _label_lines(self, found: Detections, image: np.ndarray) -> str:
        height, width = image.shape[:2]
        lines = []
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            values = (*values, score) if self.options.save_conf else values
            lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values) + "\n")
        return "".join(lines)

    def _add_results(self, picture: Picture, found: Detections, image: np.ndarray, is_video: bool) -> None:
        stem = Path(picture.path).stem
        height, width = image.shape[:2]
        meta = letterbox_meta(0, picture.path, (width, height), (height, width))
        for result in coco_results(found, meta, self.category_ids):
            result["image_id"] = int(stem) if stem.isdecimal() and not is_video else stem
            result["file_name"] = Path(picture.path).name
            if is_video:
                result["frame"] = picture.frame
            self.results.append(result)


class Film:
    """The drawn video of one video source: opened with its first picture, whole or absent on the disk."""

    def __init__(self, folder: Path, stem: str, source: ImageFiles | VideoFrames) -> None:
        self.folder = folder
        self.stem = stem
        self.source = source
        self._stack = ExitStack()
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def add(self, image: np.ndarray) -> None:
        """Append a picture.

        Raises:
            UserError: OpenCV has no encoder here.
        """
        if self._writer is None:
            path = self._stack.enter_context(atomic_path(self.folder / f"{self.stem}.mp4"))
            height, width = image.shape[:2]
            self._writer = cv2.VideoWriter(
                str(path), cv2.VideoWriter.fourcc(*"mp4v"), self.source.fps or 30.0, (width, height)
            )
            self._stack.callback(self._writer.release)  # before the file gets its name
            if not self._writer.isOpened():
                raise UserError(
                    f"{path}: this OpenCV cannot write mp4 videos; use --nosave with --save-txt or --save-json"
                )
        self._writer.write(image)


def free_stem(wanted: str, taken: set[str]) -> str:
    """Return a file name without suffix that is not taken, not even where a system ignores case; take it."""
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


class Window:
    """A window where one can be opened; says once why not, and goes on without."""

    def __init__(self, wanted: bool) -> None:
        reason = why_no_window() if wanted else ""
        self.is_open = wanted and not reason
        if reason:
            print(f"--view-img: no window, {reason}; going on without")

    def show(self, image: np.ndarray, is_video: bool) -> bool:
        """Show a picture, an image until a key is pressed; return whether the user wants to end."""
        if not self.is_open:
            return False
        cv2.imshow("detect.py", image)
        return cv2.waitKey(1 if is_video else 0) & 0xFF in (ord("q"), 27)


def why_no_window() -> str:
    """Return why no window can be opened, "" if it can. To try would abort the process: Qt's error is fatal."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "this machine has no display"
    gui = [line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")]
    return "this OpenCV is the headless one" if gui and "NONE" in gui[0] else ""


if __name__ == "__main__":
    run_command(main)
