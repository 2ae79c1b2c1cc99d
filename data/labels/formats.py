"""The table of label formats, by suffix, in the order in which an image's label file is looked for.

A new format is one file with its ``FORMAT``, and its line here.
"""

from __future__ import annotations

from data.labels import voc, yolo
from data.labels.label_format import LabelFormat

FORMATS: dict[str, LabelFormat] = {label_format.suffix: label_format for label_format in (yolo.FORMAT, voc.FORMAT)}
