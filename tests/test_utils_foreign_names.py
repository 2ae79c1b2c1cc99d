"""Each row of the tables of foreign names: an option takes its other names, and what is not here gets an answer."""

import importlib
import re
from dataclasses import fields

import pytest
import yaml

import analyze
import detect
import kmeans_anchors
import test as script_test
from engine import train_options
from engine.search.command import SearchOptions
from models.checkpoints.load import find_weights
from utils.config import _say_once, build_options, find_file, flag, found_name, parse_flags, read_recipe
from utils.errors import UserError
from utils.foreign_names import ANSWERS, FILES, SAME, SHORT, WITHOUT_EFFECT

SCRIPTS = {
    "train": (*train_options.GROUPS, SearchOptions),
    "test": (script_test.EvaluationOptions,),
    "detect": detect.GROUPS,
    "analyze": analyze.GROUPS,
    "kmeans_anchors": (kmeans_anchors.KmeansOptions, kmeans_anchors.AnchorFitOptions),
}
OPTIONS = {name: {item.name: item for group in groups for item in fields(group)} for name, groups in SCRIPTS.items()}
VALUES = {"str": "x", "int": "3", "float": "0.5", "tuple[int, ...]": "64", "bool": None, "tuple[str, ...]": "x"}


def value_of(item):
    """A value that a flag of this option takes, as text; None where it takes none."""
    return item.metadata["choices"][0] if item.metadata["choices"] else VALUES[str(item.type)]


@pytest.fixture(autouse=True)
def _notes_are_said_again():
    _say_once.cache_clear()


@pytest.mark.parametrize("option, other", [(option, other) for option, others in SAME.items() for other in others])
def test_another_name_is_the_same_option(option, other):
    taken_by = [script for script, known in OPTIONS.items() if option in known and other not in known]
    assert taken_by
    for script in taken_by:
        value = value_of(OPTIONS[script][option])
        parsed = [
            parse_flags("d", *SCRIPTS[script], argv=[name] if value is None else [name, value])
            for name in (flag(option), flag(other), "--" + other)
        ]
        assert parsed[0] == parsed[1] == parsed[2] and list(parsed[0]) == [option]


@pytest.mark.parametrize("name", SHORT)
def test_a_flag_that_stands_for_a_value(name):
    option, value = SHORT[name]
    assert option in OPTIONS["train"]
    assert parse_flags("d", *train_options.GROUPS, argv=[flag(name)]) == {option: value}
    build_options({option: value}, train_options.GROUPS)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_flag_without_effect_is_noted_once(script, name, capfd):
    for _ in range(2):
        assert parse_flags("d", *SCRIPTS[script], argv=[flag(name), "--name", "a"]) == {"name": "a"}
    assert capfd.readouterr().out == f"{flag(name)} changes nothing: {WITHOUT_EFFECT[name]}\n"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_not_here_gets_its_answer_in_one_line(script, name):
    if name in {other for option in OPTIONS[script] for other in (option, *SAME.get(option, ()))}:
        return
    for argv in ([flag(name)], [flag(name), "3"], [f"--{name}=3"]):
        with pytest.raises(UserError) as error:
            parse_flags("d", *SCRIPTS[script], argv=["--name", "a", *argv])
        assert ANSWERS[name] in str(error.value) and "\n" not in str(error.value) and flag(name) in str(error.value)


@pytest.mark.parametrize("name", [*ANSWERS, *WITHOUT_EFFECT])
def test_an_answer_names_only_what_there_is(name):
    """Its flags are flags, of the script that it names if it names one, and its scripts are there."""
    text = ANSWERS.get(name, "") + WITHOUT_EFFECT.get(name, "")
    script = None
    for word in re.findall(r"\w+\.py|--[a-z][a-z-]*", text):
        if word.endswith(".py"):
            script = word.removesuffix(".py")
            importlib.import_module(script)
        elif word not in ("--help", "--no-amp"):
            option = word.lstrip("-").replace("-", "_")
            homes = [script] if script in OPTIONS else list(OPTIONS)
            assert any(option in OPTIONS[home] for home in homes), word


def test_a_row_hides_no_option_of_ours():
    ours = set().union(*OPTIONS.values())
    assert not SHORT.keys() & ours and not WITHOUT_EFFECT.keys() & ours


@pytest.mark.parametrize("theirs, ours", FILES.items())
def test_a_file_of_theirs_stands_for_ours(theirs, ours, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = "data file" if ours.endswith(".data") else "recipe"
    assert find_file(f"data/{theirs}", kind).name == ours
    assert theirs in capfd.readouterr().out
    (tmp_path / theirs).touch()
    assert find_file(theirs, kind).name == theirs and capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "name, kind, found",
    [
        ("yolov5s", "cfg", "yolov5s.cfg"),
        ("yolov5s.yaml", "cfg", "yolov5s.cfg"),
        ("models/hub/yolov3-tiny.yaml", "cfg", "yolov3-tiny.cfg"),
        ("bccd", "data file", "bccd.data"),
        ("coco", "names file", "coco.names"),
        ("yolov3", "recipe", "yolov3.yaml"),
    ],
)
def test_the_ending_may_be_left_out(name, kind, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file(name, kind).name == found
    assert found_name(name, kind) == found
    mine = tmp_path / found
    mine.touch()
    assert found_name(mine.stem, kind) == found and find_file(found, kind).absolute() == mine


@pytest.mark.parametrize(
    "name, kind, words, absent",
    [
        ("coco128.yaml", "data file", "shipped: bccd.data", "yolov5.yaml"),
        ("yolov5.yaml", "data file", "shipped: bccd.data", "yolov5.yaml,"),  # a recipe is no data set
        ("shapes", "cfg", "yolov5s.cfg", "shapes.data"),
        ("coco2017", "recipe", "yolov5.yaml", ".data"),
        ("yolov5s.cgf", "cfg", "did you mean 'yolov5s.cfg'", ".data"),
        ("hyp.VOC.yaml", "recipe", "https://github.com/ultralytics/yolov5/tree/v7.0/data/hyps", "did you mean"),
    ],
)
def test_only_files_of_the_kind_are_found_and_suggested(name, kind, words, absent):
    with pytest.raises(UserError) as error:
        find_file(name, kind)
    assert words in str(error.value) and absent not in str(error.value)


def test_a_network_in_yaml_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolov5s.yaml").write_text("nc: 80\n")
    for name in ("yolov5s.yaml", tmp_path / "yolov5s.yaml"):
        with pytest.raises(UserError, match=r"yolov5s\.yaml: a network is read from a Darknet cfg"):
            find_file(str(name), "cfg")
    assert find_file("yolov5s", "cfg").suffix == ".cfg"


@pytest.mark.parametrize(
    "name, words",
    [
        ("yolov5n.pt", "https://github.com/ultralytics/yolov5/releases"),
        ("weights/YOLOv5x6.pt", "https://github.com/ultralytics/yolov5/releases"),
        ("yolov8n.pt", "its network is another one"),
        ("yolo11s-seg.pt", "its network is another one"),
        ("yolov5su.pt", "its network is another one"),
        ("yolov3-tiny.weights", "https://pjreddie.com/darknet/yolo"),
        ("darknet53.conv.74", "https://github.com/AlexeyAB/darknet/releases"),
        ("mine.pt", "train.py writes runs/train/<name>/best.pt"),
    ],
)
def test_weights_that_are_not_here_have_an_address(name, words):
    with pytest.raises(UserError, match=re.escape(name)) as error:
        find_weights(name)
    assert words in str(error.value)


# The values of ultralytics/yolov5 v7.0, data/hyps/hyp.scratch-low.yaml.
SCRATCH_LOW = {
    "lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 3.0, "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1, "box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0, "iou_t": 0.20,
    "anchor_t": 4.0, "fl_gamma": 0.0, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 0.0, "translate": 0.1,
    "scale": 0.5, "shear": 0.0, "perspective": 0.0, "flipud": 0.0, "fliplr": 0.5, "mosaic": 1.0, "mixup": 0.0,
    "copy_paste": 0.0,
}  # fmt: skip


def read(tmp_path, values):
    path = tmp_path / "hyp.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return read_recipe(path, train_options.GROUPS)


def test_their_recipe_is_ours(tmp_path, capfd):
    theirs = build_options(read(tmp_path, SCRATCH_LOW), train_options.GROUPS)
    recipe = read_recipe(find_file("yolov5.yaml", "recipe"), train_options.GROUPS)
    assert recipe.pop("optimizer") == "auto"  # which has SGD, as theirs, in a long run
    assert theirs == build_options(recipe, train_options.GROUPS)
    note = capfd.readouterr().out
    assert "--match ratio --gains yolov5 --box-loss ciou" in note and "without a meaning" not in note


def test_what_a_recipe_of_theirs_asks_for_in_vain_is_noted(tmp_path, capfd):
    values = read(tmp_path, SCRATCH_LOW | {"copy_paste": 0.1, "perspective": 0.001, "anchors": 3, "anchor_t": 3.4})
    assert "without a meaning here: anchors, copy_paste, perspective\n" in capfd.readouterr().out
    assert values["anchor_t"] == 3.4 and not values.keys() & {"copy_paste", "perspective", "anchors", "iou_t"}


def test_a_recipe_from_before_v4_calls_the_gain_of_the_boxes_giou(tmp_path):
    old = {"giou" if name == "box" else name: value for name, value in SCRATCH_LOW.items()}
    assert read(tmp_path, old) == read(tmp_path, SCRATCH_LOW)


def test_a_recipe_of_ours_is_not_taken_for_theirs(tmp_path):
    ours = {"match": "ratio", "anchor_t": 3.0, "box": 1.0, "cls": 1.0, "obj": 1.0}
    assert read(tmp_path, ours) == ours


def test_unknown_keys_are_all_named_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, SCRATCH_LOW | {"task": "detect", "boxx": 7.5, "dfl": 1.5})
    message = str(error.value)
    assert "hyp.yaml:29: 3 unknown options: 'task', 'boxx'; did you mean 'box'?, 'dfl'" in message
