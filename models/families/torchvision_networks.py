"""The detectors of torchvision as networks of this toolkit: their layers, losses and boxes, our everything else.

Images are not resized inside: the network gets its input as every other network does, letterboxed. Boxes come out
before non-maximum suppression, which is ours, so that every ``--nms`` can be had.

Shape letters: B images, H W pixels of the network input, N boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.assignment.options import AssignmentOptions
from models.exported.required import required
from models.families.named import NamedNetwork
from models.families.own_loss import OwnLossLearner, refuse_other_rules
from models.learner import Learner
from models.loss import LossOptions
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError
from utils.structures import Detections, Targets

NEVER = 2.0  # an overlap above which no box is dropped, for no IoU is above 1
NO_LIMIT = 1 << 30  # of the detections of an image
STRIDE = 32  # sides of an input are multiples of it, unless the size is fixed
EXPANDED = ("backbone", "body")  # whose children are parts, unless they have parameters beside those
OF_CLASSES = (  # layers whose size depends on the number of classes, as beginnings of keys of the state dict
    "model.head.classification_head.cls_logits.",
    "model.head.classification_head.module_list.",
    "model.roi_heads.box_predictor.",
)


@dataclass(frozen=True)
class TorchvisionDetector:
    """A function of ``torchvision.models.detection``, and what is to be known of what it builds."""

    side: int  # of a usual input, pixels
    has_background: bool = False  # its class 0 is no class
    fixed_size: bool = False
    ends_in_one_cell: bool = False  # a batch norm has one number per image, which is no statistics of one image

    def build(self, name: str, num_classes: int) -> TorchvisionNetwork:
        """Return the network with random weights.

        Raises:
            UserError: torchvision cannot be imported.
        """
        package = required("torchvision.models.detection", name, "requirements.txt")
        model = getattr(package, name)(
            weights=None, weights_backbone=None, num_classes=num_classes + int(self.has_background)
        )
        return TorchvisionNetwork(name, self, model, num_classes)

    def filled(self, name: str, state: Mapping[str, Tensor], path: Path) -> TorchvisionNetwork:
        """Return the network with the tensors of a file of torchvision's, and as many classes as that has.

        torchvision itself reads names of older releases.

        Raises:
            UserError: they are the tensors of another network.
        """
        key, rows = next(iter(self.rows_per_class(name).items()))
        if key not in state or not state[key].dim():
            raise UserError(f"{path}: the weights of another network than {name}, which has {key}")
        network = self.build(name, max(1, len(state[key]) // rows - int(self.has_background)))
        try:
            missing, surplus = network.model.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            raise UserError(f"{path}: the weights of another network than {name}; tensors of other shapes") from error
        # Batch norms that were frozen when the file was written have counted nothing.
        wrong = [one for one in missing if not one.endswith("num_batches_tracked")] + surplus
        if wrong:
            raise UserError(f"{path}: the weights of another network than {name}, for one of them lacks {wrong[0]}")
        return network

    def rows_per_class(self, name: str) -> dict[str, int]:
        """Return the tensors of the model whose first dimension grows with the classes, and by how much for each."""
        with torch.device("meta"):
            one, two = (self.build(name, count).model.state_dict() for count in (1, 2))
        rows = {key: len(two[key]) - len(tensor) if tensor.dim() else 0 for key, tensor in one.items()}
        return {key: count for key, count in rows.items() if count}

    def names(self, name: str, num_classes: int) -> tuple[str, ...]:
        """Return the names of the classes of a published file: COCO's where it has its 91 slots, else nothing."""
        first = int(self.has_background)
        if num_classes + first != len(coco := required("torchvision.models._meta", name)._COCO_CATEGORIES):
            return ()
        return tuple(f"unused {slot}" if coco[slot] == "N/A" else coco[slot] for slot in range(first, len(coco)))


DETECTORS = {
    "retinanet_resnet50_fpn": TorchvisionDetector(800),
    "retinanet_resnet50_fpn_v2": TorchvisionDetector(800),
    "fcos_resnet50_fpn": TorchvisionDetector(800),
    "fasterrcnn_resnet50_fpn": TorchvisionDetector(800, has_background=True),
    "fasterrcnn_resnet50_fpn_v2": TorchvisionDetector(800, has_background=True),
    "fasterrcnn_mobilenet_v3_large_320_fpn": TorchvisionDetector(320, has_background=True),
    "ssdlite320_mobilenet_v3_large": TorchvisionDetector(
        320, has_background=True, fixed_size=True, ends_in_one_cell=True
    ),
    "ssd300_vgg16": TorchvisionDetector(300, has_background=True, fixed_size=True),
}


class TorchvisionNetwork(NamedNetwork):
    """One of torchvision's detectors; ``model`` is torchvision's own."""

    knows_half = False

    def __init__(self, name: str, kind: TorchvisionDetector, model: nn.Module, num_classes: int) -> None:
        """Take over a model that torchvision has built.

        Args:
            name: of the function that built it.
            kind: what is to be known of it.
            model: changed in place: it resizes no image and drops no box that overlaps another one.
            num_classes: without the background.
        """
        super().__init__()
        self.name, self.kind = name, kind
        self.input_wh = (kind.side, kind.side)
        self.max_stride = 1 if kind.fixed_size else STRIDE
        self.fixed_size = kind.fixed_size
        self.classes_of_model = num_classes
        self.shown = num_classes  # classes of the model that are told of, the first ones
        self.model = model
        model.transform = _without_resize(model.transform)
        last = _last_stage(model)
        last.nms_thresh, last.detections_per_img = NEVER, NO_LIMIT
        self._parts = _parts(model)

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart, without the background."""
        return self.shown

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the model's boxes, in evaluation mode; training goes by :meth:`losses`."""
        return self.model(list(images))

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the model's own losses, means over the batch, of images [B 3 H W], 0..1, and their objects.

        Objects without area are left out. A single image, such as the last of an epoch, is seen with the statistics of
        the others where it has none of its own.
        """
        height, width = images.shape[2:]
        boxes_xyxy = cxcywh_to_xyxy(targets.boxes_cxcywh) * images.new_tensor((width, height) * 2)
        usable = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
        labels = targets.label + int(self.kind.has_background)
        rows = [(targets.image == number) & usable for number in range(len(images))]
        wanted = [
            {"boxes": boxes_xyxy[mine], "labels": labels[mine]} | self.shapes_of(targets, mine, (height, width))
            for mine in rows
        ]
        with self._statistics_of_others() if self.kind.ends_in_one_cell and len(images) == 1 else nullcontext():
            return self.model(list(images), wanted)

    def shapes_of(self, targets: Targets, rows: Tensor, size_hw: tuple[int, int]) -> dict[str, Tensor]:
        """Return what the model learns of objects besides boxes and labels, by torchvision's names: here nothing.

        Args:
            targets: of a batch.
            rows: [T] bool, the objects that are meant.
            size_hw: of the network input.
        """
        return {}

    @contextmanager
    def _statistics_of_others(self) -> Iterator[None]:
        """Within this block batch norms use their running statistics."""
        norms = [one for one in self.model.modules() if isinstance(one, nn.BatchNorm2d) and one.training]
        try:
            for norm in norms:
                norm.eval()
            yield
        finally:
            for norm in norms:
                norm.train()

    def candidates(self, raw: list[dict[str, Tensor]], confidence: float) -> list[Detections]:
        """As :meth:`DetectionNetwork.candidates`."""
        found = []
        for of_image in raw:
            labels = of_image["labels"] - int(self.kind.has_background)
            kept = (of_image["scores"] > confidence) & (labels >= 0) & (labels < self.shown)
            found.append(Detections(of_image["boxes"][kept], of_image["scores"][kept], labels[kept]))
        return found

    def learner(self, loss: LossOptions, assignment: AssignmentOptions, input_wh: tuple[int, int]) -> Learner:
        """As :meth:`DetectionNetwork.learner`, with the model's own rules."""
        refuse_other_rules(self.name, loss, assignment)
        return OwnLossLearner(self)

    def parts(self) -> list[nn.Module]:
        """Return the stages of the backbone, what joins their maps, and the rest of the model."""
        return list(self._parts.values())

    def part_of(self, name: str) -> int:
        """As :meth:`DetectionNetwork.part_of`."""
        return next(number for number, part in enumerate(self._parts) if name.startswith(f"model.{part}."))

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


def _parts(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Return the modules that have parameters, by the beginning of their keys, in the order of the model."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if name in EXPANDED and not list(child.parameters(recurse=False)):
            found |= _parts(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            found[prefix + name] = child
    return found


def _shallow_copy(module: Any) -> Any:
    """Return a copy of a module with the same tensors, whose attributes and children can be replaced."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other
