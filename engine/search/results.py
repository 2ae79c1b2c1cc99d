"""What a search leaves behind: a table of its trials, the best recipe, Optuna's plots; and which runs are in it."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from engine.optimizer import AUTO, CHOSEN_BY_AUTO
from engine.search.space import Space
from engine.train_options import GROUPS, choose_options
from utils.config import flat_dict, read_recipe
from utils.errors import UserError
from utils.files import atomic_path, read_text, write_json_atomically, write_text_atomically

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

TABLE = "trials.json"
MAX_BYTES = 100_000_000  # of the table
STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed"}
PLOTS = {  # file -> function of optuna.visualization.matplotlib
    "history.png": "plot_optimization_history",
    "importance.png": "plot_param_importances",
    "slice.png": "plot_slice",
}


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a training has ended by itself; one whose process was killed has no message."""
    return trial.state.name in ("COMPLETE", "PRUNED") or (trial.state.name == "FAIL" and "message" in trial.user_attrs)


def write_table(folder: Path, study: Study, space: Space) -> None:
    """Write trials.json and trials.csv, one entry for each trial that has ended."""
    rows = [_row(trial, space) for trial in study.get_trials(deepcopy=False) if is_finished(trial)]
    write_json_atomically(folder / TABLE, rows)
    text = io.StringIO()
    columns = ["trial", "state", "fitness", "best_epoch", "epochs_done", "seconds", *space.options, "folder", "message"]
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(row | row["options"] for row in rows)
    write_text_atomically(folder / "trials.csv", text.getvalue())


def _row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    by_epoch = trial.intermediate_values
    return {
        "trial": trial.number,
        "state": STATES[trial.state.name],
        "fitness": max(by_epoch.values(), default=None),
        "best_epoch": max(by_epoch, key=by_epoch.__getitem__, default=None),
        "epochs_done": max(by_epoch, default=None),
        "seconds": trial.user_attrs.get("seconds"),
        "options": {name: trial.params.get(name) for name in space.options},
        "folder": trial.user_attrs.get("folder"),
        "message": trial.user_attrs.get("message"),
    }


def write_best(folder: Path, study: Study, space: Space, given: Mapping[str, Any]) -> None:
    """Write the options that the best trial learned with as best.yaml, a recipe for ``--hyp``."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not complete:
        return
    best = max(complete, key=lambda trial: trial.value or 0.0)
    values = space.values_of(best.params)
    groups, _ = choose_options({**given, **values})
    learned = flat_dict(groups.optimizer, groups.augment, groups.assignment, groups.loss)
    learned |= {name: value for name, value in groups.as_dict().items() if name in (*space.options, "accumulate")}
    record = folder / str(best.user_attrs.get("folder")) / "config.yaml"
    if learned["optimizer"] == AUTO and record.is_file():  # a run of another length would have another optimizer
        trained = read_recipe(record, GROUPS)
        learned |= {name: trained[name] for name in ("optimizer", *CHOSEN_BY_AUTO)}
    recipe = {name: value for name, value in learned.items() if value is not None and name not in ("hyp", "seed")}
    head = (
        f"# Trial {best.number} of {folder.as_posix()}: fitness {best.value:.4f}. Varied: {', '.join(space.options)}.\n"
    )
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_text_atomically(folder / "best.yaml", head + text)


def write_plots(folder: Path, study: Study, space: Space) -> None:
    """Draw Optuna's pictures of a search, of the options with several values; none without different results."""
    values = {trial.value for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"}
    if len(values) < 2:
        return
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    varied = [name for name, entry in space.options.items() if len(entry.to_check) > 1]
    plt.switch_backend("Agg")  # needs no screen
    for name, function in PLOTS.items():
        arguments = {} if name == "history.png" else {"params": varied}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that all complete trials have one value
            axes = getattr(plots, function)(study, **arguments)
        figure = (axes if hasattr(axes, "get_figure") else axes.flat[0]).get_figure()
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, dpi=100, bbox_inches="tight")
        plt.close(figure)


def runs_in(folder: str | Path) -> list[str]:
    """Return the folders of the complete runs of a search or a study; of any other folder, itself.

    Raises:
        UserError: its table is damaged, or names no complete run.
    """
    path = Path(folder) / TABLE
    if not path.is_file() or (Path(folder) / "config.yaml").is_file():
        return [str(folder)]
    try:
        rows = json.loads(read_text(path, MAX_BYTES))
        runs = [str(Path(folder) / row["folder"]) for row in rows if row["state"] == "complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no table of trials; go on with the search, which writes it anew") from error
    if not runs:
        raise UserError(f"{path}: no training of this search is complete yet; let one come to its end")
    return runs
