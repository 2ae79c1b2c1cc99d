"""The field's detectors side by side, each trained and tested by the scripts, as a user would, on the same images.

Each sees the same number of images, from random weights, at the same size where it can, with its own recipe unless
``--train`` says otherwise. AP has the 95 % interval over the images. Times are those of the machine: of the whole of
train.py, where ``--jobs`` trains several at once those of a busy one; and of test.py's forward pass and suppression
with one image in a batch, the median, measured one network after the other.

Run: ``python -m benchmarks.detectors [--data bccd.yaml --img-size 256 --epochs 20] [--cfg NAME …]``
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.evaluate_results import ResultsOptions, compare_results
from models.detection_network import DetectionNetwork
from models.families.table import open_network
from utils.config import REPOSITORY, option, parse_options
from utils.devices import choose_device, describe_device
from utils.errors import UserError, run_command
from utils.files import write_json_atomically, write_text_atomically
from utils.tables import markdown_table

NETWORKS = (
    "yolov3-nano.cfg",
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "centernet_resnet18",
    "efficientdet_d0",
)


@dataclass(frozen=True)
class DetectorsOptions:
    """What is trained, on what, for how long."""

    cfg: tuple[str, ...] = option(NETWORKS, "networks")
    data: str = option("shapes.data", "data set")
    img_size: int = option(256, "side of the input; networks that work at one size only have that")
    epochs: int = option(20, "passes over the training images")
    batch_size: int = option(8, "images per batch")
    train: str = option("", "further options of train.py for every network, in one string")
    seed: int = option(0, "of the training")
    jobs: int = option(1, "networks that are trained at once")
    project: str = option("runs/benchmarks/detectors", "folder of the runs")


@dataclass(frozen=True)
class Row:
    """One network."""

    cfg: str
    side: int  # pixels
    parameters: int
    train_seconds: float
    ms_per_image: float
    ap: float
    ap_interval: tuple[float, float]  # 95 %, over images
    ap50: float

    def cells(self) -> list[str]:
        """Return what the table shows."""
        low, high = self.ap_interval
        interval = f"{self.ap:.3f} [{low:.3f}, {high:.3f}]"
        times = [f"{self.ms_per_image:.1f}", f"{self.train_seconds / 60:.1f}"]
        return [self.cfg, str(self.side), f"{self.parameters / 1e6:.1f}", interval, f"{self.ap50:.3f}", *times]


def main() -> None:
    """Train and test the networks, time one after the other; print the table and write it with all options."""
    (options,) = parse_options(__doc__.splitlines()[0], DetectorsOptions)
    folder = Path(options.project)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        trainings = list(pool.map(lambda cfg: train_and_test(cfg, options, folder), options.cfg))
    rows = []
    for cfg, seconds in zip(options.cfg, trainings, strict=True):
        rows.append(measure(cfg, seconds, options, folder))
        write_table(rows, options, folder)
    print(f"Written to {folder}: detectors.md, detectors.json, a .log for each network")


def train_and_test(cfg: str, options: DetectorsOptions, folder: Path) -> float:
    """Train a network and write what it finds; return the seconds of the training."""
    name = Path(cfg).stem
    side = side_of(open_network(cfg, 1), options)
    start = time.perf_counter()
    run_script(
        folder / f"{name}.log",
        "train.py",
        *("--cfg", cfg, "--data", options.data, "--img-size", side, "--epochs", options.epochs),
        *("--batch-size", options.batch_size, "--seed", options.seed, "--notest", *options.train.split()),
        *("--project", folder / "train", "--name", name, "--exist-ok"),
    )
    seconds = time.perf_counter() - start
    weights = ("--weights", folder / "train" / name / "last.pt")
    more = ("--save-json", "--project", folder / "test", "--name", name, "--exist-ok")
    run_script(folder / f"{name}.log", "test.py", *weights, *more)
    print(f"{cfg}: trained in {seconds / 60:.1f} minutes", flush=True)
    return seconds


def measure(cfg: str, train_seconds: float, options: DetectorsOptions, folder: Path) -> Row:
    """Time a trained network, and say how sure its AP is."""
    name = Path(cfg).stem
    run_script(
        folder / f"{name}.log",
        "test.py",
        *("--weights", folder / "train" / name / "last.pt", "--task", "speed", "--batch-sizes", 1),
        *("--project", folder / "speed", "--name", name, "--exist-ok"),
    )
    truth = read_json(folder / "test" / name / "ground_truth.json")
    detections = read_json(folder / "test" / name / "detections.json")
    compared = compare_results(ResultsOptions(), truth, {name: detections})
    column = compared.columns[0]
    numbers = dict(zip(compared.parameters.names, column.numbers.tolist(), strict=True))
    assert column.interval is not None
    low, high = column.interval[compared.parameters.names.index("AP")].tolist()
    speed = read_json(folder / "speed" / name / "speed.json")["rows"][0]
    network = open_network(cfg, len(truth["categories"]))
    side, parameters = side_of(network, options), sum(parameter.numel() for parameter in network.parameters())
    return Row(cfg, side, parameters, train_seconds, speed["p50_ms"], numbers["AP"], (low, high), numbers["AP50"])


def run_script(log: Path, script: str, *arguments: object) -> None:
    """Run one of the scripts; what it prints is added to a file.

    Raises:
        UserError: it failed, having said why.
    """
    with log.open("ab") as file:
        command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
        ended = subprocess.run(command, check=False, stdout=file, stderr=subprocess.STDOUT)
    if ended.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{script} {arguments[1]}: ended with status {ended.returncode}, see {log}: {' '.join(last)}")


def side_of(network: DetectionNetwork, options: DetectorsOptions) -> int:
    """Return the side of the only input that a network takes, else that of the options."""
    return network.input_wh[0] if network.fixed_size else options.img_size


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_bytes())


def write_table(rows: Sequence[Row], options: DetectorsOptions, folder: Path) -> None:
    """Print the table so far, and write it."""
    heading = ["network", "side", "10^6 parameters", "AP [95 %]", "AP50", "ms per image", "minutes of training"]
    table = markdown_table([heading, *(row.cells() for row in rows)], [False] + [True] * (len(heading) - 1))
    device = describe_device(choose_device(""))
    print(f"\n{device}\n{table}\n", flush=True)
    write_text_atomically(folder / "detectors.md", table + "\n")
    content = {"device": device, "options": asdict(options), "rows": [asdict(row) for row in rows]}
    write_json_atomically(folder / "detectors.json", content)


if __name__ == "__main__":
    run_command(main)
