"""COCO's evaluation of boxes: the twelve numbers, and the same per class.

hotcoco computes them a hundred times faster than pycocotools and to the same last bit; pycocotools is the referee in
the tests and the fallback where hotcoco is not installed. Both get the same ground truth and results, and everything
after their precision and recall arrays is computed here, once.

Shape letters, as in pycocotools: T IoU thresholds (10), R recalls (101), K categories, A areas (4), D detection
limits (3).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.operating_point import precision_recall_at_best_f1
from evaluation.parameters import COCO_PARAMETERS, CocoParameters
from evaluation.results import check_results, clean_ground_truth
from utils.boxes import SIZE_NAMES
from utils.errors import UserError

if TYPE_CHECKING:
    from hotcoco import COCOeval

Numbers = tuple[float, ...]

# name, is it a precision, IoU threshold (index, None for the mean over all), area (index), detection limit (index)
TWELVE = (
    ("ap", True, None, 0, 2),
    ("ap50", True, 0, 0, 2),
    ("ap75", True, 5, 0, 2),
    ("ap_small", True, None, 1, 2),
    ("ap_medium", True, None, 2, 2),
    ("ap_large", True, None, 3, 2),
    ("ar1", False, None, 0, 0),
    ("ar10", False, None, 0, 1),
    ("ar100", False, None, 0, 2),
    ("ar_small", False, None, 1, 2),
    ("ar_medium", False, None, 2, 2),
    ("ar_large", False, None, 3, 2),
)
AREAS = ("all", *SIZE_NAMES)
LIMITS = (1, 10, 100)
SHAPE = (10, 101, 4, 3)  # T R A D; K is that of the data set


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found. A number that nothing defines (no object of that size or class) is -1, as in COCO.

    In ``metrics.json`` it is null.
    """

    ap: float  # mean over IoU 0.50:0.95, all areas, 100 detections per image and class
    ap50: float
    ap75: float
    ap_small: float  # objects below 32 x 32 original pixels
    ap_medium: float
    ap_large: float  # objects above 96 x 96 original pixels
    ar1: float  # one detection per image and class
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    precision: float  # IoU 0.5, mean over the classes with objects, at the confidence where the mean F1 is highest
    recall: float  # likewise
    best_f1_confidence: float  # that confidence
    num_images: int
    num_instances: int  # without crowd regions
    names: tuple[str, ...]  # of the classes; the tuples below have the same order
    class_ap: Numbers
    class_ap50: Numbers
    class_precision: Numbers
    class_recall: Numbers
    class_images: tuple[int, ...]  # images with an object of the class
    class_instances: tuple[int, ...]
    evaluator: str  # "hotcoco" or "pycocotools"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``: None where undefined, and for the classes a list of dicts."""
        values = {name: _defined(value) for name, value in asdict(self).items()}
        columns = {name: values.pop(name) for name in list(values) if name == "names" or name.startswith("class_")}
        keys = [name.removeprefix("class_") for name in columns]
        keys[keys.index("names")] = "name"
        values["classes"] = [dict(zip(keys, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return values

    def summary(self) -> str:
        """Return the twelve numbers in the lines that pycocotools prints."""
        lines = []
        for name, is_precision, threshold, area, limit in TWELVE:
            title, kind = ("Average Precision", "(AP)") if is_precision else ("Average Recall", "(AR)")
            iou = "0.50:0.95" if threshold is None else f"{0.5 + 0.05 * threshold:0.2f}"
            where = f"IoU={iou:<9} | area={AREAS[area]:>6s} | maxDets={LIMITS[limit]:>3d}"
            lines.append(f" {title:<18} {kind} @[ {where} ] = {getattr(self, name):0.3f}")
        return "\n".join(lines)


def has_objects(ground_truth: dict) -> bool:
    """Whether there is anything to find, without which no number is defined: crowd regions are no objects."""
    return any(not annotation.get("iscrowd") for annotation in ground_truth["annotations"])


def _defined(value: Any) -> Any:
    """Return a number or a tuple of them with None in place of -1."""
    if isinstance(value, tuple):
        return tuple(map(_defined, value))
    return None if value == -1 else value


def evaluate_coco(ground_truth: dict, results: Sequence[dict], backend: str = "auto") -> Metrics:
    """Evaluate detections of any data set by COCO's rules.

    Args:
        ground_truth: COCO's ``images`` (id), ``categories`` (id, name) and ``annotations`` (image_id, category_id,
            bbox, area, iscrowd); other keys are ignored.
        results: dicts of image_id, category_id, bbox (x, y, w, h in original pixels) and score.
        backend: a key of :data:`BACKENDS`, or ``auto`` for the first that is installed.

    Raises:
        UserError: the backend is unknown or not installed, or a result names an image or category that does not exist.
    """
    truth = clean_ground_truth(ground_truth)
    results = list(results)
    check_results(truth, results)
    names = tuple(str(category["name"]) for category in truth["categories"])
    objects = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    name, compute = _backend(backend)
    if objects:
        precision, recall = compute(truth, results)
    else:  # nothing is defined; the packages differ in how they say it
        thresholds, recalls, areas, limits = SHAPE
        precision = np.full((thresholds, recalls, len(names), areas, limits), -1.0)
        recall = np.full((thresholds, len(names), areas, limits), -1.0)

    # The precision is [T R K A D], the recall [T K A D].
    twelve = {}
    for key, is_precision, threshold, area, limit in TWELVE:
        values = (precision if is_precision else recall)[..., area, limit]
        twelve[key] = mean_of_defined(values if threshold is None else values[threshold : threshold + 1])
    ids = [category["id"] for category in truth["categories"]]
    index = {id_: number for number, id_ in enumerate(ids)}
    per_class = precision[:, :, np.searchsorted(sorted(ids), ids), 0, 2]  # T R K, K in the order of the categories
    operating_point = precision_recall_at_best_f1(truth, results)
    pairs = {(annotation["image_id"], index[annotation["category_id"]]) for annotation in objects}
    instances = np.bincount([index[a["category_id"]] for a in objects], minlength=len(names))
    images = np.bincount([label for _, label in pairs], minlength=len(names))
    return Metrics(
        **twelve,
        precision=operating_point.mean_precision,
        recall=operating_point.mean_recall,
        best_f1_confidence=operating_point.confidence,
        num_images=len(truth["images"]),
        num_instances=len(objects),
        names=names,
        class_ap=tuple(mean_of_defined(per_class[:, :, k]) for k in range(len(names))),
        class_ap50=tuple(mean_of_defined(per_class[0, :, k]) for k in range(len(names))),
        class_precision=operating_point.precision,
        class_recall=operating_point.recall,
        class_images=tuple(images.tolist()),
        class_instances=tuple(instances.tolist()),
        evaluator=name,
    )


def mean_of_defined(values: np.ndarray) -> float:
    """Return pycocotools' mean: of the defined entries, -1 when there is none."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


def run_hotcoco(truth: dict, results: Sequence[dict], parameters: CocoParameters = COCO_PARAMETERS["bbox"]) -> COCOeval:
    """Return hotcoco's evaluation of boxes, masks or key points, with every detection matched."""
    from hotcoco import COCO, COCOeval

    truth_index = COCO(truth)
    evaluation = COCOeval(truth_index, truth_index.load_res(list(results)), parameters.kind)
    for name, value in parameters.of_hotcoco().items():
        setattr(evaluation.params, name, value)
    evaluation.evaluate()
    return evaluation


def hotcoco_arrays(
    truth: dict, results: Sequence[dict], parameters: CocoParameters = COCO_PARAMETERS["bbox"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return hotcoco's precision [T R K A D] and recall [T K A D]."""
    evaluation = run_hotcoco(truth, results, parameters)
    evaluation.accumulate()
    arrays = evaluation.eval
    assert arrays is not None  # it is None only before accumulate
    return arrays["precision"], arrays["recall"]


def _run_pycocotools(truth: dict, results: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints every step
        truth_index, found_index = COCO(), COCO()
        truth_index.dataset = truth
        truth_index.createIndex()
        if results:
            found_index = truth_index.loadRes([dict(result) for result in results])  # it changes what it gets
        else:  # loadRes cannot read an empty list
            found_index.dataset = {**truth, "annotations": []}
            found_index.createIndex()
        evaluation = COCOeval(truth_index, found_index, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


BACKENDS: dict[str, Callable[[dict, list[dict]], tuple[np.ndarray, np.ndarray]]] = {
    "hotcoco": hotcoco_arrays,
    "pycocotools": _run_pycocotools,
}


def _backend(wanted: str) -> tuple[str, Callable]:
    """Return name and function of the wanted backend, for ``auto`` of the first that is installed."""
    if wanted != "auto" and wanted not in BACKENDS:
        raise UserError(f"unknown evaluator '{wanted}'; known: auto, {', '.join(BACKENDS)}")
    for name in BACKENDS if wanted == "auto" else (wanted,):
        try:
            import_module(name)
        except ImportError:
            continue
        return name, BACKENDS[name]
    raise UserError(f"the evaluator is not installed; run: pip install {'hotcoco' if wanted == 'auto' else wanted}")
