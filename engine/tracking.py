"""Tracks of objects through the frames of a video: ByteTrack (arXiv 2110.06864) of the package ``trackers``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.structures import Detections

INSTALL = "pip install --no-deps -r requirements-tracking.txt"


class Tracker:
    """Gives the detections of one video the numbers of their tracks, frame after frame.

    An object has a number from its second frame on. Classes are tracked together: a track whose object changes its
    class goes on.
    """

    def __init__(self, fps: float, confidence: float) -> None:
        """Begin without tracks.

        Args:
            fps: of the video; an object may be out of sight for a second.
            confidence: of the detector. A track begins with a score of at least 0.25 or, if that is higher, this.

        Raises:
            UserError: the package is not installed.
        """
        self._make_boxes, tracker = _library()
        begins = max(confidence, 0.25)
        self._tracker = tracker(frame_rate=fps, track_activation_threshold=begins, high_conf_det_threshold=begins)

    def update(self, found: Detections, seconds: float | None = None) -> Detections:
        """Return the detections of the next frame, in the same order, with ``track_ids``; 0 where there is no track.

        Args:
            found: in the frame.
            seconds: when it was taken, of a live source, whose frames do not come evenly.
        """
        boxes = self._make_boxes(
            xyxy=found.boxes_xyxy.double().numpy().reshape(-1, 4),
            confidence=found.scores.double().numpy(),
            data={"index": np.arange(len(found))},  # the tracker gives the boxes back in another order
        )
        tracked = self._tracker.update(boxes, timestamp=seconds)
        track_ids = torch.zeros(len(found), dtype=torch.int64)
        if len(tracked):
            # The library counts from 0, and says -1 where there is no track.
            track_ids[torch.from_numpy(tracked.data["index"])] = torch.from_numpy(tracked.tracker_id).long() + 1
        return replace(found, track_ids=track_ids)


def tracker_maker(confidence: float) -> Callable[[float], Tracker]:
    """Return a function that makes a tracker for a video of so many frames per second.

    Raises:
        UserError: the package is not installed.
    """
    _library()
    return partial(Tracker, confidence=confidence)


def _library() -> tuple[Any, Any]:
    """Return the library's record of detections and its tracker.

    Raises:
        UserError: it is not there.
    """
    try:
        from supervision import Detections as Boxes
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise UserError(f"--track needs the package trackers: {INSTALL} ({error})") from error
    return Boxes, ByteTrackTracker
