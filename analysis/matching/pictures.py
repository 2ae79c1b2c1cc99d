"""Pictures of single images from a --matching-stats run: the hardest ones, and those in which NMS lost objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.matching.losses import PARTS, hardest
from analysis.matching.measure import MeasurementPlan, Measurements
from analysis.matching.views import ImageView, lost_picture, picture, view_images
from analysis.output.result import Cell, Table, table_of
from data.labels.annotations import Annotations
from utils.draw import write_image

LOST_REASONS = ("suppressed", "merged")  # columns of the objects, and texts on the picture


class ImagePictures:
    """Draws images of a data set that was measured, and writes the pictures into the folder of the run."""

    def __init__(
        self,
        annotations: Annotations,
        plan: MeasurementPlan,
        net_hw: tuple[int, int],
        found: Measurements,
        folder: Path,
    ) -> None:
        self.annotations, self.plan, self.net_hw = annotations, plan, net_hw
        self.found, self.folder = found, folder

    def draw_hard(self, count: int) -> list[dict[str, Any]]:
        """Draw the images with the largest loss into ``hard/``.

        Args:
            count: how many.

        Returns:
            The losses of all images, largest first; none where they were not measured.
        """
        if "loss" not in self.found.images:
            return []
        losses = self.found.images["loss"].astype(np.float64)
        ranking = hardest(losses.sum(axis=1).tolist(), len(losses))
        order = self.found.images["index"][ranking]
        parts = {
            index: dict(zip(PARTS, losses[row].tolist(), strict=True))
            for index, row in zip(order, ranking, strict=True)
        }
        for number, view in enumerate(self.views(order[:count])):
            view = replace(view, remarks={"loss": parts[view.index]})
            path = self.folder / "hard" / f"{number + 1:03d}-{view.image_id}.jpg"
            write_image(path, picture(view, self.annotations.names, self.found.strategies))
        return [
            {
                "image_id": int(self.annotations.image_ids[index]),
                "path": self.annotations.image_paths[index],
                **parts[index],
                "total": sum(parts[index].values()),
            }
            for index in order
        ]

    def draw_lost(self, count: int) -> int:
        """Draw at most ``count`` images into ``lost/``, those that lost most objects to NMS; return how many."""
        objects = self.found.objects
        lost = objects["suppressed"] | (objects["merged"] > 0)
        images, per_image = np.unique(objects["image"][lost], return_counts=True)
        chosen = images[np.lexsort((images, -per_image))][:count]
        for number, view in enumerate(self.views(chosen)):
            rows = np.flatnonzero(objects["image"] == view.index)  # in the order of the view's objects
            reasons = {
                place: ", ".join(reason for reason in LOST_REASONS if objects[reason][row])
                for place, row in enumerate(rows)
                if lost[row]
            }
            path = self.folder / "lost" / f"{number + 1:03d}-{view.image_id}.jpg"
            write_image(path, lost_picture(replace(view, remarks={"lost": reasons}), self.annotations.names))
        return len(chosen)

    def views(self, indices: Iterable[int]) -> list[ImageView]:
        """Return the views of the images with these indices."""
        return view_images(self.annotations, self.plan, self.net_hw, [int(index) for index in indices])


def most_difficult(found: Measurements, count: int) -> np.ndarray:
    """Return the indices of at most ``count`` images: those with most objects that no detection finds.

    Of images with equally many, the one in which the first strategy leaves more objects without a match comes first.
    """
    objects = found.objects
    images = np.sort(found.images["index"])
    place = np.searchsorted(images, objects["image"])
    undetected = np.bincount(place, ~objects["detected"], minlength=len(images))
    unmatched = np.bincount(place, objects["positives"][:, 0] == 0, minlength=len(images))
    return images[np.lexsort((images, -unmatched, -undetected))][:count]


def hard_tables(hard: Sequence[dict[str, Any]]) -> tuple[Table, ...]:
    """Return the listing of the losses of single images; no table where they were not measured."""
    if not hard:
        return ()
    columns: dict[str, Cell] = {"image": lambda one: str(one["image_id"])} | {part: part for part in PARTS}
    columns |= {"total": "total", "file": "path"}
    return (table_of("hard_examples", "Training loss of single images", hard, columns, listing=True),)
