"""Images that cannot be used: how many may be left out, and which of them only show when they are read whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tqdm import tqdm

from data.image_files import is_cut_off, read_image
from data.labels.annotations import Annotations, Problem
from data.labels.headers import BAD_IMAGES, UNREADABLE
from utils import distributed
from utils.config import option
from utils.errors import UserError
from utils.files import printable

LISTED = 20  # bad images that are named


@dataclass(frozen=True)
class ImageCheckOptions:
    """Images that cannot be read, or are of another size than their annotations say."""

    max_bad: float = option(0.01, "leave out such images up to this share of the split; one always, unless this is 0")
    verify_images: bool = option(False, "read every image whole before the start; finds JPEG files that end early, too")

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"--max-bad must lie between 0 and 1, not {self.max_bad:g}")


def bad_images(annotations: Annotations) -> list[Problem]:
    """Return what was wrong with each image that has been left out because it cannot be used."""
    return [problem for problem in annotations.problems if problem.kind in BAD_IMAGES]


def too_many(bad: int, total: int, max_bad: float) -> bool:
    """Whether so many bad images stop the run: no other is left, or they are more than one and more than the share."""
    return bad > 0 and (bad >= total or max_bad == 0 or bad > max(1, max_bad * total))


def refuse_too_many(annotations: Annotations, max_bad: float, where: str) -> None:
    """Refuse a split of which too many images had to be left out.

    Raises:
        UserError: names the first of them.
    """
    bad = bad_images(annotations)
    total = len(annotations) + len(bad)
    if too_many(len(bad), total, max_bad):
        raise UserError(
            f"{where}: {len(bad)} of {total} images cannot be used, more than --max-bad {max_bad:g} allows "
            f"(first: {bad[0].file}: {bad[0].what})"
        )


def report_lines(annotations: Annotations) -> list[str]:
    """Return lines that name the images that were left out; none where there are none."""
    bad = bad_images(annotations)
    if not bad:
        return []
    total = len(annotations) + len(bad)
    lines = [f"WARNING: {len(bad)} of {total} images cannot be used and are left out:"]
    lines += [f"  {printable(problem.file)}: {problem.what}" for problem in bad[:LISTED]]
    return lines + ([f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else [])


def verify_images(annotations: Annotations) -> Annotations:
    """Read every image whole; leave out those that cannot be read, are cut off or have another size than annotated.

    Under ``torchrun`` the main process reads, and all leave out the same.
    """
    reasons: Sequence[str] = ()
    if distributed.is_main():
        count = len(annotations)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
            found = threads.map(partial(why_unreadable, annotations), range(count))
            reasons = list(tqdm(found, total=count, desc="verifying images", unit=" images", leave=False))
    reasons = distributed.broadcast(reasons)
    problems = [
        Problem(annotations.image_paths[index], 0, UNREADABLE, reason) for index, reason in enumerate(reasons) if reason
    ]
    kept = annotations.select_images(np.array([not reason for reason in reasons], dtype=bool))
    return replace(kept, problems=(*annotations.problems, *problems))


def why_unreadable(annotations: Annotations, index: int) -> str:
    """Return why an image cannot be used, found by reading it whole; "" where it can."""
    path = annotations.image_paths[index]
    width, height = annotations.image_wh[index].tolist()
    orientation = 1 if annotations.orientation is None else int(annotations.orientation[index])
    try:
        # At an eighth of its size a JPEG file is read whole, too.
        read_image(path, (width, height), orientation, reduce=8)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return "the JPEG file ends early, the rest of it is grey" if is_cut_off(path) else ""
