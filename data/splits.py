"""One call from what a user names to the annotations of a split; what is wrong with the data is said once, up front."""

from __future__ import annotations

from data.data_file import open_data
from data.labels.annotations import Annotations, summarise_problems
from data.labels.read import read_dataset
from utils import distributed


def open_split(data: str, split: str, single_cls: bool = False, need_images: bool = True) -> Annotations:
    """Read a split of a data set and print a summary of the problems in its labels.

    Args:
        data: a ``.data`` file (looked up here and in ``cfg/``), a COCO JSON, an image list or a folder.
        split: "train", "valid" or "test".
        single_cls: treat all objects as one class.
        need_images: False where annotations are enough.

    Raises:
        UserError: as :func:`data.labels.read.read_dataset`.
    """
    annotations = read_dataset(open_data(data), split, need_images)
    if distributed.is_main():
        for line in summarise_problems(annotations.problems):
            print(f"{data} ({split}): {line}")
    return annotations.as_single_class() if single_cls else annotations
