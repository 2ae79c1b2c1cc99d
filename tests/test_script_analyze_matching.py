"""analyze.py --matching-stats and --report as a user types them: files, resume, several processes, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import analyze
from analysis.matching import measure
from analysis.matching.pictures import most_difficult
from data.labels.annotations import Annotations
from tests.tiny_project import CFG, REPOSITORY, make_project, random_network
from utils.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path, num_images=11)
    (tmp_path / "other.names").write_text("a\nb\nc\nd\n")
    (tmp_path / "other.data").write_text("classes=4\ntrain=images\nvalid=images\nnames=other.names\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(run_main):
    """Run analyze.py's main."""
    return lambda *arguments: run_main(analyze, *arguments)


@pytest.fixture
def no_drawing(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch())


def statistics(folder="matching-stats"):
    """The statistics of results.json without the times, which differ from run to run."""
    found = json.loads(Path("runs/analyze", folder, "results.json").read_text())["statistics"]
    for one in found["strategies"].values():
        assert one.pop("milliseconds_per_batch") > 0
    return found


QUICK = ("--matching-stats", "--workers", "0", "--draw-lost", "0")


def test_without_weights_it_takes_the_newest_run_as_a_user_types_it(project):
    command = [sys.executable, str(REPOSITORY / "analyze.py"), "--matching-stats", "--match", "standard,fast,simota",
               "--match-iou", "iou", "ciou", "--hard", "2", "--workers", "1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=project, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    first = done.stdout.splitlines()[0]
    assert (
        "runs/train/exp/best.pt (tiny.cfg)" in first
        and "tiny.data" in first
        and "11 images, letterbox to 96x96" in first
    )
    for title in ("Strategies side by side", "Unmatched candidates that predict better", "Agreement of strategies",
                  "IoU and confidence", "Moments over objects", "Misassigned anchors", "Objects and NMS", "By class",
                  "By size", "By elongation", "By occlusion", "Training loss of single images"):  # fmt: skip
        assert f"### {title}" in done.stdout, title
    folder = project / "runs/analyze/matching-stats"
    names = {path.name for path in folder.iterdir()}
    assert {
        "results.json",
        "tables.md",
        "config.yaml",
        "strategies.csv",
        "misassigned_anchors.png",
        "by_class.csv",
    } <= names
    assert "partial" not in names
    result = json.loads((folder / "results.json").read_text())
    assert result["mode"] == "matching-stats" and result["data"]["weights"] == "runs/train/exp/best.pt"
    assert list(result["statistics"]["strategies"]) == ["standard", "fast", "simota"]
    assert list(result["statistics"]["scores"]) == ["iou", "ciou"]
    # The labels are what the network finds, one image has none: there is something to count.
    labels = sum(len(path.read_text().splitlines()) for path in (project / "labels").glob("*.txt"))
    assert result["statistics"]["objects"] == labels > 10 and result["statistics"]["images"] == 10
    hard = result["statistics"]["hard_examples"]
    assert len(hard) == 11 and [one["total"] for one in hard] == sorted((one["total"] for one in hard), reverse=True)
    assert all(one["total"] == pytest.approx(one["box"] + one["obj"] + one["cls"]) for one in hard)
    pictures = sorted(path.name for path in (folder / "hard").iterdir())
    assert pictures == [f"{n + 1:03d}-{hard[n]['image_id']}.jpg" for n in range(2)]


def test_the_loss_of_an_image_is_that_of_training(project, run, no_drawing):
    from data.loader import LoaderSettings, evaluation_batches
    from data.splits import open_split
    from models.assignment.options import AssignmentOptions
    from models.loss import LossOptions, build_loss

    assert run(*QUICK, "--hard", 1)[0] == 0
    hard = {one["image_id"]: one for one in statistics()["hard_examples"]}
    annotations = open_split("tiny.data", "train")
    network = random_network()
    loss = build_loss(LossOptions(), AssignmentOptions(), network.heads, 96)
    for batch in evaluation_batches(annotations, LoaderSettings((96, 96), batch_size=1)):
        parts = loss(network(batch.images.float() / 255), batch.targets, batch.crowd).parts
        for name, value in parts.items():
            assert hard[batch.metas[0].image_id][name] == pytest.approx(value.item(), rel=1e-3, abs=1e-6)


def test_darknets_loss_is_that_of_its_own_matching_only():
    from analysis.matching.losses import loss_options_of
    from models.loss import LossOptions

    trained = {"loss": "darknet", "gains": "yolov3", "epochs": 3}
    assert loss_options_of(trained, "darknet").loss == "darknet"
    assert loss_options_of(trained, "atss") == LossOptions()
    assert loss_options_of({"box": 2.0}, "darknet") == LossOptions(box=2.0)


def test_batch_size_changes_nothing(project, run, no_drawing):
    assert run(*QUICK, "--match", "standard,tal")[0] == 0
    assert run(*QUICK, "--match", "standard,tal", "--batch-size", 3)[0] == 0
    assert_close(statistics(), statistics("matching-stats2"))


def assert_close(one, other):
    """Statistics agree: integers exactly, means to float32's rounding in another batch."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    else:
        assert one == (pytest.approx(other, rel=1e-4) if isinstance(other, float) else other)


def test_an_interrupted_run_goes_on_and_equals_a_whole_one(project, run, no_drawing, monkeypatch):
    settings = (*QUICK, "--match", "standard,split", "--batch-size", 2, "--hard", 1, "--min-q", 0.2)
    assert run(*settings, "--name", "whole")[0] == 0
    original, calls = measure.measure_batch, []

    def interrupted(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(measure, "BATCHES_PER_BLOCK", 2)
    monkeypatch.setattr(measure, "measure_batch", interrupted)
    status, _, err = run(*settings, "--name", "cut")
    resume = f"python {REPOSITORY}/analyze.py --resume runs/analyze/cut"
    assert status == 130 and err.strip().endswith(f"interrupted; {resume} goes on")
    assert not Path("runs/analyze/cut/results.json").exists()
    assert len(list(Path("runs/analyze/cut/partial").glob("block-*.npz"))) == 2  # two batches, and the third
    resumed = []
    monkeypatch.setattr(measure, "measure_batch", lambda *a: resumed.append(1) or original(*a))
    assert run("--resume", "runs/analyze/cut")[0] == 0
    assert len(resumed) == 3  # of six batches
    assert statistics("cut") == statistics("whole")
    assert not Path("runs/analyze/cut/partial").exists()


@pytest.mark.slow
def test_several_processes_find_what_one_finds(project):
    settings = ["--matching-stats", "--match", "standard,fast", "--batch-size", "2", "--hard", "1", "--workers", "0"]
    script = str(REPOSITORY / "analyze.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command in (("one", [sys.executable]), ("two", several)):
        done = subprocess.run([*command, script, *settings, "--name", name], capture_output=True, text=True,
                              cwd=project, timeout=240, env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("### Strategies side by side") == 1
    assert statistics("two") == statistics("one")


def test_a_report_and_its_analyses_are_in_one_folder(project, run, no_drawing, monkeypatch):
    monkeypatch.setattr("analysis.output.report.png_uri", lambda figure: "data:,")
    assert run("--report", "--workers", 0, "--report-images", 0, "--draw-lost", 0, "--name", "mine")[0] == 0
    assert [path.name for path in Path("runs/analyze").iterdir()] == ["mine"]
    inside = {path.name for path in Path("runs/analyze/mine").iterdir()}
    assert inside == {"dataset-stats", "matching-stats", "report.html"}
    assert (Path("runs/analyze/mine") / "dataset-stats" / "results.json").is_file()
    assert "data:image/jpeg" not in Path("runs/analyze/mine/report.html").read_text()
    # A single analysis writes into the folder of its report.
    assert run("--dataset-stats", "--report", "--name", "mine")[0] == 0
    assert {"report.html", "results.json", "tables.md"} <= {path.name for path in Path("runs/analyze/mine2").iterdir()}
    assert {path.name for path in Path("runs/analyze").iterdir()} == {"mine", "mine2"}


@pytest.mark.parametrize("modes, folder", [((), "cut/matching-stats"), (("--matching-stats",), "cut")])
def test_a_resumed_run_writes_its_report_into_its_folder(project, run, no_drawing, monkeypatch, modes, folder):
    original, calls = measure.measure_batch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr("analysis.output.report.png_uri", lambda figure: "data:,")
    monkeypatch.setattr(measure, "measure_batch", interrupted)
    settings = ("--workers", 0, "--draw-lost", 0, "--report-images", 1, "--batch-size", 2, "--name", "cut")
    status, _, err = run("--report", *modes, *settings)
    assert status == 130 and f"--resume runs/analyze/{folder} goes on" in err
    assert run("--resume", f"runs/analyze/{folder}")[0] == 0
    assert {"report.html", "results.json"} <= {path.name for path in Path("runs/analyze", folder).iterdir()}
    assert [path.name for path in Path("runs/analyze").iterdir()] == ["cut"]


def test_without_a_report_a_name_is_shared_by_several_folders(project, run, no_drawing):
    arguments = ("--dataset-stats", "--matching-stats", "--workers", 0, "--draw-lost", 0, "--name", "mine")
    assert run(*arguments)[0] == 0
    names = {path.name for path in Path("runs/analyze").iterdir()}
    assert names == {"mine-dataset-stats", "mine-matching-stats"}


def test_report_alone_writes_one_file(project, run):
    status, out, _ = run("--report", "--workers", 0, "--report-images", 3, "--match", "standard,tal")
    assert status == 0
    text = Path("runs/analyze/report/report.html").read_text()
    assert "open runs/analyze/report/report.html" in out
    assert '<section id="dataset-stats">' in text and '<section id="matching-stats">' in text
    assert text.count("data:image/jpeg;base64,") == 3 and text.count("data:image/png;base64,") > 5
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert 'title=""' not in text  # every column is explained


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--match", "standrd"), "did you mean 'standard'"),  # codespell:ignore standrd
        (("--match", "standard", "--extra-iou", "0.5"), "--extra-iou"),
        (("--match", "standard,ratio,standard"), "names a strategy twice"),
        (("--name", "../elsewhere"), "must be the name of a folder inside runs/analyze"),
        (("--match-iou", "uio"), "invalid choice"),
        (("--by", "colour"), "--by knows class, size, elongation, occlusion, matches, not 'colour'"),
        (("--min-q", "0"), "--min-q must be above 0"),
        (("--batch-size", "0"), "--batch-size must be at least 1"),
        (("--hard", "-1"), "--hard"),
        (("--weights", "nothing.pt"), "'nothing.pt'"),
        (("--data", "nothing.data"), "nothing.data"),
        (("--data", "other.data"), "detects 3 classes, other.data has 4"),
        (("--img-size", "50"), "50"),
        (("--device", "cuda:77"), "cuda:77"),
        (("--resume", "runs/train/exp"), "no interrupted --matching-stats run"),
        (("--resume", "runs/train/exp", "--batch-size", "2"), "leave --batch-size out"),
        (("--near-gap", "3"), "--near-gap is read by --dataset-stats only; add it, or"),
    ],
)
def test_a_mistake_is_one_line(project, run, arguments, says):
    status, _, err = run("--matching-stats", *arguments)
    assert status == 2 and says in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert not list(Path("runs").glob("analyze/*"))


def test_options_of_matching_stats_alone_are_refused_elsewhere(project, run):
    status, _, err = run("--dataset-stats", "--weights", "x.pt")
    assert status == 2 and "--weights is read by --matching-stats, --score-mismatch only" in err


def test_the_most_difficult_images_by_hand():
    objects = {
        "image": np.array([4, 4, 7, 9, 9, 9]),
        "detected": np.array([1, 0, 0, 1, 1, 0], dtype=bool),
        "positives": np.array([[1], [2], [0], [3], [1], [1]]),
    }
    found = SimpleNamespace(objects=objects, images={"index": np.array([9, 2, 7, 4])})
    # One object is lost in each but image 2, which has none; that of image 7 has no match, either.
    assert most_difficult(found, 9).tolist() == [7, 4, 9, 2]
    assert most_difficult(found, 2).tolist() == [7, 4] and most_difficult(found, 0).tolist() == []


def test_no_training_run_and_no_weights(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    status, _, err = run("--matching-stats")
    assert status == 2 and "run train.py first, or name one with --weights" in err


def test_an_unreadable_image_is_one_line_and_the_run_can_go_on(project, run, no_drawing):
    good = Path("images/004.png").read_bytes()
    Path("images/004.png").write_bytes(good[: len(good) // 2])  # its header is whole
    status, _, err = run(*QUICK, "--batch-size", 1, "--max-bad", 0)
    assert status == 2 and "Traceback" not in err
    assert "004.png" in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")  # libpng adds its own line
    Path("images/004.png").write_bytes(good)
    assert run("--resume", "runs/analyze/matching-stats")[0] == 0
    assert run(*QUICK, "--batch-size", 1, "--name", "whole")[0] == 0
    assert statistics() == statistics("whole")


def test_a_damaged_partial_result_is_named(project, run, no_drawing, monkeypatch):
    monkeypatch.setattr(measure, "measure_batch", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(*QUICK)[0] == 130
    block = Path("runs/analyze/matching-stats/partial/block-0000000.npz")
    block.parent.mkdir(exist_ok=True)
    block.write_bytes(b"PK nonsense")
    status, _, err = run("--resume", "runs/analyze/matching-stats")
    assert status == 2 and "block-0000000.npz" in err


@pytest.mark.parametrize("damage", ["labels", "a value", "a copy", "a column", "a type", "no checksum", "cut off"])
def test_blocks_that_are_not_of_this_run_are_refused(project, run, no_drawing, monkeypatch, damage):
    original, calls = measure.measure_batch, []

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(measure, "BATCHES_PER_BLOCK", 1)
    monkeypatch.setattr(measure, "measure_batch", interrupted)
    assert run(*QUICK, "--batch-size", 2)[0] == 130
    monkeypatch.setattr(measure, "measure_batch", original)
    block = sorted(Path("runs/analyze/matching-stats/partial").glob("block-*.npz"))[1]
    with np.load(block) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if damage == "labels":
        Path("labels/000.txt").write_text("0 .5 .5 .9 .9\n")
    elif damage == "a copy":
        block.with_name("block-0000009.npz").write_bytes(block.read_bytes())
    elif damage == "cut off":
        block.write_bytes(block.read_bytes()[:-100])
    else:
        if damage == "a value":
            arrays["image/index"][0] += 1
        elif damage == "a type":
            arrays["object/row"] = arrays["object/row"].astype(np.float64)
        elif damage == "a column":
            del arrays["checksum"], arrays["object/row"]
        elif damage == "no checksum":  # from before there was one: then the images and objects decide
            del arrays["checksum"]
            arrays["image/index"][0] += 1
        np.savez(block, **arrays)
    status, _, err = run("--resume", "runs/analyze/matching-stats")
    assert status == 2 and "partial" in err.splitlines()[-1] and "run again" in err.splitlines()[-1]


def test_images_without_any_object(project, run, no_drawing):
    for path in Path("labels").glob("*.txt"):
        path.write_text("")
    status, out, _ = run(*QUICK, "--hard", 1)
    assert status == 0 and "there is no object to match" in out
    assert statistics()["objects"] == 0 and statistics()["by"]["size"] == {}


def test_without_match_the_strategy_of_the_training_counts():
    from analysis.matching.command import chosen_strategies
    from analysis.strategies import StrategyOptions

    trained = {"match": "split", "iou_t": 0.3, "extra_topk": 5, "epochs": 3}
    (options,) = chosen_strategies(StrategyOptions(), trained, "split").values()
    assert (options.match, options.iou_t, options.extra_topk) == ("split", 0.3, 5)
    (options,) = chosen_strategies(StrategyOptions(iou_t=0.4, match_iou=("ciou", "iou")), trained, "split").values()
    assert (options.iou_t, options.extra_topk, options.match_iou) == (0.4, 5, "ciou")
    assert list(chosen_strategies(StrategyOptions(match="tal,fast"), trained, "split")) == ["tal", "fast"]
    assert list(chosen_strategies(StrategyOptions(), {}, "tal")) == ["tal"]
    with pytest.raises(UserError, match="--anchor-t is used by none of --match split"):
        chosen_strategies(StrategyOptions(anchor_t=3.0), trained, "split")


def test_a_data_set_without_images(project, run):
    Path("empty.json").write_text(json.dumps({"images": [], "annotations": [], "categories": [
        {"id": i, "name": str(i)} for i in range(3)]}))  # fmt: skip
    status, _, err = run("--matching-stats", "--data", "empty.json")
    assert status == 2 and "empty.json" in err and len(err.strip().splitlines()) == 1


def test_darknet_weights_without_a_run(project, run, no_drawing):
    from models.checkpoints.darknet_weights import save_darknet_weights

    Path("foreign").mkdir()
    Path("foreign/net.cfg").write_text(CFG)
    save_darknet_weights(random_network(), Path("foreign/net.weights"), seen=0)
    status, out, _ = run(*QUICK, "--weights", "foreign/net.weights", "--data", "tiny.data")
    assert status == 0 and "foreign/net.cfg" in out.splitlines()[0]
    assert statistics()["img_size"] == [96, 64] and statistics()["resize"] == "stretch"
    status, _, err = run(*QUICK, "--weights", "foreign/net.weights")
    assert status == 2 and "does not say on which data it was trained" in err


def test_every_object_is_measured_once_and_crowd_regions_are_none():
    boxes = np.array([[0, 0, 9, 9]] * 5, dtype=np.float64)
    annotations = Annotations(
        ["a", "b", "c"], np.arange(3), np.full((3, 2), 20, np.int32), np.array([0, 0, 2, 2, 2], np.int32), boxes,
        np.zeros(5, np.int32), np.array([False, True, True, False, False]), np.full(5, 81.0), np.arange(1, 6), ("x",),
        (1,),
    )  # fmt: skip
    rows = measure.rows_without_crowd(annotations)
    assert [one.tolist() for one in rows] == [[0], [], [3, 4]]


def test_classes_in_another_order_give_the_same_statistics(project, run, no_drawing):
    assert run(*QUICK, "--name", "plain")[0] == 0
    (project / "turned.names").write_text("bar\ndisc\nWürfel\n")
    (project / "tiny.data").write_text("classes=3\ntrain=images\nvalid=images\nnames=turned.names\n")
    for path in project.glob("labels/*.txt"):  # disc, Würfel, bar -> 1, 2, 0
        rows = [line.split() for line in path.read_text().splitlines()]
        path.write_text("".join(f"{' '.join([str((int(row[0]) + 1) % 3), *row[1:]])}\n" for row in rows))
    status, out, _ = run(*QUICK, "--name", "turned")
    assert status == 0 and "numbers its classes unlike tiny.data; mapped by name" in out
    plain, turned = statistics("plain"), statistics("turned")
    assert turned["scores"] == plain["scores"] and turned["suppression"] == plain["suppression"]
    assert plain["scores"]
