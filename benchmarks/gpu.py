"""What a GPU does for this toolkit: is it right there, how fast is it, how much memory does it take.

Six parts in one run of some eight minutes; one that fails is told, and the others go on:

- ``tests``: the tests that compare a GPU with the CPU;
- ``steps``: a training step as train.py takes it, in float32 with and without TF32, in float16 and bfloat16, in both
  memory layouts;
- ``inference``: the network alone in float32 and float16, and the whole detector;
- ``trainings``: the demo set trained on the CPU and on the GPU with and without mixed precision, on one process under
  ``torchrun``, and interrupted and resumed;
- ``loader``: images per second of the loader alone, the step alone, and both together, with the pictures painted by the
  loading processes and on the device;
- ``compiled``: the step with a compiled network, and how long compiling takes.

Everything printed is in ``runs/benchmarks/gpu.json``.
Run: ``python -m benchmarks.gpu [--parts steps inference] [--device cuda]``
"""

from __future__ import annotations

import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import peak_mib, random_targets, seconds_alternating
from benchmarks.loader import NUM_IMAGES, make_images
from data.augment import AugmentOptions
from data.labels.read import read_dataset
from data.loader import PAINTERS, Batches, LoaderSettings, training_batches
from data.splits import open_data
from engine.ema import AveragedModel
from engine.optimizer import OptimizerOptions, build_optimizer
from engine.train_loop import TrainState, add_gradients, optimizer_step
from models.assignment.options import AssignmentOptions
from models.detector import Detector
from models.head_biases import initialise_head_biases
from models.learner import MapsLearner
from models.loss import LossOptions, build_loss
from models.network import Network, build_network
from utils.config import find_file, option, parse_options
from utils.devices import choose_device, describe_device, synchronised_time, use_threads
from utils.errors import UserError, run_command
from utils.files import write_json_atomically
from utils.structures import Batch, Targets

OUTPUT = Path("runs/benchmarks/gpu.json")
STEPS = (
    ("yolov3-nano.cfg", 320, 64),
    ("yolov3-tiny.cfg", 416, 64),
    ("yolov5s.cfg", 640, 32),
    ("yolov3-spp.cfg", 608, 16),
)
INFERENCE = (("yolov3-tiny.cfg", 416), ("yolov5s.cfg", 640), ("yolov3-spp.cfg", 608))
COMPILED = ("yolov5s.cfg", 640, 32)
OBJECTS = 7  # per image
EPOCHS, INTERRUPTED_AFTER = 4, 2  # of the trainings that are compared
COUNTED_BATCHES = 48  # of the loader


@dataclass(frozen=True)
class GpuOptions:
    """Which parts, where."""

    parts: tuple[str, ...] = option((), "some of: tests steps inference trainings loader compiled; default: all")
    device: str = option("cuda", "a CUDA device; cpu tries the script itself, with small sizes")
    repeats: int = option(10, "timed rounds; the median counts")

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"--parts {' '.join(sorted(unknown))}: there are {' '.join(PARTS)}")


class Step:
    """A network with all that train.py's step needs, in one precision and layout."""

    def __init__(self, cfg: str, device: torch.device, precision: torch.dtype | None, *,
                 layout: torch.memory_format = torch.channels_last, compiled: bool = False,
                 tf32: bool = True) -> None:  # fmt: skip
        torch.manual_seed(0)
        network = build_network(find_file(cfg, "cfg"))
        initialise_head_biases(network)
        network = network.to(device).to(memory_format=layout).train()
        self.tf32 = tf32
        scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        optimizer = build_optimizer(network, OptimizerOptions(lr0=1e-4), 64)
        self.state: TrainState[Network] = TrainState(network, AveragedModel(network), optimizer, scaler)
        loss = build_loss(LossOptions(), AssignmentOptions(), network.heads)
        forward: nn.Module = torch.compile(network) if compiled else network  # type: ignore[assignment]
        self.learner = MapsLearner(forward, loss)
        self.learner.amp_dtype = precision

    def __call__(self, batch: Batch) -> None:
        """Take one step."""
        torch.backends.cudnn.allow_tf32 = self.tf32
        add_gradients(self.state, self.learner, batch)
        optimizer_step(self.state, 0)


def random_batch(network: Network, count: int, size: int, device: torch.device) -> Batch:
    """Return images of noise with random objects."""
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
    targets = random_targets(count, count * OBJECTS, network.num_classes, device)
    return Batch(images, targets, Targets.empty().to(device), ())


def time_steps(options: GpuOptions) -> list[dict[str, Any]]:
    """Time a training step of each network in each way; a row per network and way."""
    device, rows = choose_device(options.device), []
    is_gpu = device.type == "cuda"
    for cfg, size, count in STEPS if is_gpu else [("yolov3-nano.cfg", 96, 4)]:
        ways: dict[str, Step] = {
            "float32": Step(cfg, device, None),  # torch's default lets convolutions compute in TF32
            "float32, no TF32": Step(cfg, device, None, tf32=False),
            "float16, plain layout": Step(cfg, device, torch.float16, layout=torch.contiguous_format),
            "float16": Step(cfg, device, torch.float16),
            "bfloat16": Step(cfg, device, torch.bfloat16),
        }
        if not is_gpu:
            ways = {name: ways[name] for name in ("float32", "bfloat16")}
        batch = random_batch(ways["float32"].state.model, count, size, device)
        rows += _timed(cfg, size, count, ways, batch, device, options.repeats)
    return rows


def time_compiled(options: GpuOptions) -> list[dict[str, Any]]:
    """Time the step of a compiled network, and how long compiling takes."""
    device = choose_device(options.device)
    cfg, size, count = COMPILED if device.type == "cuda" else ("yolov3-nano.cfg", 96, 4)
    step = Step(cfg, device, torch.float16 if device.type == "cuda" else None, compiled=True)
    batch = random_batch(step.state.model, count, size, device)
    start = synchronised_time(device)
    step(batch)
    seconds = synchronised_time(device) - start
    print(f"{cfg}: the first step of the compiled network took {seconds:.0f} s")
    (row,) = _timed(cfg, size, count, {"compiled": step}, batch, device, options.repeats)
    return [row | {"first_step_s": seconds}]


def _timed(cfg: str, size: int, count: int, ways: dict[str, Step], batch: Batch, device: torch.device,
           rounds: int) -> list[dict[str, Any]]:  # fmt: skip
    """Time several ways in turns; print and return a row for each."""
    calls = {name: partial(way, batch) for name, way in ways.items()}
    seconds = seconds_alternating(calls, device, rounds)
    rows = []
    for name, call in calls.items():
        median = statistics.median(seconds[name])
        row = {"cfg": cfg, "size": size, "batch": count, "way": name, "ms": median * 1e3,
               "images_per_s": count / median, "peak_mib": peak_mib(call, device)}  # fmt: skip
        rows.append(row)
        print(f"{cfg:16}{size:4} x{count:3}  {name:22}{row['ms']:8.1f} ms {row['images_per_s']:8.0f} images/s"
              f"{row['peak_mib']:8.0f} MiB", flush=True)  # fmt: skip
    return rows


@torch.inference_mode()
def time_inference(options: GpuOptions) -> list[dict[str, Any]]:
    """Time the detector in float32 and float16; a row per network, batch size and precision."""
    device, rows = choose_device(options.device), []
    is_gpu = device.type == "cuda"
    for cfg, size in INFERENCE if is_gpu else [("yolov3-nano.cfg", 96)]:
        torch.manual_seed(0)
        network = build_network(find_file(cfg, "cfg")).to(device).eval()
        detectors = {"float32": Detector(network), "float16": Detector(network, half=True)}
        for count in (1, 32):
            images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
            calls = {name: partial(detector.raw_outputs, images) for name, detector in detectors.items()}
            seconds = seconds_alternating(calls, device, options.repeats)
            for precision in detectors:
                median = statistics.median(seconds[precision]) / count
                row = {"cfg": cfg, "size": size, "batch": count, "precision": precision, "ms_per_image": median * 1e3}
                rows.append(row)
                print(f"{cfg:16}{size:4} x{count:3}  {precision:8}"
                      f"{row['ms_per_image']:8.2f} ms per image", flush=True)  # fmt: skip
    return rows


def run_tests(options: GpuOptions) -> dict[str, Any]:
    """Run the tests of all devices; return pytest's last line."""
    files = [*sorted(map(str, Path("tests").glob("test_on_each_device*.py"))), *_tests_with_a_device()]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda or on_each_device", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = found.stdout.strip().splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))))
    print(lines[-1] if lines else found.stderr)
    return {"files": files, "status": found.returncode, "last_line": lines[-1] if lines else ""}


def _tests_with_a_device() -> list[str]:
    """Return the test files that use the fixture ``device``."""
    return sorted(str(path) for path in Path("tests").glob("test_*.py")
                  if "(device" in path.read_text() or ", device" in path.read_text())  # fmt: skip


def compare_trainings(options: GpuOptions) -> list[dict[str, Any]]:
    """Train the demo set in several ways with one seed; a row per way: the loss of each epoch, AP50, seconds."""
    plain = ["--device", options.device, "--no-amp"]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "1"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:

        def train(name: str, flags: list[str], *launcher: str, interrupt: bool = False) -> None:
            run = Path(folder) / f"run{len(rows)}"
            common = ["--img-size", "160", "--batch-size", "16", "--workers", "4", "--epochs", str(EPOCHS)]
            command = ["train.py", *common, *flags, "--project", folder, "--name", run.name]
            start = time.perf_counter()
            if interrupt:
                _interrupt([sys.executable, *command], run / "results.csv")
                command = ["train.py", "--resume", str(run)]
            _run([sys.executable, *launcher, *command])
            rows.append({"way": name, "seconds": time.perf_counter() - start, **curves(run)})
            losses = " ".join(f"{loss:8.4f}" for loss in rows[-1]["losses"])
            print(f"{name:32}{losses}  AP50 {rows[-1]['ap50']:.3f}  {rows[-1]['seconds']:5.1f} s", flush=True)

        train("CPU, float32", ["--device", "cpu"])
        train("float32", plain)
        train("float32, again", plain)
        train("float32, interrupted, resumed", plain, interrupt=True)
        train("mixed precision", ["--device", options.device])
        train("mixed, torchrun, one process", ["--device", options.device], *torchrun)
    return rows


def _interrupt(command: list[str], log: Path) -> None:
    """Start a training, and press Ctrl-C when its log has a line for each of the first epochs."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > INTERRUPTED_AFTER):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)


def _run(command: list[str]) -> None:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"{' '.join(command)}: {(found.stderr or found.stdout).strip()[-500:]}")


def curves(run: Path) -> dict[str, Any]:
    """Return the summed losses of each epoch, and the last AP50."""
    with (run / "results.csv").open() as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    losses = [sum(float(value) for key, value in row.items() if key.startswith("train/")) for row in rows]
    return {"losses": losses, "ap50": float(rows[-1]["metrics/mAP_0.5"])}


def time_loading(options: GpuOptions) -> dict[str, Any]:
    """Time loader, step and both together for yolov5s at 640 with mosaic; a row per painter and number of workers.

    The step alone is timed with one batch of noise and with one batch of the loader, over and over: what the second is
    slower is due to the number of objects, the rest of what both together are slower to the loader beside it.
    """
    device = choose_device(options.device)
    is_gpu = device.type == "cuda"
    cfg, size, count = ("yolov5s.cfg", 640, 32) if is_gpu else ("yolov3-nano.cfg", 96, 16)
    numbers_of_workers = (4, max(4, os.cpu_count() or 1)) if is_gpu else (2,)
    step = Step(cfg, device, torch.float16 if is_gpu else None)
    acts: dict[str, Callable[[Batch], object]] = {
        "loader": lambda one: None,
        "on_device": lambda one: one.to(device),
        "both": lambda one: step(one.to(device)),
    }
    alone: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        needed = (_uncounted(max(numbers_of_workers)) + COUNTED_BATCHES) * count
        make_images(Path(folder), copies=-(-needed // NUM_IMAGES))
        annotations = read_dataset(open_data(str(Path(folder) / "images")), "train")
        for painter, workers in product(PAINTERS, numbers_of_workers):
            settings = LoaderSettings((size, size), count, workers=workers, pin_memory=is_gpu,
                                      paint_later=painter == "device")  # fmt: skip
            batches = training_batches(annotations, settings, AugmentOptions())
            if not alone:
                pictures = next(iter(batches)).to(device)
                noise = random_batch(step.state.model, count, size, device)
                alone = _step_rates(step, {"noise": noise, "pictures": pictures}, options.repeats)
                print(f"{cfg} at {size}, batch {count}: step alone {alone['noise']:.0f} images/s with noise, "
                      f"{alone['pictures']:.0f} with a batch of the loader", flush=True)  # fmt: skip
            row = {name: _steady_rate(batches, act, device) for name, act in acts.items()}
            batches.close()
            rows.append({"painter": painter, "workers": workers, **row})
            print(f"painted by {painter}, {workers} workers: loader alone {row['loader']:.0f}, on the device "
                  f"{row['on_device']:.0f}, with the step {row['both']:.0f} images/s", flush=True)  # fmt: skip
    return {"step": alone, "rows": rows}


def _step_rates(step: Step, batches: dict[str, Batch], repeats: int) -> dict[str, float]:
    """Return images per second of the step with each batch."""
    device = next(iter(batches.values())).images.device
    seconds = seconds_alternating({name: partial(step, one) for name, one in batches.items()}, device, repeats)
    return {name: len(batches[name].images) / statistics.median(each) for name, each in seconds.items()}


def _uncounted(workers: int) -> int:
    """Return how many batches are asked for when an epoch begins: the workers start on them all at once."""
    return 2 * workers


def _steady_rate(batches: Batches, act: Callable[[Batch], object], device: torch.device) -> float:
    """Return the images per second in the middle of an epoch."""
    uncounted = _uncounted(batches.settings.workers)
    count, start = 0, 0.0
    for number, batch in enumerate(islice(batches, uncounted + COUNTED_BATCHES), 1):
        act(batch)
        if number == uncounted:
            start = synchronised_time(device)
        elif number > uncounted:
            count += len(batch.images)
    return count / (synchronised_time(device) - start)


PARTS: dict[str, Callable[[GpuOptions], Any]] = {
    "tests": run_tests,
    "steps": time_steps,
    "inference": time_inference,
    "trainings": compare_trainings,
    "loader": time_loading,
    "compiled": time_compiled,
}


def main() -> None:
    """Run the parts, and write what they found after each."""
    (options,) = parse_options(__doc__.splitlines()[0], GpuOptions)
    device = choose_device(options.device)
    use_threads()
    found: dict[str, Any] = {"device": describe_device(device)}
    print(found["device"])
    failed = []
    for name in options.parts or PARTS:
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        try:
            found[name] = PARTS[name](options)
        except (RuntimeError, OSError, UserError) as error:
            failed.append(name)
            found[name] = {"error": str(error)}
            print(f"{name} failed: {error}")
        found[f"{name}_s"] = time.perf_counter() - start
        write_json_atomically(OUTPUT, found)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; see above")


if __name__ == "__main__":
    run_command(main)
