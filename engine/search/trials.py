"""The trials of a search: which one is next, which of them count, and what is told to Optuna about each.

Any number of processes may work on one storage. A trial counts when its training has ended by itself: it has come to
its end, was stopped for promising too little, or has failed. One whose process was killed does not count; when its
heartbeat has been missing for a while, another process takes it over, from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from engine.search.command import HOW, Plan
from engine.search.results import is_finished, write_best, write_plots, write_table
from engine.search.space import Choices
from engine.search.training import OUTPUT, Training, arguments_of, run_training, take_over
from engine.train_options import choose_options
from utils.errors import UserError

HEARTBEAT_SECONDS = 10
MISSING_SECONDS = 30  # without a heartbeat, after which a trial's process is taken for dead
WAIT_SECONDS = 1.0  # between looks at what other processes do
ATTEMPTS = 5  # to open the storage: two processes that make its tables at once get into each other's way
RECORD = "search"  # attribute of Optuna's study: what is searched
BEGUN = "begun"  # attribute of a trial: its own number, after its first heartbeat
POINT = "point"  # attribute of a trial: its number in the grid
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats are called so
_retry = RetryHeartbeatStaleTrialCallback()

PRUNERS: dict[str, Callable[[int], optuna.pruners.BasePruner]] = {  # name -> pruner for so many epochs
    "asha": lambda epochs: optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 9), reduction_factor=3),
    "median": lambda epochs: optuna.pruners.MedianPruner(n_warmup_steps=epochs // 9),
    "none": lambda _: optuna.pruners.NopPruner(),
}


class NotCountedError(Exception):
    """A trial that is not needed: another process was quicker."""


class TrainingFailedError(Exception):
    """A training that has ended without a result, for instance because its loss was not finite."""


@dataclass
class Trials:
    """The trials of one search, and this process's share in them."""

    plan: Plan
    folder: Path
    study: optuna.Study
    storage: RDBStorage
    seed: int
    epochs: int  # of a training, unless they are varied

    @classmethod
    def open(cls, plan: Plan, folder: Path, storage: str) -> Trials:
        """Begin a search, or go on with it.

        Args:
            plan: what is searched.
            folder: of the search.
            storage: URL of a database, or path of a file.

        Raises:
            UserError: the storage cannot be used, or holds another search of this name.
        """
        given = choose_options(dict(plan.given))[0].train
        pruner = "none" if plan.options.study else plan.options.pruner
        opened = open_storage(storage if "://" in storage else f"sqlite:///{storage}")
        study = optuna.create_study(
            storage=opened,
            study_name=folder.as_posix(),
            direction="maximize",
            pruner=PRUNERS[pruner](given.epochs),
            load_if_exists=True,
        )
        record = json.loads(json.dumps(plan.record()))
        before = study.user_attrs.get(RECORD)
        if before is None:
            study.set_user_attr(RECORD, record)
            if plan.points is None:
                _enqueue_recipe(study, plan)
        elif before != record:
            raise UserError(f"{folder}: is another search, {_difference(record, before)}; choose another --name")
        return cls(plan, folder, study, opened, given.seed, given.epochs)

    def run(self) -> None:
        """Train until as many trials as are wanted have ended; the tables are written after each.

        Raises:
            UserError: no training can start.
            KeyboardInterrupt: says how to go on; the trial in work will be taken up again.
        """
        try:
            with tqdm(total=self.plan.wanted, unit="trial") as bar:
                while not self._is_done(bar):
                    self._train_next(bar)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on with this search") from None
        finally:
            self._write()
        write_plots(self.folder, self.study, self.plan.space)

    def _is_done(self, bar: tqdm) -> bool:
        """Whether all trials have ended; waits as long as those that other processes work on may be the last."""
        while True:
            fail_stale_trials(self.study)
            self._fail_unbegun()
            trials = self.study.get_trials(deepcopy=False)
            ended = sum(map(is_finished, trials))
            bar.n = min(ended, self.plan.wanted)
            bar.refresh()
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            if ended >= self.plan.wanted:
                return True
            if ended + running < self.plan.wanted:
                return False
            bar.set_description_str("waiting for other processes")
            time.sleep(WAIT_SECONDS)

    def _fail_unbegun(self) -> None:
        """Give up trials whose process was killed before their first heartbeat: Optuna would wait for them for ever."""
        earliest = datetime.now() - timedelta(seconds=MISSING_SECONDS)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            has_begun = trial.user_attrs.get(BEGUN) == trial.number  # of one that it takes over, it has the number
            if not has_begun and trial.datetime_start and trial.datetime_start < earliest:
                with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another one did it
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    _retry(self.study, trial)

    def _train_next(self, bar: tqdm) -> None:
        if self.plan.points is not None:
            self._enqueue_missing(self.plan.points)
        self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
        try:
            self.study.optimize(
                lambda trial: self._objective(trial, bar), n_trials=1, catch=(NotCountedError, TrainingFailedError)
            )
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # Its heartbeat was missing for long, because this computer slept: another process has taken it over.
            bar.write("a trial of this process was taken over by another one")
        self._write()

    def _sampler(self, number: int) -> BaseSampler:
        """Return the sampler of one trial: equal for equal seeds, another one in each trial and process."""
        seed = random.Random(f"{self.seed} {number}").getrandbits(32)
        return RandomSampler(seed) if self.plan.options.sampler == "random" else TPESampler(seed=seed)

    def _objective(self, trial: Trial, bar: tqdm) -> float:
        self.storage.record_heartbeat(trial._trial_id)  # its thread does so, too, but may not have come to it yet
        trial.set_user_attr(BEGUN, trial.number)
        frozen = self._check_needed(trial)
        self.study.sampler = self._sampler(trial.number)
        values = self._suggest(trial)
        folder = self.folder / f"trial{trial.number}"
        folder.mkdir(exist_ok=True)
        trial.set_user_attr("folder", folder.name)

        def after_epoch(epoch: int, fitness: float) -> bool:
            trial.report(fitness, epoch)
            bar.set_description_str(f"trial {trial.number}, epoch {epoch}: {fitness:.4f}")
            return epoch < values.get("epochs", self.epochs) and trial.should_prune()

        bar.set_description_str(f"trial {trial.number}")
        started = time.monotonic()
        try:
            ended = run_training(self._arguments(frozen, values, folder), folder, after_epoch)
        except KeyboardInterrupt:
            _retry(self.study, self.study.trials[trial.number])
            raise
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        return self._result(trial, ended, folder, bar)

    def _check_needed(self, trial: Trial) -> FrozenTrial:
        """Return Optuna's record of a new trial.

        Raises:
            NotCountedError: older trials are as many as are wanted, or one of them has this point of the grid.
        """
        trials = self.study.get_trials(deepcopy=False)
        frozen = trials[trial.number]
        older = [one for one in trials[: trial.number] if one.state == TrialState.RUNNING or is_finished(one)]
        is_double = self.plan.points is not None and frozen.user_attrs.get(POINT) in _points_of(older)
        is_beyond = self.plan.points is not None and POINT not in frozen.user_attrs
        if is_double or is_beyond or len(older) >= self.plan.wanted:
            raise NotCountedError
        return frozen

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        """Return the values of this trial's options."""
        parameters: dict[str, Any] = {}
        for name, entry in self.plan.space.options.items():
            if isinstance(entry, Choices):
                parameters[name] = trial.suggest_categorical(name, entry.labels)
            elif isinstance(entry.low, int):
                step = int(entry.step or 1)
                parameters[name] = trial.suggest_int(name, entry.low, int(entry.high), step=step, log=entry.log)
            else:
                parameters[name] = trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.log)
        return self.plan.space.values_of(parameters)

    def _arguments(self, frozen: FrozenTrial, values: dict[str, Any], folder: Path) -> list[str]:
        """Return the command line of a trial's training, which may go on with what another process has begun."""
        before = RetryHeartbeatStaleTrialCallback.retry_history(frozen)
        given = self.plan.given
        if any(take_over(self.folder / f"trial{number}", folder) for number in reversed(before)):
            how = {name: value for name, value in given.items() if name in HOW}
            return arguments_of({"resume": str(folder / "last.pt"), **how})
        place = {"project": str(self.folder), "name": folder.name, "exist_ok": True}
        return arguments_of({**given, **values, **place})

    def _result(self, trial: Trial, ended: Training, folder: Path, bar: tqdm) -> float:
        """Return the fitness of the best epoch, which is that of best.pt.

        Raises:
            optuna.TrialPruned, TrainingFailedError: it was stopped; it has none.
            UserError: the very first training could not even start.
        """
        shown = " ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                         for name, value in trial.params.items())  # fmt: skip
        best = max(ended.fitness.values(), default=None)
        if ended.was_stopped:
            bar.write(f"trial {trial.number}: stopped at {best:.4f} after epoch {max(ended.fitness)}, {shown}")
            raise optuna.TrialPruned
        if ended.status == 0 and best is not None:
            bar.write(f"trial {trial.number}: {best:.4f}, {shown}")
            return best
        message = ended.message if ended.status else "no epoch has a result: was it tested, and are there objects?"
        if not (folder / "config.yaml").is_file() and not any(map(is_finished, self.study.get_trials(deepcopy=False))):
            raise UserError(f"{folder / OUTPUT}: the training cannot start: {message}")
        trial.set_user_attr("message", message)
        bar.write(f"trial {trial.number}: failed, {shown}: {message}")
        raise TrainingFailedError(message)

    def _enqueue_missing(self, points: Sequence[dict[str, Any]]) -> None:
        """Put those points of a grid into the queue that no trial has, or had before it was killed."""
        trials = self.study.get_trials(deepcopy=False)
        taken = _points_of(
            one for one in trials if one.state in (TrialState.RUNNING, TrialState.WAITING) or is_finished(one)
        )
        for number, point in enumerate(points):
            if number not in taken:
                self.study.enqueue_trial(point, user_attrs={POINT: number})

    def _write(self) -> None:
        write_table(self.folder, self.study, self.plan.space)
        write_best(self.folder, self.study, self.plan.space, self.plan.given)


def _points_of(trials: Any) -> set[Any]:
    return {trial.user_attrs.get(POINT) for trial in trials}


def _difference(now: dict[str, Any], before: dict[str, Any]) -> str:
    """Return in words in which option the records of two searches differ."""
    for part in ("options", "varied"):
        for name in now[part].keys() | before[part].keys():
            if now[part].get(name) != before[part].get(name):
                return f"with {name} = {before[part].get(name)} instead of {now[part].get(name)}"
    return "one with --sampler grid and one without"


def _enqueue_recipe(study: optuna.Study, plan: Plan) -> None:
    """Let the first trial be the recipe itself, as far as it lies within the space."""
    recipe = choose_options(dict(plan.given))[0].as_dict()
    parameters = {}
    for name, entry in plan.space.options.items():
        value = tuple(recipe[name]) if isinstance(recipe[name], list) else recipe[name]
        if isinstance(entry, Choices):
            if value in entry.values:
                parameters[name] = entry.labels[entry.values.index(value)]
        elif isinstance(value, (int, float)) and entry.low <= value <= entry.high and not entry.step:
            parameters[name] = value
    study.enqueue_trial(parameters, skip_if_exists=True)


def open_storage(url: str) -> RDBStorage:
    """Return the storage at an address; the tables are made where there are none.

    Raises:
        UserError: it cannot be opened, or the package that speaks to it is missing.
    """
    connection = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(
                url,
                engine_kwargs=connection,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=MISSING_SECONDS,
                heartbeat_stale_trial_callback=_retry,
            )
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            if attempt + 1 == ATTEMPTS:
                raise UserError(f"--storage: cannot be used: {str(error).splitlines()[0]}; name another one") from error
            time.sleep(random.Random(os.getpid() + attempt).uniform(0.1, 1))
    raise AssertionError
