"""The loss of the averaged model on the validation images, from the raw maps that the evaluation computes anyway."""

from __future__ import annotations

import math

import torch

from models.detector import Detector
from models.loss import DetectionLoss
from utils import distributed
from utils.structures import Batch, Detections


class ValidationLoss:
    """Adds up the parts of the loss over the batches of one evaluation.

    It is the loss that is trained, of images as they are: its label smoothing and gains are in it, the first images of
    a run that Darknet treats otherwise are not.
    """

    def __init__(self, loss_function: DetectionLoss) -> None:
        self.loss_function = loss_function
        self.totals: dict[str, float] = {}
        self.images = 0

    def detect(self, detector: Detector, batch: Batch) -> list[Detections]:
        """Return what the detector finds in a batch, and add the loss of the maps that it comes from."""
        raw_maps = detector.raw_maps(batch.images)
        targets, crowd = batch.targets.to(detector.device), batch.crowd.to(detector.device)
        trained = self.loss_function.images_seen
        self.loss_function.images_seen = None  # these images are no part of the training
        with torch.no_grad():
            parts = self.loss_function(raw_maps, targets, crowd).parts
        self.loss_function.images_seen = trained
        for name, part in parts.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(part)
        self.images += len(batch.metas)
        return detector.detect(raw_maps, batch.metas)

    def means(self) -> dict[str, float]:
        """Return each part per image, over all processes; every process must call it.

        A part that is not finite is left out: the training goes on, and may come back from it.
        """
        shares = distributed.gather((self.totals, self.images))
        if shares is None:
            return distributed.broadcast(None)
        images = sum(count for _, count in shares)
        names = dict.fromkeys(name for totals, _ in shares for name in totals)
        means = {name: sum(totals.get(name, 0.0) for totals, _ in shares) / max(1, images) for name in names}
        return distributed.broadcast({name: value for name, value in means.items() if math.isfinite(value)})
