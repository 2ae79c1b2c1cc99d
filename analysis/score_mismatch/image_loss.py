"""The training loss of single images, for any network that has one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from analysis.matching.losses import loss_options_of
from models.assignment.options import AssignmentOptions
from models.checkpoints.load import LoadedNetwork
from models.learner import Learner
from utils.config import build_options
from utils.structures import Batch

# Layers that compute otherwise in training: with the statistics of a batch, or by chance.
OF_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class ImageLoss:
    """Computes the loss of batches of one image.

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
        """Return the loss that a network was trained with; of foreign weights, that of the default options.

        Raises:
            UserError: it cannot be trained.
        """
        loaded.network.require_trainable()
        known = {item.name for item in fields(AssignmentOptions)}
        values = {name: value for name, value in loaded.options.items() if name in known}
        (assignment,) = build_options(values, [AssignmentOptions], "options of the training")
        loss = loss_options_of(loaded.options, assignment.match)
        return cls(loaded.network.learner(loss, assignment, input_wh))

    def parts(self, raw: Any, batch: Batch) -> dict[str, float]:
        """Return the parts of the loss of one image.

        Args:
            raw: what the network said of it in testing; unread where the loss needs another look at the image.
            batch: of this image, on the device of the network.
        """
        if self.of_outputs is not None:
            with torch.inference_mode():
                parts = self.of_outputs(raw, batch.targets, batch.crowd).parts
        else:
            # Some networks learn from boxes that are drawn at random: from the same ones every time.
            device = batch.images.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                parts = self.learner(batch.images.float() / 255, batch.targets, batch.crowd).parts
        return {name: float(part.detach()) for name, part in parts.items()}
