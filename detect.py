"""Detect and draw: ``python detect.py --source photo.jpg --weights runs/train/exp/best.pt``.

The source is an image, a folder, a glob, a list of images, a video, a camera (its number), a stream (its URL) or a list
of cameras and streams.
Without arguments it takes the newest run's ``best.pt`` and the validation images of the data that it was trained on.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from data.image_checks import ImageCheckOptions
from data.sources import ImageFiles, Source, open_source
from data.splits import open_split
from data.video import Picture, VideoOptions
from engine.detect_loop import Looking, look_at_all
from engine.evaluate import dropped_line
from engine.network_input import refuse_size, resize_option, size_option
from engine.predictor import Predictor
from engine.resolve import Resolved, name_classes, resolve, wanted_by
from engine.run_folder import new_run_folder
from engine.speed import faster_road
from engine.tiles import TileOptions, detect_in_tiles
from engine.tracking import tracker_maker
from engine.window import PictureWindow
from engine.writers import KeepOptions, open_writer
from models.darknet.scaled_decode import DECODES
from models.detector import Detector
from models.nms_variants import NmsOptions
from models.views import ViewOptions, build_detector
from utils.class_names import class_numbers
from utils.config import option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.files import printable
from utils.structures import Detections

RUNS = "runs/detect"
WITHOUT_SOURCE = 100  # images of the data set at most, where no --source is given


@dataclass(frozen=True)
class DetectOptions:
    """What to look at, with which network, and what to keep."""

    source: str = option("", "image, folder, glob, list, video, camera or stream; default: validation images")
    weights: str = option("", "checkpoint, Darknet .weights, yolov5 .pt or exported; default: the newest run's best.pt")
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
    batch_size: int = option(1, "images, frames of a video or tiles that the network sees at once")
    track: bool = option(False, "give the objects of videos numbers that they keep from frame to frame")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    half: bool = option(False, "float16 on CUDA, bfloat16 on a CPU that has it")
    ext_output: bool = option(False, "print the box of each detection, as Darknet's -ext_output")
    view_img: bool = option(False, "show the pictures in a window, where there is a display; q ends")
    project: str = option(RUNS, "folder of results")
    name: str = option("exp", "results are written to <project>/<name>")
    exist_ok: bool = option(False, "write into <project>/<name> even if it is there, instead of <name>2, <name>3, …")

    def __post_init__(self) -> None:
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise ValueError("--conf-thres and --iou-thres must lie between 0 and 1")
        if self.max_det < 1:
            raise ValueError("--max-det must be at least 1")
        if self.batch_size < 1:
            raise ValueError("--batch-size must be at least 1")
        refuse_size(self.img_size, "--img-size")


GROUPS = (DetectOptions, NmsOptions, ViewOptions, VideoOptions, TileOptions, KeepOptions)


def main() -> None:
    """Detect in every picture of the source; leave drawn pictures, labels and JSON in runs/detect/<name>."""
    options, nms, views, video, tiles, kept = parse_options(__doc__.splitlines()[0], *GROUPS)
    tiles.check_nms(nms.nms)
    device = choose_device(options.device)
    use_threads()

    resolved = name_classes(resolve(wanted_by(options), needs_data=False), options.names, options.data)
    loaded = resolved.loaded
    tiles.check_finds(loaded.network.finds)
    sources, shown = choose_sources(options.source, resolved, video)
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
    new_tracker = tracker_maker(options.conf_thres) if options.track else None
    folder = new_run_folder(options.project, options.name, options.exist_ok)
    print(
        f"detect: {resolved.weights} ({loaded.network.cfg_path}) on {shown}, {resolved.resize.to(resolved.input_wh)}, "
        f"confidence {options.conf_thres:g} -> {folder} ({describe_device(detector.device)})"
    )
    say_what_is_ignored(options, detector, sources)
    looking = Looking(
        detect=lambda pictures: detect_batch(detector, pictures, resolved, tiles, options.batch_size),
        writer=open_writer(folder, loaded.names, kept, tracks=options.track),
        window=PictureWindow(options.view_img),
        style=kept.style,
        batch_size=options.batch_size,
        coordinates=options.ext_output,
        new_tracker=new_tracker,
    )
    writer = looking.writer
    with closing(writer):  # what was found is kept, whatever happens to the next picture
        look_at_all(sources, looking)
    speed, times = detector.speed(), detector.images_seen / max(1, writer.num_pictures)  # several with --tile
    milliseconds = "/".join(f"{times * ms:.1f}" for ms in (speed.inference_ms, speed.nms_ms, speed.total_ms))
    print(f"Speed: {milliseconds} ms inference/NMS/total per image")
    if advice := faster_road(detector):
        print(advice)
    print(f"{writer.num_pictures} pictures, {writer.num_detections} detections. {writer.written()}")
    if line := dropped_line(detector.dropped, options.max_det, speed.images, "view" if tiles.tile else "picture"):
        print(line)
    refuse_unreadable(sources)


def say_what_is_ignored(options: DetectOptions, detector: Detector, sources: Sequence[Source]) -> None:
    """Print a line for each option that changes nothing here."""
    if detector.half_ignored:
        print(detector.half_ignored)
    if options.track and not all(source.videos for source in sources):
        print("--track: images are not tracked, only videos and streams are")


def choose_sources(source: str, resolved: Resolved, video: VideoOptions) -> tuple[list[Source], str]:
    """Return what to look at, and its name for the first line; without a source, validation images of the data set."""
    if source:
        return open_source(source, video), source
    data = resolved.data or "shapes.data"
    paths = open_split(
        data, "valid", val_fraction=resolved.val_fraction, checks=ImageCheckOptions(max_bad=1)
    ).image_paths[:WITHOUT_SOURCE]
    return [ImageFiles(tuple(paths))], f"the first {len(paths)} validation images of {data}"


def detect_batch(
    detector: Detector, pictures: Sequence[Picture], resolved: Resolved, tiles: TileOptions, batch_size: int
) -> tuple[list[Detections], float]:
    """Return what is found in each picture, and the milliseconds of inference and NMS of one."""
    before = detector.seconds_inference + detector.seconds_nms
    images = [picture.image_bgr for picture in pictures]
    look = Predictor(detector, resolved).predict_batch
    if tiles.tile:
        found = [detect_in_tiles(look, image, tiles, detector.nms_rule, batch_size) for image in images]
    else:
        found = look(images)
    seconds = detector.seconds_inference + detector.seconds_nms - before
    return found, seconds / len(pictures) * 1e3


def refuse_unreadable(sources: Sequence[Source]) -> None:
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
