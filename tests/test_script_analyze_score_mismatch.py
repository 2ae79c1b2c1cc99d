"""analyze.py --score-mismatch as a user types it: of a network, of exported files and of files of results."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import analyze
from analysis.score_mismatch.image_loss import ImageLoss
from models.checkpoints.format import save_checkpoint
from models.families.table import open_network
from tests.tiny_project import NAMES, load_script, make_project, run_script


@pytest.fixture
def no_drawing(monkeypatch):
    def savefig(figure, target, **options):
        if isinstance(target, Path):
            target.touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


def results(folder="score-mismatch"):
    return json.loads(Path("runs/analyze", folder, "results.json").read_text())


def test_a_network_and_the_file_of_its_detections_agree(project, run_main, no_drawing, monkeypatch):
    quick = ("--score-mismatch", "--data", "tiny.data", "--workers", "0")
    status, out, err = run_main(analyze, *quick, "--weights", "runs/train/exp/best.pt", "--hard", "2")
    assert status == 0, err
    assert "runs/train/exp/best.pt (tiny.cfg) on tiny.data (valid), 7 images" in out
    found = results()
    own = found["statistics"]["detectors"]["best"]
    assert found["mode"] == "score-mismatch" and found["data"]["weights"] == "runs/train/exp/best.pt"
    assert own["scores"]["candidates"]["boxes"] > own["scores"]["detections"]["boxes"] > 0
    assert 0 < own["scores"]["candidates"]["mismatch"]["object_share"] < 1
    assert own["suppression"]["greedy"]["boxes_before"] > own["suppression"]["greedy"]["boxes_after"]
    groups = own["by"]["class"].values()
    for key in ("objects", "boxes"):
        assert sum(one["scores"]["detections"][key] for one in groups) == own["scores"]["detections"][key]
    # The hardest images are those with the largest loss, and are drawn: two panels of 640 pixels and a gap.
    hard = found["statistics"]["hard_images"]
    totals = [one["total"] for one in hard]
    assert len(hard) == 7 and totals == sorted(totals, reverse=True) and set(hard[0]["loss"]) == {"box", "obj", "cls"}
    pictures = sorted(Path("runs/analyze/score-mismatch/hard").iterdir())
    assert [path.name[4:7] for path in pictures] == [Path(one["path"]).stem for one in hard[:2]]
    assert cv2.imread(str(pictures[0])).shape[1] in (1288, 2 * 443 + 8)  # of 120 x 80, 64 x 64 and 90 x 130

    evaluation = ("--weights", "runs/train/exp/best.pt", "--data", "tiny.data", "--workers", "0", "--save-json")
    assert run_script(load_script("test"), monkeypatch, *evaluation) == 0
    files = "runs/test/exp/detections.json"
    status, out, err = run_main(analyze, *quick, "--results", f"own={files}", f"own={files}", "--hard", "2", "--report")
    assert status == 0, err
    found = results("report")
    of_file = found["statistics"]["detectors"]["own"]
    assert list(of_file["scores"]) == ["detections"]
    for key in ("with_box", "with_several", "mismatch", "boxes"):
        assert of_file["scores"]["detections"][key] == own["scores"]["detections"][key], key
    for key in ("mean_iou_ratio", "mean_best_iou", "rank_correlation"):
        wanted = own["scores"]["detections"][key]
        assert of_file["scores"]["detections"][key] == pytest.approx(wanted, abs=1e-3), key
    assert "own: the first of 2 files" in found["notes"]
    # Cut off at the borders of these small images, some boxes overlap by more than 0.6 again.
    dropped = of_file["suppression"]["greedy"]["boxes_before"] - of_file["suppression"]["greedy"]["boxes_after"]
    assert any(f"NMS at 0.6 drops {dropped:,} of" in note and "cannot be known" in note for note in found["notes"])
    # By the AP50 that an image costs; the evaluation that --results asks for alone is not made.
    lost = [one["ap50_lost"] for one in found["statistics"]["hard_images"]]
    assert "loss" not in found["statistics"]["hard_images"][0] and lost == sorted(lost, reverse=True)
    assert "COCO's numbers" not in out and "Hardest images" in Path("runs/analyze/report/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--results", "tiny.cfg"), "--results needs the ground truth: name it with --data"),
        (("--results", "no.json", "--data", "tiny.data"), "no.json: there is no such file"),
        (("--results", "tiny.cfg", "--data", "tiny.data"), "tiny.cfg:2: is not JSON"),
        (("--results", "tiny.cfg", "--data", "tiny.data", "--cfg", "tiny.cfg"), "--cfg is about a network"),
        (("--results", "tiny.cfg", "--data", "tiny.data", "--resamples", "9"), "--resamples is read by"),
        (("--match", "fast"), "--match is read by"),
        (("--weights", "runs/train/exp/best.pt", "--results", "best=empty.json"), "'best' is the name of the weights"),
        (("--by", "matches"), "--by matches is for --matching-stats"),
        (("--nms-sigma", "1"), "--nms-sigma is for --nms soft-gaussian"),
        (("--weights", "tiny.cfg"), "tiny.cfg"),
    ],
)
def test_mistakes_are_one_line(project, run_main, arguments, says):
    Path("empty.json").write_text("[]")
    status, _, err = run_main(analyze, "--score-mismatch", *arguments)
    assert status == 2 and says in err and len(err.strip().splitlines()) == 1
    assert not Path("runs/analyze").exists()


def test_a_detector_that_finds_nothing_has_undefined_numbers(project, run_main, no_drawing):
    Path("empty.json").write_text("[]")
    arguments = ("--results", "empty.json", "--data", "tiny.data", "--hard", "1")
    status, _, err = run_main(analyze, "--score-mismatch", *arguments)
    assert status == 0, err
    numbers = results()["statistics"]["detectors"]["empty"]
    assert numbers["suppression"] is None and numbers["scores"]["detections"]["mean_iou_ratio"] is None
    assert any("no box overlaps an object" in note for note in results()["notes"])


def test_the_published_results_equal_pycocotools(shared, run_main, no_drawing, tmp_path, monkeypatch):
    mask = pytest.importorskip("pycocotools.mask")
    monkeypatch.chdir(tmp_path)
    folder = shared / "data/cocoapi"
    truth, found = folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"
    status, _, err = run_main(analyze, "--score-mismatch", "--results", f"fake={found}", "--data", truth)
    assert status == 0, err
    numbers = results()["statistics"]["detectors"]["fake"]["scores"]["detections"]
    rows = json.loads(found.read_text())
    best = []
    for one in json.loads(truth.read_text())["annotations"]:
        if not one["iscrowd"]:
            mine = [row for row in rows if all(row[key] == one[key] for key in ("image_id", "category_id"))]
            ious = mask.iou([row["bbox"] for row in mine], [one["bbox"]], [0])[:, 0] if mine else np.zeros(0)
            best.append([(iou, row["score"]) for iou, row in zip(ious, mine, strict=True) if iou >= 0.1])
    assert numbers["objects"] == len(best) and numbers["with_box"]["objects"] == sum(map(bool, best))
    assert numbers["with_several"]["objects"] == sum(len(one) > 1 for one in best)
    wrong = [max(one)[1] < max(score for _, score in one) for one in best if one]
    assert numbers["mismatch"]["objects"] == sum(wrong) > 50
    assert numbers["mean_best_iou"] == pytest.approx(np.mean([max(one)[0] for one in best if one]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "centernet_resnet18"])
def test_a_network_without_a_cfg(project, run_main, name):
    pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
    size = ("--img-size", "320" if "320" in name else "64")
    training = ("--cfg", name, "--data", "tiny.data", "--epochs", "1", "--batch-size", "4", "--workers", "0", *size)
    status, _, err = run_main(load_script("train"), *training, "--name", "named")
    assert status == 0, err
    of_run = ("--weights", "runs/train/named/best.pt", "--workers", "0", "--report")
    status, _, err = run_main(load_script("test"), *of_run)
    assert status == 0 and Path("runs/test/exp/report.html").is_file(), err
    status, _, err = run_main(analyze, "--score-mismatch", *of_run, "--hard", "2", "--min-q", "0.01")
    assert status == 0 and "Traceback" not in err, err
    found = results("report")
    assert found["data"]["cfg"] == name
    own = found["statistics"]["detectors"]["best"]
    assert own["scores"]["candidates"]["objects"] > 40
    if "centernet" in name:
        assert any("it gives every object one box" in note for note in found["notes"]) and own["suppression"] is None
    else:
        assert own["scores"]["candidates"]["boxes"] > own["scores"]["detections"]["boxes"] > 0
    totals = [one["total"] for one in found["statistics"]["hard_images"]]
    assert totals == sorted(totals, reverse=True) and totals[0] > 0  # SSD: nothing without objects
    assert len(list(Path("runs/analyze/report/hard").iterdir())) == 2


@pytest.mark.slow
def test_the_hardest_images_are_those_of_masks_too_where_the_data_have_some(project, run_main, no_drawing, monkeypatch):
    pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
    name, path = "maskrcnn_resnet50_fpn", Path("masks.pt")
    network = open_network(name, 3)
    content = {"names": list(NAMES), "cfg_name": name, "cfg_text": network.cfg_text, "options": {"match": "standard"}}
    save_checkpoint(path, content | {"ema": network.state_dict()})
    batches = []
    parts = ImageLoss.parts
    monkeypatch.setattr(ImageLoss, "parts", lambda *given: batches.append(given[2]) or parts(*given))
    of_network = ("--weights", path, "--data", "tiny.data", "--img-size", "64", "--workers", "0", "--hard", "1")
    status, _, err = run_main(analyze, "--score-mismatch", *of_network, "--name", "boxes")
    assert status == 0 and not batches, err
    assert "--hard: by AP50 lost, for there is no training loss: the data have no masks" in results("boxes")["notes"]
    for labels in Path("labels").glob("*.txt"):
        labels.write_text("0 0.2 0.2 0.8 0.3 0.5 0.9\n")
    status, _, err = run_main(analyze, "--score-mismatch", *of_network, "--name", "masks")
    assert status == 0, err
    assert all(0 < batch.targets.masks.float().mean() < 1 for batch in batches) and len(batches) == 1
    assert "loss_mask" in results("masks")["statistics"]["hard_images"][0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torchscript", "openvino"])
def test_an_exported_network_gives_what_the_network_gives(tmp_path, monkeypatch, run_main, no_drawing, kind):
    pytest.importorskip("onnxscript", reason="needs the packages of requirements-export.txt")
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    assert run_script(load_script("export"), monkeypatch, "--format", kind, "--img-size", "96", "64") == 0
    (exported,) = (path for path in Path("runs/export/exp").iterdir() if path.stem.startswith("best"))
    size = ("--img-size", "96", "64", "--data", "tiny.data", "--workers", "0", "--resize", "stretch")
    for number, weights in enumerate((exported, "runs/train/exp/best.pt")):
        arguments = ("--weights", weights, *size, "--hard", "2", "--name", f"run{number}")
        status, _, err = run_main(analyze, "--score-mismatch", *arguments)
        assert status == 0, err
    first, second = (results(f"run{number}")["statistics"]["detectors"].popitem()[1] for number in (0, 1))
    assert first["scores"]["candidates"]["mismatch"] == second["scores"]["candidates"]["mismatch"]
    assert first["suppression"]["greedy"]["suppressed"] == second["suppression"]["greedy"]["suppressed"]
    assert any("--hard: by AP50 lost" in note for note in results("run0")["notes"])
    status, _, err = run_main(load_script("test"), "--weights", exported, *size, "--report")
    assert status == 0 and Path("runs/test/exp/report.html").is_file(), err
