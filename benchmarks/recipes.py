"""AP and time of whole trainings, over several seeds: recipes against the default one, and against YOLOv5's own script.

One seed after the other, and within a seed one training after the other, so that other load of the machine meets all of
them alike. Everything is tested by test.py. With ``--yolov5`` its train.py runs as its users call it, and the default
recipe once more for as many epochs as take the time of YOLOv5's. Differences are paired by seed.

Run: ``python -m benchmarks.recipes --data my.yaml --weights yolov5n.pt [--yolov5 FOLDER] [--recipe NAME=OPTIONS]``
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.paired_differences import paired_by_seed
from utils.config import REPOSITORY, option, parse_options
from utils.devices import choose_device, describe_device
from utils.errors import UserError, run_command
from utils.files import write_json_atomically, write_text_atomically
from utils.tables import markdown_table

DEFAULT, YOLOV5, SAME_TIME = "default", "YOLOv5", "default, in the time of YOLOv5"


@dataclass(frozen=True)
class RecipesOptions:
    """What is trained, on what, how often."""

    data: str = option("", "data set, a YAML file that YOLOv5 reads, too")
    weights: str = option("", "that the trainings start from; default: none, with --cfg")
    cfg: str = option("", "network, where there are no weights")
    img_size: int = option(320, "side of the input")
    epochs: int = option(20, "passes over the training images")
    batch_size: int = option(16, "images per batch")
    workers: int = option(2, "processes that load")
    seeds: int = option(5, "trainings of each recipe")
    recipe: tuple[str, ...] = option((), "NAME=OPTIONS of train.py, in one string, against the default")
    yolov5: str = option("", "folder of a clone of ultralytics/yolov5")
    python: str = option(sys.executable, "the interpreter that has what YOLOv5 requires")
    project: str = option("runs/benchmarks/recipes", "folder of the runs")

    def __post_init__(self) -> None:
        if not self.data or not (self.weights or self.cfg):
            raise ValueError("--data and --weights, or --data and --cfg, say what is trained")
        if any("=" not in recipe for recipe in self.recipe):
            raise ValueError("--recipe takes NAME=OPTIONS")


@dataclass(frozen=True)
class TrainedRun:
    """One training."""

    recipe: str
    seed: int
    epochs: int
    seconds: float  # of the whole command
    ap: float
    ap50: float


class Trainings:
    """Trains and tests by recipe and seed; each ends in a file of its own, so that a benchmark can be gone on with."""

    def __init__(self, options: RecipesOptions) -> None:
        self.options = options
        self.folder = Path(options.project).resolve()
        self.runs: list[TrainedRun] = []

    def ours(self, recipe: str, seed: int, epochs: int, more: str = "") -> TrainedRun:
        """Train by train.py."""
        options = self.options
        start_from = ("--weights", options.weights) if options.weights else ()
        network = ("--cfg", options.cfg) if options.cfg else ()
        command = (sys.executable, REPOSITORY / "train.py", *start_from, *network, *more.split(), "--exist-ok")
        return self._measure(recipe, seed, epochs, command, "img-size", REPOSITORY)

    def yolov5(self, seed: int) -> TrainedRun:
        """Train by YOLOv5's script."""
        options, folder = self.options, Path(self.options.yolov5)
        network = ("--cfg", Path(options.cfg).stem + ".yaml") if options.cfg else ()
        start_from = ("--weights", options.weights, *network, "--noautoanchor")  # so that test.py knows the anchors
        command = (options.python, "train.py", *start_from, "--exist-ok")
        return self._measure(YOLOV5, seed, options.epochs, command, "imgsz", folder)

    def _measure(
        self, recipe: str, seed: int, epochs: int, command: Sequence[object], size_flag: str, folder: Path
    ) -> TrainedRun:
        options, name = self.options, f"{recipe.replace(', ', '-').replace(' ', '-')}-{seed}"
        done = self.folder / f"{name}.json"
        if done.is_file():
            run = TrainedRun(**json.loads(done.read_bytes()))
        else:
            start = time.perf_counter()
            call(
                *(*command, "--data", options.data, f"--{size_flag}", options.img_size, "--epochs", epochs),
                *("--batch-size", options.batch_size, "--workers", options.workers, "--seed", seed),
                *("--project", self.folder / "train", "--name", name),
                folder=folder,
            )
            seconds = time.perf_counter() - start
            weights = last_weights(self.folder / "train" / name)
            test = ("--weights", weights, "--data", options.data, "--img-size", options.img_size, "--exist-ok")
            call(
                *(sys.executable, REPOSITORY / "test.py", *test, "--project", self.folder / "test", "--name", name),
                folder=REPOSITORY,
            )
            metrics = json.loads((self.folder / "test" / name / "metrics.json").read_bytes())
            run = TrainedRun(recipe, seed, epochs, seconds, metrics["ap"], metrics["ap50"])
            write_json_atomically(done, asdict(run))
        self.runs.append(run)
        return run


def main() -> None:
    """Train all, and print the table after every seed."""
    (options,) = parse_options(__doc__.splitlines()[0], RecipesOptions)
    trainings = Trainings(options)
    trainings.folder.mkdir(parents=True, exist_ok=True)
    recipes = dict(recipe.split("=", 1) for recipe in options.recipe)
    for seed in range(options.seeds):
        ours = trainings.ours(DEFAULT, seed, options.epochs)
        if options.yolov5:
            theirs = trainings.yolov5(seed)
            trainings.ours(SAME_TIME, seed, round(options.epochs * theirs.seconds / ours.seconds))
        for name, more in recipes.items():
            trainings.ours(name, seed, options.epochs, more)
        write_table(trainings, YOLOV5 if options.yolov5 else DEFAULT)


def call(*command: object, folder: Path) -> None:
    """Run a command in a folder.

    Raises:
        UserError: it failed, having said why.
    """
    ended = subprocess.run([str(part) for part in command], cwd=folder, check=False)
    if ended.returncode:
        raise UserError(f"{' '.join(map(str, command[:2]))}: ended with status {ended.returncode}")


def last_weights(run: Path) -> Path:
    """Return the weights after the last epoch: ours are in the folder, YOLOv5's one below."""
    return next(path for path in (run / "last.pt", run / "weights" / "last.pt") if path.is_file())


def write_table(trainings: Trainings, reference: str) -> None:
    """Print the means over the seeds so far, with the difference to a reference, and write them with every run."""
    rows = [["recipe", "epochs", "seconds", "AP", "AP50", f"AP - {reference} [95 % over seeds]"]]
    names = dict.fromkeys(run.recipe for run in trainings.runs)
    for name in names:
        runs = [run for run in trainings.runs if run.recipe == name]
        cells = [mean(runs, lambda run: run.epochs), mean(runs, lambda run: run.seconds)]
        numbers = [mean(runs, lambda run: run.ap), mean(runs, lambda run: run.ap50)]
        shown = [f"{cells[0]:.0f}", f"{cells[1]:.0f}", f"{numbers[0]:.3f}", f"{numbers[1]:.3f}"]
        rows.append([name, *shown, difference(trainings.runs, reference, name)])
    table = markdown_table(rows, [False] + [True] * (len(rows[0]) - 1))
    device = describe_device(choose_device(""))
    print(f"\n{device}, {len({run.seed for run in trainings.runs})} seeds\n{table}\n", flush=True)
    write_text_atomically(trainings.folder / "recipes.md", table + "\n")
    content = {"device": device, "options": asdict(trainings.options), "runs": [asdict(run) for run in trainings.runs]}
    write_json_atomically(trainings.folder / "recipes.json", content)


def mean(runs: Sequence[TrainedRun], number: Callable[[TrainedRun], float]) -> float:
    """Return the mean of a number over runs."""
    return sum(map(number, runs)) / len(runs)


def difference(runs: Sequence[TrainedRun], reference: str, recipe: str) -> str:
    """Return the difference in AP of a recipe to the reference with its interval, paired by seed; "" for itself."""
    by_seed: list[dict[Hashable, float]] = [
        {run.seed: run.ap for run in runs if run.recipe == name} for name in (reference, recipe)
    ]
    found = paired_by_seed(*by_seed) if recipe != reference else None
    if found is None:
        return ""
    interval = "" if found.interval is None else f" [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]"
    return f"{found.average:+.3f}{interval}"


if __name__ == "__main__":
    run_command(main)
