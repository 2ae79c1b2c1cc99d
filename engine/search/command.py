"""``train.py --search``, ``--evolve`` and ``--study``: what they mean, and how many trainings are put in motion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.run_folder import new_run_folder
from engine.search.space import Space, check_grid, check_space, read_space, that_apply
from engine.train_options import TrainOptions
from models.exported.required import required
from utils import distributed
from utils.config import build_options, command_from_here, find_file, flag, option
from utils.errors import UserError
from utils.words import how_many

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("asha", "median", "none")
TRIALS = 100
RANGES_OF_YOLOV5 = "evolve.yaml"
DATABASE = "trials.db"


@dataclass(frozen=True)
class SearchOptions:
    """Many trainings: a search for better options, or a grid of options and seeds."""

    search: str = option(
        "", "search options, in the ranges that this YAML file gives; looked up here and in cfg/search"
    )
    evolve: int = option(0, f"the same as --search {RANGES_OF_YOLOV5} --trials N: the ranges of YOLOv5", bare=300)
    study: str = option("", "train with every combination of the values and seeds of this YAML file")
    trials: int = option(0, f"trainings of a search, by all its processes; 0: {TRIALS}, or the whole grid")
    sampler: str = option("tpe", "how a search draws options", SAMPLERS)
    pruner: str = option("asha", "which trainings of a search are stopped early", PRUNERS)
    storage: str = option("", f"URL of a database, or an SQLite file; default: {DATABASE} in the folder of the search")

    def __post_init__(self) -> None:
        kinds = [flag(name) for name in ("search", "evolve", "study") if getattr(self, name)]
        if len(kinds) > 1:
            raise ValueError(f"{kinds[0]} and {kinds[1]} exclude each other; leave one of them out")
        searches = bool(self.search or self.evolve)
        for item in fields(self):
            changed = getattr(self, item.name) != item.default
            if changed and item.name in ("trials", "sampler", "pruner") and not searches:
                raise ValueError(f"{flag(item.name)} is for --search; add it, or leave {flag(item.name)} out")
        if self.storage and not kinds:
            raise ValueError("--storage is for --search and --study; add one of them, or leave --storage out")
        if self.evolve and self.trials:
            raise ValueError(f"--evolve {self.evolve} is the number of trainings already; leave --trials out")
        if min(self.trials, self.evolve) < 0:
            raise ValueError("--trials and --evolve must not be negative")

    @property
    def as_flag(self) -> str:
        """The option that asks for many trainings; empty where none does."""
        return next((flag(name) for name in ("search", "evolve", "study") if getattr(self, name)), "")


@dataclass(frozen=True)
class Plan:
    """The trainings that are to be done."""

    options: SearchOptions
    space: Space
    given: dict[str, Any]  # options that all trainings have from the command line
    points: list[dict[str, Any]] | None  # of a grid, as Optuna keeps them; None where they are drawn
    wanted: int  # how many trainings

    def record(self) -> dict[str, Any]:
        """Return what tells this search from another one: those options that change results, as plain values."""
        fixed = {name: value for name, value in self.given.items() if name not in HOW}
        varied = self.space.as_record()
        return {"options": fixed, "varied": varied, "is a grid": self.points is not None}


HOW = ("device", "workers", "cache", "max_bad", "verify_images")  # options that may differ from process to process


def is_of_many(given: Mapping[str, Any]) -> bool:
    """Whether the options of a command line ask for many trainings instead of one.

    Raises:
        UserError: options of a search without a search, or that exclude each other.
    """
    return bool(search_options(given).as_flag)


def search_options(given: Mapping[str, Any]) -> SearchOptions:
    """Return those of a command line's options that say how to search."""
    names = {item.name for item in fields(SearchOptions)}
    (options,) = build_options({name: value for name, value in given.items() if name in names}, (SearchOptions,))
    return options


def train_many(given: Mapping[str, Any]) -> None:
    """Do all trainings of a search or a study, or go on with them; other processes may do the same at once.

    Args:
        given: the options of the command line.

    Raises:
        UserError: an option, a file or the storage cannot be used.
    """
    plan = make_plan(given)
    optuna = required("optuna", plan.options.as_flag, "requirements-search.txt")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from engine.search.trials import Trials  # imports Optuna

    kind = "study" if plan.options.study else "search"
    folder = new_run_folder(given.get("project", f"runs/{kind}"), given.get("name", TrainOptions.name), exist_ok=True)
    trials = Trials.open(plan, folder, plan.options.storage or str(folder / DATABASE))
    how = "every combination" if plan.points is not None else f"{plan.options.sampler}, {plan.options.pruner}"
    varied = ", ".join(plan.space.options)
    print(f"{kind}: {varied} of {plan.space.path}, {how_many(plan.wanted, 'training')} ({how}) -> {folder}")
    trials.run()
    if kind == "study":
        print("compare: " + command_from_here(f"python analyze.py --compare {folder}"))
    elif (folder / "best.yaml").is_file():
        print("train with the best: " + command_from_here(f"python train.py --hyp {folder / 'best.yaml'}"))


def make_plan(given: Mapping[str, Any]) -> Plan:
    """Return what is to be trained; every value is checked before anything is.

    Raises:
        UserError: an option or a file cannot be used; names file and line.
    """
    options = search_options(given)
    if distributed.world_size() > 1:
        raise UserError(
            f"{options.as_flag}: start it without torchrun; several processes with the same --name, each with its "
            "--device, share the trainings"
        )
    for name in ("resume", "exist_ok"):
        if given.get(name):
            raise UserError(f"{options.as_flag} goes on where it was interrupted by itself; leave out {flag(name)}")
    names_here = {item.name for item in fields(SearchOptions)} | {"name", "project", "resume", "exist_ok"}
    given = {name: value for name, value in given.items() if name not in names_here}
    if options.evolve:
        options = replace(options, search=RANGES_OF_YOLOV5, trials=options.evolve, evolve=0)
        space, left_out = that_apply(read_space(find_file(options.search, "search space")), given)
        if left_out:
            print(f"--evolve leaves out {', '.join(left_out)}: without use, or of another range, in this recipe")
    elif options.study:
        space = read_space(find_file(options.study, "study"), is_study=True)
    else:
        space = read_space(find_file(options.search, "search space"))
    if twice := [name for name in space.options if name in given]:
        raise UserError(f"{space.place(twice[0])}varies '{twice[0]}'; leave {flag(twice[0])} out, or this line")
    if not options.study and options.sampler != "grid":
        check_space(space, given)
        return Plan(options, space, given, None, options.trials or TRIALS)
    points = space.grid()[: options.trials or None]
    check_grid(space, points, given)
    return Plan(options, space, given, points, len(points))
