"""Evaluate a detector: ``python test.py --weights runs/train/exp/best.pt --data coco2017.data --img-size 608``.

Without arguments it takes the newest run's ``best.pt`` with the cfg, the data and the image size of its training.
"""

from __future__ import annotations

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from analysis.diagnosis import DiagnosisOptions, refuse_what_is_missing
from analysis.error_pictures import ImageSource
from analysis.evaluation_report import EvaluationFindings, report_evaluation
from analysis.points_lost import cfg_priors, network_priors
from data.image_checks import ImageCheckOptions, bad_images
from data.labels.annotations import Annotations
from data.loader import Batches, LoaderSettings
from data.splits import split_shown
from engine.evaluate import collect_results, dropped_by_limit, dropped_line, warmed_up, without_unread
from engine.evaluate_results import ResultsComparison, ResultsOptions, compare_results, ground_truth_of, print_tables
from engine.evaluate_shapes import evaluate_shapes, truth_with_shapes, write_shape_results
from engine.network_input import refuse_size, resize_option, size_option
from engine.resolve import Resolved, open_data_of, resolve, wanted_by
from engine.run_folder import new_run_folder, shared_run_folder
from engine.speed import SpeedOptions, run_exported, run_speed, speed_line, write_speed
from engine.study import StudyOptions, checked_study, run_study, study_sizes, write_study
from evaluation.coco import BACKENDS, Metrics, evaluate_coco, has_objects
from evaluation.results import clean_ground_truth, of_kind
from models.checkpoints.load import LoadedNetwork
from models.darknet.scaled_decode import DECODES
from models.detector import Detector, Dropped
from models.nms_variants import NmsOptions
from models.views import ViewOptions, build_detector
from utils import distributed
from utils.config import flat_dict, option, parse_options
from utils.devices import choose_device, describe_device, use_threads
from utils.draw import draw_predictions
from utils.files import write_json_atomically
from utils.structures import Batch, Detections
from utils.words import how_many

RUNS = "runs/test"
SPLITS = {  # --task -> the key of the .data file
    "val": "valid",
    "test": "test",
    "train": "train",
    "speed": "valid",
    "study": "valid",
}
LOW_CONFIDENCE = 0.01  # from here on up --conf-thres cuts the precision-recall curves short
PICTURED_BATCHES = 3  # that are drawn, the first ones


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, on what, and how."""

    weights: str = option("", "checkpoint, Darknet .weights, yolov5 .pt or exported; default: the newest run's best.pt")
    cfg: str = option("", "network, looked up here and in cfg/; default: the one that belongs to the weights")
    strict: bool = option(False, "refuse a cfg with keys, lines or names that Darknet does not know")
    decode: str = option("cfg", "boxes as the cfg says, or as PyTorch_YOLOv4, ScaledYOLOv4 and yolor compute", DECODES)
    data: str = option("", "data set, looked up here and in cfg/; default: the one of the training")
    task: str = option("val", "which split; or the time per image only, or several sizes", tuple(SPLITS))
    batch_size: int = option(16, "images per batch, in each process")
    img_size: tuple[int, ...] = size_option("that of the training, else the cfg's")
    conf_thres: float = option(0.001, "minimum objectness x class probability of a detection")
    iou_thres: float = option(0.6, "NMS drops a box that overlaps a stronger one of its class by a higher IoU")
    max_det: int = option(300, "detections per image")
    save_json: bool = option(False, "write detections.json and ground_truth.json, in COCO's format")
    verbose: bool = option(False, "one line per class")
    val_fraction: float = option(0.0, "share of the training images that is held out; default: the training's")
    single_cls: bool = option(False, "treat all objects and detections as one class")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    half: bool = option(False, "float16 on CUDA, bfloat16 on a CPU that has it")
    rect: bool = option(True, "images of similar shape in batches as small as holds them; else all have the full size")
    resize: str = resize_option()
    clip: bool = option(True, "clip boxes to the image; those of Darknet reach over its border: --no-clip")
    workers: int = option(2, "processes that load images")
    evaluator: str = option("auto", "hotcoco (fast) or pycocotools, the same numbers", ("auto", *BACKENDS))
    project: str = option(RUNS, "folder of results")
    name: str = option("exp", "results are written to <project>/<name>")
    exist_ok: bool = option(False, "write into <project>/<name> even if it is there, instead of <name>2, <name>3, …")

    def __post_init__(self) -> None:
        if not 0 <= self.conf_thres <= 1 or not 0 <= self.iou_thres <= 1:
            raise ValueError("--conf-thres and --iou-thres must lie between 0 and 1")
        if self.batch_size < 1 or self.max_det < 1 or self.workers < 0:
            raise ValueError("--batch-size and --max-det must be at least 1, --workers not negative")
        refuse_size(self.img_size, "--img-size")


@distributed.joined()
def main() -> None:
    """Evaluate one detector on one split; leave metrics.json and pictures in runs/test/<name>."""
    groups = (EvaluationOptions, ImageCheckOptions, ResultsOptions, DiagnosisOptions, NmsOptions, ViewOptions,
              SpeedOptions, StudyOptions)  # fmt: skip
    options, checks, files, diagnosis, nms, views, measured, study = parse_options(__doc__.splitlines()[0], *groups)
    unused = {"--img-size": options.img_size, "--results": files.results, "--save-json": options.save_json}
    beside = checked_study(study, options.task == "study", unused)
    measured.check_task(options.task, options.device)
    if files.results and not options.weights:
        return evaluate_files(options, files, diagnosis)
    if files.iou_type != "bbox":
        raise UserError(f"--iou-type {files.iou_type}: leave out --weights; all that a network finds is evaluated")
    device = choose_device("cpu" if measured.runtimes else options.device)
    use_threads(measured.threads or None)
    distributed.start(device)

    resolved = resolve(wanted_by(options))
    options = replace(  # so that metrics.json says what was evaluated where the command line left it open
        options,
        weights=resolved.weights,
        data=resolved.data,
        img_size=resolved.input_wh,
        resize=resolved.resize.kind,
        single_cls=resolved.single_cls,
        val_fraction=resolved.val_fraction,
        rect=options.rect
        and resolved.resize.kind == "letterbox"
        and not resolved.loaded.network.fixed_size
        and not measured.runtimes,
    )
    resolved, dataset = open_data_of(resolved, SPLITS[options.task], checks, resolved.loaded.network.finds)
    loaded = resolved.loaded
    detector = make_detector(options, nms, views, loaded, device)
    announce(options, resolved, dataset, detector)
    settings = loader_settings(options, checks, loaded, device)
    recorded = flat_dict(options, nms, views)
    if options.task == "study":
        name, sides = Path(options.weights).name, study_sizes(study, loaded.network)
        folder = shared_run_folder(options.project, options.name, options.exist_ok)
        rows = run_study(name, detector, sides, dataset, settings, options.single_cls, options.evaluator)
        write_study(folder, rows, beside, {"device": describe_device(detector.device), "options": recorded})
    elif options.task == "speed":
        sizes = measured.batch_sizes or (options.batch_size,)
        rows_of_speed = run_speed(detector, dataset, settings, sizes)
        new_detector = partial(make_detector, options, nms, views, device=device)
        rows_of_speed += run_exported(resolved, new_detector, dataset, settings, sizes, measured.runtimes)
        if measured.writes_table:
            folder = shared_run_folder(options.project, options.name, options.exist_ok)
            write_speed(folder, rows_of_speed, {"device": describe_device(detector.device), "options": recorded})
    else:
        with warmed_up(detector, dataset, settings) as batches:
            folder = shared_run_folder(options.project, options.name, options.exist_ok)
            pictures = BatchPictures(folder, loaded.names or dataset.names)
            evaluate_split(options, recorded, files, diagnosis, dataset, detector, batches, pictures)
    distributed.stop()


def evaluate_split(
    options: EvaluationOptions,
    recorded: dict[str, Any],
    files: ResultsOptions,
    diagnosis: DiagnosisOptions,
    dataset: Annotations,
    detector: Detector,
    batches: Batches,
    pictures: BatchPictures,
) -> None:
    """Detect in all images and evaluate; print and write the numbers, with the options as they are ``recorded``."""
    folder = pictures.folder
    all_truth = clean_ground_truth(dataset.to_coco())
    if distributed.is_main() and not has_objects(all_truth):
        where = f"{options.data} ({SPLITS[options.task]})"
        print(f"{where}: not a single object in {how_many(len(dataset), 'image')}; AP is undefined")
    found = collect_results(detector, batches, all_truth, options.single_cls, pictures.draw)
    ground_truth, found = without_unread(all_truth, found, batches)
    results = of_kind(found, "bbox")
    dropped = dropped_by_limit(detector)
    if not distributed.is_main():
        return
    left_out = len(bad_images(dataset)) + len(dataset) - len(ground_truth["images"])
    metrics = evaluate_coco(ground_truth, results, options.evaluator)
    print_metrics(metrics, options.verbose, left_out)
    whole_truth = truth_with_shapes(ground_truth, dataset)
    shapes = evaluate_shapes(detector.network, dataset, whole_truth, found)
    if line := dropped_line(dropped, options.max_det, len(ground_truth["images"])):
        print(line)
    speed = detector.speed()
    width, height = options.img_size
    print(speed_line(speed, (width, height), options.batch_size))
    truth = all_truth if files.results else ground_truth  # files have detections in images that cannot be read, too
    compared = compare(options, files, diagnosis, truth, results, folder)
    priors = network_priors(detector.network, (width, height), options.resize) if diagnosis.report else None
    columns = {Path(options.weights).stem: results}
    evaluated = EvaluationFindings.of(truth, columns, compared, ImageSource.of(dataset), priors)
    reported = report_evaluation(diagnosis, evaluated, folder)
    content = contents(metrics, left_out, dropped, recorded, compared) | shapes | reported
    write_json_atomically(folder / "metrics.json", content)
    write_json_atomically(folder / "speed.json", {**asdict(speed), "total_ms": speed.total_ms})
    if options.save_json:
        write_json_atomically(folder / "detections.json", results, indent=None)
        write_json_atomically(folder / "ground_truth.json", whole_truth, indent=None)
        write_shape_results(folder, detector.network, found)
    print(f"Written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def make_detector(
    options: EvaluationOptions, nms: NmsOptions, views: ViewOptions, loaded: LoadedNetwork, device: torch.device
) -> Detector:
    """Return the network with its thresholds on its device."""
    return build_detector(
        loaded.network.to(device),
        replace(nms, agnostic_nms=nms.agnostic_nms or options.single_cls),
        views,
        confidence=options.conf_thres,
        iou=options.iou_thres,
        max_detections=options.max_det,
        half=options.half,
        clip=options.clip,
    )


def evaluate_files(options: EvaluationOptions, files: ResultsOptions, diagnosis: DiagnosisOptions) -> None:
    """Evaluate files of results without a network."""
    if not options.data:
        raise UserError("--results needs the ground truth: name it with --data")
    refuse_what_is_missing(diagnosis, files.iou_type, options.cfg)
    if not distributed.is_main():
        return
    truth, annotations = ground_truth_of(options.data, SPLITS[options.task], options.val_fraction, files.iou_type)
    priors = None
    if diagnosis.report:
        priors = cfg_priors(options.cfg, len(annotations.names), options.img_size, options.resize)
    compared = compare_results(files, truth)
    folder = new_run_folder(options.project, options.name, options.exist_ok)
    print_tables(compared, folder)
    evaluated = EvaluationFindings.of(truth, {}, compared, ImageSource.of(annotations), priors)
    content = compared.to_dict() | report_evaluation(diagnosis, evaluated, folder)
    write_json_atomically(folder / "metrics.json", {**content, "options": asdict(options) | asdict(files)})
    print(f"Written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def compare(
    options: EvaluationOptions,
    files: ResultsOptions,
    diagnosis: DiagnosisOptions,
    truth: dict,
    results: list[dict],
    folder: Path,
) -> ResultsComparison | None:
    """Compare what the network found with files of results, or say how sure it is; None where neither is asked for."""
    if not files.is_asked() and not diagnosis.report:
        return None
    compared = compare_results(files, truth, {Path(options.weights).stem: results})
    print_tables(compared, folder)
    return compared


def loader_settings(
    options: EvaluationOptions, checks: ImageCheckOptions, loaded: LoadedNetwork, device: torch.device
) -> LoaderSettings:
    """Return how the batches are made."""
    width, height = options.img_size
    return LoaderSettings(
        image_hw=(height, width),
        batch_size=options.batch_size,  # and not a share of it: the batches of one process, dealt out
        stride=1 if loaded.network.fixed_size else loaded.network.max_stride,
        rect=options.rect,
        resize=options.resize,
        workers=options.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=device.type == "cuda",
        max_bad=checks.max_bad,
    )


def announce(options: EvaluationOptions, resolved: Resolved, dataset: Annotations, detector: Detector) -> None:
    """Say in one line what was chosen, and how images get into the network input and why so."""
    if distributed.is_main():
        batches = ", rectangular batches" if options.rect else ""
        split = split_shown(options.data, SPLITS[options.task], options.val_fraction)
        print(
            f"test: {options.weights} ({resolved.loaded.network.cfg_path}) on {options.data} "
            f"({split}), {how_many(len(dataset), 'image')}, {resolved.resize.to(resolved.input_wh)}{batches} "
            f"({describe_device(detector.device)})"
        )
        if options.task != "speed" and options.conf_thres > LOW_CONFIDENCE:
            print(
                f"WARNING: --conf-thres {options.conf_thres:g} lowers mAP, which needs weak detections: 0.001 is usual"
            )
        if detector.half_ignored:
            print(detector.half_ignored)


class BatchPictures:
    """Draws the first batches with their objects and what was resolved."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self.names = names
        self.number = 0

    def draw(self, batch: Batch, found: Sequence[Detections]) -> None:
        """Draw one more batch, unless there are enough."""
        if self.number < PICTURED_BATCHES:
            draw_predictions(self.folder / f"val_batch{self.number}.jpg", batch, found, self.names)
        self.number += 1


def table(metrics: Metrics, verbose: bool) -> str:
    """Return a table in the layout of ultralytics/yolov5: a line for all classes, and one for each with ``verbose``."""
    width = max([20, *map(len, metrics.names)]) if verbose else 20
    head = ("Images", "Targets", "P", "R", "mAP@0.5", "mAP@0.5:0.95")
    lines = [f"{'Class':>{width}}" + "".join(f"{title:>14}" for title in head)]
    of_all = (metrics.precision, metrics.recall, metrics.ap50, metrics.ap)
    rows = [("all", metrics.num_images, metrics.num_instances, *of_all)]
    if verbose:
        columns = (metrics.names, metrics.class_images, metrics.class_instances, metrics.class_precision)
        rows += zip(*columns, metrics.class_recall, metrics.class_ap50, metrics.class_ap, strict=True)
    for name, images, targets, *numbers in rows:
        lines.append(
            f"{name:>{width}}{images:>14}{targets:>14}" + "".join(f"{defined(number):>14}" for number in numbers)
        )
    return "\n".join(lines)


def print_metrics(metrics: Metrics, verbose: bool, left_out: int) -> None:
    """Print the table, COCO's twelve numbers where they are defined and, where images are missing, how many."""
    print(table(metrics, verbose))
    if metrics.num_instances:
        print(f"P and R are those at confidence {metrics.best_f1_confidence:.3f}, where the mean F1 is highest")
        print(metrics.summary())
    if left_out:
        print(
            f"WARNING: without {how_many(left_out, 'image')} that cannot be used; these are the numbers of the others"
        )


def defined(number: float) -> str:
    """Return four digits of a metric, "-" where it is undefined."""
    return "-" if number < 0 else f"{number:.4g}"


def contents(
    metrics: Metrics, left_out: int, dropped: Dropped, options: dict[str, Any], compared: ResultsComparison | None
) -> dict[str, Any]:
    """Return what metrics.json holds: all numbers, what was left out, other columns, the options; and no times."""
    content = {
        **metrics.to_dict(),
        "images_left_out": left_out,
        "max_det_dropped": asdict(dropped),
        "options": options,
    }
    return content if compared is None else content | {"comparison": compared.to_dict()}


if __name__ == "__main__":
    run_command(main)
