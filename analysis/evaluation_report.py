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

from analysis.diagnosis import Diagnosis, DiagnosisOptions, add_tables, diagnose
from analysis.error_pictures import ImageSource
from analysis.mode import Mode, Request
from analysis.output.report import ReportOptions, write_page
from analysis.output.result import Plot, ReportSection, Result, Table, plain
from engine.evaluate_results import ResultsComparison, ResultsOptions, compare_results, ground_truth_of
from evaluation.error_kinds import TIDE_KEYS
from utils.errors import UserError
from utils.words import how_many

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.evaluation_groups import Priors

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
ERRORS = {  # kind of error -> explanation
    "class": "right place, wrong class",
    "localisation": "right class, but the IoU is 0.1 to 0.5",
    "both": "wrong class, and the IoU is 0.1 to 0.5",
    "duplicate": "right, but a stronger detection has found the object already",
    "background": "no object has an IoU above 0.1",
    "missed": "objects that no detection explains",
}
TIDE = (
    "TIDE (arXiv 2008.08115) tells what is wrong with each detection and what AP50 would gain if all errors of one "
    "kind were mended; the gains do not add up. The calibration error says how far the scores are from the share of "
    "detections that are right."
)
DETECTOR = {"detector": "name of the weights or of the file of results"}
IMAGES_TITLE = "Images that cost most"
IMAGES_TEXT = (
    "First the images that cost most AP50: what would be gained if all errors of this one image were mended. Shown are "
    "the confident detections, from the score of the highest F1 on, of their class or of all classes together, "
    "whichever is higher. Filters choose detector, class and kind, and list first the images with most errors of these."
)
INTERVALS = (
    "In brackets: the 95 % interval, from resamples of the images that are the same for all detectors. (0): the "
    "interval of a difference holds 0, so these images cannot tell the two apart. \u00b1: half the 95 % interval over "
    "runs."
)


@dataclass(frozen=True)
class EvaluationFindings:
    """What an evaluation has found."""

    truth: dict  # COCO's ground truth
    results: Mapping[str, Sequence[dict]]  # COCO's results by detector; of several runs, the first one's
    comparison: Mapping[str, Any]  # as metrics.json has it: ResultsComparison.to_dict(); empty without one
    source: ImageSource
    priors: Priors | None = None  # of a network

    @classmethod
    def of(
        cls,
        truth: dict,
        results: Mapping[str, Sequence[dict]],
        compared: ResultsComparison | None,
        source: ImageSource,
        priors: Priors | None = None,
    ) -> EvaluationFindings:
        """Return what a comparison has found or, without one, what a network of ours has."""
        if compared is None:
            return cls(truth, results, {}, source, priors)
        return cls(compared.truth, compared.results, plain(compared.to_dict()), source, priors)

    @property
    def is_of_boxes(self) -> bool:
        """Whether boxes were evaluated, and not masks or key points."""
        return self.comparison.get("iou_type", "bbox") == "bbox"


def report_evaluation(options: DiagnosisOptions, found: EvaluationFindings, folder: Path) -> dict[str, Any]:
    """Find out what is asked for, print and write it, and report.html where wanted; return it for metrics.json."""
    diagnosis = diagnose_boxes(options, found, folder)
    if options.report:
        add_tables(diagnosis.tables, folder)
        path = folder / "report.html"
        write_evaluation_report(path, found, diagnosis)
        print(f"--report: open {path} in a browser")
    return diagnosis.content


def diagnose_boxes(options: DiagnosisOptions, found: EvaluationFindings, folder: Path) -> Diagnosis:
    """Find out what is asked for about boxes; nothing, with a line that says so, about masks and key points."""
    if found.is_of_boxes:
        return diagnose(options, found.truth, found.results, folder, found.source, found.priors)
    if options.report:
        print(f"--report: curves, groups, images and labels are told of boxes, not of {found.comparison['iou_type']}")
    return Diagnosis({}, [], [], [])


def write_evaluation_report(path: Path, found: EvaluationFindings, diagnosis: Diagnosis, command: str = "") -> None:
    """Write the report of an evaluation as one HTML file.

    Args:
        path: of the file.
        found: what it is about.
        diagnosis: what more was found out.
        command: that makes it again; empty: the one of this process.
    """
    command = command or f"python {shlex.join(sys.argv)}"
    sections = evaluation_sections(found, diagnosis)
    numbers = {"results": plain({**found.comparison, **diagnosis.content})}
    write_page(path, "Evaluation report", command, sections, numbers=numbers)


def evaluation_sections(found: EvaluationFindings, diagnosis: Diagnosis) -> list[ReportSection]:
    """Return the sections of the report; the arguments are those of :func:`write_evaluation_report`."""
    numbers, errors = number_tables(found.comparison), error_tables(found.comparison)
    text = f"{INTERVALS} A click on a heading sorts."
    sections = [ReportSection("Numbers", text, numbers, facts=facts_of(found))]
    if errors:
        plots = [Plot("AP50 lost by kind of error", figure) for figure in error_bars(found.comparison).values()]
        sections.append(ReportSection("Where the points went", TIDE, errors, plots))
    sections += diagnosis.sections
    if diagnosis.images:
        sections.append(ReportSection(IMAGES_TITLE, IMAGES_TEXT, images=diagnosis.images))
    return sections


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
    headings = tuple(ERRORS)
    gains = tuple(
        (one["name"], *(f"{one['delta_ap50'][TIDE_KEYS[kind]]:.3f}" for kind in ERRORS), one["calibration_error"])
        for one in columns
    )
    counts = tuple((one["name"], *(one["counts"][TIDE_KEYS[kind]] for kind in ERRORS)) for one in columns)
    of_scores = {"calibration error": "mean distance of score and precision, over ten bins of the score; 0 is best"}
    return (
        Table(
            "ap50_lost",
            "AP50 that is lost by each kind of error",
            ("detector", *headings, *of_scores),
            gains,
            explanations=ERRORS | of_scores | DETECTOR,
        ),
        Table(
            "error_counts",
            "How many errors there are, of detections of any score",
            ("detector", *headings),
            counts,
            explanations=ERRORS | DETECTOR,
        ),
    )


def error_bars(comparison: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the losses by kind of error as bars, under the name of its file; nothing where they are unknown."""
    from analysis.output.plots import bars  # matplotlib takes half a second, which only a report needs

    series = {
        one["name"]: [one["delta_ap50"][TIDE_KEYS[kind]] for kind in ERRORS]
        for one in comparison["columns"]
        if "delta_ap50" in one
    }
    return {"ap50_lost": bars([*ERRORS], series, "", "AP50")} if series else {}


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
    found = EvaluationFindings.of(truth, {}, compared, ImageSource.of(annotations))
    folder = request.folders.of("results")
    diagnosis, sections = Diagnosis({}, [], [], []), []
    if request.options(ReportOptions).report:
        diagnosis = diagnose_boxes(DiagnosisOptions(report=True, report_images=request.report_images), found, folder)
        sections = evaluation_sections(found, diagnosis)
    content = {**found.comparison, **diagnosis.content}
    tables = (*number_tables(found.comparison), *error_tables(found.comparison), *diagnosis.tables)
    notes = (INTERVALS,) if options.resamples else ()
    result = Result("results", facts_of(found), content, tables, error_bars(found.comparison), notes, folder)
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
