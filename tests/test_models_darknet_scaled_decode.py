"""``--decode scaled``: boxes by plain loops, the cfg that says the same to Darknet, warnings, and the scripts."""

import json
import math
from pathlib import Path

import pytest
import torch

import train
from engine import recipes
from models.checkpoints.darknet_weights import save_darknet_weights
from models.checkpoints.format import read_checkpoint
from models.darknet.cfg import parse_cfg_text
from models.darknet.scaled_decode import decode_warning, with_scaled_decode
from models.detector import Detector
from models.exact_heads import CellHead
from models.heads import decode_map
from models.network import build_network, build_network_from_text, decode_scaled
from tests.tiny_project import CFG, NAMES, make_project, random_network
from utils.errors import UserError
from utils.structures import ImageMeta

NET = "[net]\nwidth=64\nheight=32\nchannels=3\n"
CONV = "[convolutional]\nfilters=14\nsize=3\nstride=8\npad=1\nactivation=linear\n"
YOLO = "[yolo]\nmask=0,1\nanchors=8,9, 20,30\nclasses=2\nnum=2\nscale_x_y=1.05 # of no effect\n"
VECTORS = "[maxpool]\nsize=1\nstride=1\n[implicit_mul]\nfilters=14\n[implicit_add]\nfilters=14\n[route]\nlayers=0\n"
YOLOR = VECTORS + CONV + "[shift_channels]\nfrom=2\n[control_channels]\nfrom=1\n" + YOLO


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def plain_boxes(raw, anchors_wh, stride):
    """The boxes of one image by the code of ScaledYOLOv4: (2 s - 1/2 + cell) stride, (2 s)^2 anchor."""
    boxes = []
    for anchor, (width, height) in enumerate(anchors_wh):
        for row in range(raw.shape[1]):
            for col in range(raw.shape[2]):
                x, y, w, h = (2 * sigmoid(number) for number in raw[anchor, row, col, :4].tolist())
                boxes.append([(x - 0.5 + col) * stride, (y - 0.5 + row) * stride, w * w * width, h * h * height])
    return torch.tensor(boxes)


@pytest.mark.parametrize("text", [NET + CONV + YOLO, NET + YOLOR, NET + CONV + YOLO.replace("1.05", "2.0")],
                         ids=["linear", "yolor", "scale 2"])  # fmt: skip
def test_boxes_are_those_of_plain_loops(text):
    network = build_network_from_text(text, "x.cfg").eval()
    scaled = decode_scaled(network).eval()
    assert not isinstance(scaled.heads[0], CellHead) and scaled.no_training is None  # it trains
    image = torch.rand(1, 3, 32, 64) * 9
    (raw,), (before,) = scaled(image), network(image)
    assert torch.equal(raw, before)  # logits as before: only what they mean has changed
    boxes = (decode_map(raw, scaled.heads[0]) * 8).flatten(0, 3)
    expected = plain_boxes(raw[0].double(), scaled.heads[0].anchors_wh, 8)
    torch.testing.assert_close(boxes, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose((decode_map(raw, network.heads[0]) * 8).flatten(0, 3), expected, atol=0.1)


@pytest.mark.parametrize("text", [NET + CONV + YOLO, NET + YOLOR])
def test_the_text_says_it_to_whoever_reads_it(text):
    network = build_network_from_text(text, "x.cfg")
    scaled = decode_scaled(network)
    again = build_network_from_text(scaled.cfg_text, "x.cfg")
    again.load_state_dict(network.state_dict())
    image = torch.rand(2, 3, 32, 64)
    assert torch.equal(again(image)[0], scaled(image)[0])
    assert (again.heads[0].new_coords, again.heads[0].scale_x_y) == (True, 2.0)
    assert vars(again.heads[0]) == vars(scaled.heads[0])
    assert decode_scaled(again).cfg_text == scaled.cfg_text  # once is enough


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_three_values_of_the_text_change(ending):
    text = (NET + CONV + YOLO).replace("\n", ending)
    expected = text.replace("activation=linear", "activation=logistic").replace("=1.05 #", "=2.0 #")
    expected = expected.replace("[yolo]", f"[yolo]{ending}new_coords=1")
    assert with_scaled_decode(parse_cfg_text(text, "x.cfg")).text == expected
    # Where the keys are missing they follow the header.
    bare = text.replace(f"scale_x_y=1.05 # of no effect{ending}", "")
    assert f"[yolo]{ending}new_coords=1{ending}scale_x_y=2.0{ending}mask" in (
        with_scaled_decode(parse_cfg_text(bare, "x.cfg")).text
    )


def test_new_coords_behind_a_linear_convolution_then_reads_logits():
    """Darknet takes the numbers of such a file for probabilities, the code of those repositories for logits."""
    text = NET + CONV + YOLO + "new_coords=1\n"
    network = build_network_from_text(text, "x.cfg")
    assert isinstance(network.heads[0], CellHead) and network.no_training
    scaled = decode_scaled(network)
    assert not isinstance(scaled.heads[0], CellHead) and scaled.no_training is None
    (raw,) = scaled(torch.rand(1, 3, 32, 64))
    expected = plain_boxes(raw[0].double(), scaled.heads[0].anchors_wh, 8)
    torch.testing.assert_close((decode_map(raw, scaled.heads[0]) * 8).flatten(0, 3), expected, rtol=1e-5, atol=1e-5)


def test_what_is_in_darknets_words_already_stays():
    text = (NET + CONV + YOLO).replace("linear", "logistic") + "new_coords=1\n"
    assert with_scaled_decode(parse_cfg_text(text, "x.cfg")).text == text


REFUSED = [
    (NET + CONV.replace("linear", "leaky") + YOLO, "x.cfg:11: [yolo] --decode scaled: needs a layer with activation="),
    (NET + CONV + "[dropout]\n" + YOLO, "x.cfg:12: [yolo] --decode scaled: needs a layer with activation="),
    (NET + CONV + "[region]\nanchors=1,1, 2,2\nnum=2\nclasses=2\n", "x.cfg: --decode scaled is for [yolo] heads"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_decoded_so_is_one_line(text, message):
    with pytest.raises(UserError) as caught:
        with_scaled_decode(parse_cfg_text(text, "x.cfg"))
    assert str(caught.value).startswith(message)


WARNED = [
    (CONV + YOLO, True),
    (CONV + YOLO.replace("1.05", "2"), True),
    (CONV + YOLO + CONV + YOLO, True),
    (CONV + YOLO + "new_coords=1\n", False),
    (CONV + YOLO.replace("1.05", "1.1"), False),
    (CONV + YOLO.replace("scale_x_y=1.05 # of no effect\n", ""), False),
    (CONV + YOLO + CONV + YOLO.replace("1.05", "1.2"), False),  # as yolov4.cfg, where it has its effect
]


@pytest.mark.parametrize(("layers", "warned"), WARNED)
def test_a_warning_where_a_file_may_be_one_of_theirs(layers, warned):
    line = decode_warning(parse_cfg_text(NET + layers, "x.cfg"))
    assert bool(line) == warned
    if warned:
        assert line.startswith("x.cfg:16: WARNING: scale_x_y=") and line.endswith("add --decode scaled")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The tiny project, with Darknet weights and a cfg whose scale_x_y raises the suspicion."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("odd.cfg").write_text(CFG + "scale_x_y=1.05\n")
    network = random_network()
    save_darknet_weights(network, "odd.weights")
    return tmp_path


WARNING = "odd.cfg:35: WARNING: scale_x_y=1.05 without new_coords"
LOOK = ("--weights", "odd.weights", "--cfg", "odd.cfg", "--device", "cpu")


def detections_of(run_main, *arguments):
    import detect

    status, out, error = run_main(detect, "--source", "images", "--save-json", "--nosave", *arguments)
    assert status == 0, error
    folder = max(Path("runs/detect").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return json.loads((folder / "detections.json").read_text()), out


def test_detect_test_and_analyze_decode_as_asked(project, run_main):
    import analyze
    import test as script_test

    as_darknet, out = detections_of(run_main, *LOOK)
    assert WARNING in out
    scaled, out = detections_of(run_main, *LOOK, "--decode", "scaled")
    assert WARNING not in out and scaled != as_darknet
    # The same as a cfg that says it.
    Path("odd.cfg").write_text(with_scaled_decode(parse_cfg_text(Path("odd.cfg").read_text(), "odd.cfg")).text)
    written, out = detections_of(run_main, *LOOK)
    assert written == scaled and WARNING not in out
    again, out = detections_of(run_main, *LOOK, "--decode", "scaled")
    assert again == scaled and "--decode scaled changes nothing: odd.cfg says new_coords=1 itself" in out
    Path("odd.cfg").write_text(CFG + "scale_x_y=1.05\n")

    given = (*LOOK, "--data", "tiny.data", "--workers", "0", "--decode", "scaled")
    status, out, error = run_main(script_test, *given)
    assert status == 0 and WARNING not in out, error
    assert json.loads(Path("runs/test/exp/metrics.json").read_text())["options"]["decode"] == "scaled"
    status, out, error = run_main(analyze, "--matching-stats", *given, "--draw-lost", "0")
    assert status == 0 and WARNING not in out, error
    status, out, error = run_main(analyze, "--matching-stats", *given[:-2], "--draw-lost", "0")
    assert status == 0 and WARNING in out, error


def test_a_training_keeps_its_decode(project, run_main):
    given = ("--data", "tiny.data", "--img-size", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu")
    shared = (*given, "--epochs", "1", "--notest", *LOOK[:4])
    status, out, error = run_main(train, *shared, "--decode", "scaled", "--name", "a")
    assert status == 0 and "yolov5.yaml" in out and "WARNING" not in out, error
    checkpoint = read_checkpoint("runs/train/a/last.pt")
    network = build_network_from_text(checkpoint["cfg_text"], "odd.cfg", len(NAMES))
    assert network.heads[0].new_coords and checkpoint["options"]["decode"] == "scaled"

    # Whoever goes on from these weights decodes so, too: the cfg on the disk says otherwise.
    found, _ = detections_of(run_main, "--weights", "runs/train/a/last.pt", "--conf-thres", "0.001")
    with_cfg, _ = detections_of(
        run_main, "--weights", "runs/train/a/last.pt", "--cfg", "odd.cfg", "--conf-thres", "0.001"
    )
    assert found == with_cfg and found
    status, _, error = run_main(train, *given, "--epochs", "1", "--weights", "runs/train/a/last.pt", "--name", "b")
    assert status == 0, error
    assert read_checkpoint("runs/train/b/last.pt")["options"]["decode"] == "scaled"
    status, _, error = run_main(train, "--resume", "runs/train/b", "--epochs", "2")
    assert status == 0, error
    assert "new_coords=1" in read_checkpoint("runs/train/b/last.pt")["cfg_text"]


def test_a_training_from_foreign_weights_warns(project, run_main):
    given = ("--data", "tiny.data", "--img-size", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu")
    status, out, error = run_main(train, *given, "--epochs", "1", "--notest", "--cfg", "odd.cfg", *LOOK[:2])
    assert status == 0 and WARNING in out, error


def test_the_recipe_follows_the_decode(project):
    assert recipes.default_recipe("odd.cfg") == "yolov3.yaml"
    assert recipes.default_recipe("odd.cfg", "scaled") == "yolov5.yaml"


def test_detections_are_clipped_and_scored_as_always(project):
    network = decode_scaled(build_network("odd.cfg")).eval()
    network.load_state_dict(random_network().state_dict())
    image = (torch.rand(1, 3, 64, 96) * 255).byte()
    (found,) = Detector(network, confidence=0.01)(image, [ImageMeta(0, "", (96, 64), (1.0, 1.0))])
    assert len(found.scores) and (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy[:, 2] <= 96).all()
