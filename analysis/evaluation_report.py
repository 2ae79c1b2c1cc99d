"""The report of an evaluation: the numbers, how sure they are, where the points went, and the hardest images.

``test.py --report`` and ``analyze.py --results`` make it; it needs finished numbers and no network.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.evaluation_images import IOU, hardest_images, judged
from analysis.mode import Mode, Request
from analysis.output.report import write_page
from analysis.output.result import Plot, ReportSection, Result, Table, plain
from data.labels.annotations import Annotations
from engine.evaluate_results import ResultsOptions, compare_results, ground_truth_of
from utils.errors import UserError
from utils.words import how_many

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {"s": "small (below 32 x 32 pixels)", "m": "medium", "l": "large (from 96 x 96 pixels on)"}
EXPLAINED = {
    "AP": "average precision: the mean over the IoU 0.50, 0.55, … 0.95, over 101 recalls, and over the classes",
    "AP50": "AP at IoU 0.5 alone: boxes may be rough",
    "AP75": "AP at IoU 0.75 alone: boxes must be good",
    **{f"AP{size}": f"AP of {text} objects" for size, text in SIZES.items()},
    "AR": "average recall: the share of objects that are found, mean over the IoU 0.50 to 0.95 and the classes",
    "AR50": "AR at IoU 0.5 alone",
    "AR75": "AR at IoU 0.75 alone",
    **{f"AR{count}": f"AR with the {count} strongest detections of an image and class" for count in (10, 100)},
    "AR1": "AR with the strongest detection of an image and class: the share of objects that are found, mean over the "
    "IoU 0.50 to 0.95 and the classes",
    **{f"AR{size}": f"AR of {text} objects" for size, text in SIZES.items()},
}
ERRORS = {  # key of TIDE's breakdown -> heading, explanation
    "Cls": ("class", "right place, wrong class"),
    "Loc": ("localisation", "right class, but the IoU is 0.1 to 0.5"),
    "Both": ("both", "wrong class, and the IoU is 0.1 to 0.5"),
    "Dupe": ("duplicate", "right, but a stronger detection has found the object already"),
    "Bkg": ("background", "no object has an IoU above 0.1"),
    "Miss": ("missed", "objects that no detection explains"),
}
TIDE = (
    "TIDE (arXiv 2008.08115) tells what is wrong with each detection and what AP50 would gain if all errors of one "
    "kind were mended; the gains do not add up. The calibration error says how far the scores are from the share of "
    "detections that are right."
)
DETECTOR = {"detector": "name of the weights or of the file of results"}
INTERVALS = (
    "In brackets: the 95 % interval, from resamples of the images that are the same for all detectors. (0): the "
    "interval of a difference holds 0, so these images cannot tell the two apart. \u00b1: half the 95 % interval over "
    "runs."
)


@dataclass(frozen=True)
class EvaluationFindings:
    """What an evaluation has found, as plain data."""

    truth: dict  # COCO's ground truth
    results: Mapping[str, Sequence[dict]]  # COCO's results by detector; of several runs, the first one's
    comparison: Mapping[str, Any]  # as metrics.json has it: ResultsComparison.to_dict()
    image_paths: Mapping[int, str]  # image id -> file, "" where it is not on the disk


def write_evaluation_report(
    path: Path, found: EvaluationFindings, num_images: int, more: Sequence[ReportSection] = (), command: str = ""
) -> None:
    """Write the report of an evaluation as one HTML file.

    Args:
        path: of the file.
        found: what it is about.
        num_images: how many images it shows, those with the most errors.
        more: further sections, which stand before the images.
        command: that makes it again; empty: the one of this process.
    """
    command = command or f"python {shlex.join(sys.argv)}"
    sections = evaluation_sections(found, num_images, more)
    write_page(path, "Evaluation report", command, sections, numbers={"results": plain(found.comparison)})


def evaluation_sections(
    found: EvaluationFindings, num_images: int, more: Sequence[ReportSection] = ()
) -> list[ReportSection]:
    """Return the sections of the report; the arguments are those of :func:`write_evaluation_report`."""
    numbers, errors = number_tables(found.comparison), error_tables(found.comparison)
    text = f"{INTERVALS} A click on a heading sorts."
    sections = [ReportSection("Numbers", text, numbers, facts=facts_of(found))]
    if errors:
        plots = [Plot("AP50 lost by kind of error", figure) for figure in error_bars(found.comparison).values()]
        sections.append(ReportSection("Where the points went", TIDE, errors, plots))
    return [*sections, *more, *image_sections(found, num_images)]


def facts_of(found: EvaluationFindings) -> dict[str, Any]:
    """Return what the evaluation is about."""
    objects = sum(not one.get("iscrowd") for one in found.truth["annotations"])
    return {
        "images": len(found.truth["images"]),
        "objects": objects,
        "classes": len(found.truth["categories"]),
        "compared": {"bbox": "boxes", "segm": "masks"}.get(found.comparison["iou_type"], "key points"),
    }


def number_tables(comparison: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the numbers of each detector with their intervals, and the differences of every two detectors."""
    columns = comparison["columns"]
    names = tuple(columns[0]["numbers"])
    explained = {name: _explained(name) for name in names}
    rows = tuple((one["name"], *(shown(one, name) for name in names)) for one in columns)
    title = "COCO's numbers"
    tables = [Table("numbers", title, ("detector", *names), rows, explanations=explained | DETECTOR)]
    if comparison["differences"]:
        rows = tuple(
            (one["of"], one["minus"], *(shown(one, name, "+") for name in names)) for one in comparison["differences"]
        )
        words = {"detector": "whose numbers these are, less those of the other", "minus": "the other detector"}
        columns_of_both = ("detector", "minus", *names)
        tables.append(Table("differences", "Differences", columns_of_both, rows, explanations=explained | words))
    return tuple(tables)


def shown(one: Mapping[str, Any], name: str, sign: str = "") -> str:
    """Return a number of a detector, or of a difference, with its interval as text.

    Args:
        one: an entry of "columns" or "differences" of ``metrics.json``.
        name: of the number.
        sign: "+" for a difference.
    """
    number = one["numbers"][name]
    if number is None:
        return "-"
    text = f"{number:{sign}.3f}"
    low, high = (one.get("interval_95") or {}).get(name) or (None, None)
    if low is not None and high is not None:
        text += f" [{low:{sign}.3f}, {high:{sign}.3f}]"
        text += " (0)" if sign and low <= 0 <= high else ""
    over_runs = (one.get("over_runs") or {}).get(name)
    if over_runs and over_runs["interval_95"] is not None:
        runs = f" over {how_many(one['files'], 'run')}" if "files" in one else ""
        text += f" \u00b1 {over_runs['interval_95']:.3f}{runs}"
    return text


def _explained(name: str) -> str:
    """Return what a number is; of a name that is not COCO's, what its beginning says."""
    words = {"AP": "average precision", "AR": "average recall"}.get(name[:2], "")
    return EXPLAINED.get(name) or (f"{words}: {name[2:]}" if words else "")


def error_tables(comparison: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return what AP50 would gain without each kind of error, and how many there are; nothing where it is unknown."""
    columns = [one for one in comparison["columns"] if "delta_ap50" in one]
    if not columns:
        return ()
    explained = dict(ERRORS.values())
    headings = tuple(explained)
    gains = tuple(
        (one["name"], *(f"{one['delta_ap50'][key]:.3f}" for key in ERRORS), f"{one['calibration_error']:.3f}")
        for one in columns
    )
    counts = tuple((one["name"], *(one["counts"].get(key) for key in ERRORS)) for one in columns)
    of_scores = {"calibration error": "mean distance of score and precision, over ten bins of the score; 0 is best"}
    return (
        Table(
            "ap50_lost",
            "AP50 that is lost by each kind of error",
            ("detector", *headings, *of_scores),
            gains,
            explanations=explained | of_scores | DETECTOR,
        ),
        Table(
            "error_counts",
            "How many errors there are, of detections of any score",
            ("detector", *headings),
            counts,
            explanations=explained | DETECTOR,
        ),
    )


def error_bars(comparison: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the losses by kind of error as bars, under the name of its file; nothing where they are unknown."""
    from analysis.output.plots import bars  # matplotlib takes half a second, which only a report needs

    series = {
        one["name"]: [one["delta_ap50"][key] for key in ERRORS] for one in comparison["columns"] if "delta_ap50" in one
    }
    headings = [heading for heading, _ in ERRORS.values()]
    return {"ap50_lost": bars(headings, series, "", "AP50")} if series else {}


def image_sections(found: EvaluationFindings, num_images: int) -> list[ReportSection]:
    """Return the images with the most errors of boxes, as a section; none where no boxes were evaluated."""
    if found.comparison["iou_type"] != "bbox" or not num_images:
        return []
    detectors = judged(found.truth, found.results)
    points = ", ".join(f"{one.name} from score {one.confidence:.2f} on" for one in detectors)
    text = (
        f"The images with the most errors come first. Shown and judged at IoU {IOU} are the detections at the working "
        f"point of each detector, where its mean F1 is highest: {points}. Filters choose detector, class and kind; an "
        "image is listed for the errors that are shown."
    )
    images = hardest_images(found.truth, detectors, found.image_paths, num_images)
    return [ReportSection("Images with the most errors", text, images=images)]


def paths_of(annotations: Annotations) -> dict[int, str]:
    """Return where the images of a data set are, by their ids."""
    return dict(zip(annotations.image_ids.tolist(), annotations.image_paths, strict=True))


def run(request: Request) -> Result:
    """Evaluate files of results, as ``test.py --results`` does.

    Raises:
        UserError: no data are named, or as :func:`engine.evaluate_results.compare_results`.
    """
    options, about = request.options(ResultsOptions), request.asked
    if not about.data:
        raise UserError("--results needs the ground truth: name it with --data")
    truth, annotations = ground_truth_of(about.data, about.split, about.val_fraction, options.iou_type)
    compared = compare_results(options, truth)
    comparison = plain(compared.to_dict())
    found = EvaluationFindings(truth, compared.results, comparison, paths_of(annotations))
    sections = evaluation_sections(found, request.report_images) if request.report_images else []
    tables = (*number_tables(comparison), *error_tables(comparison))
    notes = (INTERVALS,) if options.resamples else ()
    result = Result("results", facts_of(found), comparison, tables, error_bars(comparison), notes)
    return request.described(replace(result, sections=tuple(sections)))


MODE = Mode(
    name="results",
    text="files in COCO's results format, from any detector: their numbers side by side",
    run=run,
    groups=(ResultsOptions,),
    reads=frozenset({"data", "split", "val_fraction", "report_images"}),
    chosen_by=ResultsOptions,
    split="valid",
)
