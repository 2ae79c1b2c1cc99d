"""Detections and ground truth in COCO's formats: written with a fixed rounding, checked when they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from utils.errors import UserError
from utils.structures import Detections, ImageMeta


def clean_ground_truth(ground_truth: dict) -> dict:
    """Return the part of a COCO ground truth that box evaluation reads.

    Annotations get ids from 1 on unless theirs are distinct and positive: pycocotools takes id 0 for "no match" and
    loses that object. What was given stays unchanged.
    """
    annotations = [
        {
            "id": annotation.get("id", 0),
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": list(annotation["bbox"]),
            "area": annotation["area"] if "area" in annotation else annotation["bbox"][2] * annotation["bbox"][3],
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        for annotation in ground_truth.get("annotations", ())
    ]
    ids = {annotation["id"] for annotation in annotations}
    if len(ids) < len(annotations) or (ids and min(ids) < 1):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    kept = ("id", "file_name", "width", "height")
    return {
        "info": {},
        "images": [{key: image[key] for key in kept if key in image} for image in ground_truth["images"]],
        "categories": [{"id": category["id"], "name": category["name"]} for category in ground_truth["categories"]],
        "annotations": annotations,
    }


def as_one_class(truth: dict, of_columns: dict[str, list[list[dict]]]) -> tuple[dict, dict[str, list[list[dict]]]]:
    """Return ground truth and results with all classes as one, in the order that pycocotools has for ``useCats=0``.

    Args:
        truth: COCO's ground truth.
        of_columns: the results of each file, by column.
    """

    def as_one(rows: Sequence[dict]) -> list[dict]:
        return [{**row, "category_id": 1} for row in sorted(rows, key=lambda row: row["category_id"])]

    one_class = {"categories": [{"id": 1, "name": "object"}], "annotations": as_one(truth["annotations"])}
    return truth | one_class, {name: list(map(as_one, files)) for name, files in of_columns.items()}


def check_results(truth: dict, results: Sequence[dict]) -> None:
    """Refuse results that name an image or a category which the ground truth does not have.

    Raises:
        UserError: names the first of these.
    """
    for key, where in (("image_id", "images"), ("category_id", "categories")):
        unknown = {result[key] for result in results} - {item["id"] for item in truth[where]}
        if unknown:
            raise UserError(f"results name {key} {min(unknown)}, which the ground truth's '{where}' does not have")


SHAPE_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # kind of IoU -> key of a result
BOX_DECIMALS = 3  # of a pixel; results are evaluated and written with this rounding and no other
SCORE_DECIMALS = 8


def coco_results(detections: Detections, meta: ImageMeta, category_ids: Sequence[int]) -> list[dict]:
    """Return the detections of one image as COCO results, rounded once so that a file holds exactly these numbers.

    Where they have masks or key points, a result has ``segmentation`` (run lengths) or ``keypoints``.

    Args:
        detections: of the image.
        meta: names the image.
        category_ids: class index -> COCO category id.
    """
    boxes = detections.boxes_xyxy.to(device="cpu", dtype=torch.float64).numpy()
    boxes_xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).round(BOX_DECIMALS).tolist()
    scores = detections.scores.to(device="cpu", dtype=torch.float64).numpy().round(SCORE_DECIMALS).tolist()
    results = [
        {"image_id": meta.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes_xywh, scores, detections.labels.tolist(), strict=True)
    ]
    if detections.masks is not None:
        masks = detections.masks.cpu()
        for number, result in enumerate(results):
            result["segmentation"] = run_lengths(masks.of_object(number))
    if detections.key_points is not None:
        points = detections.key_points.to(device="cpu", dtype=torch.float64).numpy()
        points = np.concatenate((points[..., :2].round(BOX_DECIMALS), np.ones((*points.shape[:2], 1))), axis=2)
        for result, of_object in zip(results, points.reshape(len(points), -1).tolist(), strict=True):
            result["keypoints"] = of_object
    return results


def run_lengths(mask: np.ndarray) -> dict:
    """Return a mask [h w] bool as COCO's compressed run lengths, ready for JSON."""
    from hotcoco import mask as masks

    encoded = masks.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def of_kind(results: Sequence[dict], kind: str) -> list[dict]:
    """Return results of boxes (bbox), masks (segm) or key points (keypoints) alone."""
    keys = ("image_id", "category_id", SHAPE_KEYS[kind], "score")
    return [{key: result[key] for key in keys} for result in results]
