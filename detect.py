"""Detect and draw: ``python detect.py --source photo.jpg --weights runs/train/exp/best.pt``.

The source is an image, a folder, a glob, a list of images, a video, a camera (its number) or a stream (its URL).
Without arguments it takes the newest run's ``best.pt`` and the validation images of the data that it was trained on.
"""

from __future__ import annotations

from utils.errors import UserError, run_command, suggestion  # first: for Ctrl-C during the imports below

# isort: split
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from data.image_checks import ImageCheckOptions
from data.letterbox import RESIZES, place_images, smallest_input
from data.sources import ImageFiles, Picture, VideoFrames, open_source
from data.splits import open_split
from engine.evaluate import dropped_line
from engine.network_input import refuse_size, resize_option, size_option
from engine.resolve import Resolved, Wanted, name_classes, resolve
from engine.run_folder import new_run_folder
from engine.writers import DetectionWriter, Mp4Writer
from models.darknet.scaled_decode import DECODES
from models.detector import Detector
from models.nms_variants import NmsOptions
from models.views import ViewOptions, build_detector
from utils.config import option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.draw import draw_detections
from utils.files import printable
from utils.structures import Detections
from utils.words import how_many

RUNS = "runs/detect"
WITHOUT_SOURCE = 100  # images of the data set at most, where no --source is given


@dataclass(frozen=True)
class DetectOptions:
    """What to look at, with which network, and what to keep."""

    source: str = option("", "image, folder, glob, list, video, camera number or stream; default: validation images")
    weights: str = option("", "checkpoint, Darknet .weights or official yolov5 .pt; default: the newest run's best.pt")
    cfg: str = option("", "network, looked up here and in cfg/; default: the one that belongs to the weights")
    strict: bool = option(False, "refuse a cfg with keys, lines or names that Darknet does not know")
    decode: str = option("cfg", "boxes as the cfg says, or as PyTorch_YOLOv4, ScaledYOLOv4 and yolor compute", DECODES)
    data: str = option("", "data set whose class names are used; default: the one of the training")
    names: str = option("", "file of class names, one per line")
    img_size: tuple[int, ...] = size_option("that of the training, else the cfg's")
    resize: str = resize_option()
    conf_thres: float = option(0.3, "minimum objectness x class probability of a detection")
    iou_thres: float = option(0.45, "NMS drops a box that overlaps a stronger one of its class by a higher IoU")
    max_det: int = option(300, "detections per image")
    classes: tuple[str, ...] = option((), "only these classes, by name or number")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    half: bool = option(False, "float16, on CUDA")
    save_txt: bool = option(False, "write labels/*.txt in YOLO's format")
    save_conf: bool = option(False, "with the score as sixth number of each line of --save-txt")
    save_json: bool = option(False, "write detections.json, COCO results with the file's name")
    nosave: bool = option(False, "draw nothing")
    view_img: bool = option(False, "show the pictures in a window, where there is a display; q ends")
    project: str = option(RUNS, "folder of results")
    name: str = option("exp", "results are written to <project>/<name>")
    exist_ok: bool = option(False, "write into <project>/<name> even if it is there, instead of <name>2, <name>3, …")

    def __post_init__(self) -> None:
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise ValueError("--conf-thres and --iou-thres must lie between 0 and 1")
        if self.max_det < 1:
            raise ValueError("--max-det must be at least 1")
        refuse_size(self.img_size, "--img-size")


def main() -> None:
    """Detect in every picture of the source; leave drawn pictures, labels and JSON in runs/detect/<name>."""
    options, nms, views = parse_options(__doc__.splitlines()[0], DetectOptions, NmsOptions, ViewOptions)
    device = choose_device(options.device)
    use_threads()

    wanted = Wanted(
        options.weights,
        options.cfg,
        options.data,
        options.img_size,
        resize=options.resize,
        strict=options.strict,
        decode=options.decode,
    )
    resolved = name_classes(resolve(wanted, needs_data=False), options.names, options.data)
    loaded = resolved.loaded
    sources, shown = choose_sources(options.source, resolved)
    detector = build_detector(
        loaded.network.to(device),
        nms,
        views,
        confidence=options.conf_thres,
        iou=options.iou_thres,
        max_detections=options.max_det,
        half=options.half,
        classes=class_numbers(options.classes, loaded.names),
    )
    folder = new_run_folder(options.project, options.name, options.exist_ok)
    print(
        f"detect: {resolved.weights} ({loaded.network.cfg_path}) on {shown}, {resolved.resize.to(resolved.input_wh)}, "
        f"confidence {options.conf_thres:g} -> {folder} ({describe_device(device)})"
    )
    if options.half and device.type != "cuda":
        print("--half means nothing on this device: computing in float32")

    window = Window(options.view_img)
    writer = DetectionWriter(
        folder,
        loaded.names,
        pictures=not options.nosave,
        labels=options.save_txt,
        scores=options.save_conf,
        coco=options.save_json,
    )
    with closing(writer):  # what was found is kept, whatever happens to the next picture
        for number, source in enumerate(sources, start=1):
            place = f"video {number}/{len(sources)}" if source.is_video else "image"
            if not look_at(source, place, detector, resolved, writer, window):
                break
    speed = detector.speed()
    print(f"Speed: {speed.inference_ms:.1f}/{speed.nms_ms:.1f}/{speed.total_ms:.1f} ms inference/NMS/total per image")
    print(f"{speed.images} pictures, {writer.num_detections} detections. {writer.written()}")
    if line := dropped_line(detector.dropped, options.max_det, speed.images):
        print(line)
    refuse_unreadable(sources)


def class_numbers(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the class indices that the user means by names or numbers.

    Raises:
        UserError: there is no such class.
    """
    numbers = []
    for text in wanted:
        if text in names:
            numbers.append(list(names).index(text))
        elif text.isdecimal() and len(text) < 10 and int(text) < len(names):
            numbers.append(int(text))
        else:
            raise UserError(f"--classes {text}: not a class of this network{suggestion(text, names)}")
    return numbers


def choose_sources(source: str, resolved: Resolved) -> tuple[list[ImageFiles | VideoFrames], str]:
    """Return what to look at, and its name for the first line; without a source, validation images of the data set."""
    if source:
        return open_source(source), source
    data = resolved.data or "shapes.data"
    paths = open_split(
        data, "valid", val_fraction=resolved.val_fraction, checks=ImageCheckOptions(max_bad=1)
    ).image_paths[:WITHOUT_SOURCE]
    return [ImageFiles(tuple(paths))], f"the first {len(paths)} validation images of {data}"


class Window:
    """A window where one is wanted and can be opened; says once why it cannot."""

    def __init__(self, wanted: bool) -> None:
        reason = why_no_window() if wanted else ""
        self.is_open = wanted and not reason
        if reason:
            print(f"--view-img: no window, {reason}; going on without")

    def show(self, image_bgr: np.ndarray | None, is_video: bool) -> bool:
        """Show a picture, an image until a key is pressed; return whether the user wants to end."""
        if not self.is_open or image_bgr is None:
            return False
        cv2.imshow("detect.py", image_bgr)
        return cv2.waitKey(1 if is_video else 0) & 0xFF in (ord("q"), 27)


def why_no_window() -> str:
    """Return why no window can be opened, "" where one can; trying would end the process, for Qt's error is fatal."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "this machine has no display"
    gui = [line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")]
    return "this OpenCV is the headless one" if gui and "NONE" in gui[0] else ""


def look_at(
    source: ImageFiles | VideoFrames,
    place: str,
    detector: Detector,
    resolved: Resolved,
    writer: DetectionWriter,
    window: Window,
) -> bool:
    """Detect in all pictures of one source; return False when the user closed the window or ended a live source."""
    interrupted = closed = False
    with video_writer(source, writer) as video:
        try:
            for number, picture in enumerate(source, start=1):
                found, milliseconds = detect_one(detector, picture, resolved)
                total = f"/{len(source)}" if len(source) else ""
                words = in_words(found, writer.names)
                print(f"{place} {number}{total} {printable(picture.path)}: {words}Done. ({milliseconds:.1f} ms)")
                drawn = draw(picture, found, writer.names) if writer.pictures or window.is_open else None
                writer.write(picture, found, drawn, video)
                closed = window.show(drawn, source.is_video)
                if closed:
                    break
        except KeyboardInterrupt:
            # The video so far is kept; Ctrl-C is the way to end a camera.
            interrupted = True
    if interrupted and not source.is_live:
        raise KeyboardInterrupt
    return not closed and not interrupted


def video_writer(source: ImageFiles | VideoFrames, writer: DetectionWriter) -> AbstractContextManager[Mp4Writer | None]:
    """Return what takes the drawn frames of a video; images need none."""
    return Mp4Writer(writer.video_path(source.name), source.fps) if isinstance(source, VideoFrames) else nullcontext()


def detect_one(detector: Detector, picture: Picture, resolved: Resolved) -> tuple[Detections, float]:
    """Return what is found in one picture and the milliseconds of inference and NMS."""
    height, width = picture.image_bgr.shape[:2]
    network, resize = detector.network, resolved.resize.kind
    net_hw = resolved.input_wh[::-1]
    if resize == "letterbox" and not network.fixed_size:
        net_hw = smallest_input(np.array([[width, height]]), net_hw, network.max_stride)
    meta = RESIZES[resize](0, picture.path, (width, height), net_hw)
    before = detector.seconds_inference + detector.seconds_nms
    images = place_images([picture.image_bgr], [meta], net_hw, resize).flip(1)  # B 3 H W, as RGB
    (found,) = detector(images.contiguous(memory_format=torch.channels_last), [meta])
    return found.cpu(), (detector.seconds_inference + detector.seconds_nms - before) * 1e3


def in_words(found: Detections, names: Sequence[str]) -> str:
    """Return the counts of the classes for the line of a picture, as ``2 persons, 1 dog, ``."""
    counts = Counter(found.labels.tolist())
    return "".join(f"{how_many(n, names[label])}, " for label, n in sorted(counts.items()))


def draw(picture: Picture, found: Detections, names: Sequence[str]) -> np.ndarray:
    """Draw the detections into the picture and return it, [h w 3] uint8, BGR."""
    draw_detections(picture.image_bgr, found, names)
    return picture.image_bgr


def refuse_unreadable(sources: Sequence[ImageFiles | VideoFrames]) -> None:
    """Let the run fail at its end if some images could not be read; all others are done by then.

    Raises:
        UserError: names the first; the others are printed.
    """
    problems = [problem for source in sources if isinstance(source, ImageFiles) for problem in source.problems]
    for problem in problems[1:]:
        print(f"passed over: {printable(problem)}")
    if problems:
        others = f" (and {len(problems) - 1} more, listed above)" if len(problems) > 1 else ""
        raise UserError(printable(problems[0]) + others)


if __name__ == "__main__":
    run_command(main)
