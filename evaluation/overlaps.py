"""COCO's overlap of detections and annotations: IoU of boxes and masks, similarity of key points.

Shape letters: N detections, M annotations, P pairs of both, K key points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evaluation.pairs import Rows, boxes_of, overlap
from utils.errors import UserError

# How far people's annotations of each key point scatter, by COCO ("keypoints evaluation", cocodataset.org), nose to
# ankles; the same as pycocotools' kpt_oks_sigmas.
OKS_SIGMAS = np.array(
    [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
) / 10  # fmt: skip
PAIRS_AT_ONCE = 100_000
Pairs = tuple[np.ndarray, np.ndarray]  # [P] of detections and [P] of annotations, all of one annotation in a row


def crowd_of(annotations: Rows) -> np.ndarray:
    """Return [M] bool: the annotations that are a crowd region."""
    return np.array([bool(one.get("iscrowd")) for one in annotations], dtype=bool)


def ignored_of(annotations: Rows, kind: str) -> np.ndarray:
    """Return [M] bool: the annotations that need not be found, crowd regions and people without a key point."""
    crowd = crowd_of(annotations)
    if kind != "keypoints":
        return crowd
    visible = [one["num_keypoints"] if "num_keypoints" in one else any(one["keypoints"][2::3]) for one in annotations]
    return crowd | ~np.array(visible, dtype=bool)


def areas_of(results: Rows, kind: str, sizes_hw: Mapping[int, tuple[int, int]]) -> np.ndarray:
    """Return the area [N] of each detection in square pixels, as pycocotools' ``loadRes``: of the box, if it has one.

    Args:
        results: COCO's results.
        kind: bbox, segm or keypoints.
        sizes_hw: of the images in pixels, by their ids; read for masks only.
    """
    return np.array([_area(one, kind, sizes_hw) for one in results], dtype=np.float64)


def _area(result: Mapping[str, Any], kind: str, sizes_hw: Mapping[int, tuple[int, int]]) -> float:
    if result.get("bbox"):
        return result["bbox"][2] * result["bbox"][3]
    if kind == "segm":
        from hotcoco import mask

        return float(mask.area(run_lengths(result, sizes_hw)))
    x, y = result["keypoints"][0::3], result["keypoints"][1::3]
    return (max(x) - min(x)) * (max(y) - min(y))


def overlap_of_pairs(
    results: Rows, annotations: Rows, pairs: Pairs, kind: str, sizes_hw: Mapping[int, tuple[int, int]]
) -> np.ndarray:
    """Return COCO's overlap [P] of pairs, 0..1.

    Args:
        results: COCO's results.
        annotations: of COCO's ground truth.
        pairs: indices of both; all detections of one image and class are paired with all its annotations.
        kind: bbox, segm or keypoints.
        sizes_hw: of the images in pixels, by their ids; read for masks only.

    Raises:
        UserError: the key points are not COCO's.
    """
    if kind == "segm":
        return _of_masks(results, annotations, pairs, sizes_hw)
    if kind == "keypoints":
        return _of_key_points(results, annotations, pairs)
    boxes, truth_boxes = boxes_of(results), boxes_of(annotations)
    return overlap(boxes[pairs[0]], truth_boxes[pairs[1]], crowd_of(annotations)[pairs[1]])


def _of_masks(results: Rows, annotations: Rows, pairs: Pairs, sizes_hw: Mapping[int, tuple[int, int]]) -> np.ndarray:
    """Return the IoU of masks [P], computed once for all pairs of an image and class."""
    from hotcoco import mask

    overlap = np.zeros(len(pairs[0]))
    for places in _by_image_and_class(annotations, pairs[1]):
        of_truth = list(dict.fromkeys(pairs[1][places].tolist()))
        found = pairs[0][places[: len(places) // len(of_truth)]].tolist()
        table = mask.iou(  # detections, annotations
            [run_lengths(results[number], sizes_hw) for number in found],
            [run_lengths(annotations[number], sizes_hw) for number in of_truth],
            [bool(annotations[number].get("iscrowd")) for number in of_truth],
        )
        overlap[places] = table.T.ravel()
    return overlap


def _by_image_and_class(annotations: Rows, of_pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of the pairs of each image and class, by annotation and then as they are."""
    groups: dict[tuple[int, int], list[int]] = {}
    starts = np.flatnonzero(np.diff(of_pairs, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(of_pairs)], strict=True):
        one = annotations[of_pairs[start]]
        groups.setdefault((one["image_id"], one["category_id"]), []).extend(range(start, end))
    yield from map(np.array, groups.values())


def run_lengths(row: Mapping[str, Any], sizes_hw: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """Return the mask of a result or annotation as run lengths, from these, plain or compressed, or from polygons.

    Raises:
        UserError: it is none, or of another size than its image.
    """
    from hotcoco import mask

    shape, size_hw = row["segmentation"], sizes_hw[row["image_id"]]
    place = f"annotation {row['id']}, image {row['image_id']}" if "id" in row else f"image {row['image_id']}"
    try:
        runs = mask.merge(mask.frPyObjects(shape, *size_hw)) if isinstance(shape, list) else shape
        mask.area(runs)
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{place}: its mask cannot be read ({error!s:.100})") from error
    if isinstance(shape, dict) and tuple(shape["size"]) != tuple(size_hw):
        (height, width), sides = shape["size"], f"{size_hw[1]} x {size_hw[0]}"
        raise UserError(f"{place}: its mask is {width} x {height} pixels large, and not {sides}")
    return runs


def _of_key_points(results: Rows, annotations: Rows, pairs: Pairs) -> np.ndarray:
    """Return the object key point similarity [P], as pycocotools' ``computeOks``."""
    found, truth = (_key_points(rows) for rows in (results, annotations))  # [N K 3], [M K 3]
    areas = np.array([one["area"] for one in annotations], dtype=np.float64) + np.spacing(1)
    boxes = np.array([one["bbox"] for one in annotations], dtype=np.float64).reshape(-1, 4)
    # Where an annotation has no key point: how far it is to its box, made three times as wide and high.
    low, high = boxes[:, None, :2] - boxes[:, None, 2:], boxes[:, None, :2] + 2 * boxes[:, None, 2:]
    similarity = np.zeros(len(pairs[0]))
    for start in range(0, len(similarity), PAIRS_AT_ONCE):
        of_found, of_truth = (column[start : start + PAIRS_AT_ONCE] for column in pairs)
        points = found[of_found][..., :2]
        visible = np.greater(truth[of_truth, :, 2], 0)
        has_points = np.any(visible, axis=1)
        outside = np.maximum(0, low[of_truth] - points) + np.maximum(0, points - high[of_truth])
        apart = np.where(has_points[:, None, None], points - truth[of_truth][..., :2], outside)
        error = (apart**2).sum(axis=-1) / (2 * OKS_SIGMAS) ** 2 / areas[of_truth, None] / 2
        counted = visible | ~has_points[:, None]
        similarity[start : start + PAIRS_AT_ONCE] = (np.exp(-error) * counted).sum(axis=1) / counted.sum(axis=1)
    return similarity


def _key_points(rows: Rows) -> np.ndarray:
    """Return x, y and visibility of key points, [N K 3]."""
    for one in rows:
        if len(one["keypoints"]) != 3 * len(OKS_SIGMAS):
            raise UserError(
                f"an object has {len(one['keypoints']) / 3:g} key points; OKS is defined for COCO's {len(OKS_SIGMAS)}"
            )
    return np.array([one["keypoints"] for one in rows], dtype=np.float64).reshape(-1, len(OKS_SIGMAS), 3)
