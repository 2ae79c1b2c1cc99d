"""What an exported file says about itself: text by name, so that every runtime and every user can read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from models.darknet.schema import LARGEST_SIDE
from utils.class_names import is_class_name
from utils.config import build_options
from utils.errors import UserError

FORMAT = "yolo-lab-export-1"
RESIZES = ("letterbox", "stretch")
PREPROCESSING = "RGB, pixels / 255, float32 [batch 3 height width]; a letterbox has a centred border of grey 114"


@dataclass(frozen=True)
class ExportMetadata:
    """What a detector must know of an exported network."""

    names: tuple[str, ...]  # of the classes
    input_wh: tuple[int, ...]  # of the network, pixels; the default size where the file is dynamic
    strides: tuple[int, ...]  # of the heads, pixels
    max_stride: int  # both sides of the input are multiples of it
    cfg_name: str
    cfg_text: str
    weights_sha256: str  # of the file that was exported
    batch_size: int = 1  # images at once, 0 for any number
    dynamic: bool = False  # the sides are free
    resize: str = "letterbox"  # how an image gets into the input: letterbox or stretch
    precision: str = "float32"  # float32, float16 or int8
    nms: str = ""  # what the file's NMS keeps, in words; empty: it has none and returns boxes and scores
    nms_beta: float = 0.0  # of Darknet's NMS, 0 for the usual one
    preprocessing: str = PREPROCESSING
    data: str = ""  # data set of the training
    single_cls: bool = False  # as which it was trained
    val_fraction: float = 0.0  # of its images, held out

    def __post_init__(self) -> None:
        sides = (*self.input_wh, *self.strides, self.max_stride)
        if len(self.input_wh) != 2 or min(sides) < 1 or max(sides) > LARGEST_SIDE or self.batch_size < 0:
            raise ValueError("damaged, its sizes are impossible; export it again")
        if not self.names or not all(map(is_class_name, self.names)):
            raise ValueError("damaged, its class names are unreadable; export it again")
        if self.resize not in RESIZES:
            raise ValueError(f"its 'resize' is '{self.resize:.60}'; one of {', '.join(RESIZES)} is known")

    @property
    def options(self) -> dict[str, Any]:
        """What the training looked at, as a checkpoint says it."""
        return {"data": self.data, "single_cls": self.single_cls, "val_fraction": self.val_fraction}

    def to_strings(self) -> dict[str, str]:
        """Return every value as JSON by its name, and the format."""
        return {"format": FORMAT} | {name: json.dumps(value) for name, value in asdict(self).items()}


def metadata_from_strings(strings: Mapping[str, str], path: Path) -> ExportMetadata | None:
    """Return what :meth:`ExportMetadata.to_strings` gave, None where another program wrote the file.

    Raises:
        UserError: it is damaged.
    """
    if strings.get("format") != FORMAT:
        return None
    try:
        values = {item.name: json.loads(strings[item.name]) for item in fields(ExportMetadata) if item.name in strings}
        return build_options(values, [ExportMetadata], str(path))[0]
    except (ValueError, TypeError, RecursionError) as error:  # no JSON, or a value is missing
        raise UserError(f"{path}: damaged, its metadata cannot be read; export it again") from error
