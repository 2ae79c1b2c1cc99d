"""``--optimizer auto``: which optimizer a run gets, what is said of it, and that the record of the run repeats it."""

import csv
import re

import pytest
import yaml

from engine.optimizer import AUTO, SHORT_RUN, OptimizerOptions, resolve_auto
from engine.train_options import GROUPS
from tests.test_script_train import BASIC, make_project, train
from utils.config import find_file, read_recipe

QUICK = (*BASIC, "--workers", "0", "--notest")
AS_AUTO = (
    "--optimizer",
    "AdamW",
    "--lr0",
    "0.001667",
    "--momentum",
    "0.9",
    "--accumulate",
    "1",
)  # two classes: .01 / 6


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("auto"))


def config_of(project, name):
    return yaml.safe_load((project / "runs/train" / name / "config.yaml").read_text())


def losses(project, name):
    with (project / "runs/train" / name / "results.csv").open() as file:
        return [[value for key, value in row.items() if key.startswith("train/")] for row in csv.DictReader(file)]


@pytest.mark.parametrize("num_classes, rate", [(1, 0.002), (3, 0.001429), (80, 0.000119)])
def test_a_short_run_has_adamw_at_a_rate_by_the_number_of_classes(num_classes, rate):
    # 0.002 * 5 / (4 + classes), rounded to six places, by hand.
    chosen = resolve_auto(OptimizerOptions(optimizer=AUTO, weight_decay=0.1), SHORT_RUN - 1, num_classes)
    assert chosen == OptimizerOptions(optimizer="AdamW", lr0=rate, momentum=0.9, weight_decay=0.1)


def test_a_long_run_has_sgd_as_the_recipe_says():
    recipe = OptimizerOptions(optimizer=AUTO, lr0=0.02, momentum=0.95)
    assert resolve_auto(recipe, SHORT_RUN, 3) == OptimizerOptions(optimizer="SGD", lr0=0.02, momentum=0.95)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_named_optimizer_stays(kind):
    options = OptimizerOptions(optimizer=kind)
    assert resolve_auto(options, 1, 3) is options


def test_yolov5s_recipe_leaves_the_optimizer_open():
    assert read_recipe(find_file("yolov5.yaml", "recipe"), GROUPS)["optimizer"] == AUTO
    assert "optimizer" not in read_recipe(
        find_file("yolov3.yaml", "recipe"), GROUPS
    )  # SGD: not measured with its heads


def test_auto_is_what_it_says_it_is(project):
    out = train(project, *QUICK, "--hyp", "yolov5.yaml", "--epochs", "2", "--name", "auto").stdout
    (line,) = [line for line in out.splitlines() if line.startswith("--optimizer auto")]
    assert line.startswith(f"--optimizer auto: {' '.join(AS_AUTO)}, as the run has 4 batches"), line
    train(project, *QUICK, "--hyp", "yolov5.yaml", "--epochs", "2", *AS_AUTO, "--name", "named")
    auto, named = config_of(project, "auto"), config_of(project, "named")
    assert auto | {"name": ""} == named | {"name": ""}
    assert losses(project, "auto") == losses(project, "named") and len(losses(project, "auto")) == 2


def test_iterations_are_the_steps_of_what_was_chosen(project):
    length = ("--epochs", "0", "--max-batches", "6", "--schedule", "poly")
    out = train(
        project, *QUICK, "--hyp", "yolov5.yaml", *length, "--name", "iterations"
    ).stdout  # two batches an epoch, each of them a step
    config = config_of(project, "iterations")
    assert "as the run has 6 batches" in out and (config["optimizer"], config["epochs"]) == ("AdamW", 3)


def test_a_run_resumes_with_what_was_chosen_also_for_longer(project):
    train(project, *QUICK, "--hyp", "yolov5.yaml", "--epochs", "1", "--name", "first")
    out = train(project, "--resume", "runs/train/first", "--epochs", "2").stdout
    config = config_of(project, "first")
    assert "--optimizer auto" not in out
    assert (config["optimizer"], config["lr0"], config["accumulate"], config["epochs"]) == ("AdamW", 0.001667, 1, 2)


@pytest.mark.parametrize("flag, value", [("--lr0", "0.02"), ("--momentum", "0.8"), ("--accumulate", "2")])
def test_the_recipes_own_is_for_those_who_change_a_part_of_it(project, flag, value):
    name = f"own{flag}"
    out = train(project, *QUICK, "--hyp", "yolov5.yaml", "--epochs", "1", flag, value, "--name", name).stdout
    config = config_of(project, name)
    assert "--optimizer auto" not in out and config["optimizer"] == "SGD"
    expected = {"lr0": 0.01, "momentum": 0.937, "accumulate": 0} | {flag[2:]: float(value)}
    assert {key: config[key] for key in expected} == expected


def test_auto_and_a_rate_contradict_each_other(project):
    done = train(project, *QUICK, "--optimizer", "auto", "--lr0", "0.1", status=2)
    assert re.search(r"--optimizer auto chooses --lr0 itself", done.stderr), done.stderr


def test_any_recipe_takes_it(project):
    train(project, *QUICK, "--hyp", "yolov3.yaml", "--optimizer", "auto", "--epochs", "1", "--name", "other")
    assert config_of(project, "other")["optimizer"] == "AdamW"
