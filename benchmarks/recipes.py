"""AP and time of whole trainings, over several seeds: recipes against the default one, and against YOLOv5's own script.

One seed after the other, and within a seed one training after the other, so that other load of the machine meets all of
them alike. Everything is tested by test.py. With ``--yolov5`` its train.py runs as its users call it, and the default
recipe once more for as many epochs as take the time of YOLOv5's. Differences are paired by seed.

``--jobs 2`` works on two seeds at once, each with half of the processors' threads: sooner at the end, and seconds of a
busy machine; ``--same-time-epochs`` then says how many epochs another run has shown to take as long. What the trainings
print is in a file of each.

Run: ``python -m benchmarks.recipes --data my.yaml --weights yolov5n.pt [--yolov5 FOLDER] [--recipe NAME=OPTIONS]``
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    jobs: int = option(1, "seeds that are trained at once")
    recipe: tuple[str, ...] = option((), "NAME=OPTIONS of train.py, in one string, against the default")
    same_time_epochs: int = option(0, "of the default recipe in the time of YOLOv5's; 0: by the times of this run")
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
        self.threads = None if options.jobs == 1 else max(1, (os.cpu_count() or 1) // options.jobs)
        self.lock = threading.Lock()  # of the runs and the table

    def of_seed(self, seed: int) -> None:
        """Train everything with one seed, and print the table so far."""
        options = self.options
        ours = self.ours(DEFAULT, seed, options.epochs)
        if options.yolov5:
            theirs = self.yolov5(seed)
            measured = round(options.epochs * theirs.seconds / ours.seconds)
            self.ours(SAME_TIME, seed, options.same_time_epochs or measured)
        for recipe in options.recipe:
            name, more = recipe.split("=", 1)
            self.ours(name, seed, options.epochs, more)
        with self.lock:
            write_table(self, YOLOV5 if options.yolov5 else DEFAULT)

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
            if run.epochs != epochs:
                raise UserError(f"{done}: is of {run.epochs} epochs, not {epochs}; another --project begins anew")
        else:
            start = time.perf_counter()
            data = ("--data", options.data, f"--{size_flag}", options.img_size)
            batches = ("--batch-size", options.batch_size, "--workers", options.workers)
            length = ("--epochs", epochs, "--seed", seed, "--project", self.folder / "train", "--name", name)
            self._call(folder, name, *command, *data, *batches, *length)
            seconds = time.perf_counter() - start
            weights = last_weights(self.folder / "train" / name)
            test = ("--weights", weights, "--data", options.data, "--img-size", options.img_size, "--exist-ok")
            where = ("--project", self.folder / "test", "--name", name)
            self._call(REPOSITORY, name, sys.executable, REPOSITORY / "test.py", *test, *where)
            metrics = json.loads((self.folder / "test" / name / "metrics.json").read_bytes())
            run = TrainedRun(recipe, seed, epochs, seconds, metrics["ap"], metrics["ap50"])
            write_json_atomically(done, asdict(run))
            print(f"{recipe}, seed {seed}: {epochs} epochs in {seconds:.0f} s, AP {run.ap:.3f}", flush=True)
        with self.lock:
            self.runs.append(run)
        return run

    def _call(self, folder: Path, name: str, *command: object) -> None:
        """Run a command in a folder; what it prints is added to the log of that name.

        Raises:
            UserError: it failed; quotes the end of the log.
        """
        log, threads = self.folder / f"{name}.log", self.threads
        environment = os.environ if threads is None else os.environ | {"OMP_NUM_THREADS": str(threads)}
        words = [str(part) for part in command]
        with log.open("ab") as file:
            ended = subprocess.run(words, cwd=folder, env=environment, check=False, stdout=file, stderr=file)
        if ended.returncode:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"{words[1]}: ended with status {ended.returncode}, see {log}: {' '.join(last)}")


def main() -> None:
    """Train all, and print the table after every seed."""
    (options,) = parse_options(__doc__.splitlines()[0], RecipesOptions)
    trainings = Trainings(options)
    trainings.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(trainings.of_seed, range(options.seeds)))  # a list, so that the first failure is raised here


def last_weights(run: Path) -> Path:
    """Return the weights after the last epoch: ours are in the folder, YOLOv5's one below."""
    return next(path for path in (run / "last.pt", run / "weights" / "last.pt") if path.is_file())


def write_table(trainings: Trainings, reference: str) -> None:
    """Print the means over the seeds that are through, and differences to a reference; write them with every run."""
    names = dict.fromkeys(run.recipe for run in trainings.runs)
    seeds = Counter(run.seed for run in trainings.runs)
    through = [run for run in trainings.runs if seeds[run.seed] == len(names)]
    rows = [["recipe", "epochs", "seconds", "AP", "AP50", f"AP - {reference} [95 % over seeds]"]]
    for name in names:
        runs = [run for run in through if run.recipe == name]
        cells = [mean(runs, lambda run: run.epochs), mean(runs, lambda run: run.seconds)]
        numbers = [mean(runs, lambda run: run.ap), mean(runs, lambda run: run.ap50)]
        shown = [f"{cells[0]:.0f}", f"{cells[1]:.0f}", f"{numbers[0]:.3f}", f"{numbers[1]:.3f}"]
        rows.append([name, *shown, difference(through, reference, name)])
    table = markdown_table(rows, [False] + [True] * (len(rows[0]) - 1))
    device = describe_device(choose_device(""))
    print(f"\n{device}, {len({run.seed for run in through})} seeds\n{table}\n", flush=True)
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
