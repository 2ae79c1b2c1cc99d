"""Which run ``train.py --resume`` goes on with, and which of its options may be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.labels.annotations import Annotations
from engine.iteration_rates import POLICIES
from engine.optimizer import OptimizerOptions, Schedule
from engine.provenance import RECORD, launch_of
from engine.run_folder import TRAINING_RUNS
from engine.train_loop import is_over
from engine.training_state import check_resumable
from models.checkpoints.format import read_checkpoint
from models.darknet.cfg import parse_cfg_text
from models.families.table import is_family_text
from utils import distributed
from utils.config import flag
from utils.errors import UserError
from utils.files import previous_path
from utils.renamed import record_of_run
from utils.words import how_many

NEWEST = "newest"  # what a bare --resume means
# All other options are those of the run.
MAY_CHANGE = {"resume", "device", "workers", "cache", "epochs", "patience", "max_bad", "verify_images", "profile"}
MAY_CHANGE |= {"save_minutes", "keep", "log"}


def find_last(named: str, project: str = TRAINING_RUNS) -> Path:
    """Return the ``last.pt`` that a user means by ``--resume``.

    Args:
        named: the file, the folder of its run, or "newest" for the run in ``project`` that wrote one last.
        project: folder of runs.

    Raises:
        UserError: no run there has one.
    """
    if named != NEWEST:
        return Path(named) / "last.pt" if Path(named).is_dir() else Path(named)
    found = list(Path(project).glob("*/last.pt"))
    if not found:
        raise UserError(f"--resume: no run in {project}/ has a last.pt; name another folder of runs with --project")
    return max(found, key=lambda path: path.stat().st_mtime)


def go_on_after_restart(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a process that ``torchrun`` has started again: those to go on with the run it had begun.

    Args:
        given: on the command line. They stay as they are where this is the first start, where ``resume`` is among them,
            and where the processes before had not saved anything.
    """
    if given.get("resume") or not distributed.launch() or not distributed.is_restart():
        return given
    project = Path(given.get("project", TRAINING_RUNS))
    records = [path for path in project.glob(f"*/{RECORD}") if launch_of(path) == distributed.launch()]
    lasts = [path.with_name("last.pt") for path in records if path.with_name("last.pt").is_file()]
    if not lasts:
        return given
    last = max(lasts, key=lambda path: path.stat().st_mtime)
    if distributed.is_main():
        print(f"torchrun has started the processes again: goes on with {last}")
    kept = {name: value for name, value in given.items() if name in MAY_CHANGE}
    if not kept.get("epochs"):  # 0: the run has found out how many, as --max-batches says
        kept.pop("epochs", None)
    return kept | {"resume": str(last)}


def options_to_resume(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a run to go on with, and the checkpoint in its ``last.pt``.

    Args:
        given: on the command line, ``resume`` among them.

    Raises:
        UserError: no such checkpoint, an option that must stay as it is, or the run has finished.
    """
    given = dict(given)
    project = given.pop("project", TRAINING_RUNS) if given["resume"] == NEWEST else TRAINING_RUNS
    fixed = sorted(given.keys() - MAY_CHANGE)
    if fixed:
        raise UserError(f"--resume goes on with the run's own options; leave out {flag(fixed[0])}")
    path = find_last(given["resume"], project)
    try:
        checkpoint = read_checkpoint(path)
        check_resumable(checkpoint, path)
    except UserError as error:
        older = previous_path(path, 1)
        hint = f"; the one before it is there: --resume {older}" if older.is_file() else ""
        raise UserError(f"{error}{hint}") from error
    before = record_of_run(checkpoint["options"], _longer_side(checkpoint))
    values = before | given | {"resume": str(path)}
    done, epochs, patience = checkpoint["epoch"], values["epochs"], values.get("patience", 0)
    if epochs < done:
        raise UserError(
            f"{path}: has already been trained for {how_many(done, 'epoch')}; --epochs {epochs} must not be less"
        )
    finished = path.with_name("results.png").is_file()  # the last thing a run writes
    if finished and done >= epochs:
        raise UserError(
            f"{path}: this run has finished its {how_many(done, 'epoch')}; go on with more of them, "
            f"--epochs {2 * done}, or train on from its weights with --weights {path}"
        )
    if finished and is_over(done, checkpoint.get("best_epoch", done), epochs, patience):
        raise UserError(
            f"{path}: this run stopped after {how_many(done, 'epoch')}, because --patience {patience} had passed; "
            f"go on with a larger one, or with --patience 0 for all {epochs} epochs"
        )
    return values, checkpoint


def check_data(
    checkpoint: dict[str, Any], resume: str, data: str, annotations: Annotations, num_key_points: int
) -> None:
    """Refuse to go on with data whose objects are others than those that the run has learned.

    Args:
        checkpoint: to go on from.
        resume: its path, for messages.
        data: as the user named it, likewise.
        annotations: to learn from.
        num_key_points: of an object, that the network of the checkpoint finds; 0 where it finds none.

    Raises:
        UserError: the classes, or the number of key points, are others.
    """
    other = ""
    if tuple(checkpoint["names"]) != annotations.names:
        other = f"other classes than when {resume} was written ({', '.join(checkpoint['names'])})"
    elif num_key_points not in (0, annotations.num_key_points):
        count = annotations.num_key_points
        other = f"{how_many(count, 'key point')} of an object, and {num_key_points} when {resume} was written"
    if other:
        raise UserError(f"{data}: has {other}; put them back, or start a new run with --weights")


def _longer_side(checkpoint: dict[str, Any]) -> int:
    """Return the longer side of the network input in pixels, which old records are relative to."""
    if is_family_text(checkpoint["cfg_text"]):
        return 0  # there were none when the records were so
    net = parse_cfg_text(checkpoint["cfg_text"], checkpoint["cfg_name"]).net
    return max(net["width"] or 1, net["height"] or 1)


def other_length(options: OptimizerOptions, done: int, before: int, now: int) -> str:
    """Return what changes with a run's number of epochs, in one line; nothing where it stays the same.

    Args:
        options: of the run.
        done: epochs that are finished.
        before: epochs that the run was to have.
        now: epochs that it is to have.
    """
    if before == now or done == 0:
        return ""
    if options.schedule in POLICIES:
        return f"{how_many(now, 'epoch')} instead of {before}: --schedule {options.schedule} goes on by the iteration"
    last, following = (
        options.lr0 * Schedule(options, epochs, 1, 1).factor(epoch)
        for epochs, epoch in ((before, done - 1), (now, done))
    )
    return (
        f"{how_many(now, 'epoch')} instead of {before}: the learning rate goes on along the curve of {now:,} "
        f"(epoch {done} had {last:.3g}, epoch {done + 1} has {following:.3g})"
    )
