"""The detectors of torchvision as networks of this toolkit: their layers, losses and boxes, our everything else.

Images are not resized inside: the network gets its input as every other network does, letterboxed. Boxes come out
before non-maximum suppression, which is ours, so that every ``--nms`` can be had.

Shape letters: B images, H W pixels of the network input, N boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.assignment.options import AssignmentOptions
from models.assignment.strategies import fits_heads
from models.backbone_source import BackboneSource
from models.decode import candidates_of_maps
from models.exported.required import required
from models.families.dense_heads import DenseLearner, dense_heads, look, raw_maps, refuse_options
from models.families.named import WrappedNetwork, running_statistics
from models.families.own_loss import OwnLossLearner, objects_of_images, refuse_other_rules
from models.families.published import PublishedDetector
from models.learner import Learner
from models.loss import LossOptions
from utils.structures import Detections, Targets

NEVER = 2.0  # an overlap above which no box is dropped, for no IoU is above 1
NO_LIMIT = 1 << 30  # of the detections of an image
STRIDE = 32  # sides of an input are multiples of it, unless the size is fixed
OF_CLASSES = (  # layers whose size depends on the number of classes, as beginnings of keys of the state dict
    "model.head.classification_head.cls_logits.",
    "model.head.classification_head.module_list.",
    "model.roi_heads.box_predictor.",
)


@dataclass(frozen=True)
class TorchvisionDetector(PublishedDetector):
    """A function of ``torchvision.models.detection``, and what is to be known of what it builds."""

    side: int  # of a usual input, pixels
    backbone: BackboneSource
    fixed_size: bool = False
    ends_in_one_cell: bool = False  # a batch norm has one number per image, which is no statistics of one image

    def build(self, name: str, num_classes: int) -> TorchvisionNetwork:
        """As :meth:`PublishedDetector.build`."""
        return TorchvisionNetwork(name, self, self.model(name, num_classes), num_classes)

    def model(self, name: str, num_classes: int, **own: int) -> nn.Module:
        """Return torchvision's model with random weights, built with what is its ``own`` besides the classes."""
        package = required("torchvision.models.detection", name, "requirements.txt")
        count = num_classes + int(self.has_background)
        return getattr(package, name)(weights=None, weights_backbone=None, num_classes=count, **own)


RESNET50 = BackboneSource("resnet50", {"model.backbone.body.": ""}, left_out=("fc.",))
MOBILENET = BackboneSource("mobilenet_v3_large", {"model.backbone.body.": "features."}, left_out=("classifier.",))
SSDLITE_MOBILENET = BackboneSource(  # without its last layers, which have half as many channels in this detector
    "mobilenet_v3_large",
    {
        "model.backbone.features.0.13.": "features.13.block.0.",
        "model.backbone.features.0.": "features.",
        "model.backbone.features.1.0.1.": "features.13.block.1.",
        "model.backbone.features.1.0.2.": "features.13.block.2.",
    },
    left_out=("features.13.block.3.", "features.14.", "features.15.", "features.16.", "classifier."),
)
VGG16 = BackboneSource(
    "vgg16",
    {
        "model.backbone.features.": "features.",
        "model.backbone.extra.0.1.": "features.24.",
        "model.backbone.extra.0.3.": "features.26.",
        "model.backbone.extra.0.5.": "features.28.",
    },
    left_out=("classifier.",),
)
DETECTORS = {
    "retinanet_resnet50_fpn": TorchvisionDetector(33_839_924, 800, RESNET50, match="maxiou"),
    "retinanet_resnet50_fpn_v2": TorchvisionDetector(37_970_740, 800, RESNET50, match="maxiou"),
    "fcos_resnet50_fpn": TorchvisionDetector(32_297_365, 800, RESNET50, match="fcos"),
    "fasterrcnn_resnet50_fpn": TorchvisionDetector(41_757_156, 800, RESNET50, has_background=True),
    "fasterrcnn_resnet50_fpn_v2": TorchvisionDetector(43_661_028, 800, RESNET50, has_background=True),
    "fasterrcnn_mobilenet_v3_large_320_fpn": TorchvisionDetector(19_359_504, 320, MOBILENET, has_background=True),
    "ssdlite320_mobilenet_v3_large": TorchvisionDetector(
        3_301_460, 320, SSDLITE_MOBILENET, has_background=True, fixed_size=True, ends_in_one_cell=True
    ),
    "ssd300_vgg16": TorchvisionDetector(34_305_206, 300, VGG16, has_background=True, fixed_size=True),
}


class TorchvisionNetwork(WrappedNetwork):
    """One of torchvision's detectors; ``model`` is torchvision's own."""

    expanded = ("backbone", "body")

    def __init__(self, name: str, kind: TorchvisionDetector, model: nn.Module, num_classes: int) -> None:
        """Take over a model that torchvision has built.

        Args:
            name: of the function that built it.
            kind: what is to be known of it.
            model: changed in place: it resizes no image and drops no box that overlaps another one.
            num_classes: without the background.
        """
        super().__init__(name, model)
        self.kind = kind
        self.backbone_source = kind.backbone
        self.input_wh = (kind.side, kind.side)
        self.max_stride = 1 if kind.fixed_size else STRIDE
        self.fixed_size = kind.fixed_size
        self.classes_of_model = num_classes
        self.shown = num_classes  # classes of the model that are told of, the first ones
        model.transform = _without_resize(model.transform)
        last = _last_stage(model)
        last.nms_thresh, last.detections_per_img = NEVER, NO_LIMIT
        self.heads = dense_heads(model, num_classes, fits_heads(kind.match, True)) if kind.match else ()
        self.shows_maps = False  # what :meth:`forward` returns

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart, without the background."""
        return self.shown

    def forward(self, images: Tensor) -> list[dict[str, Tensor]] | list[Tensor]:
        """Return the model's boxes, or one raw map per head, in evaluation mode; training goes by its learner."""
        if self.shows_maps:
            return raw_maps(self.model, look(self.model, images), self.heads)
        return self.model(list(images))

    def showing_maps(self) -> TorchvisionNetwork:
        """As :meth:`DetectionNetwork.showing_maps`."""
        super().showing_maps()
        other = _shallow_copy(self)
        other.shows_maps = True
        return other

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the model's own losses, means over the batch, of images [B 3 H W], 0..1, and their objects.

        Objects without area are left out. A single image, such as the last of an epoch, is seen with the statistics of
        the others where it has none of its own.
        """
        height, width = images.shape[2:]
        shift = int(self.kind.has_background)
        wanted = [
            {"boxes": boxes_xyxy, "labels": labels + shift} | self.shapes_of(targets, rows, (height, width))
            for rows, boxes_xyxy, labels in objects_of_images(targets, len(images), (width, height))
        ]
        with running_statistics(self.model) if self.kind.ends_in_one_cell and len(images) == 1 else nullcontext():
            return self.model(list(images), wanted)

    def shapes_of(self, targets: Targets, rows: Tensor, size_hw: tuple[int, int]) -> dict[str, Tensor]:
        """Return what the model learns of objects besides boxes and labels, by torchvision's names: here nothing.

        Args:
            targets: of a batch.
            rows: [T] bool, the objects that are meant.
            size_hw: of the network input.
        """
        return {}

    def candidates(self, raw: Any, confidence: float) -> list[Detections]:
        """As :meth:`DetectionNetwork.candidates`."""
        if self.shows_maps:
            return candidates_of_maps(raw, self.heads, confidence)
        found = []
        for of_image in raw:
            labels = of_image["labels"] - int(self.kind.has_background)
            kept = (of_image["scores"] > confidence) & (labels >= 0) & (labels < self.shown)
            found.append(Detections(of_image["boxes"][kept], of_image["scores"][kept], labels[kept]))
        return found

    def learner(self, loss: LossOptions, assignment: AssignmentOptions, input_wh: tuple[int, int]) -> Learner:
        """As :meth:`DetectionNetwork.learner`, with the model's own loss and, without heads, its own assignment."""
        if self.heads:
            refuse_options(self.name, loss, assignment, self.heads)
            return DenseLearner(self, assignment)
        refuse_other_rules(self.name, loss, assignment)
        return OwnLossLearner(self)

    def depends_on_classes(self, name: str) -> bool:
        """As :meth:`DetectionNetwork.depends_on_classes`."""
        return name.startswith(OF_CLASSES)

    def with_classes(self, classes: Sequence[int]) -> TorchvisionNetwork:
        """As :meth:`DetectionNetwork.with_classes`.

        The model keeps those that are not named behind the others, for scores of some models are shares of all classes.
        """
        first = int(self.kind.has_background)
        rest = [index for index in range(self.classes_of_model) if index not in classes]
        slots = torch.tensor([*range(first), *(first + index for index in (*classes, *rest))])
        other = copy.deepcopy(self)
        state = self.model.state_dict()
        for key, rows in self.kind.rows_per_class(self.name).items():
            # The rows of a class follow each other where a box belongs to a class, else those of an anchor do.
            axis, shape = (0, (-1, rows)) if ".bbox_pred." in key else (1, (rows, -1))
            place = torch.arange(len(state[key])).view(shape).index_select(axis, slots).flatten()
            state[key] = state[key][place.to(state[key].device)]
        other.model.load_state_dict(state)
        other.shown = len(classes)
        other.heads = tuple(replace(head, num_classes=len(classes)) for head in self.heads)
        return other

    def looking_above(self, confidence: float) -> TorchvisionNetwork:
        """As :meth:`DetectionNetwork.looking_above`; weaker boxes are dropped where the model drops them."""
        other = _shallow_copy(self)
        other.model = _shallow_copy(self.model)
        if hasattr(other.model, "roi_heads"):
            other.model.roi_heads = _shallow_copy(other.model.roi_heads)
        _last_stage(other.model).score_thresh = confidence
        return other


def _last_stage(model: nn.Module) -> Any:
    """Return the module that turns numbers into boxes."""
    return getattr(model, "roi_heads", model)


def _without_resize(transform: Any) -> nn.Module:
    """Return torchvision's preparation of images, less the change of their size."""

    class AsItIs(type(transform)):  # type: ignore[misc]
        def resize(self, image: Tensor, target: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor] | None]:
            return image, target

    transform.__class__ = AsItIs
    return transform


def _shallow_copy(module: Any) -> Any:
    """Return a copy of a module with the same tensors, whose attributes and children can be replaced."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other
