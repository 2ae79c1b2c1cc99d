"""analyze.py --compare of runs of test.py: differences by hand, and against test.py's own for the same files."""

import copy
import json

import numpy as np
import pytest
import yaml

from analysis.compare_runs import CompareOptions, run
from analysis.compare_tests import compare_tests
from analysis.mode import AnalyzeOptions, Request
from analysis.tested_runs import is_tested, read_tested
from engine.evaluate_results import ResultsOptions
from evaluation.bootstrap import ResampledNumbers, resample
from evaluation.coco import evaluate_coco
from evaluation.comparison import percentiles
from tests.test_analysis_compare_runs import make_run
from tests.test_evaluation_bootstrap import case_of
from tests.tiny_project import load_script, make_project, random_network, run_script, save_run
from utils.errors import UserError


def write_tested(folder, training, truth, results, images=True, **options):
    """Write what test.py leaves, and the options of the training beside the weights."""
    weights = folder.parent / "train" / folder.name / "best.pt"
    if training:
        weights.parent.mkdir(parents=True)
        (weights.parent / "config.yaml").write_text(yaml.safe_dump(training))
    folder.mkdir(parents=True)
    content = evaluate_coco(truth, results).to_dict() | {"options": {"weights": str(weights), **options}}
    (folder / "metrics.json").write_text(json.dumps(content))
    if images:
        (folder / "detections.json").write_text(json.dumps(results))
        (folder / "ground_truth.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture
def case():
    truth, results = case_of(7)
    generator = np.random.default_rng(0)

    def worse(share):
        return [row for row in results if generator.random() > share]

    return truth, worse


def difference(result, number="AP"):
    (row,) = [row for row in result.statistics["differences"] if row["number"] == number]
    return row


def test_settings_are_paired_by_seed_images_and_both(tmp_path, case):
    truth, worse = case
    results = {("a", seed): worse(0.1) for seed in (2, 0, 1)} | {("b", seed): worse(0.4) for seed in (0, 1, 2)}
    folders = [
        write_tested(tmp_path / f"{match}{seed}", {"match": match, "seed": seed, "name": "x"}, truth, rows)
        for (match, seed), rows in results.items()
    ]
    found = compare_tests(read_tested(folders), 100)
    assert [setting["setting"] for setting in found.statistics["settings"]] == ["match=a", "match=b"]
    row = difference(found)
    ap = {key: evaluate_coco(truth, rows).ap for key, rows in results.items()}
    each = np.array([ap["b", seed] - ap["a", seed] for seed in range(3)])
    assert (row["of"], row["minus"], row["seeds"]) == ("match=b", "match=a", 3)
    assert (row["difference"], row["std"]) == pytest.approx((each.mean(), each.std(ddof=1)))
    half = 4.302652729911275 * each.std(ddof=1) / 3**0.5
    assert row["over_seeds"] == pytest.approx((each.mean() - half, each.mean() + half))
    order = [("a", seed) for seed in (0, 1, 2)] + [("b", seed) for seed in (0, 1, 2)]
    drawn = resample([ResampledNumbers(truth, results[key]) for key in order], 100, 0)[..., 0]
    low, high = percentiles((drawn[:, 3:].mean(axis=1) - drawn[:, :3].mean(axis=1))[:, None])[0]
    assert row["over_images"] == pytest.approx((low, high))
    both = np.hypot(half, (high - low) / 2)
    assert row["over_both"] == pytest.approx((each.mean() - both, each.mean() + both))
    assert row["may_be_none"] == (row["over_both"][0] <= 0 <= row["over_both"][1])
    assert found.notes == ()
    table = next(table for table in found.tables if table.name == "differences")
    assert table.columns[:5] == ("setting", "minus", "number", "difference", "seeds")


def test_without_detections_only_seeds_count(tmp_path, case):
    truth, worse = case
    results = {(name, seed): worse(0.3) for name in "ab" for seed in (0, 1)}
    folders = [write_tested(tmp_path / f"{name}{seed}", {"match": name, "seed": seed}, truth, rows, images=False)
               for (name, seed), rows in results.items()]  # fmt: skip
    found = compare_tests(read_tested(folders), 100)
    row = difference(found)
    assert row["over_images"] is None and row["over_both"] is None and row["over_seeds"] is not None
    assert "4 runs left no detections.json" in found.notes[0] and "--save-json" in found.notes[0]
    if row["may_be_none"]:
        assert row["seeds_needed"] > 2


def test_other_objects_are_not_paired_by_images(tmp_path, case):
    truth, worse = case
    other = copy.deepcopy(truth)
    other["annotations"] = other["annotations"][1:]
    folders = [write_tested(tmp_path / name, {"match": name, "seed": 0}, objects, worse(0.2))
               for name, objects in (("a", truth), ("b", other))]  # fmt: skip
    found = compare_tests(read_tested(folders), 20)
    row = difference(found)
    assert (row["over_images"], row["may_be_none"], row["seeds"]) == (None, None, 1)
    assert "was tested on other objects than" in found.notes[0]


def test_without_common_seeds_the_means_are_compared(tmp_path, case):
    truth, worse = case
    seeds = [("a", 0), ("a", 1), ("b", 1), ("b", 5)]
    results = {key: worse(0.3) for key in seeds}
    folders = [write_tested(tmp_path / f"{name}{seed}", {"match": name, "seed": seed}, truth, rows)
               for (name, seed), rows in results.items()]  # fmt: skip
    found = compare_tests(read_tested(folders), 50)
    ap = [evaluate_coco(truth, results[key]).ap for key in seeds]
    row = difference(found)
    assert row["difference"] == pytest.approx((ap[2] + ap[3] - ap[0] - ap[1]) / 2)
    assert (row["seeds"], row["over_seeds"], row["seeds_needed"]) == (0, None, None)
    assert row["over_images"][0] <= row["difference"] <= row["over_images"][1]
    assert any("fewer than two seeds in common" in note for note in found.notes)


def test_weights_of_unknown_training_are_settings_of_their_own(tmp_path, case):
    truth, worse = case
    folders = [write_tested(tmp_path / name, {}, truth, worse(0.2)) for name in "ab"]
    found = compare_tests(read_tested(folders), 20)
    names = [setting["setting"] for setting in found.statistics["settings"]]
    assert names == [f"weights={tmp_path}/train/{name}/best.pt" for name in "ab"]
    assert difference(found)["over_images"] is not None and "the training is not known" in found.notes[0]


def test_the_size_of_the_test_makes_a_setting(tmp_path, case):
    truth, worse = case
    folders = [write_tested(tmp_path / f"{size}", {"match": "a", "seed": 0}, truth, worse(0.2), img_size=[size, size])
               for size in (320, 608)]  # fmt: skip
    found = compare_tests(read_tested(folders), 0)
    assert [one["setting"] for one in found.statistics["settings"]] == ["img_size=[320, 320]", "img_size=[608, 608]"]
    assert difference(found)["over_images"] is None and found.notes == ()


def test_networks_and_columns_as_test_py_writes_them(tmp_path, monkeypatch, capsys):
    """Two settings of two seeds through test.py, once as networks and once as the columns of their files."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    test, analyze = load_script("test"), load_script("analyze")
    for match in ("standard", "fast"):
        for seed in (0, 1):
            name = f"{match}{seed}"
            network = random_network()
            network.head_convolution(0).conv.bias.data += 0.4 * (seed + 1) * (match == "fast")
            weights = save_run(tmp_path, network, name)
            (weights.parent / "config.yaml").write_text(yaml.safe_dump({"match": match, "seed": seed}))
            assert run_script(test, monkeypatch, "--weights", weights, "--data", "tiny.data", "--workers", 0,
                              "--img-size", 96, "--save-json", "--name", name) == 0  # fmt: skip
    files = [f"{match}=runs/test/{match}{seed}/detections.json" for match in ("standard", "fast") for seed in (0, 1)]
    assert run_script(test, monkeypatch, "--results", *files, "--data", "tiny.data", "--resamples", 60, "--name",
                      "files") == 0  # fmt: skip
    networks = [f"runs/test/{match}{seed}" for match in ("standard", "fast") for seed in (0, 1)]
    for name, runs in (("networks", networks), ("columns", ["runs/test/files/metrics.json"])):
        assert run_script(analyze, monkeypatch, "--compare", *runs, "--resamples", 60, "--name", name) == 0
    assert "seeds needed" in capsys.readouterr().out
    first, second = (
        json.loads((tmp_path / f"runs/analyze/{name}/results.json").read_text())["statistics"]["differences"]
        for name in ("networks", "columns")
    )
    assert [row["of"] for row in (first[0], second[0])] == ["match=fast", "fast"]
    for one, other in zip(first, second, strict=True):
        for key in ("difference", "std", "over_seeds", "over_images", "over_both"):
            assert one[key] == pytest.approx(other[key], abs=1e-12), key
    assert (tmp_path / "runs/analyze/columns/differences.csv").is_file()
    assert "### Differences" in (tmp_path / "runs/analyze/columns/tables.md").read_text()


def of_command(*folders, last=0):
    groups = {CompareOptions: CompareOptions(last), ResultsOptions: ResultsOptions()}
    request = Request(AnalyzeOptions(), AnalyzeOptions(), {"compare": folders}, groups)
    return run(request)


def test_runs_of_one_kind_only(tmp_path, case):
    truth, worse = case
    of_test = write_tested(tmp_path / "t", {}, truth, worse(0.1))
    of_training = make_run(tmp_path / "r", [0.1])
    assert is_tested(of_test) and is_tested(of_test / "metrics.json") and not is_tested(of_training)
    with pytest.raises(UserError, match="compare runs of one kind"):
        of_command(of_training, of_test)
    with pytest.raises(UserError, match=r"--last 3: a run of test.py has no epochs"):
        of_command(of_test, last=3)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "metrics.json: is not JSON"),
        ("[]", "metrics.json: is no metrics.json that test.py wrote"),
        ("{}", "metrics.json: is no metrics.json that test.py wrote"),
        ('{"ap": 1}', "is no metrics.json that test.py wrote"),
        ('{"columns": [{"name": "a"}], "options": {}}', "is no metrics.json that test.py wrote"),
        ('{"columns": [{"name": "a", "runs": [{"AP": "x"}]}], "options": {}}', "x is no number"),
        ('{"columns": 3, "options": {}}', "is no metrics.json that test.py wrote"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, text, words):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_tested([path])


def test_damaged_detections_are_one_line(tmp_path, case):
    truth, worse = case
    folder = write_tested(tmp_path / "t", {}, truth, worse(0.1))
    (folder / "ground_truth.json").write_text("{}")
    with pytest.raises(UserError, match=r"ground_truth.json: is no ground truth"):
        compare_tests(read_tested([folder]), 10)


def test_training_runs_have_differences_by_seed(tmp_path):
    folders = [make_run(tmp_path / f"{match}{seed}", [best], seed=seed, match=match)
               for match, values in (("standard", (0.5, 0.6, 0.4)), ("fast", (0.51, 0.62, 0.43)))
               for seed, best in enumerate(values)]  # fmt: skip
    row = difference(of_command(*folders), "mAP@0.5 max")
    assert (row["of"], row["minus"], row["seeds"]) == ("fast α=0", "standard α=0", 3)
    assert row["difference"] == pytest.approx(0.02) and row["std"] == pytest.approx(0.01)
    assert row["over_seeds"] == pytest.approx((-0.004842, 0.044842), abs=1e-6)
    assert row["may_be_none"] and row["seeds_needed"] == 5
