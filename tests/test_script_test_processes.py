"""test.py under torchrun: two real processes write the same metrics.json, byte for byte, as one."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.tiny_project import REPOSITORY, make_project

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def evaluate(folder, *arguments, processes=1):
    """Run test.py in a project; return the finished process and the folder of its results."""
    launcher = TORCHRUN if processes == 2 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    name = f"by{processes}"
    given = [*map(str, arguments), "--workers", "0", "--save-json", "--exist-ok", "--project", name]
    done = subprocess.run(
        [sys.executable, *launcher, str(REPOSITORY / "test.py"), *given],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=240,
    )  # fmt: skip
    return done, folder / name / "exp"


def without_project(path):
    """Return the bytes of metrics.json without the folder's name, the only option that differs here."""
    return path.read_bytes().replace(b'"by2"', b'"by1"')


def cut_off(path):
    """Leave a picture's header, and take its end."""
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_images, bad, arguments",
    [
        (7, 0, ("--batch-size", 2)),  # rectangular batches of two, an odd number of images and of processes' batches
        (7, 0, ("--batch-size", 3, "--no-rect", "--augment", "--max-det", 5)),
        (2, 0, ("--batch-size", 2)),  # one batch: a process without any
        (7, 2, ("--batch-size", 2, "--max-bad", 0.5)),
    ],
)
def test_two_processes_write_the_bytes_of_one(tmp_path, num_images, bad, arguments):
    make_project(tmp_path, num_images)
    pictures = sorted(tmp_path.glob("images/*.png"))
    for path in pictures:  # noise, so that a file is long enough to lose its end
        image = cv2.imread(str(path))
        noise = np.random.default_rng(0).integers(0, 9, image.shape, dtype=np.uint8)
        cv2.imwrite(str(path), cv2.add(image, noise))
    for path in pictures[:bad]:
        cut_off(path)
    (one, folder), (two, other) = (evaluate(tmp_path, *arguments, processes=count) for count in (1, 2))
    assert one.returncode == 0, one.stderr[-3000:]
    assert two.returncode == 0, two.stderr[-3000:]
    assert without_project(other / "metrics.json") == without_project(folder / "metrics.json")
    for name in ("detections.json", "ground_truth.json"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_images"] == num_images - bad and metrics["images_left_out"] == bad and metrics["ap"] > 0.05
    assert metrics["max_det_dropped"]["images"] > 0 or "--max-det" not in arguments
    assert json.loads((other / "speed.json").read_text())["total_ms"] > 0


@pytest.mark.slow
def test_processes_count_unreadable_images_together(tmp_path):
    make_project(tmp_path)
    pictures = sorted(tmp_path.glob("images/*.png"))
    for path in (pictures[0], pictures[1]):  # by themselves one in each process, which --max-bad allows
        path.write_bytes(path.read_bytes()[:60])
    arguments = ("--batch-size", 1, "--no-rect", "--max-bad", 0.01)
    for processes in (1, 2):
        done, _ = evaluate(tmp_path, *arguments, processes=processes)
        assert done.returncode != 0 and "2 of 7 images cannot be used, --max-bad 0.01 allows no more" in done.stderr
        assert not (tmp_path / f"by{processes}/exp/metrics.json").exists()
