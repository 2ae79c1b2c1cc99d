"""The detector of Python programs: what it finds, how it reads, what it refuses, and that threads may share it."""

import inspect
import math
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

import models
from engine.predictor import load
from models.checkpoints.darknet_weights import save_darknet_weights
from models.detector import Detector
from models.network import build_network_from_text
from models.nms_variants import NmsOptions
from tests.tiny_project import CFG, NAMES, random_network
from utils.errors import UserError
from utils.structures import ImageMeta


def images_of_sizes(*sizes_wh):
    generator = np.random.default_rng(3)
    return [cv2.resize(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8), size) for size in sizes_wh]


def assert_same(one, other):
    assert one.labels.tolist() == other.labels.tolist()
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)


def found_by_hand(image_bgr, side=96, stride=8):
    """Letterbox one image into the smallest input that holds it, in plain steps, and detect in it alone."""
    height, width = image_bgr.shape[:2]
    ratio = side / max(width, height)
    new_w, new_h = round(width * ratio), round(height * ratio)
    net_w, net_h = math.ceil(new_w / stride) * stride, math.ceil(new_h / stride) * stride
    left, top = (net_w - new_w) // 2, (net_h - new_h) // 2
    canvas = np.full((net_h, net_w, 3), 114, dtype=np.uint8)
    way = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    canvas[top : top + new_h, left : left + new_w] = cv2.resize(image_bgr, (new_w, new_h), interpolation=way)
    batch = torch.from_numpy(canvas[..., ::-1].transpose(2, 0, 1).copy())[None]
    meta = ImageMeta(0, "", (width, height), (new_w / width, new_h / height), (left, top))
    (found,) = Detector(random_network(), confidence=0.3, iou=0.45)(batch, [meta])
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_mixed_sizes_in_batches_equal_each_image_by_hand(project, batch_size):
    images = images_of_sizes((120, 80), (90, 130), (64, 64), (122, 80), (300, 20), (60, 40), (20, 200))
    results = list(load()(images, batch_size=batch_size))
    assert len(results) == 7
    for image, result in zip(images, results, strict=True):
        assert result.image_bgr is image and len(result) > 3
        assert_same(result.detections, found_by_hand(image))
        assert (result.boxes_xyxy >= 0).all() and (result.boxes_xyxy <= [*result.size_wh] * 2).all()


def test_what_is_found_does_not_depend_on_the_other_images(project):
    detector = load()
    images = images_of_sizes((120, 80), (90, 130), (60, 40))
    for image, result in zip(images, detector(images), strict=True):
        (alone,) = detector(image)
        assert_same(alone, result)


def test_stretched_as_darknet(project):
    (image,) = images_of_sizes((120, 80))
    (result,) = load(resize="stretch", img_size=(96, 64))(image)
    pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    batch = torch.nn.functional.interpolate(pixels, (64, 96), mode="bilinear", align_corners=True)
    (found,) = Detector(random_network(), 0.3, 0.45)(batch, [ImageMeta(0, "", (120, 80), (96 / 120, 64 / 80))])
    assert_same(result.detections, found)


def test_sizes_may_be_numbers_of_numpy(project):
    (image,) = images_of_sizes((120, 80))
    for mine, theirs in ((96, np.int64(96)), ((96, 64), np.array([96, 64]))):
        (expected,), (found,) = load(img_size=mine)(image), load(img_size=theirs)(image)
        assert_same(found, expected)


def test_eight_threads_find_what_one_finds(project):
    detector = load()
    images = images_of_sizes(*((60 + 7 * n % 50, 40 + 11 * n % 60) for n in range(24)))

    def boxes(part):
        return [result.detections for result in detector(images[part:] + images[:part], batch_size=5, confidence=0.25)]

    alone = [boxes(part) for part in range(8)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(boxes, range(8)))
    for expected, found in zip(alone, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert_same(one, other)


def test_threads_may_differ_in_thresholds(project):
    detector = load()
    images = images_of_sizes(*[(60, 40)] * 6)
    settings = [{"confidence": c, "max_detections": m} for c in (0.2, 0.3, 0.4, 0.5) for m in (1, 300)]

    def counts(setting):
        return [len(result) for _ in range(3) for result in detector(images, **setting)]

    alone = [counts(setting) for setting in settings]
    assert len({tuple(found) for found in alone}) > 3
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(counts, settings)) == alone


class SlowCount(int):
    """A number that lets other threads run while it is added to."""

    def __add__(self, other):
        time.sleep(0.002)
        return SlowCount(int(self) + other)


def test_the_counter_of_images_loses_none_of_another_thread(project):
    detector = load()
    detector.detector.images_seen = SlowCount()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(detector.predict_batch, [images_of_sizes((60, 40))] * 40))
    assert detector.detector.speed().images == 40


def test_thresholds_of_a_call(project):
    detector = load()
    (image,) = images_of_sizes((120, 80))
    (usual,) = detector(image)
    (few,) = detector(image, max_detections=2)
    assert_same(few.detections, usual.detections.select(torch.arange(2)))
    (sure,) = detector(image, confidence=0.5)
    assert_same(sure.detections, usual.detections.select(usual.detections.scores > 0.5))
    (bars,) = detector(image, classes="bar")
    assert_same(bars.detections, usual.detections.select(usual.detections.labels == 2))
    (chosen,) = detector(image, classes=[NAMES[1], 2])
    assert set(chosen.labels.tolist()) == {1, 2}
    (agnostic,) = detector(image, agnostic=True, iou=0.2)
    (each,) = detector(image, iou=0.2)
    assert 0 < len(agnostic) < len(each)
    (again,) = detector(image)
    assert_same(again, usual)


def test_a_generator_is_read_by_the_batch_and_only_when_asked(project):
    read = []

    def images():
        for image in images_of_sizes(*[(60, 40)] * 10):
            read.append(1)
            yield image

    results = load()(images(), batch_size=3)
    assert read == []
    next(results)
    assert len(read) == 3
    next(results), next(results), next(results)
    assert len(read) == 6
    assert len(list(results)) == 6 and len(read) == 10


def test_what_came_before_a_problem_is_given_first(project):
    (project / "images/003.png").write_bytes(b"no picture")
    seen = []
    with pytest.raises(UserError, match=r"003\.png: not an image"):
        seen.extend(result.path for result in load()("images", batch_size=8))
    assert seen == [f"images/00{n}.png" for n in range(3)]

    def failing():
        yield from images_of_sizes((60, 40), (60, 40))
        raise KeyError("the user's own mistake")

    seen = []
    with pytest.raises(KeyError, match="own mistake"):
        seen.extend(load()(failing(), batch_size=8))
    assert len(seen) == 2
    assert list(load()([])) == []


def test_frames_of_a_video_have_numbers_and_images_none(project):
    video = cv2.VideoWriter("film.avi", cv2.VideoWriter.fourcc(*"MJPG"), 4.0, (64, 48))
    for image in images_of_sizes(*[(64, 48)] * 3):
        video.write(image)
    video.release()
    results = list(load()(["film.avi", "images/000.png"]))
    assert [result.frame for result in results] == [0, 1, 2, None]
    assert [result.path for result in results] == ["film.avi"] * 3 + ["images/000.png"]


def test_what_it_says_of_itself(project, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})  # no fast 16-bit numbers
    detector = load("runs/train/exp/best.pt", device="cpu", img_size=96)
    assert repr(detector) == (
        "<detector runs/train/exp/best.pt (tiny.cfg): 3 classes, letterbox to 96x96 (as these weights were trained), "
        "float32 on cpu>"
    )
    assert detector.names == NAMES and detector.input_wh == (96, 96) and detector.device == torch.device("cpu")
    assert load(device=torch.device("cpu"), half=True).detector.dtype == torch.float32
    assert "float32" in capsys.readouterr().out
    detector.warm_up(batch_size=2)
    assert detector.detector.speed().images == 0


def darknet_weights(folder, classes):
    text = CFG.replace("classes=3", f"classes={classes}").replace("filters=24", f"filters={3 * (5 + classes)}")
    (folder / "foreign.cfg").write_text(text)
    save_darknet_weights(build_network_from_text(text, "foreign.cfg"), folder / "foreign.weights", seen=0)


def test_names_of_weights_that_know_none(project):
    darknet_weights(project, 3)
    (project / "greek.names").write_text("alpha\nbeta\ngamma\n")
    (project / "greek.yaml").write_text("nc: 3\nnames: [alpha, beta, gamma]\ntrain: images\nval: images\n")
    assert load("foreign.weights").names == ("class 0", "class 1", "class 2")
    assert load("foreign.weights", names="tiny.data").names == NAMES
    greek = ("alpha", "beta", "gamma")
    for names in ("greek.names", project / "greek.names", "greek.yaml", greek, list(greek)):
        assert load("foreign.weights", names=names).names == greek
    darknet_weights(project, 80)
    assert load("foreign.weights").names[::79] == ("person", "toothbrush")
    (result,) = load("foreign.weights", names=[f"kind {n}" for n in range(80)])("images/000.png", confidence=0.1)
    assert result.names[79] == "kind 79"


def test_real_weights_of_darknet_have_names(shared):
    detector = load(shared / "data/weights/yolo-fastest-1.1/yolo-fastest-1.1.weights", device="cpu")
    (result,) = detector(shared / "data/coco/images/val2017/000000000285.jpg")
    assert [result.names[label] for label in result.labels] == ["bear"]


def test_a_gpu_finds_what_the_cpu_finds(project, device):
    images = images_of_sizes((120, 80), (90, 130), (122, 80))
    on_cpu = load(device="cpu")
    for half in (False, True):
        detector = load(device=device, half=half)
        detector.warm_up()
        for one, other in zip(on_cpu(images), detector(images, classes=[0, 1, 2]), strict=True):
            assert other.boxes_xyxy.dtype == other.scores.dtype == np.float32
            np.testing.assert_allclose(one.scores[:3], other.scores[:3], atol=0.03 if half else 1e-3)


def test_names_in_another_order_decide_the_order_of_the_classes(project, capsys):
    (usual,) = load()("images/000.png")
    (turned,) = load(names=list(reversed(NAMES)))("images/000.png")
    assert "mapped by name" in capsys.readouterr().out
    expected = [usual.names[label] for label in usual.labels]
    assert [turned.names[label] for label in turned.labels] == expected and len(set(expected)) > 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"weights": "nothing.pt"}, "nothing.pt"),
        ({"img_size": 100}, "96 or 104"),
        ({"img_size": (96, 96, 3)}, "width and height"),
        ({"resize": "crop"}, "auto, letterbox, stretch"),
        ({"decode": "x"}, "cfg, scaled"),
        ({"names": ["a", "b"]}, "names: has 2 class names"),
        ({"names": "nothing.names"}, "nothing.names"),
        ({"names": {0: "a", 1: "b", 2: "c"}}, "list of class names"),
        ({"device": "warp"}, "warp"),
    ],
)
def test_mistakes_in_loading_are_one_line(project, arguments, words):
    with pytest.raises(UserError) as caught:
        load(**arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "at least 1"),
        ({"max_detections": 0}, "at least 1"),
        ({"confidence": 1.5}, "between 0 and 1"),
        ({"iou": float("nan")}, "between 0 and 1"),
        ({"classes": "Wurfel"}, "did you mean 'Würfel'"),
        ({"classes": [3]}, "3: not a class"),
        ({"color": "hsv"}, "bgr, rgb"),
    ],
)
def test_mistakes_in_a_call_are_said_at_once(project, arguments, words):
    detector = load()
    with pytest.raises(UserError, match=words):
        detector("images", **arguments)


def test_models_hands_it_out_and_nothing_else(project):
    assert models.load is load
    assert "weights" in inspect.signature(models.load).parameters
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        models.loda  # noqa: B018


def test_another_kind_of_suppression_of_the_same_network(project):
    detector = load()
    images = images_of_sizes((120, 80), (90, 130))
    linear = detector.with_nms("soft-linear")
    assert linear.detector.network is detector.detector.network and detector.detector.nms == NmsOptions()
    for result in linear(images, confidence=0.2, iou=0.4, agnostic=True):
        assert result.scores.min() > 0.2
    numbers = [
        [len(result) for result in one(images, confidence=0.1, iou=0.2)]
        for one in (detector, detector.with_nms("cfg"), linear)
    ]
    assert numbers[0] == numbers[1] != numbers[2]
    for arguments in (("soft",), ("soft-gaussian", 0.0), ("greedy", 0.3)):
        with pytest.raises(UserError, match="--nms"):
            detector.with_nms(*arguments)
