"""What a training was made with, so that it can be repeated or told apart: command, code, packages, machine, data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.labels.annotations import Annotations
from utils.devices import describe_device
from utils.distributed import launch, local_world_size, world_size
from utils.files import write_json_atomically, write_text_atomically

RECORD, CODE_DIFF = "environment.json", "code.diff"
REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pycocotools",
    "hotcoco",
    "scipy",
)
GIT_SECONDS = 10  # after which git is not waited for


def record_start(folder: Path, splits: Mapping[str, Annotations], device: torch.device) -> None:
    """Add this start of a run to ``environment.json``; write what the code differs by from its commit.

    Args:
        folder: of the run.
        splits: the data set's, by name.
        device: of the training.
    """
    revision, diff = revision_and_diff()
    data = {name: fingerprint(annotations) for name, annotations in splits.items()}
    start = {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "folder": os.getcwd(),
        "again": again(folder),
        "launch": launch(),  # of torchrun
        "git_revision": revision,
        "changed_since": bool(diff) if revision else None,  # code.diff says how
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": describe_device(device),
            "processes": world_size(),
        },
        "data": data,
    }
    before = _starts_so_far(folder / RECORD)
    _tell_other_data(before, data)
    write_json_atomically(folder / RECORD, {"starts": [*before, start]})
    if diff:
        write_text_atomically(folder / CODE_DIFF, diff)


def _tell_other_data(before: list[Any], data: Mapping[str, Any]) -> None:
    """Say where a resumed run has other data than at its start before: a label file has gone, an image was added."""
    if not before or not isinstance(before[-1], dict):
        return
    known = before[-1].get("data", {})
    for name, now in data.items():
        was = known.get(name, now) if isinstance(known, dict) else now
        if was != now:
            counts = [f"{one.get('images')} images with {one.get('boxes')} boxes" for one in (was, now)]
            print(f"WARNING: the {name} data has changed since the start before: {counts[0]}, now {counts[1]}")


def again(folder: Path) -> str:
    """Return the command that repeats a run, with as many processes."""
    program = "python" if world_size() == 1 else f"torchrun --nproc_per_node={local_world_size()}"
    if world_size() > local_world_size():
        program += f" --nnodes={world_size() // local_world_size()}"
    return f"{program} train.py --hyp {shlex.quote(str(folder / 'config.yaml'))}"


def launch_of(path: Path) -> str | None:
    """Return which call of ``torchrun`` made the latest start in an ``environment.json``; None where it is unknown."""
    starts = _starts_so_far(path)
    return starts[-1].get("launch") if starts and isinstance(starts[-1], dict) else None


def _starts_so_far(path: Path) -> list[Any]:
    """Return the starts that a resumed run has recorded; a record that cannot be read is begun anew."""
    try:
        return list(json.loads(path.read_text())["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def fingerprint(annotations: Annotations) -> dict[str, Any]:
    """Return how many images and boxes a split has, and a hash of its files' names and sizes, labels and class names.

    The pixels are not read. The hash is the same wherever the data set lies, as long as the images have their order.
    """
    digest = hashlib.sha256("\n".join(annotations.names).encode())
    for path in annotations.image_paths:
        size = os.stat(path).st_size if path and os.path.isfile(path) else -1
        digest.update(f"{os.path.basename(path)} {size}\n".encode(errors="surrogateescape"))
    for column in (annotations.image_wh, annotations.box_image, annotations.boxes_xyxy, annotations.labels,
                   annotations.crowd):  # fmt: skip
        digest.update(np.ascontiguousarray(column).tobytes())
    return {"images": len(annotations), "boxes": len(annotations.labels), "sha256": digest.hexdigest()}


def revision_and_diff(repository: Path = REPOSITORY) -> tuple[str | None, str]:
    """Return the commit of the code and how its files differ from it; None and "" where there is no git or no clone."""
    revision, diff = (
        _git(repository, *arguments) for arguments in (("rev-parse", "HEAD"), ("diff", "HEAD", "--no-ext-diff"))
    )
    return (revision.strip(), diff or "") if revision else (None, "")


def _git(repository: Path, *arguments: str) -> str | None:
    if not (repository / ".git").exists():  # else git would look for a clone around it
        return None
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=repository, capture_output=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.decode(errors="replace")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Return the name of the processor, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
