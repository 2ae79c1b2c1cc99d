"""Where a run's numbers and pictures go besides its folder: TensorBoard, and what ``--log`` names.

Nothing is sent anywhere unless the environment asks for it: Weights & Biases writes its offline files and MLflow a
store of files, both in the folder of runs. Their own variables, ``WANDB_MODE=online`` and
``MLFLOW_TRACKING_URI=http://…``, say otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import yaml
from tqdm import tqdm

from engine.run_folder import Row
from models.exported.required import required
from utils.config import option
from utils.errors import UserError
from utils.files import write_text_atomically
from utils.yaml_file import read_yaml

EXPERIMENT = "train"  # the name of the project or experiment that the runs are filed under
RUN_IDS = "loggers.yaml"  # in the folder of a run: under which id each service knows it, so that a resume goes on there
REQUIREMENTS = "requirements-loggers.txt"
MOST_CHARACTERS = 500  # of an option's value in MLflow, which refuses 6,000


@dataclass(frozen=True)
class LogOptions:
    """Where numbers and pictures go besides the folder of the run."""

    log: str = option("", "wandb, mlflow or wandb,mlflow: Weights & Biases or MLflow, offline, beside TensorBoard")

    def __post_init__(self) -> None:
        unknown = [name for name in self.services if name not in SERVICES]
        if unknown:
            raise ValueError(f"--log {self.log}: '{unknown[0]}' is none of {', '.join(SERVICES)}")
        for name in self.services:  # before anything is read or written
            required(name, f"--log {name}", REQUIREMENTS)

    @property
    def services(self) -> tuple[str, ...]:
        """The names in ``log``."""
        return tuple(dict.fromkeys(self.log.split(","))) if self.log else ()


class RunLog(Protocol):
    """What keeps the numbers and pictures of a run."""

    run_id: str  # by which a service knows the run

    def numbers(self, row: Row) -> None:
        """Add every number of an epoch's row of ``results.csv``."""

    def picture(self, path: Path, epoch: int) -> None:
        """Add a picture that is in the folder of the run."""

    def finish(self, best: Path | None) -> None:
        """End the run; ``best`` are its weights, where there are any."""


class TensorBoardLog:
    """TensorBoard events; none where the tensorboard package is missing, for ``results.csv`` has the same numbers."""

    run_id = ""

    def __init__(self, folder: Path, purge_after: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
        else:
            self.writer = SummaryWriter(str(folder), purge_step=purge_after + 1)

    def numbers(self, row: Row) -> None:
        """As :meth:`RunLog.numbers`."""
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, int(row["epoch"]))
            self.writer.flush()

    def picture(self, path: Path, epoch: int) -> None:
        """As :meth:`RunLog.picture`."""
        image = cv2.imread(str(path))
        if self.writer is not None and image is not None:
            self.writer.add_image(path.stem, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), epoch, dataformats="HWC")

    def finish(self, best: Path | None) -> None:
        """As :meth:`RunLog.finish`; TensorBoard keeps no weights."""
        if self.writer is not None:
            self.writer.close()


class WandbLog:
    """A run of Weights & Biases, offline unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, folder: Path, options: dict[str, Any], run_id: str) -> None:
        self.wandb = required("wandb", "--log wandb", REQUIREMENTS)
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
            name=folder.name,
            dir=str(folder.parent),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=options,
            id=run_id or None,
            resume="allow" if run_id else None,
            settings={"quiet": True},  # without a table of all numbers at the end
        )
        self.run_id = str(self.run.id)

    def numbers(self, row: Row) -> None:
        """As :meth:`RunLog.numbers`."""
        self.run.log(dict(row), step=int(row["epoch"]))

    def picture(self, path: Path, epoch: int) -> None:
        """As :meth:`RunLog.picture`."""
        self.run.log({path.stem: self.wandb.Image(str(path))}, step=epoch)

    def finish(self, best: Path | None) -> None:
        """As :meth:`RunLog.finish`."""
        if best is not None:
            weights = self.wandb.Artifact(f"weights-{self.run_id}", type="model")
            weights.add_file(str(best))
            self.run.log_artifact(weights)
        self.run.finish()


class MlflowLog:
    """A run of MLflow, in a store of files beside the runs unless ``MLFLOW_TRACKING_URI`` says otherwise."""

    def __init__(self, folder: Path, options: dict[str, Any], run_id: str) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it MLflow 3 refuses a store of files
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # with seven, a server that is gone costs minutes
        mlflow = required("mlflow", "--log mlflow", REQUIREMENTS)
        address = os.environ.get("MLFLOW_TRACKING_URI") or (folder.parent / "mlruns").resolve().as_uri()
        self.client = mlflow.MlflowClient(tracking_uri=address)
        if not run_id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            experiment = self.client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self.client.create_experiment(name)
            run_id = self.client.create_run(number, run_name=folder.name).info.run_id
            for key, value in options.items():
                self.client.log_param(run_id, key, str(value)[:MOST_CHARACTERS])
        self.run_id = run_id
        self.client.update_run(run_id, status="RUNNING")

    def numbers(self, row: Row) -> None:
        """As :meth:`RunLog.numbers`."""
        for name, value in row.items():
            if name != "epoch":
                self.client.log_metric(self.run_id, re.sub(r"[^\w\-./ ]", "-", name), value, step=int(row["epoch"]))

    def picture(self, path: Path, epoch: int) -> None:
        """As :meth:`RunLog.picture`."""
        self.client.log_artifact(self.run_id, str(path), "pictures")

    def finish(self, best: Path | None) -> None:
        """As :meth:`RunLog.finish`."""
        if best is not None:
            self.client.log_artifact(self.run_id, str(best), "weights")
        self.client.set_terminated(self.run_id)


SERVICES: dict[str, Callable[[Path, dict[str, Any], str], RunLog]] = {"wandb": WandbLog, "mlflow": MlflowLog}


def open_logs(folder: Path, options: dict[str, Any], epochs_done: int) -> list[RunLog]:
    """Return TensorBoard and what ``--log`` names, for a new run or one that goes on.

    Args:
        folder: of the run.
        options: flat, as in ``config.yaml``.
        epochs_done: what TensorBoard has of later ones is from before an interruption.

    Raises:
        UserError: a service cannot be reached, or takes no run.
    """
    path = folder / RUN_IDS
    ids = read_yaml(path, as_text=True).values if path.is_file() else {}  # an id such as 12e4 is no number
    logs: dict[str, RunLog] = {}
    for name in LogOptions(options["log"]).services:
        try:
            logs[name] = SERVICES[name](folder, options, ids.get(name, ""))
        except Exception as error:  # whatever its package raises
            raise UserError(f"--log {name}: {_reason(error)}; leave it out, or resume with --log ''") from error
    if logs:
        write_text_atomically(path, yaml.safe_dump({name: log.run_id for name, log in logs.items()}))
    return [TensorBoardLog(folder, epochs_done), *logs.values()]


def tell(logs: list[RunLog], news: Callable[[RunLog], None]) -> None:
    """Give news to every log; one that fails is named and gets no more, for a training must not end with it."""
    for log in list(logs):
        try:
            news(log)
        except Exception as error:  # whatever a service's package raises, such as that its server is gone
            tqdm.write(f"WARNING: {type(log).__name__} gets nothing more of this run: {_reason(error)}")
            logs.remove(log)


def _reason(error: Exception) -> str:
    """Return the first line of what a package says of its failure."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
