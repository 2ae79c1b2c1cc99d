"""What a search varies, and what it starts and reads: files of spaces and studies, command lines, results."""

import json
import math
import sys
from dataclasses import fields

import pytest

import train as script
from engine.search import training
from engine.search.command import SearchOptions, is_of_many, make_plan
from engine.search.results import runs_in, write_plots
from engine.search.space import Choices, Range, Space, read_space
from engine.search.training import arguments_of, last_line, read_fitness, run_training, take_over
from engine.train_options import GROUPS
from tests.tiny_project import REPOSITORY
from utils.config import build_options, parse_flags
from utils.errors import UserError

SHIPPED = sorted((REPOSITORY / "cfg/search").glob("*.yaml")) + sorted((REPOSITORY / "cfg/study").glob("*.yaml"))


def written(folder, text):
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_a_space_has_choices_and_ranges_in_the_types_of_the_options(tmp_path):
    text = "mosaic: [0, 1]\nlr0: {low: 1e-4, high: 0.1, log: true}\nbatch_size: {low: 4, high: 8, step: 2}\n"
    space = read_space(written(tmp_path, text + "img_size: [[64, 96], 64]\noptimizer: SGD\n"))
    assert space.options == {
        "mosaic": Choices((0.0, 1.0)),
        "lr0": Range(1e-4, 0.1, None, True),
        "batch_size": Range(4, 8, 2, False),
        "img_size": Choices(((64, 96), (64,))),
        "optimizer": Choices(("SGD",)),
    }
    assert space.options["img_size"].labels == ("64 96", "64")
    parameters = {"mosaic": 1.0, "lr0": 0.01, "batch_size": 6, "img_size": "64 96", "optimizer": "SGD"}
    assert space.values_of(parameters) == parameters | {"img_size": (64, 96)}
    json.dumps(space.as_record(), allow_nan=False)


def test_a_grid_is_every_combination_the_last_option_fastest(tmp_path):
    space = read_space(written(tmp_path, "lr0: [0.1, 0.2]\nscale: {low: 0.0, high: 0.3, step: 0.1}\n"))
    assert [tuple(point.values()) for point in space.grid()] == [
        (0.1, 0.0), (0.1, 0.1), (0.1, 0.2), (0.1, 0.3), (0.2, 0.0), (0.2, 0.1), (0.2, 0.2), (0.2, 0.3),
    ]  # fmt: skip
    study = read_space(written(tmp_path, "seeds: [3, 4]\nepochs: 2\n"), is_study=True)
    assert study.grid() == [{"epochs": 2, "seed": 3}, {"epochs": 2, "seed": 4}]


MISTAKES = [
    ("lr: [0.1]\n", 1, "unknown option 'lr'; did you mean 'lr0'"),
    ("lr0: [0.1]\nmosaic: [0.5, yes]\n", 2, "'mosaic' must be a value of type float"),
    ("lr0: [0.1]\nmosaic: [0.5, 2]\n", 2, "outside 0..1"),
    ("lr0: {low: 0.1, hihg: 1}\n", 1, "did you mean 'high'"),
    ("lr0: {low: 0.1}\n", 1, "needs 'low' and 'high'"),
    ("lr0: {low: 0.1, high: 0.1}\n", 1, "low must be below high"),
    ("lr0: {low: 0, high: 0.1, log: true}\n", 1, "above 0 with 'log'"),
    ("lr0: {low: 0.1, high: 0.2, step: 0.5}\n", 1, "a step at most"),
    ("lr0: {low: 0.1, high: 0.2, step: 0.1, log: true}\n", 1, "exclude each other"),
    ("lr0: {low: 0.1, high: 0.2, log: 1}\n", 1, "'log' must be true or false"),
    ("optimizer: {low: SGD, high: AdamW}\n", 1, "give a list of values"),
    ("lr0: []\n", 1, "needs values"),
    ("box: [null]\n", 1, "none of them empty"),
    ("lr0: [0.1, 0.1]\n", 1, "twice"),
    ("seed: [0, 1]\n", 1, "'seed' cannot be varied"),
    ("name: [a]\n", 1, "'name' cannot be varied"),
    ("match: [standard]\nanchor_t: [2]\n", 2, "not used by --match standard"),
    ("epochs: [1, 2]\n", 1, "leave --epochs out"),
]


@pytest.mark.parametrize("text, line, words", MISTAKES)
def test_a_mistake_in_a_space_is_one_line_with_its_place(tmp_path, run_main, monkeypatch, text, line, words):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, text)
    status, _, error = run_main(script, "--search", "space.yaml", "--epochs", "3")
    assert status == 2 and error.startswith(f"error: space.yaml:{line}: ") and words in error, error
    assert error.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "kind, text, given",
    [
        ("study", "optimizer: [SGD, auto]\n", {"lr0": 0.1}),
        ("study", "optimizer: [SGD, auto]\nlr0: [0.1, 0.2]\n", {}),
        ("search", "optimizer: [SGD, auto]\nlr0: {low: 0.1, high: 0.2}\n", {}),
    ],
)
def test_what_auto_chooses_itself_is_said_before_anything_is_trained(tmp_path, kind, text, given):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=rf"^{path}:.* --optimizer auto chooses --lr0 itself"):
        make_plan({kind: str(path), **given})


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--search", "space", "--study", "match"), "exclude each other"),
        (("--trials", "3"), "--trials is for --search"),
        (("--study", "match", "--pruner", "none"), "--pruner is for --search"),
        (("--storage", "x"), "--storage is for --search and --study"),
        (("--evolve", "3", "--trials", "3"), "leave --trials out"),
        (("--search", "space", "--trials", "-1"), "must not be negative"),
        (("--search", "space", "--resume"), "leave out --resume"),
        (("--search", "none"), "shipped: evolve.yaml, space.yaml"),
        (("--search", "space", "--sampler", "grid"), "needs a step"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(tmp_path, run_main, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, _, error = run_main(script, *arguments)
    assert status == 2 and words in error and error.count("\n") == 1, error


def test_without_optuna_one_line_says_what_to_install(tmp_path, run_main, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, error = run_main(script, "--search", "space")
    assert (status, error) == (2, "error: --search: needs the package optuna; pip install -r requirements-search.txt\n")


def test_under_torchrun_a_search_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        make_plan({"search": "space"})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_files_can_be_used(path):
    kind = path.parent.name
    plan = make_plan({"evolve": 100} if path.name == "evolve.yaml" else {kind: path.name})
    sizes = [len(entry.to_check) for entry in plan.space.options.values()]
    assert plan.wanted == (math.prod(sizes) if kind == "study" else 100)


def test_evolve_has_the_ranges_of_yolov5_that_the_recipe_has_a_use_for(capsys):
    """Of ultralytics/yolov5 v7.0, train.py, meta; by hand."""
    plan = make_plan({"evolve": 7, "cfg": "yolov5n.cfg"})
    assert plan.wanted == 7 and "leaves out iou_t:" in capsys.readouterr().out
    ends = {name: (entry.low, entry.high) for name, entry in plan.space.options.items()}
    assert ends == {
        "lr0": (1e-5, 0.1), "lrf": (0.01, 1), "momentum": (0.6, 0.98), "weight_decay": (0, 0.001),
        "warmup_epochs": (0, 5), "warmup_momentum": (0, 0.95), "warmup_bias_lr": (0, 0.2), "box": (0.02, 0.2),
        "cls": (0.2, 4), "cls_pw": (0.5, 2), "obj": (0.2, 4), "obj_pw": (0.5, 2), "anchor_t": (2, 8),
        "fl_gamma": (0, 2), "hsv_h": (0, 0.1), "hsv_s": (0, 0.9), "hsv_v": (0, 0.9), "degrees": (0, 45),
        "translate": (0, 0.9), "scale": (0, 0.9), "shear": (0, 10), "flipud": (0, 1), "fliplr": (0, 1),
        "mosaic": (0, 1), "mixup": (0, 1),
    }  # fmt: skip
    standard = make_plan({"evolve": 7}).space.options
    assert "iou_t" in standard and not standard.keys() & {"anchor_t", "box", "cls", "obj"}


def test_options_become_the_arguments_that_give_them():
    values = {
        "lr0": 1e-05,
        "img_size": (64, 96),
        "amp": False,
        "rect": True,
        "cfg": "a b.cfg",
        "weights": "",
        "epochs": 3,
    }
    assert parse_flags("", *GROUPS, argv=arguments_of(values)) == values
    build_options(values, GROUPS)


def test_a_single_training_is_none_of_many():
    assert not is_of_many({"epochs": 3})
    assert is_of_many({"study": "match", "epochs": 3})
    assert {item.name for item in fields(SearchOptions)}.isdisjoint(
        item.name for group in GROUPS for item in fields(group)
    )


def test_fitness_is_read_of_the_epochs_that_were_tested(tmp_path):
    assert read_fitness(tmp_path) == {}
    text = "epoch,train/box,metrics/mAP_0.5,metrics/mAP_0.5:0.95\n1,0.1,0.5,0.2\n2,0.1,,\n3,0.1,0.6,0.3\n"
    (tmp_path / "results.csv").write_text(text)
    assert read_fitness(tmp_path) == pytest.approx({1: 0.1 * 0.5 + 0.9 * 0.2, 3: 0.1 * 0.6 + 0.9 * 0.3})


def test_the_last_line_is_the_message_behind_a_bar(tmp_path):
    path = tmp_path / "output.txt"
    path.write_bytes(b"train: x\nepoch 1\repoch 2 [00:01]error: the loss is nan\n\n")
    assert last_line(path) == "the loss is nan"
    path.write_text("Killed\n")
    assert last_line(path) == "Killed"
    path.write_text("")
    assert last_line(path) == ""


def test_what_was_cut_off_is_copied_without_the_sign_of_its_end(tmp_path):
    old, new = tmp_path / "trial0", tmp_path / "trial1"
    for folder in (old, new):
        folder.mkdir()
    (old / "results.png").touch()
    (old / ".last.1234.pt").touch()
    assert not take_over(old, new) and not take_over(tmp_path / "none", new)
    (old / "last.pt").write_text("state")
    assert take_over(old, new) and [path.name for path in new.iterdir()] == ["last.pt"]


FAKE = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (print("error: saved"), sys.exit(143)))
lines = ["epoch,metrics/mAP_0.5,metrics/mAP_0.5:0.95"]
for epoch in range(1, 4):
    lines.append(f"{epoch},0.5,{epoch / 10}")
    (folder / "results.csv.new").write_text("\\n".join(lines))
    (folder / "results.csv.new").rename(folder / "results.csv")
if sys.argv[2] == "hang":
    time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


def test_a_training_is_watched_and_stopped(tmp_path, monkeypatch):
    """A program in the place of train.py: three epochs at once, then its end, or none."""
    (tmp_path / "train.py").write_text(FAKE)
    monkeypatch.setattr(training, "REPOSITORY", tmp_path)
    monkeypatch.setattr(training, "POLL_SECONDS", 0.02)
    told = []
    ended = run_training([str(tmp_path), "3"], tmp_path, lambda *epoch: told.append(epoch) or False)
    assert (ended.status, ended.was_stopped) == (3, False) and told == list(ended.fitness.items())
    assert ended.fitness == pytest.approx({1: 0.14, 2: 0.23, 3: 0.32})
    (tmp_path / "results.csv").unlink()
    ended = run_training([str(tmp_path), "hang"], tmp_path, lambda epoch, _: epoch == 2)
    assert (ended.status, ended.was_stopped, ended.message) == (143, True, "saved") and max(ended.fitness) == 2

    def interrupted(*_):
        raise KeyboardInterrupt

    (tmp_path / "results.csv").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_training([str(tmp_path), "hang"], tmp_path, interrupted)
    assert last_line(tmp_path / "output.txt") == "saved"


def test_the_folder_of_a_search_stands_for_its_complete_runs(tmp_path):
    assert runs_in(tmp_path / "any") == [str(tmp_path / "any")]
    rows = [
        {"folder": f"trial{n}", "state": state} for n, state in enumerate(("complete", "failed", "stopped", "complete"))
    ]
    (tmp_path / "trials.json").write_text(json.dumps(rows))
    assert runs_in(tmp_path) == [str(tmp_path / "trial0"), str(tmp_path / "trial3")]
    for damaged, words in (("[1]", "no table"), ("{", "no table"), ("[]", "no training")):
        (tmp_path / "trials.json").write_text(damaged)
        with pytest.raises(UserError, match=words):
            runs_in(tmp_path)


def test_plots_of_trials_with_one_value_come_without_warnings(tmp_path, recwarn):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    kinds = optuna.distributions.CategoricalDistribution(("SGD", "AdamW"))
    for value in (0.1, 0.2):  # of the other one no trial is complete
        study.add_trial(
            optuna.trial.create_trial(params={"optimizer": "SGD"}, distributions={"optimizer": kinds}, value=value)
        )
    write_plots(tmp_path, study, Space(tmp_path / "space.yaml", {"optimizer": Choices(("SGD", "AdamW"))}, {}))
    assert {path.name for path in tmp_path.iterdir()} == {"history.png", "importance.png", "slice.png"}
    assert not [str(one.message) for one in recwarn if one.category is UserWarning]
