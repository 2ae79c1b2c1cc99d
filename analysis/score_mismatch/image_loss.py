"""The training loss of single images, for any network that has one."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import nn

from analysis.matching.losses import loss_options_of, only_image
from models.assignment.options import AssignmentOptions
from models.checkpoints.load import LoadedNetwork
from models.detector import Detector
from models.families.table import match_of
from models.learner import Learner
from utils.config import build_options
from utils.structures import Batch

# Layers that compute otherwise in training: with the statistics of a batch, or by chance.
OF_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class ImageLoss:
    """Computes the loss of single images.

    Args:
        learner: on its device; changed in place: it computes losses as in training, but normalises as in testing.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner.train()
        for module in learner.modules():
            if isinstance(module, OF_TRAINING):
                module.eval()
        self.of_outputs = learner.loss_of_outputs()

    @classmethod
    def of(cls, loaded: LoadedNetwork, input_wh: tuple[int, int]) -> ImageLoss:
        """Return the loss that a network was trained with; of foreign weights, that of its default options.

        Raises:
            UserError: it cannot be trained.
        """
        loaded.network.require_trainable()
        known = {item.name for item in fields(AssignmentOptions)}
        values = {name: value for name, value in loaded.options.items() if name in known}
        if match := match_of(loaded.network.cfg_path, loaded.options):
            values["match"] = match
        (assignment,) = build_options(values, [AssignmentOptions], "options of the training")
        loss = loss_options_of(loaded.options, assignment.match)
        return cls(loaded.network.learner(loss, assignment, input_wh))

    def parts(self, detector: Detector, batch: Batch) -> list[dict[str, float]]:
        """Return the parts of the loss of each image, as of a batch of it alone: means over a batch mix its images.

        Args:
            detector: with the same network.
            batch: of images of any number.
        """
        on_device = batch.to(detector.device)
        found = []
        for number in range(len(batch.images)):
            image = on_device.images[number : number + 1]
            targets, crowd = (only_image(targets, number) for targets in (on_device.targets, on_device.crowd))
            if self.of_outputs is not None:
                with torch.inference_mode():
                    parts = self.of_outputs(detector.raw_outputs(image), targets, crowd).parts
            else:
                # Some networks learn from boxes that are drawn at random: from the same ones every time.
                with torch.random.fork_rng([detector.device] if detector.device.type == "cuda" else []):
                    torch.manual_seed(0)
                    parts = self.learner(image.float() / 255, targets, crowd).parts
            found.append({name: float(part.detach()) for name, part in parts.items()})
        return found
