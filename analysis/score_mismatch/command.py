"""``--score-mismatch`` from options to a result: a network or files of results, statistics, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.error_pictures import ImageSource
from analysis.matching.options import MatchingOptions
from analysis.matching.suppression import SuppressionRule
from analysis.mode import AnalyzeOptions, Mode, Request, side_or_sides
from analysis.output.report import sections_of
from analysis.output.result import ReportSection, Result, with_problems
from analysis.score_mismatch.hard import HardImages, draw_hard, hard_tables
from analysis.score_mismatch.image_loss import ImageLoss
from analysis.score_mismatch.measure import (
    DetectionMeasurement,
    MeasuredDetector,
    measure_network,
    measure_results,
)
from analysis.score_mismatch.statistics import detector_statistics, notes_of
from analysis.score_mismatch.tables import all_tables, score_iou_plot
from data.image_checks import ImageCheckOptions
from data.labels.annotations import Annotations
from data.loader import LoaderSettings, evaluation_batches
from data.splits import open_split, split_shown
from engine.evaluate_results import ResultsOptions
from engine.evaluate_shapes import why_unlike
from engine.resolve import Resolved, open_data_of, resolve, wanted_by
from evaluation.results import clean_ground_truth
from evaluation.results_files import columns_of, read_results
from models.detector import Detector
from models.nms_variants import NmsOptions, NmsRule
from utils import distributed
from utils.devices import choose_device, describe_device, use_threads
from utils.errors import UserError
from utils.words import how_many

LOWEST_SCORE = 0.001  # of the boxes whose scores are compared, and MOST_DETECTIONS of an image after suppression:
MOST_DETECTIONS = 300  # as test.py evaluates
HARD_LISTED = 1000  # hard images in results.json; the CSV has all
HARD_TEXT = (
    "By the training loss where the network has one, else by the AP50 that would be gained if all errors of this one "
    "image were mended. Shown are the confident detections, from the score of the highest F1 on."
)


@dataclass(frozen=True)
class Opened:
    """What is analysed, opened and decided before the first image."""

    annotations: Annotations
    about: dict[str, Any]  # for results.json
    network: Resolved | None  # None: files of results alone


def run(request: Request) -> Result | None:
    """Compare scores and IoU of the boxes of a network, of files of results, or of both; one process does it all."""
    if not distributed.is_main():
        return None
    options, asked = request.options(MatchingOptions), request.asked
    if "matches" in options.by.split(","):
        raise UserError("--by matches is for --matching-stats: boxes alone are matched to nothing")
    files = columns_of(request.options(ResultsOptions).results)
    checks = request.options(ImageCheckOptions)
    from_files_alone = bool(files) and not options.weights
    opened = open_data_of_files(asked, options) if from_files_alone else open_network(asked, options, checks)
    truth = clean_ground_truth(opened.annotations.to_coco())
    rows = {column.name: read_results(column.paths[0], truth) for column in files}
    own_name = Path(opened.network.weights).stem if opened.network is not None else ""
    if own_name in rows:
        raise UserError(f"--results: '{own_name}' is the name of the weights, too; give another, as in other=FILE")
    nms = nms_rule(options, request.options(NmsOptions))
    rule = SuppressionRule(options.conf_thres, options.iou_thres)
    plan = DetectionMeasurement(opened.annotations, truth, options.min_q, rule, nms)
    folder = request.folders.of(MODE.name)
    measured, notes = {}, [
        f"{column.name}: the first of {how_many(len(column.paths), 'file')}" for column in files if column.paths[1:]
    ]  # fmt: skip
    if opened.network is not None:
        measured[own_name] = look(plan, opened.network, request, notes)
    measured |= {name: measure_results(plan, results) for name, results in rows.items()}
    return result_of(plan, measured, opened, request, folder, notes)


def open_data_of_files(asked: AnalyzeOptions, options: MatchingOptions) -> Opened:
    """Open the data that files of results are compared with.

    Raises:
        UserError: no data are named, or an option that only a network reads.
    """
    if not asked.data:
        raise UserError("--results needs the ground truth: name it with --data")
    for name, given in {"--cfg": asked.cfg, "--img-size": asked.img_size, "--decode": options.decode != "cfg"}.items():
        if given:
            raise UserError(f"{name} is about a network, and files of results have none: leave it out")
    annotations = open_split(asked.data, asked.split, need_images=False, val_fraction=asked.val_fraction)
    split = split_shown(asked.data, asked.split, asked.val_fraction)
    print(f"analyze: --score-mismatch of files of results on {asked.data} ({split})\n")
    return Opened(annotations, {"data": asked.data, "split": split}, None)


def open_network(asked: AnalyzeOptions, options: MatchingOptions, checks: ImageCheckOptions) -> Opened:
    """Load network and annotations; what is not given comes from the weights, as in test.py.

    Raises:
        UserError: no weights, no data, other classes or a size that does not fit, too many images that cannot be used.
    """
    use_threads()
    found = resolve(replace(wanted_by(asked), weights=options.weights, decode=options.decode))
    wants = found.loaded.network.finds if options.hard else frozenset()  # for the training loss
    found, annotations = open_data_of(found, asked.split, checks, wants)
    split, cfg = split_shown(found.data, asked.split, found.val_fraction), str(found.loaded.network.cfg_path)
    print(
        f"analyze: {found.weights} ({cfg}) on {found.data} ({split}), {how_many(len(annotations), 'image')}, "
        f"{found.resize.to(found.input_wh)} ({describe_device(choose_device(options.device))})"
    )
    about = {"weights": found.weights, "cfg": cfg, "data": found.data, "split": split}
    return Opened(annotations, about | {"img_size": side_or_sides(found.input_wh), "resize": found.resize.kind}, found)


def nms_rule(options: MatchingOptions, nms: NmsOptions, suppresses: bool = True, beta: float | None = None) -> NmsRule:
    """Return how the boxes above the confidence suppress one another."""
    return NmsRule(
        options.iou_thres if suppresses else 1.0,
        None,
        nms.nms,
        nms.agnostic_nms,
        confidence=options.conf_thres,
        sigma=nms.nms_sigma,
        cfg_beta=beta,
    )


def look(plan: DetectionMeasurement, found: Resolved, request: Request, notes: list[str]) -> MeasuredDetector:
    """Measure a network on all images; a note is added where it has no training loss that was asked for."""
    options, nms = request.options(MatchingOptions), request.options(NmsOptions)
    nms = replace(nms, agnostic_nms=nms.agnostic_nms or found.single_cls)
    network = found.loaded.network.to(choose_device(options.device))
    detector = Detector(network, LOWEST_SCORE, options.iou_thres, MOST_DETECTIONS, nms=nms)
    loss = None
    if options.hard:
        try:
            loss = training_loss(found, plan.annotations)
        except UserError as error:
            notes.append(f"--hard: by AP50 lost, for there is no training loss: {error}")
    settings = LoaderSettings(
        image_hw=found.input_wh[::-1],
        batch_size=options.batch_size,
        stride=1 if network.fixed_size else network.max_stride,
        rect=found.resize.kind == "letterbox" and not network.fixed_size,
        resize=found.resize.kind,
        workers=options.workers,
        pin_memory=detector.device.type == "cuda",
        max_bad=request.options(ImageCheckOptions).max_bad,
        with_shapes=loss is not None,
    )
    plan = replace(plan, nms=nms_rule(options, nms, network.suppresses, network.nms_beta))
    with closing(evaluation_batches(plan.annotations, settings)) as batches:
        return measure_network(plan, detector, batches, loss, found.single_cls)


def training_loss(found: Resolved, annotations: Annotations) -> ImageLoss:
    """Return the loss of single images that a network was trained with.

    Raises:
        UserError: it cannot be trained, or learns what the data do not have.
    """
    network = found.loaded.network
    for what in sorted(network.finds):
        if reason := why_unlike(what, network, annotations):
            raise UserError(reason)
    return ImageLoss.of(found.loaded, found.input_wh)


def result_of(
    plan: DetectionMeasurement,
    measured: Mapping[str, MeasuredDetector],
    opened: Opened,
    request: Request,
    folder: Path,
    notes: Sequence[str],
) -> Result:
    """Return the result; the hardest images are drawn into the folder."""
    options, annotations = request.options(MatchingOptions), plan.annotations
    by = [name for name in options.by.split(",") if name]
    statistics = {name: detector_statistics(one, annotations, by) for name, one in measured.items()}
    source = ImageSource.of(annotations)
    count, in_report = options.hard, request.report_images
    hard = HardImages.of(plan.truth, measured) if count or in_report else None
    listing = hard.listing(source) if hard is not None and count else []
    images = hard.images(source, max(count, in_report)) if hard is not None else []
    drawn = draw_hard(images[:count], list(measured), annotations.names, folder / "hard")
    if listing and not drawn:
        notes = [*notes, "--hard: no pictures, for the images are not on the disk"]
    numbers = {
        "min_q": options.min_q,
        "conf_thres": options.conf_thres,
        "iou_thres": options.iou_thres,
        "detectors": statistics,
        "hard_images": listing[:HARD_LISTED],
    }
    about = opened.about | {
        "images": len(annotations),
        "images_left_out": max(len(one.unread) for one in measured.values()),
        "objects": int((~annotations.crowd).sum()),
        "names": annotations.names,
    }
    tables = (*all_tables(statistics), *hard_tables(listing))
    plots = {"score_iou": score_iou_plot(statistics)}
    notes = (*notes, *notes_of(measured, statistics))
    result = with_problems(Result("score-mismatch", about, numbers, tables, plots, notes, folder), annotations)
    if not in_report:
        return result
    return replace(result, sections=(*sections_of(result), ReportSection("Hardest images", HARD_TEXT, images=images)))


MODE = Mode(
    name="score_mismatch",
    text="do scores rank boxes as their IoU does, and what does NMS lose: of a network or of --results",
    run=run,
    groups=(ImageCheckOptions, NmsOptions),
    reads=frozenset(
        {"data", "split", "val_fraction", "cfg", "img_size", "resize", "report_images", "weights", "decode", "by"}
        | {"min_q", "hard", "conf_thres", "iou_thres", "batch_size", "workers", "device"}
    ),
    distributed=True,
    split="valid",
    instead_of=frozenset({"results"}),
)
