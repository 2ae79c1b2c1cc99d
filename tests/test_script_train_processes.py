"""train.py under torchrun: what a process that dies means to the others, to a restart and to the weights at the end."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.test_script_train import BASIC, ROOT, environment, epochs_done, make_project
from tests.test_script_train_interrupted import place_of, same_run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")]
GIVEN = (*BASIC, "--batch-size", "4", "--accumulate", "2", "--epochs", "6", "--workers", "0")
EACH_STEP = ("--save-minutes", "0.000001")


@pytest.fixture
def project(tmp_path) -> Path:
    return make_project(tmp_path)


def start(project: Path, *arguments: str, restarts: int = 0,
          processes: tuple[str, ...] = ("--standalone", "--nproc_per_node=2")) -> subprocess.Popen:  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", *processes]
    return subprocess.Popen(
        [*launcher, f"--max-restarts={restarts}", str(ROOT / "train.py"), *arguments], cwd=project, text=True,
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ranks(launcher: subprocess.Popen) -> list[int]:
    """The process ids of the training processes, by rank."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    by_rank = {}
    for pid in found:
        try:
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except OSError:  # it has just ended
            continue
        by_rank |= {int(line[5:]): int(pid) for line in variables if line.startswith("RANK=")}
    return [by_rank[rank] for rank in sorted(by_rank)]


def finish(launcher: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    printed, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == status, errors[-3000:]
    return printed, errors


def kill_within(launcher: subprocess.Popen, run: Path, epoch: int, rank: int) -> None:
    """Kill one of the processes when the run has so many epochs."""
    wait_until(launcher, lambda: epochs_done(run / "last.pt") >= epoch)
    os.kill(ranks(launcher)[rank], signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_other_with_one_line_and_the_run_can_go_on(project, rank):
    finish(start(project, *GIVEN, "--name", "whole"))
    run = project / "runs/train/cut"
    launcher = start(project, *GIVEN, "--epochs", "6", "--name", "cut")
    kill_within(launcher, run, 2, rank)
    killed = time.time()
    _, errors = finish(launcher, status=1)
    assert time.time() - killed < 60
    ours = [line for line in re.split("[\r\n]", errors) if line.startswith(("error: ", "interrupted"))]
    assert len(ours) <= 1 and all(re.search("another process of this run has ended|interrupted", line) for line in ours)
    assert "fault of this program" not in errors
    finish(start(project, "--resume", str(run)))
    assert same_run(project / "runs/train/whole", run)


def test_torchruns_restarts_go_on_from_the_last_checkpoint(project):
    """Three times one of two processes is killed at a random moment; torchrun starts both again, without --resume."""
    finish(start(project, *GIVEN, *EACH_STEP, "--name", "whole"))
    chance, run, places = random.Random(0), project / "runs/train/cut", []
    launcher = start(project, *GIVEN, *EACH_STEP, "--name", "cut", restarts=6)
    for number in range(3):
        wait_until(launcher, lambda done=number: epochs_done(run / "last.pt") >= done and len(ranks(launcher)) == 2)
        time.sleep(chance.uniform(0, 0.5))
        if launcher.poll() is not None:
            break
        places.append(place_of(run / "last.pt"))
        before = ranks(launcher)
        os.kill(before[chance.randrange(2)], signal.SIGKILL)
        wait_until(launcher, lambda gone=set(before): not gone & set(ranks(launcher)))
    printed, _ = finish(launcher)
    assert len(places) == 3 and printed.count("torchrun has started the processes again: goes on with") >= 1, places
    assert [path.name for path in sorted((project / "runs/train").iterdir())] == ["cut", "whole"]
    assert same_run(project / "runs/train/whole", run)


def test_a_process_that_dies_on_one_machine_restarts_those_of_both(project):
    """Two torchruns stand for two machines; only that of the process that dies may count a restart."""
    finish(start(project, *GIVEN, *EACH_STEP, "--name", "whole"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    processes = ("--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", "--rdzv-id=run7", endpoint)
    began, run = time.time(), project / "runs/train/cut"
    machines = [start(project, *GIVEN, *EACH_STEP, "--name", "cut", restarts=3, processes=processes) for _ in range(2)]
    for epoch, machine in ((1, 0), (3, 1)):
        wait_until(machines[machine], lambda epoch=epoch: epochs_done(run / "last.pt") >= epoch)
        before = ranks(machines[machine])
        os.kill(before[0], signal.SIGKILL)
        wait_until(machines[machine], lambda gone=before, at=machine: not set(gone) & set(ranks(machines[at])))
    printed = "".join(finish(machine)[0] for machine in machines)
    assert time.time() - began < 170  # no process has waited until it gave up
    assert "torchrun has started the processes again: goes on with" in printed
    assert [path.name for path in sorted((project / "runs/train").iterdir())] == ["cut", "whole"]
    assert same_run(project / "runs/train/whole", run)


def test_a_machine_that_goes_down_and_a_resume_end_as_if_undisturbed(project):
    """SIGKILL to torchrun and all its processes at random moments, then --resume."""
    started = time.time()
    finish(start(project, *GIVEN, *EACH_STEP, "--name", "whole"))
    seconds, chance, run = time.time() - started, random.Random(1), project / "runs/train/cut"
    kills = 0
    while True:
        last = run / "last.pt"
        if not last.exists():
            shutil.rmtree(run, ignore_errors=True)
        launcher = start(project, *(("--resume", str(run)) if last.exists() else (*GIVEN, *EACH_STEP, "--name", "cut")))
        try:
            _, errors = launcher.communicate(timeout=chance.uniform(0.3, 1) * seconds if kills < 5 else 300)
        except subprocess.TimeoutExpired:
            for process in (launcher.pid, *ranks(launcher)):
                os.kill(process, signal.SIGKILL)
            launcher.communicate()
            kills += 1
            continue
        assert launcher.returncode == 0 or "has finished its" in errors, errors
        break
    assert kills and same_run(project / "runs/train/whole", run)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_at_the_same_step(project, how):
    finish(start(project, *GIVEN, "--name", "whole"))
    run = project / "runs/train/cut"
    launcher = start(project, *GIVEN, "--name", "cut")
    wait_until(launcher, lambda: epochs_done(run / "last.pt") >= 1)
    launcher.send_signal(how)  # which torchrun passes on
    _, errors = launcher.communicate(timeout=60)
    assert "interrupted; kept up to" in errors and "fault of this program" not in errors
    content = torch.load(run / "last.pt", weights_only=True)
    assert len(content["progress"]) in (0, 2) and content["epoch"] < 6
    finish(start(project, "--resume", str(run)))
    assert same_run(project / "runs/train/whole", run)


def losses_of(project: Path, processes: int, *arguments: str) -> list[dict[str, float]]:
    """Train in so many processes; return the loss parts of each batch, summed over the processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, str(ROOT / "tests/share_losses.py"), *arguments], cwd=project, text=True, capture_output=True,
        env={**environment(), "PYTHONPATH": str(ROOT)}, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((project / f"losses{rank}.json").read_text()) for rank in range(processes)]
    return [{name: sum(part[name] for part in parts) for name in parts[0]} for parts in zip(*found, strict=True)]


def test_two_processes_have_the_losses_of_one(project):
    """Whose batch norms and loss take all images: 24 batches and as many steps."""
    cfg = (project / "tiny.cfg").read_text().replace("[dropout]\nprobability=.2\n", "")  # masks differ by process
    (project / "tiny.cfg").write_text(cfg)
    shared = (*BASIC, "--epochs", "12", "--accumulate", "1", "--workers", "0", "--no-amp", "--notest", "--sync-bn")
    one, two = (losses_of(project, processes, *shared, "--multi-scale") for processes in (1, 2))
    assert len(one) == len(two) == 24
    for number, (alone, together) in enumerate(zip(one, two, strict=True)):
        assert together == pytest.approx(alone, rel=1e-5), number
    apart = losses_of(project, 2, *shared[:-1], "--multi-scale")
    assert apart[0] != pytest.approx(one[0], rel=1e-5)  # each process normalises by its own images


def test_two_processes_learn_the_demo_set_as_one_does(tmp_path):
    """The same mAP within one point; rounding alone makes the losses of this larger network part after a few steps."""
    shared = ("--no-amp", "--sync-bn", "--workers", "0", "--device", "cpu")
    for number in (1, 2):
        losses_of(tmp_path, number, *shared, "--name", f"by{number}")
    lasts = [tmp_path / f"runs/train/by{number}/last.pt" for number in (1, 2)]
    one, two = (torch.load(last, weights_only=True)["history"][-1] for last in lasts)
    assert abs(one["metrics/mAP_0.5:0.95"] - two["metrics/mAP_0.5:0.95"]) <= 0.01
