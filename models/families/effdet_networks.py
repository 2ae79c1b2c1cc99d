"""EfficientDet (arXiv 1911.09070) from the package effdet: its layers, loss and boxes, our everything else.

effdet builds a network for one size of input. Here sides are multiples of the coarsest stride, so that every map has
exactly twice the rows and columns of the next; then any size will do, and anchors are laid out for the size that is
seen. Boxes come out before non-maximum suppression, which is ours, so that every ``--nms`` can be had.

Shape letters: B images, A anchors per cell, C classes, N anchors of all levels, K candidates, H W pixels of the network
input, h w cells of a level.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.assignment.options import AssignmentOptions
from models.backbone_source import BackboneSource
from models.exported.required import required
from models.families.named import WrappedNetwork, running_statistics
from models.families.own_loss import IMAGES_PER_STEP, objects_of_images, refuse_other_rules
from models.families.published import PublishedDetector
from models.learner import BatchLoss, Learner, MapsLearner
from models.loss import LossOptions
from utils.structures import Detections, Targets

REQUIREMENTS = "requirements-detectors.txt"
NOT_OF_THE_BACKBONE = ("conv_head.", "bn2.", "classifier.")  # of timm's EfficientNets, beginnings of keys
FINEST, COARSEST = 8, 128  # input pixels per cell of the first and the last level


class LevelMaps(NamedTuple):
    """What the network says of a batch, a tensor per level, the finest first."""

    classes: list[Tensor]  # [B A*C h w] logits
    boxes: list[Tensor]  # [B A*4 h w] y, x, height and width relative to the anchor


class EffdetNetwork(WrappedNetwork):
    """One of effdet's detectors; ``model`` is effdet's own."""

    max_stride = COARSEST
    fixed_size = False
    expanded = ("backbone", "blocks")
    mean: Tensor  # [3 1 1] of RGB in 0..1
    std: Tensor

    def __init__(self, name: str, model: Any) -> None:
        """Take over a model that effdet has built.

        Args:
            name: in the table of networks.
            model: changed in place: it upsamples by a factor instead of to the size that it was built for.
        """
        super().__init__(name, model)
        self.config: Any = model.config
        self.backbone_source = BackboneSource(self.config.backbone_name, {"model.backbone.": ""}, NOT_OF_THE_BACKBONE)
        height, width = (-(-side // COARSEST) * COARSEST for side in self.config.image_size)
        self.input_wh = (width, height)
        for module in model.modules():
            if isinstance(module, _effdet("efficientdet", name).Interpolate2d):
                module.size, module.scale_factor = None, 2.0
        usual = required("timm.data", name, REQUIREMENTS)
        for key, default in (("mean", usual.IMAGENET_DEFAULT_MEAN), ("std", usual.IMAGENET_DEFAULT_STD)):
            numbers = torch.tensor(tuple(self.config.get(key, default)))
            self.register_buffer(key, numbers.view(3, 1, 1), persistent=False)
        self._anchors: dict[tuple[int, int, torch.device], Any] = {}  # by height and width of the input

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart."""
        return int(self.config.num_classes)

    def forward(self, images: Tensor) -> LevelMaps:
        """Return the maps of images [B 3 H W], 0..1, RGB.

        A single image whose coarsest map is one cell has no statistics of its own there; it is seen with those of the
        others.
        """
        is_one_cell = len(images) == 1 and tuple(images.shape[2:]) == (COARSEST, COARSEST)
        with running_statistics(self.model) if is_one_cell else nullcontext():
            return LevelMaps(*self.model((images - self.mean) / self.std))

    def anchors(self, raw: LevelMaps) -> Any:
        """Return effdet's anchors for the input that maps are of; their ``boxes`` are [N 4] y x y x, pixels."""
        height, width = (FINEST * cells for cells in raw.boxes[0].shape[2:])
        key = height, width, raw.boxes[0].device
        if key not in self._anchors:
            config = self.config
            levels, shapes = (config.min_level, config.max_level), (config.num_scales, config.aspect_ratios)
            anchors = _effdet("anchors", self.name).Anchors(*levels, *shapes, config.anchor_scale, (height, width))
            self._anchors[key] = anchors.to(key[2])
        return self._anchors[key]

    def candidates(self, raw: LevelMaps, confidence: float) -> list[Detections]:
        """As :meth:`DetectionNetwork.candidates`: of the strongest pairs of anchor and class, effdet's 5,000."""
        logits = _rows(raw.classes, self.num_classes)  # B N C
        codes = _rows(raw.boxes, 4)  # B N 4
        anchors, decode = self.anchors(raw).boxes, _effdet("anchors", self.name).decode_box_outputs
        count = min(self.config.max_detection_points, logits[0].numel())
        strongest, places = logits.flatten(1).topk(count)  # B K
        found = []
        for scores, place, of_image in zip(strongest.sigmoid(), places, codes, strict=True):
            kept = scores > confidence
            anchor, label = place[kept] // self.num_classes, place[kept] % self.num_classes
            boxes_xyxy = decode(of_image[anchor], anchors[anchor], output_xyxy=True)
            found.append(Detections(boxes_xyxy, scores[kept], label))
        return found

    def loss(self, raw: LevelMaps, targets: Targets, crowd: Targets) -> BatchLoss:
        """Return effdet's focal loss of the classes and its Huber loss of the boxes, per matched anchor.

        Objects without area are left out; crowd regions are background.
        """
        anchors, images = self.anchors(raw), len(raw.boxes[0])
        height, width = anchors.image_size
        with torch.autocast(raw.boxes[0].device.type, enabled=False):
            objects = objects_of_images(targets, images, (width, height))
            labeler = _effdet("anchors", self.name).AnchorLabeler(anchors, self.num_classes, match_threshold=0.5)
            wanted = labeler.batch_label_anchors(
                [boxes_xyxy[:, [1, 0, 3, 2]] for _, boxes_xyxy, _ in objects],
                [labels + 1 for _, _, labels in objects],  # its class 0 is the background
            )
            criterion = _effdet("loss", self.name).DetectionLoss(self.config)
            _, of_classes, of_boxes = criterion(raw.classes, raw.boxes, *wanted)
        means = {"class": of_classes, "box": self.config.box_loss_weight * of_boxes}
        return BatchLoss({name: mean * images for name, mean in means.items()}, share=1 / IMAGES_PER_STEP)

    def learner(self, loss: LossOptions, assignment: AssignmentOptions, input_wh: tuple[int, int]) -> Learner:
        """As :meth:`DetectionNetwork.learner`, with effdet's own rules."""
        refuse_other_rules(self.name, loss, assignment)
        return MapsLearner(self, self.loss)

    def depends_on_classes(self, name: str) -> bool:
        """As :meth:`DetectionNetwork.depends_on_classes`."""
        return name.startswith("model.class_net.predict.conv_pw.")

    def with_classes(self, classes: Sequence[int]) -> EffdetNetwork:
        """As :meth:`DetectionNetwork.with_classes`."""
        state = self.model.class_net.state_dict()
        for name, tensor in state.items():
            if self.depends_on_classes(f"model.class_net.{name}"):  # [A*C …]
                state[name] = tensor.unflatten(0, (-1, self.num_classes))[:, list(classes)].flatten(0, 1)
        model = copy.deepcopy(self.model)
        model.reset_head(num_classes=len(classes))
        model.class_net.load_state_dict(state)
        return EffdetNetwork(self.name, model).to(self.mean.device).train(self.training)


@dataclass(frozen=True)
class EffdetDetector(PublishedDetector):
    """A network of effdet's."""

    effdet_name: str
    first_slot = 1

    def build(self, name: str, num_classes: int) -> EffdetNetwork:
        """As :meth:`PublishedDetector.build`."""
        config = _effdet("config", name).get_efficientdet_config(self.effdet_name)
        config.num_classes = num_classes
        return EffdetNetwork(name, _effdet("efficientdet", name).EfficientDet(config, pretrained_backbone=False))


DETECTORS = {  # those that effdet publishes weights for; tf_ ones pad as TensorFlow does
    "efficientdet_d0": EffdetDetector(3_871_913, "efficientdet_d0"),
    "efficientdet_d1": EffdetDetector(6_614_016, "efficientdet_d1"),
    "efficientdet_d2": EffdetDetector(8_086_869, "tf_efficientdet_d2"),
    "efficientdet_d3": EffdetDetector(12_017_806, "tf_efficientdet_d3"),
    "efficientdet_d4": EffdetDetector(20_703_425, "tf_efficientdet_d4"),
    "efficientdet_d5": EffdetDetector(33_627_305, "tf_efficientdet_d5"),
    "efficientdet_d6": EffdetDetector(51_837_132, "tf_efficientdet_d6"),
    "efficientdet_d7": EffdetDetector(51_837_132, "tf_efficientdet_d7"),
    "efficientdet_lite0": EffdetDetector(3_237_620, "tf_efficientdet_lite0"),
    "efficientdet_lite1": EffdetDetector(4_240_308, "tf_efficientdet_lite1"),
    "efficientdet_lite2": EffdetDetector(5_242_164, "tf_efficientdet_lite2"),
    "efficientdet_lite3": EffdetDetector(8_336_372, "tf_efficientdet_lite3"),
    "efficientdet_lite4": EffdetDetector(15_110_644, "tf_efficientdet_lite4"),
}


def _effdet(part: str, name: str) -> ModuleType:
    """Return a module of effdet, which warns when it is imported that torch will drop something it uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(required("effdet", name, REQUIREMENTS), part)


def _rows(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Return the maps [B A*numbers h w] of all levels as one tensor [B N numbers], float32."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, numbers) for level in maps], dim=1).float()
