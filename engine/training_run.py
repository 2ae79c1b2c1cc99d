"""What one training run leaves behind: checkpoints, ``results.csv``, curves, pictures, a table; logs are told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from engine.profiling import TRACE
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
from models.detection_network import DetectionNetwork
from models.detector import Detector
from utils import distributed, interrupts
from utils.config import command_from_here
from utils.draw import draw_batch, draw_predictions
from utils.errors import OUT_OF_MEMORY, LostProcessError, UserError, describe_os_error, is_out_of_memory
from utils.files import remove_unfinished
from utils.structures import Batch
from utils.words import how_many

LAST = "last.pt"
STEP_FIRST = "interrupted: finishes a step and saves it; press Ctrl-C again to end at once"
PICTURED_BATCHES = 3  # training batches of the first epoch, and testing batches after the last, that are drawn
# Left out of best.pt, which has a third of the size then.
NEEDED_TO_RESUME_ONLY = ("optimizer", "scaler", "model", "class_ap", "progress")


@dataclass
class TrainingRun:
    """The folder of a run and what is written there; only the main process writes and prints."""

    folder: Path
    options: dict[str, Any]  # flat, as in config.yaml
    names: tuple[str, ...]
    cfg_text: str  # kept in each checkpoint, which then needs no cfg file
    logs: list[RunLog] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    epoch_ended: float = 0.0  # when the last epoch ended that this process has made; 0 before
    epoch_seconds: float = 0.0  # that it took, the first one with the start; 0 where it was begun before this process
    was_begun: bool = False  # whether another process began the epoch that is being made
    saved: str = ""  # up to where last.pt has the run, in words
    saved_at: float = 0.0  # when it was written, or read by this process, in seconds of time.monotonic

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
        run = cls(folder, {**options, "resume": "", "exist_ok": False, "profile": False}, learned.names, cfg_text)
        run.was_begun = state.progress.batches > 0
        if distributed.is_main():
            if options["resume"]:
                (folder / "results.png").unlink(missing_ok=True)  # it says that a run has finished
            else:
                run.remove_previous()
            remove_unfinished(folder.glob(".*"))
            save_config(folder, run.options)
            record_start(folder, {"train": learned, "valid": validated}, next(state.model.parameters()).device)
            run.logs = open_logs(folder, run.options, state.epoch)
            run.note_saved(state)
            if not options["resume"] and not options["nosave"]:
                run.save_last(state)  # so that a run that is interrupted in its first epoch can be resumed, too
        return run

    def remove_previous(self) -> None:
        """Remove what a run before this one wrote into the same folder, which ``--exist-ok`` allows."""
        if weights_of_run(self.folder) is None and not (self.folder / RECORD).is_file():
            return  # other files are not ours to remove
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
        save_checkpoint(self.folder / name, content, self.options["keep"] if name == LAST else 0)

    def save_last(self, state: TrainState) -> None:
        """Write what a resumed run goes on from."""
        self.save(state, LAST)
        self.note_saved(state)

    def note_saved(self, state: TrainState) -> None:
        """Remember that ``last.pt`` is as the state is now."""
        self.saved, self.saved_at = position(state), time.monotonic()

    @contextmanager
    def interruptible(self, state: TrainState) -> Iterator[None]:
        """Within this block, what breaks the run off is one line that says what is kept and how to go on.

        That is a signal, a process that dies, a full disk or a lack of memory. Between two steps of the optimizer, and
        while the run is tested, everything is kept; in a step, what was saved last.

        Raises:
            KeyboardInterrupt: after a signal.
            UserError: after anything else.
        """
        try:
            with distributed.joined():
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted{self._kept(state)}") from None
        except LostProcessError as error:
            if interrupts.has_come():  # it has reached the other processes as well
                raise KeyboardInterrupt(f"interrupted{self._kept(state)}") from None
            raise UserError(f"{error}{self._kept(state)}") from None
        except ConnectionError:  # nobody reads the output any more
            raise
        except OSError as error:
            raise UserError(f"{describe_os_error(error)}{self._how_to_go_on()}") from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"{OUT_OF_MEMORY}{self._how_to_go_on()}") from error

    @contextmanager
    def steps(self, state: TrainState) -> Iterator[Callable[[bool], None]]:
        """Within this block, which makes the optimizer steps of an epoch, a signal waits until one is finished.

        Yields:
            What is to be called after each step, in all processes, with whether it was the last one of the epoch. It
            writes ``last.pt`` where it is time to, and ends the run where a signal has come to any process.
        """
        seconds = 60 * self.options["save_minutes"]
        several = distributed.world_size() > 1
        device = state.device if several else "cpu"  # where processes exchange; a GPU need not be waited for
        with interrupts.postponed(STEP_FIRST if distributed.is_main() else "") as signal:

            def after_step(is_last: bool) -> None:
                is_due = distributed.is_main() and 0 < seconds <= time.monotonic() - self.saved_at
                flags = torch.tensor([signal.number, is_due], dtype=torch.float32, device=device)
                stops, saves = distributed.sum_over_processes(flags).tolist()
                if stops or saves or is_last or not several:
                    state.take_resume_point()
                if stops:
                    raise KeyboardInterrupt
                if is_due and not self.options["nosave"]:
                    self.require_folder()
                    self.save_last(state)

            yield after_step

    def _kept(self, state: TrainState) -> str:
        """Save the state, where it is whole and has not been saved; return what is kept and how to go on."""
        if not distributed.is_main():
            return ""
        note = ""
        if state.resume_point and self.saved != position(state) and not self.options["nosave"]:
            try:
                self.save_last(state)
            except OSError as error:  # the file before it is still there
                note = f"; {describe_os_error(error)}"
        return note + self._how_to_go_on()

    def _how_to_go_on(self) -> str:
        last = self.folder / LAST
        if not last.exists():
            return "; nothing was saved (--nosave)"
        return f"; kept up to {self.saved}; go on with: {command_from_here(f'python train.py --resume {last}')}"

    def finish_epoch(self, state: TrainState, row: Mapping[str, float], fitness: float | None) -> None:
        """Append an epoch's numbers to the history and write everything that shows or keeps them.

        Args:
            state: does not count the epoch yet.
            row: the numbers of the epoch, by column of ``results.csv``.
            fitness: what decides which epoch is the best, None where it was not tested.
        """
        with interrupts.postponed():  # until the epoch is kept
            self._finish_epoch(state, row, fitness)

    def _finish_epoch(self, state: TrainState, row: Mapping[str, float], fitness: float | None) -> None:
        state.end_epoch()
        now = time.time()
        self.epoch_seconds = 0.0 if self.was_begun else now - (self.epoch_ended or self.started)
        self.epoch_ended, self.was_begun = now, False
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
            self.save_last(state)

    def _show(self, patterns: Sequence[str], epoch: int) -> None:
        """Hand on the pictures of the folder that are there."""
        for path in (path for pattern in patterns for path in sorted(self.folder.glob(pattern))):
            tell(self.logs, methodcaller("picture", path, epoch))

    def time_left(self, state: TrainState) -> str:
        """Return in words how long the rest of the run takes if its epochs are like the last; empty below a minute."""
        minutes = round(self.epoch_seconds * (self.options["epochs"] - state.epoch) / 60)
        if minutes < 1 or self.is_over(state):
            return ""
        shown = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        return f"{shown} left" + (", unless --patience ends it before" if self.options["patience"] else "")

    def is_over(self, state: TrainState) -> bool:
        """Whether the epoch that the state counts was the last one."""
        return is_over(state.epoch, state.best_epoch, self.options["epochs"], self.options["patience"])

    def finish(self, state: TrainState[DetectionNetwork], test_batches: Iterable[Batch]) -> None:
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


def position(state: TrainState) -> str:
    """Return in words how far a run has come."""
    if state.progress.batches:
        return f"batch {state.progress.batches} of epoch {state.epoch + 1}"
    return f"epoch {state.epoch}" if state.epoch else "the start"


WRITTEN = {
    "best.pt": "weights of the best epoch; test.py and detect.py take the newest run's",
    LAST: "weights and training state of the last epoch",
    "last-*.pt": "the last.pt before it (--keep)",
    "epoch*.pt": "weights of every so many epochs (--save-period)",
    "results.*": "every number of every epoch, and its curves",
    "config.yaml": "all options, as a recipe for --hyp",
    RECORD: "command, commit, packages, machine and data of each start",
    CODE_DIFF: "how the code differed from its commit",
    "labels.png": "the training labels",
    "train_batch*.jpg": "what the network was shown",
    "val_batch*.jpg": "truth and predictions",
    TRACE: "ten steps (--profile), for chrome://tracing or https://ui.perfetto.dev",
    "events.*": "for: tensorboard --logdir",
    RUN_IDS: "under which ids --log knows the run",
}


class EpochBar:
    """The progress bar of one epoch: loss parts, memory, objects, image size; also draws the first batches of a run."""

    def __init__(self, run: TrainingRun, state: TrainState, num_batches: int) -> None:
        self.run = run
        self.epoch = state.epoch
        self.number = state.progress.batches
        self.bar = tqdm(
            total=num_batches, initial=self.number, disable=not distributed.is_main(), leave=True, bar_format=BAR_FORMAT
        )

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
        self.bar.set_description_str(
            f"epoch {self.epoch + 1}/{epochs} {memory}{shown} objects {len(batch.targets)} size {width}x{height}",
            refresh=False,
        )
        self.bar.update()
        if distributed.is_main():
            self.run.require_folder()
        if self.epoch == 0 and self.number < PICTURED_BATCHES and distributed.is_main():
            draw_batch(self.run.folder / f"train_batch{self.number}.jpg", batch, self.run.names)
        self.number += 1
