"""``train.py --search`` and ``--study`` as users start them: several processes, killed ones, failed trainings."""

import csv
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

from tests.test_script_train import BASIC, command, environment, make_project, train
from tests.test_script_train_interrupted import start_run, wait_until, workers_of
from tests.tiny_project import REPOSITORY

optuna = pytest.importorskip("optuna", reason="needs the packages of requirements-search.txt")
from engine.search.command import make_plan  # noqa: E402
from engine.search.trials import NotCountedError, Trials  # noqa: E402

pytestmark = pytest.mark.slow
QUICK = (*BASIC, "--workers", "0")


@pytest.fixture
def project(tmp_path):
    make_project(tmp_path)
    (tmp_path / "space.yaml").write_text("lr0: {low: 1e-4, high: 0.1, log: true}\nmosaic: [0, 0.5, 1]\n")
    return tmp_path


def table(folder):
    return json.loads((folder / "trials.json").read_text())


def runs(process: int) -> bool:
    """Whether there is a process, other than one that has ended and that nobody has asked about."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_processes_of_which_one_is_killed_end_with_all_trials(project):
    folder = project / "runs/search/exp"
    arguments = ("--search", "space.yaml", "--trials", "12", *QUICK, "--epochs", "3")
    killed, other = start_run(project, *arguments), start_run(project, *arguments)
    wait_until(killed, lambda: (folder / "trials.json").is_file() and len(table(folder)) >= 4)
    # In the middle: some trials have ended, and the training of the one that is killed is under way.
    wait_until(killed, lambda: workers_of(killed))
    before, at_work = len(table(folder)), workers_of(killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    wait_until(other, lambda: not any(map(runs, at_work)))
    assert at_work and not any(map(runs, at_work)), "its training ends with it"
    errors = other.communicate(timeout=500)[1]
    assert other.returncode == 0, errors[-3000:]
    rows = table(folder)
    with (folder / "trials.csv").open() as stream:
        assert [int(row["trial"]) for row in csv.DictReader(stream)] == [row["trial"] for row in rows]
    assert len(rows) == 12 > before and {row["state"] for row in rows} <= {"complete", "stopped"}
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{folder}/trials.db")
    trials = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{folder}/trials.db").trials
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert len(lost) <= 2 and not [trial for trial in trials if trial.state.name in ("RUNNING", "WAITING")]
    taken_over = [trial for trial in trials if trial.system_attrs.get("retry_history")]
    assert len(taken_over) == 1
    assert taken_over[0].params == trials[taken_over[0].system_attrs["retry_history"][0]].params
    for row in rows:
        config = yaml.safe_load((folder / row["folder"] / "config.yaml").read_text())
        assert {name: config[name] for name in row["options"]} == row["options"]
        assert (folder / row["folder"] / "last.pt").is_file()
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["fitness"])
    recipe = yaml.safe_load((folder / "best.yaml").read_text())
    assert {name: recipe[name] for name in best["options"]} == best["options"]
    assert all((folder / name).is_file() for name in ("history.png", "importance.png", "slice.png"))
    train(project, "--hyp", str(folder / "best.yaml"), *QUICK, "--epochs", "1")
    again = train(project, *arguments)
    assert len(table(folder)) == 12 and "best.yaml" in again.stdout


def test_the_best_recipe_has_the_optimizer_that_its_run_had(project):
    (project / "space.yaml").write_text("mosaic: [0, 1]\n")
    arguments = ("--search", "space.yaml", "--trials", "1", "--hyp", "yolov5.yaml", *QUICK, "--epochs", "1")
    train(project, *arguments)
    recipe = yaml.safe_load((project / "runs/search/exp/best.yaml").read_text())
    chosen = {"optimizer": "AdamW", "lr0": 0.001667, "momentum": 0.9, "accumulate": 1}  # by auto, for two classes
    assert {name: recipe[name] for name in chosen} == chosen


def test_a_trial_whose_process_was_killed_before_its_first_heartbeat_does_not_count(project, monkeypatch):
    monkeypatch.chdir(project)
    folder = project / "runs/search/exp"
    plan = make_plan({"search": "space.yaml", "trials": 1})
    folder.mkdir(parents=True)
    trials = Trials.open(plan, folder, str(folder / "trials.db"))
    asked = trials.study.ask()
    monkeypatch.setattr("engine.search.trials.MISSING_SECONDS", -1)
    assert not trials._is_done(tqdm(disable=True))
    states = [trial.state.name for trial in trials.study.trials]
    assert states == ["FAIL", "WAITING"]
    again = trials.study.ask()
    fixed = [trials.study.trials[number].system_attrs["fixed_params"] for number in (asked.number, again.number)]
    assert fixed[0] == fixed[1] != {}  # the recipe, which was put into the queue
    assert trials._check_needed(again).number == 1
    with pytest.raises(NotCountedError):
        trials._check_needed(trials.study.ask())  # one is wanted, and one is in work


def test_an_interrupted_search_goes_on_with_the_trial_it_was_at(project):
    folder = project / "runs/search/cut"
    arguments = ("--search", "space.yaml", "--trials", "2", "--sampler", "random", "--pruner", "none", *QUICK,
                 "--epochs", "8", "--name", "cut")  # fmt: skip
    process = start_run(project, *arguments)
    wait_until(process, lambda: (folder / "trial0/results.csv").is_file())
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 130 and "the same command goes on with this search" in errors
    done = len((folder / "trial0/results.csv").read_text().splitlines()) - 1
    assert table(folder) == [] and 1 <= done < 8
    train(project, *arguments)
    rows = table(folder)
    assert [row["state"] for row in rows] == ["complete"] * 2 and {row["epochs_done"] for row in rows} == {8}
    assert "trial0" not in {row["folder"] for row in rows}
    config = [yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("trial0", rows[0]["folder"])]
    assert config[0]["lr0"] == config[1]["lr0"]
    lines = [(folder / name / "results.csv").read_text().splitlines() for name in ("trial0", rows[0]["folder"])]
    assert lines[1][: done + 1] == lines[0][: done + 1], "it went on from its checkpoint"
    status = subprocess.run(command(*arguments, "--val-fraction", "0.1"), cwd=project, env=environment(),
                            capture_output=True, text=True)  # fmt: skip
    assert status.returncode == 2 and "with val_fraction = None instead of 0.1; choose another --name" in status.stderr


def test_a_training_that_fails_is_counted_and_the_search_goes_on(project):
    (project / "space.yaml").write_text("lr0: [1e12, 0.01]\nclip_norm: [0]\n")
    done = train(project, "--search", "space.yaml", "--sampler", "grid", *QUICK, "--epochs", "2")
    rows = table(project / "runs/search/exp")
    assert [row["state"] for row in rows] == ["failed", "complete"], done.stdout
    assert "the loss is not finite" in rows[0]["message"] and "trial 0: failed" in done.stderr + done.stdout


def test_a_search_that_cannot_start_any_training_says_why(project):
    (project / "space.yaml").write_text("img_size: [60]\n")
    done = train(project, "--search", "space.yaml", *QUICK, status=2)
    line = re.split("[\r\n]", done.stderr.strip())[-1]
    assert "the training cannot start: image size 60 is not a multiple of 8" in line
    assert table(project / "runs/search/exp") == []


def test_a_study_is_trained_by_two_processes_and_compared_by_seed(project):
    (project / "study.yaml").write_text("optimizer: [SGD, AdamW]\nseeds: [0, 1]\n")
    arguments = ("--study", "study.yaml", *QUICK, "--epochs", "1")
    both = [start_run(project, *arguments) for _ in range(2)]
    for process in both:
        errors = process.communicate(timeout=200)[1]
        assert process.returncode == 0, errors[-3000:]
    folder = project / "runs/study/exp"
    rows = table(folder)
    points = [(row["options"]["optimizer"], row["options"]["seed"]) for row in rows]
    assert sorted(points) == [("AdamW", 0), ("AdamW", 1), ("SGD", 0), ("SGD", 1)]
    modified = {row["folder"]: (folder / row["folder"] / "last.pt").stat().st_mtime_ns for row in rows}
    train(project, *arguments)  # all are skipped
    assert {name: (folder / name / "last.pt").stat().st_mtime_ns for name in modified} == modified
    analyze = [command()[0], str(REPOSITORY / "analyze.py"), "--compare", "runs/study/exp"]
    done = subprocess.run(analyze, cwd=project, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((project / "runs/analyze/compare/results.json").read_text())
    statistics = result.get("statistics", result)
    assert {row["seeds"] for row in statistics["differences"]} == {2}
    by_point = dict(zip(points, rows, strict=True))
    difference = next(row for row in statistics["differences"] if row["number"] == "mAP max")
    scores = {}
    for point, row in by_point.items():
        with (folder / row["folder"] / "results.csv").open() as stream:
            scores[point] = float(next(csv.DictReader(stream))["metrics/mAP_0.5:0.95"])
    by_hand = sum(scores["AdamW", seed] - scores["SGD", seed] for seed in (0, 1)) / 2
    assert abs(difference["difference"]) == pytest.approx(abs(by_hand))
