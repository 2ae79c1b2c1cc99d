"""train.py as a user types it: what it writes, what it says of mistakes, and that a killed run resumes bit for bit."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as train_script
from utils.errors import run_command

ROOT = Path(__file__).resolve().parent.parent

TINY_CFG = """
[net]
width=64
height=64
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=leaky
[dropout]
probability=.2
[convolutional]
filters=21
size=1
activation=linear
[yolo]
mask=0,1,2
anchors=8,8, 16,16, 32,32
classes=2
num=3
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments]


def train(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    """Run train.py in this process, which saves its start, with one thread as :func:`train_as_typed`."""
    output, errors, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", *arguments])
        torch.set_num_threads(1)
        try:
            run_command(train_script.main)
        except SystemExit as stop:
            code = stop.code
        finally:
            torch.set_num_threads(threads)
    assert code == status, errors.getvalue()[-3000:]
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def train_as_typed(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    """Run train.py in a process of its own."""
    done = subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, timeout=300, env=environment()
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def project(tmp_path) -> Path:
    return make_project(tmp_path)


def make_project(folder: Path) -> Path:
    """A folder with a cfg, a data file and ten small images of bright and dark squares, as a user may have it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        images, labels = folder / "d" / "images" / split, folder / "d" / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            picture = rng.integers(90, 160, (64, 80, 3), dtype=np.uint8)
            rows = []
            for label, value in ((0, 255), (1, 0)):
                x, y, side = rng.integers(0, 50), rng.integers(0, 34), rng.integers(10, 30)
                picture[y : y + side, x : x + side] = value
                rows.append(f"{label} {(x + side / 2) / 80} {(y + side / 2) / 64} {side / 80} {side / 64}\n")
            cv2.imwrite(str(images / f"{index}.png"), picture)
            (labels / f"{index}.txt").write_text("".join(rows))
    (folder / "tiny.cfg").write_text(TINY_CFG)
    (folder / "d.names").write_text("bright\ndark\n")
    (folder / "d.data").write_text("classes = 2\ntrain = d/images/train\nvalid = d/images/val\nnames = d.names\n")
    return folder


BASIC = ("--cfg", "tiny.cfg", "--data", "d.data", "--batch-size", "4", "--device", "cpu")


def test_a_run_writes_what_it_promises(project):
    done = train_as_typed(project, *BASIC, "--epochs", "2", "--workers", "0", "--name", "first", "--seed", "3")
    run = project / "runs/train/first"
    expected = {
        "best.pt",
        "last.pt",
        "results.csv",
        "results.png",
        "config.yaml",
        "labels.png",
        "train_batch0.jpg",
        "val_batch0.jpg",
    }
    assert expected <= {path.name for path in run.iterdir()}
    assert any(path.name.startswith("events.") for path in run.iterdir())
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    rows = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["train/box"]) > 0 and 0 <= float(rows[1]["metrics/mAP_0.5"]) <= 1
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 3
    assert "mAP@0.5" in done.stdout and "best.pt" in done.stdout
    assert list(rows[0])[:11] == [
        "epoch", "train/box", "train/obj", "train/cls", "metrics/precision", "metrics/recall", "metrics/mAP_0.5",
        "metrics/mAP_0.5:0.95", "val/box", "val/obj", "val/cls",
    ]  # fmt: skip
    assert "best possible recall 1.0000" in done.stdout
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("val/box")] == [1, 2]
    assert {"labels", "train_batch0", "val_batch0", "results"} <= set(events.Tags()["images"])
    # best.pt is for detection: it holds the average and no optimizer state
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["names"] == ["bright", "dark"] and "ema" in best and "optimizer" not in best


def test_without_an_object_to_find_the_training_loss_decides(project):
    for path in project.glob("d/labels/val/*.txt"):
        path.write_text("")
    done = train(project, *BASIC, "--epochs", "3", "--workers", "0")
    assert "d.data (valid): not a single object to find; best.pt goes by the training loss" in done.stdout
    run = project / "runs/train/exp"
    rows = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
    losses = [sum(float(row[f"train/{part}"]) for part in ("box", "obj", "cls")) for row in rows]
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["epoch"] == losses.index(min(losses)) + 1
    assert not any(name.startswith("metrics/") and row[name] for row in rows for name in row)
    assert "  test: P" not in done.stdout
    assert "-1" not in done.stdout.split("over the tested epochs")[1].split("Written to")[0]


def test_the_written_configuration_repeats_the_run(project):
    train(project, *BASIC, "--epochs", "1", "--workers", "0", "--name", "a", "--multi-scale", "--lr0", "0.003")
    train(project, "--hyp", "runs/train/a/config.yaml", "--cfg", "tiny.cfg", "--name", "b")
    first, second = (torch.load(project / f"runs/train/{name}/last.pt", weights_only=True) for name in "ab")
    assert second["options"]["lr0"] == 0.003
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in first["model"])


def test_testing_less_often_trains_the_same(project):
    for name, flags in (("often", ()), ("once", ("--notest",))):
        train(project, *BASIC, "--epochs", "2", "--workers", "0", "--name", name, *flags)
    often, once = (torch.load(project / f"runs/train/{name}/last.pt", weights_only=True) for name in ("often", "once"))
    assert all(torch.equal(often["model"][key], once["model"][key]) for key in often["model"])  # there is dropout


def epochs_done(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"] if path.exists() else -1


@pytest.mark.parametrize("how, optimizer", [(signal.SIGKILL, "--adam"), (signal.SIGINT, "--no-adam")])
def test_an_interrupted_run_resumes_bit_for_bit(project, how, optimizer):
    shared = (*BASIC, "--epochs", "6", "--workers", "2", "--multi-scale", "--mixup", "0.5", optimizer)
    train(project, *shared, "--name", "whole")
    process = subprocess.Popen(
        command(*shared, "--name", "cut"),
        cwd=project,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    last = project / "runs/train/cut/last.pt"
    deadline = time.time() + 200
    while epochs_done(last) < 3 and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "--resume" in errors.splitlines()[-1]
        assert "Traceback" not in errors
    assert 3 <= epochs_done(last) < 6
    train(project, "--resume", str(last), "--workers", "0")
    whole, cut = (torch.load(project / f"runs/train/{name}/last.pt", weights_only=True) for name in ("whole", "cut"))
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][key], cut[part][key]) for key in whole[part])
    assert whole["history"] == cut["history"]
    assert (project / "runs/train/whole/results.csv").read_text() == (
        project / "runs/train/cut/results.csv"
    ).read_text()


@pytest.mark.parametrize(
    ("filters", "head"),
    [
        (21, "[region]\nanchors=1,1, 2,2, 4,4\nsoftmax=1\nbias_match=1\nrescore=1\nobject_scale=5"),
        (33, "[Gaussian_yolo]\nmask=0,1,2\nanchors=8,8, 16,16, 32,32\niou_loss=giou"),
    ],
    ids=["region", "gaussian"],
)
def test_heads_with_a_loss_of_darknets_train_by_its_recipe_and_resume_bit_for_bit(project, filters, head):
    start = TINY_CFG[: TINY_CFG.index("[yolo]")].replace("filters=21", f"filters={filters}")
    (project / "tiny.cfg").write_text(f"{start}{head}\nnum=3\nclasses=2\n")
    shared = (*BASIC, "--workers", "0", "--name")
    done = train(project, *shared, "whole", "--epochs", "3")
    assert "darknet.yaml, --match darknet --loss darknet -> " in done.stdout
    # The state after two of three epochs, as an interruption leaves it.
    state = "import torch, train; real = train.evaluate; count = []\n" + (
        "def stop(*a, **b):\n    count.append(1)\n    if len(count) == 3: raise KeyboardInterrupt\n"
        "    return real(*a, **b)\n"
        "train.evaluate = stop; train.run_command(train.main)"
    )
    arguments = [sys.executable, "-c", state, *shared, "cut", "--epochs", "3"]
    subprocess.run(arguments, cwd=project, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert epochs_done(project / "runs/train/cut/last.pt") == 2
    train(project, "--resume", "runs/train/cut/last.pt", "--workers", "0")
    whole, cut = (torch.load(project / f"runs/train/{name}/last.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole["model"][key], cut["model"][key]) for key in whole["model"])
    assert whole["history"] == cut["history"]


def test_another_strategy_than_darknets_needs_the_usual_loss(project):
    start = TINY_CFG[: TINY_CFG.index("[yolo]")]
    (project / "tiny.cfg").write_text(f"{start}[region]\nanchors=1,1, 2,2, 4,4\nsoftmax=1\nnum=3\nclasses=2\n")
    done = train(project, *BASIC, "--match", "atss", status=2)
    assert done.stderr.splitlines()[-1].endswith(
        "--loss darknet includes Darknet's matching: for --match atss add --loss alpha"
    )
    train(project, *BASIC, "--match", "atss", "--loss", "alpha", "--epochs", "1", "--workers", "0", "--notest")


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(project):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train(project, *BASIC, "--epochs", "1", "--workers", "0", "--notest", "--name", name, "--seed", seed)
    a, b, c = (torch.load(project / f"runs/train/{name}/last.pt", weights_only=True)["model"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def break_label(project):
    path = project / "d/labels/train/0.txt"
    path.write_text("7 0.5 0.5 0.1 0.1\n")


def break_image(project):
    (project / "d/images/train/0.png").write_bytes(b"not an image")


def cut_image(project):
    path = project / "d/images/train/0.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_labels(project):
    for path in (project / "d/labels/train").iterdir():
        path.unlink()


def file_instead_of_runs(project):
    (project / "runs").touch()


MISTAKES = [
    (None, ("--cfg", "yolov9.cfg"), ["yolov9.cfg"]),
    (None, ("--data", "coco2071.data"), ["coco2071.data", "coco2017.data"]),
    (None, ("--data", "coco2017.data"), ["not on the disk", "download"]),
    (None, ("--weights", "none.pt"), ["none.pt"]),
    (None, ("--img-size", "100"), ["100", "8"]),
    (None, ("--epoch", "3"), ["--epochs"]),
    (None, ("--hyp", "none.yaml"), ["none.yaml"]),
    (None, ("--device", "7"), ["7"]),
    (None, ("--resume", "none.pt"), ["none.pt"]),
    (None, ("--freeze", "4"), ["--freeze 4", "nothing to learn"]),
    (None, ("--balance", "4", "1"), ["--balance", "1 heads"]),
    (None, ("--seed", str(2**64)), ["--seed"]),
    (break_label, (), ["0.txt:1", "7"]),
    (break_image, ("--max-bad", "0"), ["0.png"]),
    (empty_labels, (), ["label"]),
    (file_instead_of_runs, (), ["runs"]),
]


@pytest.mark.parametrize(
    "spoil, arguments, words", MISTAKES, ids=[f"{(s.__name__ if s else ' '.join(a))}" for s, a, _ in MISTAKES]
)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_mistake_gives_one_line_and_status_2(project, spoil, arguments, words, workers):
    if workers == "2" and spoil not in (break_image, cut_image):
        pytest.skip("only reading images happens in worker processes")
    if spoil:
        spoil(project)
    given = arguments if "--resume" in arguments else (*BASIC, "--epochs", "1", "--workers", workers, *arguments)
    done = train(project, *given, status=2)
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("error: ") and all(word in last_line for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_weights_of_another_cfg_name_the_layer(project):
    train(project, *BASIC, "--epochs", "1", "--workers", "0", "--notest", "--name", "a")
    (project / "wide.cfg").write_text(TINY_CFG.replace("filters=8", "filters=16"))
    given = (*BASIC, "--cfg", "wide.cfg", "--weights", "runs/train/a/last.pt")
    done = train(project, *given, status=2)
    assert "last.pt" in done.stderr and "layer" in done.stderr and "Traceback" not in done.stderr


def test_transfer_to_other_classes_keeps_the_backbone_and_frozen_layers(project):
    train(project, *BASIC, "--epochs", "1", "--workers", "0", "--notest", "--name", "a")
    (project / "three.names").write_text("bright\ndark\nother\n")
    (project / "three.data").write_text(
        "classes = 3\ntrain = d/images/train\nvalid = d/images/val\nnames = three.names\n"
    )
    # Without --cfg the weights say which network it is.
    given = (*BASIC[2:], "--data", "three.data", "--weights", "runs/train/a/best.pt", "--freeze", "1")
    train(project, *given, "--epochs", "1", "--workers", "0", "--notest", "--name", "b")
    first = torch.load(project / "runs/train/a/best.pt", weights_only=True)["ema"]
    second = torch.load(project / "runs/train/b/last.pt", weights_only=True)["model"]
    frozen = [key for key in first if key.startswith("layers.0.")]
    assert frozen and all(torch.equal(first[key], second[key]) for key in frozen if first[key].is_floating_point())
    assert second["layers.3.conv.weight"].shape[0] == 24  # 3 anchors * (5 + 3 classes)


@pytest.mark.slow
def test_two_processes_share_the_batches_and_resume_bit_for_bit(project):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def start(*arguments):
        return subprocess.Popen(
            [*launcher, str(ROOT / "train.py"), *arguments], cwd=project, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    given = (*BASIC, "--epochs", "5", "--workers", "0", "--image-weights", "--close-mosaic", "2")
    process = start(*given, "--name", "whole")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert [path.name for path in (project / "runs/train").iterdir()] == ["whole"]  # one folder, written by one process
    rows = list(csv.DictReader((project / "runs/train/whole/results.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"] and 0 <= float(rows[-1]["metrics/mAP_0.5"]) <= 1
    assert printed.count("over the tested epochs") == 1
    assert all(float(rows[-1][f"val/{part}"]) > 0 for part in ("box", "obj", "cls"))

    process, last = start(*given, "--name", "cut"), project / "runs/train/cut/last.pt"
    deadline = time.time() + 200
    while epochs_done(last) < 2 and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.terminate()  # torchrun ends its processes
    process.communicate(timeout=60)
    assert 2 <= epochs_done(last) < 5
    process = start("--resume", str(last))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    whole, cut = (torch.load(project / f"runs/train/{name}/last.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole[part][key], cut[part][key]) for part in ("model", "ema") for key in whole[part])
    assert whole["history"] == cut["history"]


@pytest.mark.parametrize("spoil", [break_image, cut_image])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_image_that_cannot_be_used_is_named_and_left_out(project, spoil, workers):
    """Not an image: found before the start. Cut in two: found when it is read, and another takes its place."""
    spoil(project)
    done = train(project, "--data", "d.data", "--cfg", "tiny.cfg", "--epochs", "1", "--workers", workers)
    said = done.stdout + done.stderr
    assert "0.png" in said and "left out" in said and "1 of 8 images" in said
    assert (project / "runs/train/exp/last.pt").is_file()
