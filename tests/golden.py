"""Golden outputs: record what the commands write, and compare it after a change that must not change anything.

    python tests/golden.py record FOLDER
    python tests/golden.py check FOLDER [--map FILE]

Every number that a command writes becomes one line ``command/file:place = value``, as text and without a tolerance;
tensors become their SHA-256. Left out are times and command lines. The map is a list of ``[pattern, replacement]``
pairs, regular expressions that are applied to the recorded lines: it says which names were changed on purpose.
Commands run with one thread in a temporary folder, so that two runs of one version agree to the last bit.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
VALIDATION = ROOT / "datasets/shapes/images/val"
LEFT_OUT = re.compile(
    r":speed\.|:command\b|milliseconds_per_batch|ms per batch|:seconds|\bmetrics\.json:weights|train/.*config\.yaml"
)
TRAIN = "--img-size 96 --workers 0 --match split --alpha 0.3"
STRATEGIES = "standard,ratio,darknet,pure,split,fast,atss,simota,tal"
BREAKDOWNS = "class,size,elongation,occlusion,matches"


def commands() -> Iterator[tuple[str, str]]:
    """Yield a name and a command line for every golden output."""
    best = "runs/train/golden/best.pt"
    yield "train", f"train.py --epochs 1 {TRAIN} --name golden"
    yield "test", f"test.py --weights {best} --data shapes.data --save-json --workers 0 --name golden"
    yield (
        "detect",
        (
            f"detect.py --weights {best} --source {VALIDATION} --conf-thres 0.01 --save-txt --save-conf --save-json "
            "--nosave --name golden"
        ),
    )
    yield "data", "analyze.py --dataset-stats --anchor-stats --data shapes.data --name golden"
    yield (
        "matching",
        (
            f"analyze.py --matching-stats --weights {best} --data shapes.data --split valid --match {STRATEGIES} "
            f"--match-iou iou giou --hard 4 --by {BREAKDOWNS} --workers 0 --name matching"
        ),
    )
    yield "anchors", "kmeans_anchors.py --data shapes.data --generations 50"
    for cfg in sorted((ROOT / "cfg").glob("*.cfg")):
        yield f"network-{cfg.stem}", f"-m models.network {cfg.name}"
    yield "example", "-m docs.make_example"
    checkpoint = SHARED / "data/weights/yolov5n.pt"
    if checkpoint.is_file():
        yield "convert", f"-m models.convert_weights {checkpoint} converted/yolov5n.weights"


def run(arguments: str, folder: Path) -> str:
    """Run a command of this repository in a folder and return what it printed."""
    done = subprocess.run(command_line(arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"golden: {arguments} ended with status {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def command_line(arguments: str) -> list[str]:
    """Return the words of a command; a script is found in the repository."""
    first, *rest = arguments.split()
    return [sys.executable, str(ROOT / first) if first.endswith(".py") else first, *rest]


def environment() -> dict[str, str]:
    """Return the variables of every command: one thread, our packages."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def interrupted_and_resumed(folder: Path) -> None:
    """Train two epochs, interrupt after the first, and go on."""
    arguments = f"train.py --epochs 2 {TRAIN} --name resumed"
    process = subprocess.Popen(
        command_line(arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    results = folder / "runs/train/resumed/results.csv"
    while process.poll() is None and not (results.is_file() and results.read_text().count("\n") > 1):
        time.sleep(0.2)
    time.sleep(1)  # into the second epoch
    process.send_signal(signal.SIGINT)
    process.wait()
    run("train.py --resume runs/train/resumed/last.pt --workers 0", folder)
    run(f"train.py --epochs 2 {TRAIN} --name whole", folder)
    resumed, whole = (list(flat_checkpoint(folder / f"runs/train/{name}/last.pt")) for name in ("resumed", "whole"))
    same = [one for one in resumed if not one.startswith("options.")]
    if same != [one for one in whole if not one.startswith("options.")]:
        raise SystemExit("golden: a resumed run ended otherwise than a whole one")


def collect(folder: Path) -> list[str]:
    """Run all commands in a folder; return the lines of everything that they wrote, sorted by command and file."""
    lines = []
    (folder / "converted").mkdir()
    for name, arguments in commands():
        begin = time.time()
        printed = run(arguments, folder)
        if name.startswith(("network", "example", "anchors")):
            lines += [f"{name}/stdout:{number} = {line}" for number, line in enumerate(printed.splitlines(), 1)]
        print(f"  {name}: {time.time() - begin:.0f} s", file=sys.stderr, flush=True)
    interrupted_and_resumed(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "resumed" not in path.parts:
            place = path.relative_to(folder).as_posix().removeprefix("runs/")
            lines += [f"{place}:{line}" for line in flat_file(path)]
    clean = (line.replace(str(folder), "WORK").replace(str(ROOT), "REPOSITORY") for line in lines)
    return [line for line in clean if not LEFT_OUT.search(line)]


def flat_file(path: Path) -> Iterator[str]:
    """Yield ``place = value`` for everything that a file says."""
    if path.suffix == ".json":
        yield from flat(json.loads(path.read_text(), parse_float=str, parse_int=str))
    elif path.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(path.open(newline="")), 1):
            yield from (f"{number}.{name} = {value}" for name, value in row.items())
    elif path.suffix == ".txt":
        yield from (f"{number} = {line}" for number, line in enumerate(path.read_text().splitlines(), 1))
    elif path.suffix == ".pt":
        yield from flat_checkpoint(path)
    elif path.suffix == ".weights":
        yield f"sha256 = {hashlib.sha256(path.read_bytes()).hexdigest()}"


def flat_checkpoint(path: Path) -> Iterator[str]:
    """Yield a line for every value and tensor of one of our checkpoints."""
    yield from flat(torch.load(path, weights_only=True, map_location="cpu"))


def flat(value: Any, place: str = "") -> Iterator[str]:
    """Yield ``place = value`` for every leaf of nested dicts and lists."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from flat(one, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for number, one in enumerate(value):
            yield from flat(one, f"{place}.{number}" if place else str(number))
    elif isinstance(value, torch.Tensor):
        digest = hashlib.sha256(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        yield f"{place} = {tuple(value.shape)} {value.dtype} {digest.hexdigest()[:16]}"
    else:
        yield f"{place} = " + str(value).replace("\n", "\\n")


def main() -> int:
    """Record, or compare and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--map", type=Path, help="names that were changed on purpose")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = collect(Path(work))
    file = options.folder / "golden.txt"
    if options.what == "record":
        options.folder.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(found) + "\n")
        print(f"golden: {len(found)} lines recorded in {file}")
        return 0
    expected = file.read_text().splitlines()
    for pattern, replacement in json.loads(options.map.read_text()) if options.map else ():
        expected = [re.sub(pattern, replacement, line) for line in expected]
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    for mark, some in (("-", missing), ("+", unexpected)):
        print("\n".join(f"{mark} {line}" for line in some[:40]))
    equal = not missing and not unexpected and len(expected) == len(found)
    print(f"golden: {'equal' if equal else 'DIFFERENT'}, {len(found)} lines, {len(missing)} missing, "
          f"{len(unexpected)} unexpected")  # fmt: skip
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
