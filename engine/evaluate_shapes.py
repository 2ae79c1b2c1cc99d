"""Evaluating the masks and key points that a network finds, beside its boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from data.labels.annotations import Annotations
from evaluation.comparison import coco_numbers, coco_table
from evaluation.overlaps import OKS_SIGMAS
from evaluation.parameters import COCO_PARAMETERS
from evaluation.results import of_kind
from models.detection_network import DetectionNetwork
from utils.files import write_json_atomically
from utils.structures import KEY_POINTS, MASKS

KINDS = {MASKS: "segm", KEY_POINTS: "keypoints"}  # what a network finds -> what COCO calls its evaluation


def truth_with_shapes(ground_truth: dict, dataset: Annotations) -> dict:
    """Return COCO's ground truth, of the same images, with the masks and key points of the data where it has any."""
    if dataset.polygons is None and dataset.key_points is None:
        return ground_truth
    images = {image["id"] for image in ground_truth["images"]}
    whole = [one for one in dataset.to_coco()["annotations"] if one["image_id"] in images]
    return ground_truth | {"annotations": whole}


def evaluate_shapes(
    network: DetectionNetwork, dataset: Annotations, truth: dict, results: Sequence[dict]
) -> dict[str, dict[str, float | None]]:
    """Print COCO's numbers of masks and key points and return them by kind, None where nothing defines one.

    Args:
        network: that found them; of one that finds boxes alone, nothing is printed.
        dataset: what it looked at.
        truth: as :func:`truth_with_shapes` returns it.
        results: of boxes, masks and key points in one.
    """
    found = {}
    for what in sorted(network.finds):
        if reason := why_unlike(what, network, dataset) or _why_undefined(what, network):
            print(f"{what} are not evaluated: {reason}")
            continue
        parameters = COCO_PARAMETERS[KINDS[what]]
        numbers = coco_numbers(truth, of_kind(results, parameters.kind), parameters)
        print(f"{what}:\n{coco_table(numbers, parameters)}")
        plain = (None if math.isnan(number) else float(number) for number in numbers)
        found[parameters.kind] = dict(zip(parameters.names, plain, strict=True))
    return found


def why_unlike(what: str, network: DetectionNetwork, dataset: Annotations) -> str:
    """Return why something that a network finds cannot be compared with the data, "" where it can."""
    if (dataset.polygons if what == MASKS else dataset.key_points) is None:
        return f"the data have no {what}"
    if what == KEY_POINTS and network.num_key_points != dataset.num_key_points:
        return f"the network finds {network.num_key_points} of an object, the data have {dataset.num_key_points}"
    return ""


def _why_undefined(what: str, network: DetectionNetwork) -> str:
    """Return why COCO has no numbers for something that a network finds, "" where it has."""
    if what == KEY_POINTS and network.num_key_points != len(OKS_SIGMAS):
        return f"OKS is defined for COCO's {len(OKS_SIGMAS)}, not for {network.num_key_points}"
    return ""


def write_shape_results(folder: Path, network: DetectionNetwork, results: Sequence[dict]) -> None:
    """Write masks and key points in COCO's format, a file each, ``detections_segm.json`` for instance.

    They have no boxes: COCO's evaluation would take the areas of these for those of the masks.
    """
    for what in network.finds:
        kind = KINDS[what]
        write_json_atomically(folder / f"detections_{kind}.json", of_kind(results, kind), indent=None)
