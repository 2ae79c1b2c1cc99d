"""kmeans_anchors.py as a user types it: the line for the cfg, the written cfg, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kmeans_anchors
from models.network import build_network
from utils.config import REPOSITORY


@pytest.fixture
def run(tmp_path, monkeypatch, run_main):
    """Run kmeans_anchors.py's main in an empty folder, without drawing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch())
    return lambda *arguments: run_main(kmeans_anchors, *arguments)


@pytest.fixture
def data(tmp_path):
    """A COCO JSON with boxes of three clear sizes (20 x 10, 60 x 60, 100 x 200) and a crowd region of another."""
    rng = np.random.default_rng(0)
    sizes = np.repeat([(20, 10), (60, 60), (100, 200)], 20, axis=0) + rng.uniform(-0.5, 0.5, (60, 2))
    boxes = [[5.0, 5.0, float(w), float(h)] for w, h in sizes]
    rows = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0} for i, box in enumerate(boxes, 1)]
    rows.append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 300, 300], "iscrowd": 1})
    return write(tmp_path, rows)


def write(folder, annotations):
    images = [{"id": 1, "width": 416, "height": 416, "file_name": "a.jpg"}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def document():
    return json.loads(Path("runs/analyze/kmeans-anchors/results.json").read_text())


def test_finds_the_sizes_and_prints_the_line(run, data):
    status, out, _ = run("--data", data, "--cfg", "yolov3.cfg", "--num", 3, "--method", "iou")
    assert status == 0
    result = document()
    assert (result["schema"], result["mode"]) == ("yolo-lab-analysis-2", "kmeans-anchors")
    statistics = result["statistics"]
    np.testing.assert_allclose(statistics["found"]["anchors"], [(20, 10), (60, 60), (100, 200)], atol=0.5)
    np.testing.assert_allclose(statistics["found"]["aspect_ratios"], [2, 1, 0.5], atol=0.05)
    assert statistics["found"]["boxes_per_anchor"] == [20, 20, 20]
    assert statistics["boxes"] == 60  # the crowd region is no object
    assert len(statistics["present"]["anchors"]) == 9
    assert statistics["found"]["mean_iou"] > statistics["present"]["mean_iou"]
    line = next(line for line in out.splitlines() if line.startswith("anchors = "))
    assert line == statistics["anchors_line"]
    numbers = [float(number) for number in line.removeprefix("anchors = ").split(",")]
    assert numbers == [side for anchor in statistics["found"]["anchors"] for side in anchor]
    assert Path("runs/analyze/kmeans-anchors/anchors.png").exists()


def test_image_size_scales_the_boxes(run, data):
    assert run("--data", data, "--num", 3, "--method", "iou", "--img-size", 832)[0] == 0
    np.testing.assert_allclose(
        document()["statistics"]["found"]["anchors"], [(40, 20), (120, 120), (200, 400)], atol=1.0
    )


def test_several_image_sizes_are_taken_together(run, data):
    assert run("--data", data, "--num", 6, "--method", "iou", "--sides", 416, 832)[0] == 0
    statistics = document()["statistics"]
    assert statistics["boxes"] == 120
    expected = [(20, 10), (40, 20), (60, 60), (120, 120), (100, 200), (200, 400)]
    np.testing.assert_allclose(sorted(statistics["found"]["anchors"]), sorted(expected), atol=1.0)


CFG = """[net]
width=64
height=64
channels=3

[convolutional]
filters=12  # 2 anchors x (5 + 1)
size=1
stride=1
activation=linear

[yolo]
mask = 1,2 ; which of them
  anchors = 1,2,  3,4,  5,6   # made by hand
classes=1
num=3

[route]
layers=-2

[convolutional]
filters=12
size=1
stride=1
activation=linear

[yolo]
mask=0,1
Anchors=1,2,3,4,5,6
classes=1
num=3
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_written_cfg_has_the_anchors_in_every_head_and_nothing_else_changed(run, data, tmp_path, ending):
    source = tmp_path / "mine.cfg"
    source.write_bytes(CFG.replace("\n", ending).encode())
    status, out, error = run(
        "--data", data, "--cfg", source, "--img-size", 416, "--method", "kmeans", "--write", "new.cfg"
    )
    assert (status, error) == (0, "")
    assert "new.cfg" in out
    anchors = document()["statistics"]["found"]["anchors"]
    numbers = ",  ".join(f"{w:.10g},{h:.10g}" for w, h in anchors)
    expected = CFG.replace("1,2,  3,4,  5,6", numbers).replace("Anchors=1,2,3,4,5,6", f"Anchors={numbers}")
    assert Path("new.cfg").read_bytes().decode() == expected.replace("\n", ending)
    assert "# made by hand" in Path("new.cfg").read_text()

    network = build_network("new.cfg")
    assert network.heads[0].anchors_wh == tuple(map(tuple, anchors[1:]))
    assert network.heads[1].anchors_wh == tuple(map(tuple, anchors[:2]))


@pytest.mark.parametrize("cfg", ["yolov3-nano.cfg", "yolov3-tiny.cfg", "yolov3.cfg"])
def test_written_cfg_of_a_shipped_network_builds(run, data, cfg):
    assert run("--data", data, "--cfg", cfg, "--method", "iou", "--restarts", 2, "--write", "new.cfg")[0] == 0
    with torch.device("meta"):
        network = build_network("new.cfg", 1)
    anchors = document()["statistics"]["found"]["anchors"]
    np.testing.assert_allclose(network.heads[0].all_anchors_wh, anchors)
    before, after = (REPOSITORY / "cfg" / cfg).read_text().splitlines(), Path("new.cfg").read_text().splitlines()
    differing = [a for a, b in zip(before, after, strict=True) if a != b]
    assert len(differing) == len(network.heads)
    assert all(line.startswith("anchors") for line in differing)


def test_as_calc_anchors_images_are_stretched_and_classes_counted(run, tmp_path):
    """Images of 200 x 100 and 100 x 200 at 416 x 256: a box of 50 x 50 has 104 x 128 in one, 208 x 64 in the other."""
    boxes = [(1, 1, 50, 50)] * 3 + [(2, 2, 50, 50)] * 2 + [(1, 2, 25, 12.5)] + [(2, 1, 20, 100)]  # image, class, w, h
    boxes += [(1, 1, 50 + step, 50) for step in (0.5, 1.0)]
    rows = [
        {"id": i, "image_id": image, "category_id": label, "bbox": [0, 0, w, h], "iscrowd": 0}
        for i, (image, label, w, h) in enumerate(boxes, 1)
    ]
    images = [{"id": 1, "width": 200, "height": 100, "file_name": "a"}, {"id": 2, "width": 100, "height": 200,
              "file_name": "b"}]  # fmt: skip
    classes = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": classes}))
    given = ("--data", path, "--method", "iou", "--num", 4, "--width", 416, "--height", 256)
    status, out, error = run(*given)
    assert status == 0, error
    found = document()["statistics"]
    expected = [(52, 32), (104, 128), (208, 64), (83.2, 128)]
    np.testing.assert_allclose(sorted(found["found"]["anchors"]), sorted(expected), atol=1.5)
    assert found["counters_per_class"] == [6, 3, 0]  # the class without an object, too
    line = "counters_per_class = 6, 3, 0"
    assert line in out.splitlines() and "416x256" in out and "stretch" in out
    assert Path("runs/analyze/kmeans-anchors/counters_per_class.txt").read_text() == line
    of_input = {key: document()["data"][key] for key in ("img_size", "resize")}
    assert of_input == {"img_size": [416, 256], "resize": "stretch"}


# Of the cfg above: 5 anchors for its two heads of one grid are 3 and 2, with 6 filters each.
@pytest.mark.parametrize(("num", "masks"), [(5, ("0,1,2", "3,4")), (4, ("0,1", "2,3")), (2, ("0", "1"))])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_masks_and_filters_follow_the_number_of_anchors(run, data, tmp_path, num, masks, ending):
    source = tmp_path / "mine.cfg"
    source.write_bytes(CFG.replace("\n", ending).encode())
    given = ("--data", data, "--cfg", source, "--img-size", 416, "--method", "kmeans", "--num", num)
    status, _, error = run(*given, "--write", "new.cfg")
    assert (status, error) == (0, "")
    anchors = document()["statistics"]["found"]["anchors"]
    numbers = ",  ".join(f"{w:.10g},{h:.10g}" for w, h in anchors)
    expected = CFG.replace("1,2,  3,4,  5,6", numbers).replace("Anchors=1,2,3,4,5,6", f"Anchors={numbers}")
    expected = expected.replace("num=3", f"num={num}").replace("mask = 1,2 ;", f"mask = {masks[0]} ;")
    expected = expected.replace("mask=0,1\n", f"mask={masks[1]}\n")
    for mask in masks:  # one head after the other
        expected = expected.replace("filters=12", f"filters = {6 * (mask.count(',') + 1)}", 1)
    expected = expected.replace("filters = ", "filters=")
    assert Path("new.cfg").read_bytes().decode() == expected.replace("\n", ending)
    network = build_network("new.cfg")  # with the filters as they are written
    assert [len(head.anchors_wh) for head in network.heads] == [mask.count(",") + 1 for mask in masks]


OTHER_NUMBERS = [  # cfg, anchors, and how many of them each head has, the coarsest first
    ("yolov3-tiny.cfg", 5, (2, 3)),
    ("yolov3.cfg", 10, (3, 3, 4)),
    ("yolov2.cfg", 7, (7,)),
    ("yolov5n.cfg", 6, (2, 2, 2)),
]


@pytest.mark.parametrize(("cfg", "num", "coarse_first"), OTHER_NUMBERS)
def test_shipped_networks_with_another_number_of_anchors(run, data, cfg, num, coarse_first):
    given = ("--data", data, "--cfg", cfg, "--method", "iou", "--restarts", 2, "--num", num, "--write", "new.cfg")
    assert run(*given)[0] == 0
    with torch.device("meta"):
        before, network = build_network(REPOSITORY / "cfg" / cfg), build_network("new.cfg")
    by_stride = sorted(zip(network.heads, network.head_layers, strict=True), key=lambda pair: -pair[0].stride)
    assert tuple(len(head.anchors_wh) for head, _ in by_stride) == coarse_first
    found = document()["statistics"]["found"]["anchors"]
    largest_first = [anchor for head, _ in by_stride for anchor in reversed(head.anchors_wh)]
    np.testing.assert_allclose(largest_first, found[::-1], atol=1e-6)
    assert network.num_classes == before.num_classes  # that of the cfg, not of the data
    assert sum(len(layer.state_dict()) for layer in network.layers) == sum(len(m.state_dict()) for m in before.layers)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("filters=12  #", "groups=4\nfilters=12 #", "groups=4 must divide"),
    ("[yolo]\nmask = 1,2", "[upsample]\nstride=1\n\n[yolo]\nmask = 1,2", "needs a [convolutional] before it"),
])  # fmt: skip
def test_filters_that_cannot_follow_are_told_before_the_search(run, data, tmp_path, old, new, words):
    source = tmp_path / "mine.cfg"
    source.write_text(CFG.replace(old, new, 1).replace("channels=3\n", "channels=3\n\n[convolutional]\nfilters=4\n"))
    given = ("--data", data, "--cfg", source, "--img-size", 416, "--num", 5, "--write", "new.cfg")
    status, out, error = run(*given)
    assert (status, len(error.strip().splitlines())) == (2, 1) and words in error
    assert "kmeans_anchors:" not in out and not Path("new.cfg").exists()


def test_counters_of_the_classes_are_replaced_where_they_are_written_for_as_many(run, data, tmp_path):
    source = tmp_path / "mine.cfg"
    text = CFG.replace("mask = 1,2 ;", "counters_per_class = 7 # many\nmask = 1,2 ;")
    head, classes = "mask=0,1\nAnchors=1,2,3,4,5,6\nclasses=", "counters_per_class = 4, 5\n"
    source.write_text(text.replace(f"{head}1\n", f"{head}2\n{classes}"))  # of two classes; the data have one
    given = ("--data", data, "--cfg", source, "--img-size", 416, "--method", "kmeans", "--write", "new.cfg")
    assert run(*given)[0] == 0
    assert "counters_per_class = 60 # many\n" in Path("new.cfg").read_text()
    assert classes in Path("new.cfg").read_text()


def test_heads_with_anchors_of_their_own_are_refused(run, data, tmp_path):
    source = tmp_path / "mine.cfg"
    source.write_text(CFG.replace("Anchors=1,2,3,4,5,6", "Anchors=1,2,3,4,5,7"))
    status, _, error = run("--data", data, "--cfg", source, "--img-size", 416)
    assert (status, len(error.strip().splitlines())) == (2, 1)
    line = source.read_text().splitlines().index("Anchors=1,2,3,4,5,7") + 1
    assert f"mine.cfg:{line}: " in error and "other anchors than the first [yolo]" in error


@pytest.mark.slow
def test_written_cfg_trains(run, data, monkeypatch):
    """One step of the loss on the found anchors gives gradients to every head."""
    from models.assignment.options import AssignmentOptions
    from models.loss import LossOptions, build_loss
    from utils.structures import Targets

    assert run("--data", data, "--cfg", "yolov3-nano.cfg", "--method", "iou", "--write", "new.cfg")[0] == 0
    network = build_network("new.cfg", 1)
    boxes = torch.tensor([(0.3, 0.3, 20 / 416, 10 / 416), (0.5, 0.5, 60 / 416, 60 / 416), (0.5, 0.5, 0.24, 0.48)])
    targets = Targets(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), boxes)
    result = build_loss(LossOptions(), AssignmentOptions(), network.heads)(network(torch.rand(1, 3, 416, 416)), targets)
    sum(result.parts.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num", 1, "--write", "new.cfg"), "--num 1: each of the 3 heads of"),
        (("--width", 416), "--width and --height belong together"),
        (("--width", 416, "--height", 250), "250 is not a multiple of 32"),
        (("--width", 416, "--height", 256, "--img-size", 416), "leave the others out"),
        (("--cfg", "yolov3.cfg", "--write", "boxes.json"), "boxes.json: exists already"),
        (("--num", 1000), "too few for 1000 anchors"),
        (("--method", "linear", "--num", 10), "no multiple of 3"),
        (("--match", "best"), "unknown strategy 'best'"),
        (("--method", "iou", "--ratios", 1, 2), "--ratios is not used by --method iou; used by: linear, geometric"),
        (("--method", "kmeans", "--match", "ratio"), "--match is not used by --method kmeans"),
        (("--img-size", 100), "multiple of 32"),
        (("--cfg", "none.cfg"), "none.cfg"),
        (("--data", "none.data"), "none.data"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, data, arguments, message):
    given = () if "--data" in arguments else ("--data", data)
    status, _, error = run(*given, *arguments)
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert message in error
    assert not Path("new.cfg").exists()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_box_one_box_and_fewer_sizes_than_anchors(run, tmp_path, count):
    rows = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10 + i, 20], "iscrowd": 0} for i in range(count)
    ]
    status, _, error = run("--data", write(tmp_path, rows), "--num", 3)
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert ("no box" if count == 0 else "too few for 3 anchors") in error


def test_label_problems_are_told(run, tmp_path, data):
    content = json.loads(data.read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 10]
    data.write_text(json.dumps(content))
    status, out, _ = run("--data", data, "--method", "iou", "--num", 3, "--cfg", "yolov3.cfg")
    assert status == 0 and "labels: 1 x zero or negative size" in out
    assert any("zero or negative size" in note for note in document()["notes"])
