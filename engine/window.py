"""The window of ``detect.py --view-img``, where there is a display."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np


class PictureWindow:
    """A window where one is wanted and can be opened; says once why it cannot."""

    def __init__(self, wanted: bool) -> None:
        reason = why_no_window() if wanted else ""
        self.is_open = wanted and not reason
        if reason:
            print(f"--view-img: no window, {reason}; going on without")

    def show(self, image_bgr: np.ndarray | None, is_video: bool) -> bool:
        """Show a picture, an image until a key is pressed; return whether the user wants to end."""
        if not self.is_open or image_bgr is None:
            return False
        cv2.imshow("detect.py", image_bgr)
        return cv2.waitKey(1 if is_video else 0) & 0xFF in (ord("q"), 27)


def why_no_window() -> str:
    """Return why no window can be opened, "" where one can; trying would end the process, for Qt's error is fatal."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "this machine has no display"
    gui = [line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")]
    return "this OpenCV is the headless one" if gui and "NONE" in gui[0] else ""
