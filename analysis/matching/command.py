"""``--matching-stats`` from options to a result: network, data, the pass over the images, statistics, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analysis.matching.blocks import remove_blocks
from analysis.matching.browser import browser_data
from analysis.matching.losses import loss_options_of
from analysis.matching.measure import MeasurementPlan, measure_images
from analysis.matching.options import MatchingOptions
from analysis.matching.pictures import ImagePictures, hard_tables, most_difficult
from analysis.matching.statistics import groups_of, statistics
from analysis.matching.suppression import SuppressionRule
from analysis.matching.tables import all_plots, all_tables, notes_of
from analysis.mode import Folders, Mode, Request, side_or_sides
from analysis.output.report import ReportOptions
from analysis.output.result import Result, with_problems
from analysis.strategies import READ_BY_MATCHING_STATS, StrategyOptions
from data.image_checks import ImageCheckOptions, bad_images
from data.labels.annotations import Annotations
from data.loader import LoaderSettings
from data.splits import split_shown
from engine.network_input import AUTO
from engine.resolve import Wanted, open_data_of, resolve
from engine.run_folder import read_config, save_config
from models.assignment.assigner import build_assigner
from models.assignment.options import AssignmentOptions
from models.checkpoints.load import LoadedNetwork
from models.detection_network import DetectionNetwork
from models.detector import Detector
from models.exported.network import ExportedNetwork
from models.families.table import match_of
from models.loss import DetectionLoss, build_loss
from utils import distributed
from utils.config import build_options, flag, flat_dict
from utils.devices import choose_device, describe_device, use_threads
from utils.errors import UserError
from utils.words import how_many

DEFAULT_KINDS = ("iou",)  # of IoU, without --match-iou
HARD_LISTED = 1000  # hard examples in results.json; the CSV has all


@dataclass(frozen=True)
class Source:
    """Network and data as the user named them; what is empty leaves the choice to the weights."""

    data: str
    split: str
    cfg: str
    img_size: tuple[int, ...]  # width and height of the network input or the side of a square, pixels
    val_fraction: float = 0.0  # held out of the training images
    resize: str = AUTO

    def wanted(self, weights: str) -> Wanted:
        """Return the same for :func:`engine.resolve.resolve`; no weights are the newest run's."""
        size, share = self.img_size, self.val_fraction
        return Wanted(weights, self.cfg, self.data, size, val_fraction=share, resize=self.resize)


@dataclass(frozen=True)
class MatchingInputs:
    """Everything that is opened and decided before the first image."""

    weights: str
    loaded: LoadedNetwork
    annotations: Annotations
    data: str
    split: str  # "all" where the data are one set of images
    input_wh: tuple[int, int]  # of the network, pixels
    plan: MeasurementPlan
    max_bad: float = 0.0  # share of the images that may be left out because they cannot be read


def matching_stats(
    inputs: MatchingInputs, options: MatchingOptions, folder: Path, report_images: int = 0
) -> Result | None:
    """Measure every object of the data, draw single images, and return the result.

    Args:
        inputs: network and data.
        options: what to measure and draw.
        folder: of the results; pictures and partial results are written here.
        report_images: how many images the report's browser shows, the most difficult first.

    Returns:
        The result in the main process, None in the others.

    Raises:
        UserError: an image cannot be read.
    """
    partial = folder / "partial"
    found = measure_images(inputs.annotations, inputs.plan, loader_settings(inputs, options), partial)
    if found is None:
        return None
    by = [name for name in options.by.split(",") if name]
    numbers = settings_of(inputs) | statistics(found, groups_of(inputs.annotations, found.objects, by))
    pictures = ImagePictures(inputs.annotations, inputs.plan, inputs.input_wh[::-1], found, folder)
    hard = pictures.draw_hard(options.hard)
    pictures.draw_lost(options.draw_lost)
    tables = (*all_tables(numbers), *hard_tables(hard))
    numbers |= {"hard_examples": hard[:HARD_LISTED]}
    views = pictures.views(most_difficult(found, report_images))
    browser = browser_data(views, inputs.annotations.names, inputs.plan) if views else None
    about = description(inputs, len(found.images["index"]))
    notes = notes_of(numbers)
    if about["images_left_out"]:
        notes = (f"without {how_many(about['images_left_out'], 'image')} that cannot be used", *notes)
    result = Result("matching-stats", about, numbers, tables, all_plots(numbers), notes)
    result = with_problems(result, inputs.annotations)
    remove_blocks(partial)
    return replace(result, folder=folder, browser=browser)


def open_everything(
    source: Source, options: MatchingOptions, strategies: StrategyOptions, checks: ImageCheckOptions
) -> MatchingInputs:
    """Load network and annotations; what is not given comes from the weights, as in test.py.

    Raises:
        UserError: no weights, no data, another number of classes, a strategy or a size that does not fit, too many
            images that cannot be used.
    """
    device = choose_device(options.device)
    use_threads()
    distributed.start(device)
    found = resolve(replace(source.wanted(options.weights), decode=options.decode))
    if isinstance(found.loaded.network, ExportedNetwork):
        remedy = "name the weights that were exported; test.py evaluates this file"
        raise UserError(f"{found.weights}: has no objectness and no anchors, which --matching-stats is about; {remedy}")
    found.loaded.network.require_trainable()  # matches are those of a training
    found, annotations = open_data_of(found, source.split, checks)
    loaded, trained = found.loaded, found.loaded.options
    network = loaded.network.showing_maps()
    chosen = chosen_strategies(strategies, trained, match_of(network.cfg_path, trained))
    kinds = strategies.match_iou or DEFAULT_KINDS
    rule = SuppressionRule(options.conf_thres, options.iou_thres)
    detector = Detector(network.to(device), confidence=rule.confidence, iou=rule.nms_iou)
    for one in chosen.values():
        build_assigner(one, network.heads)  # refuses a strategy for other heads before anything is written
    loss = loss_to_measure(network, trained, next(iter(chosen.values())), found.input_wh) if options.hard else None
    candidates = strategies.candidates
    plan = MeasurementPlan(
        detector=detector,
        strategies=chosen,
        kinds=kinds,
        candidates=candidates or "cell",
        score_candidates=candidates or "map",
        min_q=options.min_q,
        suppression=rule,
        loss=loss,
        resize=found.resize.kind,
    )
    inputs = MatchingInputs(
        weights=found.weights,
        loaded=loaded,
        annotations=annotations,
        data=found.data,
        split=split_shown(found.data, source.split, found.val_fraction),
        input_wh=found.input_wh,
        plan=plan,
        max_bad=checks.max_bad,
    )
    if distributed.is_main():
        print(
            f"analyze: {found.weights} ({loaded.network.cfg_path}) on {found.data} "
            f"({inputs.split}), {how_many(len(annotations), 'image')}, {found.resize.to(found.input_wh)}, "
            f"--match {','.join(chosen)}, --match-iou {' '.join(kinds)} ({describe_device(device)})"
        )
    return inputs


def loss_to_measure(
    network: DetectionNetwork, trained: Mapping[str, Any], assignment: AssignmentOptions, input_wh: tuple[int, int]
) -> DetectionLoss:
    """Return the training loss by which ``--hard`` finds images.

    Raises:
        UserError: the network has a loss of its own, in other parts.
    """
    if network.heads[0].is_dense:
        raise UserError(f"--hard: leave it out; it takes the loss apart, and that of {network.cfg_path} is its own")
    side = math.sqrt(math.prod(input_wh))
    return build_loss(loss_options_of(trained, assignment.match), assignment, network.heads, side)


def chosen_strategies(
    strategies: StrategyOptions, trained: Mapping[str, Any], default: str
) -> dict[str, AssignmentOptions]:
    """Return the options of each strategy: of those asked for, else of the one that the network was trained with.

    Without ``--match``, the options of the training keep their values unless the user gives others.

    Args:
        strategies: as the user gave them.
        trained: options of the run that trained the network; empty for foreign weights.
        default: the one that the network learns by.

    Raises:
        UserError: an unknown strategy, or an option that none of them uses.
    """
    match = strategies.match or default
    try:
        chosen = strategies.for_strategies(match.split(","), READ_BY_MATCHING_STATS)
    except ValueError as error:
        raise UserError(str(error)) from error
    if strategies.match:
        return chosen
    defaults = {item.name: item.default for item in fields(AssignmentOptions)}
    given = {name: getattr(chosen[match], name) for name in defaults}
    given = {name: value for name, value in given.items() if value != defaults[name]}
    of_training = {name: value for name, value in trained.items() if name in defaults}
    return {match: build_options(of_training | given, [AssignmentOptions], "options of the training")[0]}


def loader_settings(inputs: MatchingInputs, options: MatchingOptions) -> LoaderSettings:
    """Return how the batches are made: of one size, so that every image has the same slots, alike in every process."""
    return LoaderSettings(
        image_hw=inputs.input_wh[::-1],
        resize=inputs.plan.resize,
        batch_size=options.batch_size,
        stride=inputs.loaded.network.max_stride,
        workers=options.workers,
        pin_memory=inputs.plan.detector.device.type == "cuda",
        max_bad=inputs.max_bad,
    )


def settings_of(inputs: MatchingInputs) -> dict[str, Any]:
    """Return what the statistics depend on besides network and data."""
    plan = inputs.plan
    return {
        "img_size": side_or_sides(inputs.input_wh),
        "resize": inputs.plan.resize,
        "candidates": plan.candidates,
        "score_candidates": plan.score_candidates,
        "min_q": plan.min_q,
        "match_iou": list(plan.kinds),
    }


def description(inputs: MatchingInputs, measured: int) -> dict[str, Any]:
    """Return the ``data`` of the result: what was analysed, and how many images were measured."""
    annotations = inputs.annotations
    return {
        "weights": inputs.weights,
        "cfg": str(inputs.loaded.network.cfg_path),
        "data": inputs.data,
        "split": inputs.split,
        "images": measured,
        "images_left_out": len(bad_images(annotations)) + len(annotations) - measured,
        "annotations": len(annotations.box_image),
        "names": annotations.names,
    }


def start_folder(resume: str, folders: Folders, given: dict[str, Any], inputs: MatchingInputs) -> Path:
    """Return the folder of the run, the same in all processes: the one to go on with, or a new one.

    Args:
        resume: folder of an interrupted run, or empty.
        folders: make the new folder.
        given: options to write into its config.yaml, from which the run can be resumed.
        inputs: what the user left open.
    """
    folder = resume
    if distributed.is_main() and not resume:
        folder = str(folders.of(MODE.name))
        # By name, because another training may be the newest run when this one is resumed.
        given = given | {"weights": inputs.weights, "data": inputs.data, "matching_stats": True}
        save_config(Path(folder), {key: value for key, value in given.items() if key != "resume"})
    return Path(distributed.broadcast(folder))


def resumed_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options as given; with ``--resume``, those of the interrupted run in that folder.

    Raises:
        UserError: no interrupted run there, or other options beside ``--resume``.
    """
    if "resume" not in given:
        return given
    others = [name for name in given if name not in ("resume", "matching_stats", "device", "workers")]
    if others:
        raise UserError(f"--resume takes all options from its folder; leave {flag(others[0])} out")
    folder = Path(given["resume"])
    if (folder / "results.json").is_file():
        raise UserError(f"--resume {folder}: this run is finished, its results.json is there")
    if not (folder / "config.yaml").is_file() or not (folder / "partial").is_dir():
        raise UserError(f"--resume {folder}: no interrupted --matching-stats run is here (config.yaml and partial/)")
    return read_config(folder) | given


def run(request: Request) -> Result | None:
    """Measure a network's matches and predictions; under ``torchrun`` only the main process has the result."""
    asked, options = request.asked, request.options(MatchingOptions)
    source = Source(asked.data, asked.split, asked.cfg, asked.img_size, asked.val_fraction, asked.resize)
    checks = request.options(ImageCheckOptions)
    inputs = open_everything(source, options, request.options(StrategyOptions), checks)
    given = flat_dict(asked, options, checks, request.options(StrategyOptions), request.options(ReportOptions))
    folder = start_folder(options.resume, request.folders, given, inputs)
    result = matching_stats(inputs, options, folder, request.report_images)
    distributed.stop()
    return result


MODE = Mode(
    name="matching_stats",
    text="which slots match which objects, and how well a network's predictions fit",
    run=run,
    groups=(MatchingOptions, StrategyOptions, ImageCheckOptions),
    reads=frozenset({"data", "split", "val_fraction", "cfg", "img_size", "resize", "report_images"}),
    distributed=True,
)
