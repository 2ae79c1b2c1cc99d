"""What one training run leaves behind: checkpoints, ``results.csv``, curves, pictures, a table; logs are told of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from data.labels.annotations import Annotations
from engine.provenance import CODE_DIFF, RECORD, record_start
from engine.run_folder import (
    BAR_FORMAT,
    epoch_summary,
    plot_results,
    save_config,
    save_results_csv,
    shared_run_folder,
    weights_of_run,
)
from engine.run_logs import RUN_IDS, RunLog, open_logs, tell
from engine.train_loop import TrainState, is_over
from models.checkpoints.format import save_checkpoint
from models.detector import Detector
from models.network import Network
from utils import distributed
from utils.config import command_from_here
from utils.draw import draw_batch, draw_predictions
from utils.errors import LostProcessError, UserError
from utils.files import remove_unfinished
from utils.structures import Batch
from utils.words import how_long, how_many

PICTURED_BATCHES = 3  # training batches of the first epoch, and testing batches after the last, that are drawn
NEEDED_TO_RESUME_ONLY = ("optimizer", "scaler", "model")  # left out of best.pt, which has a third of the size then


@dataclass
class TrainingRun:
    """The folder of a run and what is written there; only the main process writes and prints."""

    folder: Path
    options: dict[str, Any]  # flat, as in config.yaml
    names: tuple[str, ...]
    cfg_text: str  # kept in each checkpoint, which then needs no cfg file
    logs: list[RunLog] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    first_epoch: int = 0  # epochs that were finished when this process started

    @classmethod
    def start(
        cls,
        parent: str,
        options: dict[str, Any],
        splits: tuple[Annotations, Annotations],
        cfg_text: str,
        state: TrainState,
    ) -> TrainingRun:
        """Make the folder of a new run, or go on in that of the run that is resumed.

        Args:
            parent: the folder of runs.
            options: flat, as in ``config.yaml``.
            splits: the images to learn from, and those to validate on.
            cfg_text: of the network.
            state: of the training.
        """
        learned, validated = splits
        if options["resume"]:
            folder = Path(options["resume"]).resolve().parent
        else:
            folder = shared_run_folder(parent, options["name"], options["exist_ok"])
        # Neither is of use in a recipe: config.yaml as --hyp must start a run of its own.
        kept = {**options, "resume": "", "exist_ok": False}
        run = cls(folder, kept, learned.names, cfg_text, first_epoch=state.epoch)
        if distributed.is_main():
            if options["resume"]:
                (folder / "results.png").unlink(missing_ok=True)  # it says that a run has finished
            else:
                run.remove_previous()
            remove_unfinished(folder.glob(".*"))
            save_config(folder, run.options)
            record_start(folder, {"train": learned, "valid": validated}, next(state.model.parameters()).device)
            run.logs = open_logs(folder, run.options, state.epoch)
            if not options["resume"] and not options["nosave"]:
                run.save(state, "last.pt")  # so that a run that is interrupted in its first epoch can be resumed, too
        return run

    def remove_previous(self) -> None:
        """Remove what a run before this one wrote into the same folder, which ``--exist-ok`` allows."""
        if weights_of_run(self.folder) is None:  # other files are not ours to remove
            return
        print(f"--exist-ok: replaces the run in {self.folder}")
        for pattern in WRITTEN:
            for path in self.folder.glob(pattern):
                path.unlink()

    def require_folder(self) -> None:
        """Refuse to go on where the run's folder has been deleted or renamed: nothing could be kept.

        Raises:
            UserError: it is gone.
        """
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: the folder of this run is gone, deleted or renamed; the run has stopped")

    def save(self, state: TrainState, name: str, without: Sequence[str] = ()) -> None:
        """Write a checkpoint into the folder."""
        content = {
            "cfg_name": Path(self.options["cfg"]).name,
            "cfg_text": self.cfg_text,
            "names": list(self.names),
            "options": self.options,
            **{key: value for key, value in state.state_dict().items() if key not in without},
        }
        save_checkpoint(self.folder / name, content)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this block an interrupt, or a process that dies, says how to go on."""
        try:
            with distributed.joined():
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {self._how_to_go_on()}") from None
        except LostProcessError as error:
            raise UserError(f"{error}; {self._how_to_go_on()}") from None

    def _how_to_go_on(self) -> str:
        last = self.folder / "last.pt"
        if not last.exists():
            return "nothing was saved (--nosave)"
        return f"go on with: {command_from_here(f'python train.py --resume {last}')}"

    def finish_epoch(self, state: TrainState, row: Mapping[str, float], fitness: float | None) -> None:
        """Append an epoch's numbers to the history and write everything that shows or keeps them.

        Args:
            state: already counts the epoch.
            row: the numbers of the epoch, by column of ``results.csv``.
            fitness: what decides which epoch is the best, None where it was not tested.
        """
        state.history.append({"epoch": state.epoch, **row})
        best_so_far = state.best_fitness
        if fitness is not None:
            state.best_fitness = max(fitness, best_so_far)
        improved = state.best_fitness > best_so_far
        if improved:
            state.best_epoch = state.epoch
        if not distributed.is_main():
            return
        self.require_folder()
        save_results_csv(self.folder / "results.csv", state.history)
        tell(self.logs, methodcaller("numbers", state.history[-1]))
        if state.epoch == 1:
            self._show(("labels.png", "train_batch*.jpg"), state.epoch)
        if self.is_over(state) or not self.options["nosave"]:
            # last.pt last: a kill between these then repeats an epoch instead of losing its weights.
            if improved:
                self.save(state, "best.pt", without=NEEDED_TO_RESUME_ONLY)
            period = self.options["save_period"]
            if period > 0 and state.epoch % period == 0:
                self.save(state, f"epoch{state.epoch}.pt", without=NEEDED_TO_RESUME_ONLY)
            self.save(state, "last.pt")

    def _show(self, patterns: Sequence[str], epoch: int) -> None:
        """Hand on the pictures of the folder that are there."""
        for path in (path for pattern in patterns for path in sorted(self.folder.glob(pattern))):
            tell(self.logs, methodcaller("picture", path, epoch))

    def time_left(self, epochs_done: float) -> str:
        """Return how long the rest of the run takes if it goes on as in this process so far: ``2 h 10 min left``.

        Args:
            epochs_done: of the whole run, with the part of the present one.
        """
        done_here = epochs_done - self.first_epoch
        if done_here <= 0:
            return ""
        return f"{how_long((time.time() - self.started) / done_here * (self.options['epochs'] - epochs_done))} left"

    def is_over(self, state: TrainState) -> bool:
        """Whether the epoch that the state counts was the last one."""
        return is_over(state.epoch, state.best_epoch, self.options["epochs"], self.options["patience"])

    def finish(self, state: TrainState[Network], test_batches: Iterable[Batch]) -> None:
        """Draw the curves and the predictions for a few batches, and print the table of the whole run."""
        if not distributed.is_main():
            return
        self.require_folder()
        detector = Detector(state.average.model)
        for number, batch in enumerate(islice(test_batches, PICTURED_BATCHES)):
            found = detector(batch.images, batch.metas)
            draw_predictions(self.folder / f"val_batch{number}.jpg", batch, found, self.names)
        plot_results(self.folder / "results.png", state.history)
        self._show(("val_batch*.jpg", "results.png"), state.epoch)
        best = self.folder / "best.pt"
        tell(self.logs, methodcaller("finish", best if best.is_file() else None))
        rows = [
            (name, epoch_summary(state.history, column))
            for name, column in (("mAP@0.5", "metrics/mAP_0.5"), ("mAP@0.5:0.95", "metrics/mAP_0.5:0.95"))
        ]
        print(f"\n{'over the tested epochs':24}{'max':>9}{'mean':>9}{'std':>9}{'best epoch':>13}")
        for name, summary in rows:
            if not summary:  # not a single object to find
                print(f"{name:24}{'-':>9}{'-':>9}{'-':>9}{'-':>9}")
            else:
                print("{:24}{max:9.4f}{mean:9.4f}{std:9.4f}{best_epoch:9.0f}/{epochs:.0f}".format(name, **summary))
        if state.epoch < self.options["epochs"]:
            print(
                f"stopped early: no better epoch since epoch {state.best_epoch}, --patience {self.options['patience']}"
            )
        minutes = (time.time() - self.started) / 60
        print(f"{how_many(state.epoch, 'epoch')}, {minutes:.1f} minutes in this process. Written to {self.folder}:")
        for name, meaning in WRITTEN.items():
            paths = sorted(self.folder.glob(name))
            if paths:
                print(f"  {', '.join(path.name for path in paths):44} {meaning}")


WRITTEN = {
    "best.pt": "weights of the best epoch; test.py and detect.py take the newest run's",
    "last.pt": "weights and training state of the last epoch",
    "epoch*.pt": "weights of every so many epochs (--save-period)",
    "results.*": "every number of every epoch, and its curves",
    "config.yaml": "all options, as a recipe for --hyp",
    RECORD: "command, commit, packages, machine and data of each start",
    CODE_DIFF: "how the code differed from its commit",
    "labels.png": "the training labels",
    "train_batch*.jpg": "what the network was shown",
    "val_batch*.jpg": "truth and predictions",
    "events.*": "for: tensorboard --logdir",
    RUN_IDS: "under which ids --log knows the run",
}


class EpochBar:
    """The progress bar of one epoch: loss parts, memory, objects, image size; also draws the first batches of a run."""

    def __init__(self, run: TrainingRun, epoch: int, num_batches: int) -> None:
        self.run = run
        self.epoch = epoch
        self.num_batches = num_batches
        self.number = 0
        self.bar = tqdm(total=num_batches, disable=not distributed.is_main(), leave=True, bar_format=BAR_FORMAT)

    def __enter__(self) -> EpochBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def update(self, losses: Mapping[str, float], batch: Batch) -> None:
        """Show one more batch."""
        height, width = batch.images.shape[2:]
        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        memory = f"{torch.cuda.max_memory_reserved(batch.images.device) / 2**30:.1f}G " if batch.images.is_cuda else ""
        epochs = self.run.options["epochs"]
        left = self.run.time_left(self.epoch + (self.number + 1) / max(1, self.num_batches))
        of_batch = f"objects {len(batch.targets)} size {width}x{height}"
        self.bar.set_description_str(
            f"epoch {self.epoch + 1}/{epochs} {left} {memory}{shown} {of_batch}", refresh=False
        )
        self.bar.update()
        if distributed.is_main():
            self.run.require_folder()
        if self.epoch == 0 and self.number < PICTURED_BATCHES and distributed.is_main():
            draw_batch(self.run.folder / f"train_batch{self.number}.jpg", batch, self.run.names)
        self.number += 1
