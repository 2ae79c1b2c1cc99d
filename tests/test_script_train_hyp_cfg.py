"""``train.py --hyp cfg`` as a user types it: the recipe of the run, what is said of it, and how it resumes."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

import train
from models.checkpoints.format import read_checkpoint
from tests.test_script_train import TINY_CFG, make_project

KEYS = """
batch=4
subdivisions=2
momentum=0.8
decay=0.001
angle=0
saturation = 1.5
exposure = 1.5
hue=.1
learning_rate=0.02
burn_in=3
max_batches = 11
policy=steps
steps=5,9
scales=.1,.5
mosaic=1
cutmix=1
"""
GIVEN = ("--data", "d.data", "--device", "cpu", "--workers", "0", "--notest")


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_cfg(tmp_path, KEYS)
    return tmp_path


def write_cfg(folder, keys, head=""):
    text = TINY_CFG.replace("channels=3\n", f"channels=3\n{keys}")
    (folder / "dark.cfg").write_text(text.replace("num=3\n", f"num=3\njitter=.3\nrandom=1\nresize=1.5\n{head}"))


def run(run_main, *arguments, status=0):
    found, out, error = run_main(train, "--cfg", "dark.cfg", *GIVEN, *arguments)
    assert found == status, error
    return out, error


def written(name="exp"):
    folder = Path("runs/train") / name
    return yaml.safe_load((folder / "config.yaml").read_text()), list(csv.DictReader((folder / "results.csv").open()))


def test_the_keys_are_the_recipe_and_the_others_are_announced(project, run_main):
    out, _ = run(run_main, "--hyp", "cfg")
    lines = out.splitlines()
    assert "dark.cfg: without effect here: [net] angle, cutmix; [yolo] resize" in lines
    assert any(line.startswith("train: dark.cfg") and ", 6 epochs, recipe cfg, --match darknet ->" in line
               for line in lines)  # fmt: skip
    options, rows = written()
    # 8 images are two iterations of 4, and 11 iterations six epochs, the last one whole.
    expected = {
        "hyp": "cfg", "epochs": 6, "batch_size": 2, "accumulate": 2, "lr0": 0.02 * 64 / 4, "momentum": 0.8,
        "nesterov": False, "weight_decay": 0.001, "schedule": "steps", "lr_steps": [5, 9], "lr_scales": [0.1, 0.5],
        "burn_in": 3, "max_batches": 11, "saturation": 1.5, "exposure": 1.5, "hue": 0.1, "jitter": 0.3, "mosaic": 0.5,
        "multi_scale": True, "match": "darknet", "hsv_s": 0.0, "clip_norm": 0.0,
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    rates = [0.32 * factor for factor in ((2 / 3) ** 4, 1, 0.1, 0.1, 0.05, 0.05)]  # of iterations 2, 4, 6, 8, 10, 12
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates)


def test_without_it_all_is_as_before(project, run_main):
    out, _ = run(run_main, "--epochs", "1")
    assert (
        "dark.cfg: without effect here: [net] batch, subdivisions, momentum, decay, angle, saturation, exposure, hue, "
        "learning_rate, burn_in, max_batches, policy, steps, scales, mosaic, cutmix; [yolo] jitter, random, resize"
    ) in out.splitlines()
    options, _ = written()
    assert Path(options["hyp"]).name == "yolov3.yaml"
    assert (options["lr0"], options["batch_size"], options["jitter"], options["nesterov"]) == (0.01, 16, 0.0, True)


def test_the_command_line_wins_and_config_yaml_repeats_the_run(project, run_main):
    run(run_main, "--hyp", "cfg", "--batch-size", "4", "--lr0", "0.1", "--epochs", "2", "--name", "a")
    options, _ = written("a")
    found = [options[name] for name in ("batch_size", "accumulate", "lr0", "epochs", "momentum")]
    assert found == [4, 1, 0.1, 2, 0.8]
    run(run_main, "--hyp", "runs/train/a/config.yaml", "--name", "b")
    first, second = (read_checkpoint(f"runs/train/{name}/last.pt")["model"] for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


HEADS = {  # keys of [net] and a head, with the filters before it
    "steps": (KEYS, None, 21),
    "poly": (KEYS.replace("policy=steps", "policy=poly"), None, 21),
    "sgdr, adam, region": (
        KEYS.replace("policy=steps", "policy=sgdr\nsgdr_cycle=3\nadam=1\neps=.001"),
        "[region]\nanchors=1,1, 2,2, 4,4\nsoftmax=1\nnum=3\nclasses=2\njitter=.2\n",
        21,
    ),
    "constant, Gaussian": (
        KEYS.replace("policy=steps", "policy=constant").replace("mosaic", "mixup"),
        "[Gaussian_yolo]\nmask=0,1,2\nanchors=8,8, 16,16, 32,32\nnum=3\nclasses=2\nrandom=1.3\n",
        33,
    ),
}


@pytest.mark.parametrize(("keys", "head", "filters"), HEADS.values(), ids=HEADS)
def test_a_run_resumes_bit_for_bit(project, run_main, monkeypatch, keys, head, filters):
    write_cfg(project, keys)
    if head:
        text = (project / "dark.cfg").read_text()
        start = text[: text.index("[yolo]")].replace("filters=21", f"filters={filters}")
        (project / "dark.cfg").write_text(start + head)
    run(run_main, "--hyp", "cfg", "--name", "whole")
    real = train.train_one_epoch

    def stop_in_the_fourth(state, *rest):
        if state.epoch == 3:
            raise KeyboardInterrupt
        return real(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_one_epoch", stop_in_the_fourth)
        status, _, _ = run_main(train, "--cfg", "dark.cfg", *GIVEN, "--hyp", "cfg", "--name", "cut")
    assert status != 0
    status, _, error = run_main(train, "--resume", "runs/train/cut")
    assert status == 0, error
    whole, cut = (read_checkpoint(f"runs/train/{name}/last.pt") for name in ("whole", "cut"))
    assert whole["epoch"] == cut["epoch"] == 6 and whole["history"] == cut["history"]
    assert all(torch.equal(whole["model"][key], cut["model"][key]) for key in whole["model"])


def test_a_longer_run_keeps_the_schedule_of_the_iterations(project, run_main):
    run(run_main, "--hyp", "cfg", "--epochs", "3", "--name", "long")
    status, out, error = run_main(train, "--resume", "runs/train/long", "--epochs", "5")
    assert status == 0, error
    assert "5 epochs instead of 3: --schedule steps goes on by the iteration" in out
    _, rows = written("long")
    rates = [0.32 * factor for factor in ((2 / 3) ** 4, 1, 0.1, 0.1, 0.05)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("old", "new", "arguments", "words"),
    [
        ("batch=4", "batch=1", (), "dark.cfg:7: [net] batch=1 and subdivisions=2 are no training"),
        ("policy=steps", "policy=random", (), "dark.cfg:18: [net] policy=random: --hyp cfg follows"),
        ("max_batches = 11", "", (), "[net] max_batches is missing"),
        ("scales=.1,.5", "scales=.1", (), "dark.cfg:19: [net] policy=steps needs steps, and a scale for each"),
        ("hue=.1", "hue=3", (), "dark.cfg (--hyp cfg): hue = 3.0 is outside 0..1"),
        ("max_batches = 11", "", ("--epochs", "0"), "--epochs must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_status_2(project, run_main, old, new, arguments, words):
    write_cfg(project, KEYS.replace(old, new, 1))
    _, error = run(run_main, "--hyp", "cfg", *arguments, status=2)
    assert len(error.strip().splitlines()) == 1 and words in error
    assert not list(project.glob("runs/train/*/last.pt"))
