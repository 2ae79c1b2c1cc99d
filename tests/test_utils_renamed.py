"""What earlier versions wrote is read: a recipe, a run's folder, a checkpoint to resume from, an old flag."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

import train
from analysis.compare_runs import read_run
from analysis.matching.blocks import DONE, read_blocks
from engine import train_options
from models.checkpoints.format import read_checkpoint
from models.families.table import FAMILIES, match_of
from tests.tiny_project import make_project
from utils.config import read_recipe
from utils.renamed import OWN_RULES, RENAMED, RENAMED_VALUES, record_of_run, with_current_names

OLD_NAME = {new: old for old, new in RENAMED.items()}
OLD_VALUE = {name: {new: old for old, new in values.items()} for name, values in RENAMED_VALUES.items()}
QUICK = (
    "--data",
    "tiny.data",
    "--cfg",
    "tiny.cfg",
    "--img-size",
    64,
    "--batch-size",
    4,
    "--workers",
    0,
    "--device",
    "cpu",
)


def old(values):
    """The same flat values under the names of an earlier version."""
    return {
        OLD_NAME.get(name, name): OLD_VALUE.get(name, {}).get(value, value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def test_names_and_values_of_options():
    given = {"iou_new": 0.4, "new_topk": 3, "tobj": "std+new", "match": "split", "match/std_iou": 0.5}
    assert with_current_names(given) == {
        "extra_iou": 0.4, "extra_topk": 3, "tobj": "base+extra", "match": "split", "match/base_iou": 0.5
    }  # fmt: skip
    assert with_current_names({"tobj": None}) == {"tobj": None}


def test_a_network_that_had_its_own_assignment_only_keeps_it():
    before = {"cfg": "retinanet_resnet50_fpn", "match": "standard", "resize": "letterbox"}
    assert record_of_run(before)["match"] == "maxiou"
    assert record_of_run(before | {"cfg": "fcos_resnet50_fpn"})["match"] == "fcos"
    assert record_of_run(before | {"background_iou": None}) == before | {"background_iou": None}
    assert record_of_run(before | {"cfg": "yolov3.cfg"})["match"] == "standard"
    assert {name: match_of(name) for name in FAMILIES if match_of(name)} == OWN_RULES


def test_an_old_recipe(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("match: split\niou_new: 0.4\ntobj: new\n")
    assert read_recipe(path, train_options.GROUPS) == {"match": "split", "extra_iou": 0.4, "tobj": "extra"}


def test_a_mistake_in_an_old_recipe_names_its_line(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("match: split\niou_new: many\n")
    with pytest.raises(Exception, match=r"old\.yaml:2: 'extra_iou'"):
        read_recipe(path, train_options.GROUPS)


def test_an_old_flag_says_its_new_name(run_main):
    status, _, error = run_main(train, "--iou-new", 0.3)
    assert status == 2 and "--iou-new is called --extra-iou now" in error


def test_an_old_run_is_compared_and_resumed(tmp_path, monkeypatch, run_main):
    make_project(tmp_path, num_images=8)
    monkeypatch.chdir(tmp_path)
    settings = (*QUICK, "--match", "split", "--extra-iou", 0.3, "--tobj", "base")
    assert run_main(train, *settings, "--epochs", 2, "--name", "whole")[0] == 0

    # The run as an earlier version would have left it after its first epoch: the same numbers under the old names.
    monkeypatch.setattr(train.TrainingRun, "finish", lambda *_: None)
    original = train.train_one_epoch
    monkeypatch.setattr(
        train, "train_one_epoch", lambda state, *rest: original(state, *rest) if state.epoch < 1 else stop()
    )
    assert run_main(train, *settings, "--epochs", 2, "--name", "old")[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/train/old")
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    checkpoint |= {"options": old(checkpoint["options"]), "history": [old(row) for row in checkpoint["history"]]}
    torch.save(checkpoint, folder / "last.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(old(yaml.safe_load((folder / "config.yaml").read_text()))))
    rows = list(csv.DictReader((folder / "results.csv").open()))
    with (folder / "results.csv").open("w") as file:
        writer = csv.DictWriter(file, old(rows[0]))
        writer.writeheader()
        writer.writerows(map(old, rows))
    assert "iou_new" in checkpoint["options"] and "match/std_iou" in checkpoint["history"][0]

    run = read_run(folder)
    assert run.options["extra_iou"] == 0.3 and run.options["tobj"] == "base" and "match/base_iou" in run.history[0]
    assert run_main(train, "--resume", folder / "last.pt")[0] == 0
    assert (folder / "results.csv").read_text() == Path("runs/train/whole/results.csv").read_text()
    resumed, whole = (read_checkpoint(f"runs/train/{name}/last.pt") for name in ("old", "whole"))
    assert all(torch.equal(resumed["model"][name], tensor) for name, tensor in whole["model"].items())
    assert resumed["options"] == whole["options"] | {"name": "old"}


def stop():
    raise KeyboardInterrupt


def test_the_blocks_of_an_old_interrupted_analysis(tmp_path):
    import numpy as np

    np.savez(
        tmp_path / "block-0000000.npz", **{"object/std": np.ones(2), "object/new": np.zeros(2), DONE: np.array([0])}
    )
    columns, done = read_blocks(tmp_path)
    assert columns.keys() == {"object/base", "object/extra"} and done == {0}
