"""Runs side by side: statistics over epochs and over seeds worked by hand, and the damage that a folder may have."""

import statistics

import numpy as np
import pytest
import yaml

from analysis.compare_runs import (
    CompareOptions,
    compare_runs,
    confidence_interval,
    group_by_setting,
    read_run,
    varying_options,
)
from engine.run_folder import save_results_csv
from utils.errors import UserError

BASE = {"match": "standard", "alpha": 0.0, "epochs": 3, "seed": 0, "name": "a", "workers": 2, "box_loss": "giou"}


def make_run(folder, ap50, **options):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(BASE | {"name": folder.name} | options, sort_keys=False))
    history = [
        {
            "epoch": epoch,
            "train/box": 0.5,
            **({} if value is None else {"metrics/mAP_0.5": value, "metrics/mAP_0.5:0.95": value / 2}),
            "match/positives_per_object": 3.0 + epoch,
            "match/objects": 100,
            "match/unmatched": epoch,
        }
        for epoch, value in enumerate(ap50, 1)
    ]
    save_results_csv(folder / "results.csv", history)
    return folder


def compare(*folders, last=0):
    return compare_runs([read_run(folder) for folder in folders], CompareOptions(last=last))


def test_one_run_by_hand(tmp_path):
    result = compare(make_run(tmp_path / "a", [0.2, 0.6, 0.4]))
    run = result.statistics["runs"][0]
    # Mean 0.4; population variance (0.04 + 0.04 + 0) / 3.
    assert run["mAP@0.5"]["max"] == 0.6
    assert run["mAP@0.5"]["mean"] == pytest.approx(0.4)
    assert run["mAP@0.5"]["std"] == pytest.approx((0.08 / 3) ** 0.5)
    assert run["mAP@0.5"]["best_epoch"] == 2
    assert run["mAP"]["max"] == pytest.approx(0.3)
    assert run["positives_per_object"] == 5  # of 4, 5, 6
    assert run["unmatched_share"] == pytest.approx(6 / 300)
    assert (run["match"], run["alpha"], run["epochs"], run["seed"]) == ("standard", 0.0, 3, 0)
    assert result.notes == ()


def test_last_epochs_only(tmp_path):
    run = compare(make_run(tmp_path / "a", [0.8, 0.6, 0.4]), last=2).statistics["runs"][0]
    assert (run["mAP@0.5"]["max"], run["mAP@0.5"]["best_epoch"]) == (0.6, 2)
    assert run["mAP@0.5"]["mean"] == pytest.approx(0.5)
    assert run["positives_per_object"] == 5.5
    assert run["unmatched_share"] == pytest.approx(5 / 200)


def test_seeds_of_one_setting(tmp_path):
    folders = [make_run(tmp_path / f"s{seed}", [0.1, best], seed=seed) for seed, best in enumerate((0.5, 0.6, 0.7))]
    folders.append(make_run(tmp_path / "fast", [0.9], match="fast", alpha=0.5, seed=0))
    statistics = compare(*folders).statistics
    assert statistics["varying_options"] == ["match", "alpha"]
    first, second = statistics["settings"]
    assert (first["setting"], first["runs"], first["seeds"]) == ("standard α=0", ["s0", "s1", "s2"], [0, 1, 2])
    assert second["setting"] == "fast α=0.5"
    # Mean 0.6, sample deviation 0.1, t(0.975; 2) = 4.3027 from the table: 4.3027 x 0.1 / sqrt 3 = 0.2484.
    assert first["mAP@0.5"]["max"]["mean"] == pytest.approx(0.6)
    assert first["mAP@0.5"]["max"]["interval_95"] == pytest.approx(0.2484, abs=5e-5)
    assert second["mAP@0.5"]["max"] == {"mean": 0.9, "interval_95": None, "runs": 1}


@pytest.mark.parametrize(("count", "t"), [(2, 12.706), (5, 2.776), (10, 2.262), (30, 2.045)])
def test_interval_uses_the_table_of_student(count, t):
    values = np.random.default_rng(count).random(count).tolist()
    average, half = confidence_interval(values)
    assert average == pytest.approx(sum(values) / count)
    assert half == pytest.approx(t * statistics.stdev(values) / count**0.5, rel=3e-4)


def test_runs_are_one_setting_unless_a_learning_option_differs(tmp_path):
    same = [make_run(tmp_path / "a", [0.1], seed=1), make_run(tmp_path / "b", [0.1], seed=2, workers=8)]
    other = make_run(tmp_path / "c", [0.1], seed=1, box_loss="ciou")
    runs = [read_run(folder) for folder in (*same, other)]
    assert group_by_setting(runs) == [[0, 1], [2]]
    assert varying_options(runs) == ["box_loss"]
    assert group_by_setting(runs[:2]) == [[0, 1]]
    assert compare(*same, other).statistics["settings"][1]["setting"] == "standard α=0 box_loss=ciou"


def test_the_same_seed_twice_is_said(tmp_path):
    result = compare(make_run(tmp_path / "a", [0.1] * 3), make_run(tmp_path / "b", [0.2] * 3))
    assert "same seed" in result.notes[0]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    first, second = (make_run(tmp_path / where / "exp", [0.1], seed=i) for i, where in enumerate(("x", "y")))
    assert [row["run"] for row in compare(first, second).statistics["runs"]] == [str(first), str(second)]


def test_epochs_without_a_test_and_unfinished_runs(tmp_path):
    result = compare(make_run(tmp_path / "a", [None, 0.3]), make_run(tmp_path / "b", [None, None, None], seed=1))
    first, second = result.statistics["runs"]
    assert (first["mAP@0.5"]["epochs"], first["mAP@0.5"]["best_epoch"], first["epochs"]) == (1, 2, 2)
    assert second["mAP@0.5"] == dict.fromkeys(("max", "mean", "std", "best_epoch", "epochs"))
    assert result.statistics["settings"][0]["mAP@0.5"]["max"] == {"mean": 0.3, "interval_95": None, "runs": 1}
    assert any("2 of 3 epochs" in note for note in result.notes)
    assert any("no epoch was evaluated" in note for note in result.notes)


def test_an_epoch_that_stands_twice_counts_once_and_the_later_line_wins(tmp_path):
    folder = make_run(tmp_path / "a", [0.2, 0.4])
    with open(folder / "results.csv", "a") as file:
        file.write("2,0.5,0.6,0.3,5,100,2\n")
    run = compare(folder).statistics["runs"][0]
    assert (run["epochs"], run["mAP@0.5"]["max"]) == (2, 0.6)


def test_a_line_cut_off_keeps_the_columns_it_has(tmp_path):
    folder = make_run(tmp_path / "a", [0.2, 0.4])
    with open(folder / "results.csv", "a") as file:
        file.write("3,0.5,nan")
    run = compare(folder).statistics["runs"][0]
    assert (run["epochs"], run["mAP@0.5"]["epochs"]) == (3, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "results.csv").unlink(), "results.csv: missing"),
        (lambda f: (f / "config.yaml").unlink(), "config.yaml: missing"),
        (lambda f: (f / "results.csv").write_text(""), "no column 'epoch'"),
        (lambda f: (f / "results.csv").write_text("epoch,lr\n"), "no finished epoch"),
        (lambda f: (f / "results.csv").write_text("epoch,lr\n1,abc\n"), "results.csv:2: 'abc' in column 'lr'"),
        (lambda f: (f / "results.csv").write_text("epoch,lr,lr\n1,2,3\n"), "no column 'epoch', or one twice"),
        (lambda f: (f / "results.csv").write_text("epoch,lr\n1,2,3\n"), "results.csv:2: 3 cells for 2 columns"),
        (lambda f: (f / "results.csv").write_text("epoch,lr\n1,2\n2,1e300\n"), "results.csv:3: 1e300 in column 'lr'"),
        (lambda f: (f / "results.csv").write_text("epoch,lr\n1.5,2\n"), "results.csv:2: 1.5 is no number of an epoch"),
        (lambda f: (f / "results.csv").write_text("epoch,lr\n-1,2\n"), "results.csv:2: -1 is no number of an epoch"),
        (lambda f: (f / "results.csv").write_bytes(b"epoch,lr\n1,\xff\n"), "results.csv:2: is not a UTF-8"),
        (lambda f: (f / "results.csv").write_bytes(b"epoch,lr\n1,\0\n"), "results.csv:2: .* is no number"),
        (
            lambda f: (f / "results.csv").write_text("epoch,lr\n1," + "9" * 200),
            "results.csv:2: '?999.* in column 'lr'",
        ),
        (lambda f: (f / "config.yaml").write_text("seed: " + "9" * 5000), "config.yaml:1: .* restore it"),
        (lambda f: (f / "config.yaml").write_text("a: &a [*a]"), "config.yaml:1: .*more than 20 levels"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "not valid YAML"),
        (lambda f: (f / "config.yaml").write_text("- 1"), "not a list of 'option: value' lines"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, damage, message):
    folder = make_run(tmp_path / "a", [0.1])
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_run(folder)


def test_no_such_run(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        read_run(tmp_path / "none")
    assert read_run(make_run(tmp_path / "a", [0.1]) / "results.csv").folder == tmp_path / "a"
