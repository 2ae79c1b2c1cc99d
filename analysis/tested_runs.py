"""What ``test.py`` left in its folders: the numbers of each run, its setting and seed, and its detections."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.settings import BOOKKEEPING
from engine.run_folder import options_of_run
from evaluation.coco import TWELVE
from evaluation.parameters import COCO_PARAMETERS
from evaluation.results_files import read_results
from models.checkpoints.format import read_checkpoint
from utils.errors import UserError
from utils.files import read_text

METRICS = "metrics.json"
DETECTIONS, TRUTH = "detections.json", "ground_truth.json"  # that test.py --save-json leaves
MAX_BYTES = 1_000_000_000
KEYS = tuple(row[0] for row in TWELVE)  # of metrics.json, in the order of NAMES
NAMES = COCO_PARAMETERS["bbox"].names
# What changes the numbers of one network, and what those of files of results.
OF_NETWORK = ("data", "task", "img_size", "conf_thres", "iou_thres", "max_det", "single_cls", "val_fraction", "half",
              "rect", "resize", "clip", "decode")  # fmt: skip
OF_FILES = ("data", "task", "val_fraction", "iou_type", "max_dets", "area", "iou_thresholds", "class_agnostic")
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class TestedRun:
    """One evaluation of one training: by ``test.py``, or a file of one of the columns of ``test.py --results``."""

    metrics: Path
    name: str
    options: Mapping[str, Any]  # that make its setting: those of the training, and of the test as "test.…"
    seed: Hashable  # of the training; of a file, its place among the files of its column; None: not known
    numbers: Numbers  # by their names, AP and so on
    # Of two columns (minus, of) of its metrics.json: the numbers of their files, and the intervals over images.
    differences: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def truth(self) -> dict | None:
        """COCO's ground truth that the run left, None where it left none.

        Raises:
            UserError: it is damaged.
        """
        path = self.metrics.parent / TRUTH
        if "column" in self.options or not path.is_file() or not (path.parent / DETECTIONS).is_file():
            return None
        truth = _read_json(path)
        if not all(isinstance(truth.get(key), list) for key in ("images", "annotations", "categories")):
            raise UserError(f"{path}: is no ground truth; run test.py --save-json anew")
        return truth

    def results(self) -> list[dict]:
        """Return the detections that the run left beside the ground truth.

        Raises:
            UserError: they are damaged, or of another ground truth.
        """
        return read_results(self.metrics.parent / DETECTIONS, self.truth or {})


def is_tested(path: str | Path) -> bool:
    """Whether a path names what test.py wrote: its folder, or its metrics.json."""
    path = Path(path)
    if path.is_file():
        return path.suffix.lower() == ".json"
    return (path / METRICS).is_file() and not (path / "results.csv").is_file()


def read_tested(paths: Sequence[str | Path]) -> list[TestedRun]:
    """Read folders of test.py, or their metrics.json: a run for each network and for each file of each column.

    Raises:
        UserError: a file is damaged or no metrics.json of test.py.
    """
    runs: list[TestedRun] = []
    for given in paths:
        path = Path(given)
        path = path / METRICS if path.is_dir() else path
        content = _read_json(path)
        try:
            if "ap" in content:
                runs.append(_of_network(path, content))
            runs += _of_files(path, content, runs)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: is no metrics.json that test.py wrote ({error!r:.80})") from error
    return runs


def _of_network(path: Path, content: dict) -> TestedRun:
    """Return the run of a network; where its training is not known, its weights are its setting."""
    options = content["options"]
    weights = Path(options["weights"])
    training = _options_of_training(weights)
    setting = {key: value for key, value in training.items() if key not in BOOKKEEPING}
    setting["weights"] = weights.name if training else str(weights)
    setting |= {f"test.{key}": options.get(key) for key in OF_NETWORK}
    numbers = {name: _number(content[key]) for name, key in zip(NAMES, KEYS, strict=True)}
    return TestedRun(path, path.parent.name, setting, training.get("seed"), numbers)


def _options_of_training(weights: Path) -> dict[str, Any]:
    """Return the options of the training that made the weights, nothing where they are not known."""
    if options := options_of_run(weights.parent):
        return options
    try:
        return read_checkpoint(weights).get("options", {}) if weights.suffix == ".pt" and weights.is_file() else {}
    except UserError:  # of another toolkit
        return {}


def _of_files(path: Path, content: dict, before: Sequence[TestedRun]) -> list[TestedRun]:
    """Return the runs of the columns of files; runs of a column that was there before count on from these."""
    compared = content.get("comparison", content)
    columns = compared.get("columns", [])[1 if "ap" in content else 0 :]  # the network's own comes first
    if not columns and "ap" not in content:
        raise ValueError("neither a network's numbers nor columns of files")
    of_test = {f"test.{key}": content["options"].get(key) for key in OF_FILES}
    files = {column["name"]: len(column["runs"]) for column in columns}
    differences = {
        (one["minus"], one["of"]): {
            "interval_95": one["interval_95"] or {},
            "files": (files.get(one["minus"]), files.get(one["of"])),
        }
        for one in compared.get("differences", [])
    }
    found = []
    for column in columns:
        name = column["name"]
        first = sum(run.options.get("column") == name for run in before)
        for number, numbers in enumerate(column["runs"], first + 1):
            values = {key: _number(value) for key, value in numbers.items()}
            setting = {"column": name, **of_test}
            found.append(TestedRun(path, f"{name}, file {number}", setting, f"file {number}", values, differences))
    return found


def _number(value: Any) -> float | None:
    if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
        raise ValueError(f"{value!s:.40} is no number")
    return value


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(read_text(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON; was it written to its end?") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no metrics.json that test.py wrote")
    return content
