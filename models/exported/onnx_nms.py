"""ONNX's own NonMaxSuppression behind boxes and scores, as TensorRT's and OpenVINO's readers know it.

Without it the graph ends in boxes [B N 4] and scores [B N C], the inputs that TensorRT's ``EfficientNMS_TRT`` takes.
Shape letters: B images, N slots, C classes, K detections of all images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.exported.required import required


@dataclass(frozen=True)
class GraphNms:
    """What an NMS in the graph keeps."""

    confidence: float = 0.001
    iou: float = 0.6
    max_per_class: int = 300

    def __str__(self) -> str:
        return f"iou {self.iou:g}, confidence {self.confidence:g}, at most {self.max_per_class} detections per class"


def append_nms(model: Any, nms: GraphNms) -> None:
    """Let a model return detections [K 7] float32, ordered by image: image, x1, y1, x2, y2, score and class.

    Every class of a slot is a detection of its own, as in COCO's evaluation. (ONNX writes corners as y, x; exchanging
    the axes of all boxes changes no IoU.)
    """
    onnx = required("onnx", "--nms")
    graph = model.graph
    constants = {
        "nms_max": np.array([nms.max_per_class], np.int64),
        "nms_iou": np.array([nms.iou], np.float32),
        "nms_confidence": np.array([nms.confidence], np.float32),
        "nms_image_and_slot": np.array([0, 2], np.int64),
        "nms_image": np.array([0], np.int64),
        "nms_class": np.array([1], np.int64),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    node = onnx.helper.make_node
    limits = ["nms_max", "nms_iou", "nms_confidence"]
    graph.node.extend([
        node("Transpose", ["scores"], ["nms_scores"], perm=[0, 2, 1]),  # B C N
        node("NonMaxSuppression", ["boxes", "nms_scores", *limits], ["nms_kept"]),  # K 3: image, class, slot
        node("Gather", ["nms_kept", "nms_image_and_slot"], ["nms_places"], axis=1),
        node("GatherND", ["boxes", "nms_places"], ["nms_boxes"]),  # K 4
        node("GatherND", ["nms_scores", "nms_kept"], ["nms_kept_scores"]),  # K
        node("Unsqueeze", ["nms_kept_scores", "nms_class"], ["nms_score_column"]),  # K 1
        node("Gather", ["nms_kept", "nms_image"], ["nms_images"], axis=1),
        node("Gather", ["nms_kept", "nms_class"], ["nms_classes"], axis=1),
        node("Cast", ["nms_images"], ["nms_image_column"], to=onnx.TensorProto.FLOAT),
        node("Cast", ["nms_classes"], ["nms_class_column"], to=onnx.TensorProto.FLOAT),
        node(
            "Concat", ["nms_image_column", "nms_boxes", "nms_score_column", "nms_class_column"], ["detections"], axis=1
        ),
    ])  # fmt: skip
    del graph.output[:]
    output = onnx.helper.make_tensor_value_info("detections", onnx.TensorProto.FLOAT, ["kept", 7])
    graph.output.append(output)
