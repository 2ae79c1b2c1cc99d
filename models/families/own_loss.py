"""What training asks of networks that bring their own rule of assignment and their own loss.

Shape letters: B images, H W pixels of the network input, N objects of an image.
"""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from models.assignment.options import AssignmentOptions
from models.learner import BatchLoss, Learner
from models.loss import LossOptions
from utils.boxes import cxcywh_to_xyxy
from utils.config import flag
from utils.errors import UserError
from utils.structures import Targets

IMAGES_PER_STEP = 64  # whose mean loss a step follows, the nominal batch that learning rates here are meant for


class OwnLossLearner(Learner):
    """A network with its own losses as a learner, whose parts are sums over the images of a batch.

    The network has ``losses(images, targets)``, which returns means over the batch by name.
    """

    def forward(self, images: Tensor, targets: Targets, crowd: Targets) -> BatchLoss:
        """As :meth:`Learner.forward`; crowd regions are background."""
        with self.part("forward"), self.mixed_precision(images):  # and the loss, which is computed inside
            losses = self.network.losses(images, targets)
        parts = {name: loss.float() * len(images) for name, loss in losses.items()}
        return BatchLoss(parts, share=1 / IMAGES_PER_STEP)


def objects_of_images(targets: Targets, images: int, size_wh: tuple[int, int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return which objects of each image have an area: rows [T] bool, their boxes [N 4] x y x y in pixels, labels [N].

    Args:
        targets: of the batch.
        images: how many the batch has.
        size_wh: of the network input, pixels.
    """
    boxes_xyxy = cxcywh_to_xyxy(targets.boxes_cxcywh) * targets.boxes_cxcywh.new_tensor(size_wh * 2)
    usable = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
    rows = [(targets.image == number) & usable for number in range(images)]
    return [(mine, boxes_xyxy[mine], targets.label[mine]) for mine in rows]


def refuse_other_rules(name: str, loss: LossOptions, assignment: AssignmentOptions) -> None:
    """Refuse options that choose what a network with its own rules does not let anybody choose.

    Raises:
        UserError: names the first.
    """
    for options in (assignment, loss):
        for item in fields(options):
            if getattr(options, item.name) != item.default:
                raise UserError(f"{flag(item.name)}: leave it out; {name} has its own assignment and loss")
