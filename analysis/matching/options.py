"""The options of ``--matching-stats``, of which ``--score-mismatch`` reads those that need no slots."""

from __future__ import annotations

from dataclasses import dataclass

from models.darknet.scaled_decode import DECODES
from utils.config import flag, option

BREAKDOWNS = ("class", "size", "elongation", "occlusion", "matches")


@dataclass(frozen=True)
class MatchingOptions:
    """What --matching-stats and --score-mismatch measure."""

    weights: str = option("", "checkpoint, Darknet .weights, yolov5 .pt or exported; default: the newest run's best.pt")
    decode: str = option("cfg", "boxes as the cfg says, or as PyTorch_YOLOv4, ScaledYOLOv4 and yolor compute", DECODES)
    by: str = option(
        ",".join(BREAKDOWNS[:4]), f"what the statistics are broken down by: some of {','.join(BREAKDOWNS)}"
    )
    min_q: float = option(0.1, "scores are looked at over the slots or boxes that have at least this IoU")
    hard: int = option(0, "measure the training loss of every image and draw the N hardest")
    draw_lost: int = option(16, "draw at most so many images with merged or suppressed objects")
    conf_thres: float = option(0.25, "confidence of the detections in which objects are merged or suppressed")
    iou_thres: float = option(0.6, "NMS of these drops a box that overlaps a stronger one of its class by a higher IoU")
    batch_size: int = option(16, "images per forward pass")
    workers: int = option(2, "processes that load images")
    device: str = option("", "cpu, or a CUDA device such as 0; default: CUDA if there is one")
    resume: str = option("", "go on with the interrupted run in this folder, with its options")

    def __post_init__(self) -> None:
        for name in filter(None, self.by.split(",")):
            if name not in BREAKDOWNS:
                raise ValueError(f"--by knows {', '.join(BREAKDOWNS)}, not '{name}'")
        for name in ("min_q", "conf_thres", "iou_thres"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{flag(name)} must be above 0 and at most 1, not {getattr(self, name)}")
        if self.batch_size < 1 or min(self.workers, self.hard, self.draw_lost) < 0:
            raise ValueError("--batch-size must be at least 1; --workers, --hard and --draw-lost must not be negative")
