"""The hardest images: by the training loss where a network has one, else by the AP50 that they cost; with pictures.

Shape letter: I images of the ground truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.error_pictures import ImageSource
from analysis.evaluation_images import boxes_of_detector, image_of
from analysis.matching.losses import hardest
from analysis.matching.views import side_by_side
from analysis.output.pictures import STATES, BoxOnImage, ReportImage
from analysis.output.result import Cell, Table, table_of
from analysis.score_mismatch.measure import MeasuredDetector
from evaluation.error_kinds import ErrorKinds, error_kinds
from evaluation.image_losses import ap50_lost_by_image
from evaluation.matches import CocoMatcher
from utils.draw import Color, class_color, draw_box, write_image

EXPLANATIONS = {
    "image": "id of the image",
    "AP50 lost": "what AP50 would gain if all errors of this image were mended; of several detectors, the sum",
    "total": "sum of the parts of the training loss",
}


@dataclass(frozen=True)
class HardImages:
    """The images of a ground truth, the hardest first."""

    truth: dict  # COCO's ground truth
    detectors: dict[str, ErrorKinds]  # what is wrong with the detections of each
    ap50_lost: np.ndarray  # [I], the sum over the detectors
    losses: dict[int, dict[str, float]]  # image id -> the parts of its training loss; empty where there is none
    order: list[int]  # I indices of the images

    @classmethod
    def of(cls, truth: dict, measured: Mapping[str, MeasuredDetector]) -> HardImages:
        """Rank the images that all detectors could look at."""
        unread = {image_id for one in measured.values() for image_id in one.unread}
        truth = truth | {
            "images": [image for image in truth["images"] if image["id"] not in unread],
            "annotations": [one for one in truth["annotations"] if one["image_id"] not in unread],
        }
        detectors = {
            name: error_kinds(CocoMatcher(truth, [row for row in one.results if row["image_id"] not in unread]))
            for name, one in measured.items()
        }
        lost = np.sum([ap50_lost_by_image(truth, one) for one in detectors.values()], axis=0)
        losses = {image_id: one for detector in measured.values() for image_id, one in detector.losses.items()}
        of_images = [sum(losses[image["id"]].values()) for image in truth["images"]] if losses else lost.tolist()
        return cls(truth, detectors, lost, losses, hardest(of_images, len(of_images)))

    def listing(self, source: ImageSource) -> list[dict[str, Any]]:
        """Return a row for every image."""
        rows = []
        for index in self.order:
            image_id = self.truth["images"][index]["id"]
            parts = self.losses.get(image_id)
            loss = {} if parts is None else {"loss": parts, "total": sum(parts.values())}
            path = source.paths.get(image_id, "")
            rows.append({"image_id": image_id, "path": path, "ap50_lost": self.ap50_lost[index], **loss})
        return rows

    def images(self, source: ImageSource, count: int) -> list[ReportImage]:
        """Return the hardest images with their objects, and with the confident detections of every detector judged."""
        chosen = self.order[:count]
        names = [str(category["name"]) for category in self.truth["categories"]]
        boxes: dict[int, list[BoxOnImage]] = {index: [] for index in chosen}
        for name, detector in self.detectors.items():
            for index, found in boxes_of_detector(self.truth, name, detector, names, chosen).items():
                boxes[index] += found
        return [image_of(self.truth, source, index, boxes[index], self._remark(index)) for index in chosen]

    def _remark(self, index: int) -> str:
        parts = self.losses.get(self.truth["images"][index]["id"])
        loss = "" if parts is None else f", loss {sum(parts.values()):.4g}"
        return f"{loss}, AP50 lost {self.ap50_lost[index]:.4f}"


def hard_tables(listing: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Return the listing of single images as a table; nothing where none was asked for."""
    if not listing:
        return ()
    columns: dict[str, Cell] = {"image": lambda one: str(one["image_id"])}
    columns |= {part: f"loss/{part}" for part in listing[0].get("loss", ())}
    columns |= {"total": "total"} if "total" in listing[0] else {}
    columns |= {"AP50 lost": "ap50_lost", "file": "path"}
    table = table_of("hard_images", "Hardest images", listing, columns, listing=True)
    words = dict.fromkeys(listing[0].get("loss", ()), "part of the training loss")
    return (replace(table, explanations=words | EXPLANATIONS),)


def draw_hard(images: Sequence[ReportImage], detectors: Sequence[str], names: Sequence[str], folder: Path) -> int:
    """Write a picture of each image that is on the disk into a folder; return how many those are.

    Args:
        images: with their boxes, the hardest first.
        detectors: their names.
        names: of the classes.
        folder: is made if needed.
    """
    count = 0
    for number, image in enumerate(images, start=1):
        pixels = image.read()
        if pixels is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{number:03d}-{Path(image.name).stem}.jpg", picture(image, pixels, detectors, names))
        count += 1
    return count


def picture(image: ReportImage, pixels: np.ndarray, detectors: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return an image side by side, [h w 3] BGR: its objects, then what each detector makes of them."""
    truth = pixels.copy()
    for box in image.boxes:
        if STATES[box.state].is_object and box.detector == detectors[0]:
            color = class_color(names.index(box.class_name)) if box.class_name in names else (255, 255, 255)
            draw_box(truth, box.box_xyxy, box.class_name, color)
    panels, captions = [truth], [image.remark]
    for name in detectors:
        panel, counts = pixels.copy(), Counter[str]()
        for box in image.boxes:
            state = STATES[box.state]
            if box.detector == name and (state.is_error or not state.is_object):
                score = "" if box.score is None else f" {box.score:.2f}"
                text = f"{box.class_name}{score}" if box.state == "correct" else f"{box.state}: {box.class_name}{score}"
                draw_box(panel, box.box_xyxy, text, bgr(state.color))
                counts["missed" if state.is_object else "wrong" if state.is_error else box.state] += 1
        panels.append(panel)
        captions.append(f"{name}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}")
    return side_by_side(panels, captions)


def bgr(css: str) -> Color:
    """Return a colour as B, G, R from ``#rrggbb``."""
    red, green, blue = bytes.fromhex(css[1:])
    return blue, green, red
