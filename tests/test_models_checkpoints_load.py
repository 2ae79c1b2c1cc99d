"""Weights of every kind: told apart by their content, with the cfg that belongs to them."""

import os
import pickle
import zipfile

import pytest
import torch

from models.checkpoints.darknet_weights import save_darknet_weights
from models.checkpoints.format import save_checkpoint
from models.checkpoints.load import load_network, load_weights
from models.network import build_network_from_text
from tests.tiny_project import CFG, NAMES, random_network, save_run
from utils.errors import UserError


def same_weights(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


def test_our_checkpoint_needs_no_cfg_and_prefers_the_average(tmp_path):
    network, raw = random_network(0), random_network(1)
    path = save_run(tmp_path, network)
    content = torch.load(path, weights_only=True) | {"model": raw.state_dict()}
    save_checkpoint(path, content)
    loaded = load_network(path)
    assert same_weights(loaded.network, network) and loaded.names == NAMES
    assert loaded.options["img_size"] == [96] and loaded.report.complete
    del content["ema"]
    save_checkpoint(path, content)
    assert same_weights(load_network(path).network, raw)


def test_darknet_weights_are_known_by_content_and_find_their_cfg(tmp_path):
    network = random_network()
    (tmp_path / "mine.cfg").write_text(CFG)
    save_darknet_weights(network, tmp_path / "mine.pt", seen=5)  # the suffix is wrong
    loaded = load_network(tmp_path / "mine.pt")
    assert loaded.names == () and loaded.options == {} and loaded.report.seen == 5
    for ours, theirs in zip(network.parameters(), loaded.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    os.rename(tmp_path / "mine.cfg", tmp_path / "other.cfg")
    with pytest.raises(UserError, match="--cfg"):
        load_network(tmp_path / "mine.pt")
    assert load_network(tmp_path / "mine.pt", tmp_path / "other.cfg").report.complete


def test_official_yolov5_weights(shared):
    loaded = load_network(shared / "data/weights/yolov5n.pt")
    assert loaded.names[0] == "person" and loaded.network.num_classes == 80 and loaded.report.complete


def test_training_starts_from_weights_of_other_classes(tmp_path):
    path = save_run(tmp_path, random_network())
    network = build_network_from_text(CFG, "tiny.cfg", num_classes=2)
    fresh = network.head_convolution(0).conv.weight.detach().clone()
    report = load_weights(network, path)
    assert report.filled == 2 and report.skipped == (2,) and "start fresh" in str(report)
    assert torch.equal(network.head_convolution(0).conv.weight, fresh)
    assert torch.equal(network.layers[0].conv.weight, random_network().layers[0].conv.weight)
    with pytest.raises(UserError, match="2 of the 3 layers"):  # but nothing is tested with fresh layers
        load_network(path, num_classes=2)


def test_what_is_not_tested_with_fresh_layers_names_both_numbers_of_classes(tmp_path):
    network = random_network()
    save_darknet_weights(network, tmp_path / "tiny.weights")
    save_darknet_weights(network, tmp_path / "tiny.conv.1", upto=1)
    (tmp_path / "tiny.cfg").write_text(CFG)
    (tmp_path / "edited.cfg").write_text(CFG.replace("classes=3", "classes=7").replace("filters=24", "filters=36"))
    words = r"fills 2 of the 3 layers of .*; made for 3 classes, and this network has 7: train it first"
    for path, choice in (
        (tmp_path / "tiny.weights", {"cfg": tmp_path / "edited.cfg"}),
        (tmp_path / "tiny.weights", {"num_classes": 7}),
        (save_run(tmp_path, network), {"num_classes": 7}),
    ):
        with pytest.raises(UserError, match=words):
            load_network(path, **choice)
    with pytest.raises(UserError, match=r"fills 1 of the 3 layers of .*; a backbone: train it first"):
        load_network(tmp_path / "tiny.conv.1", tmp_path / "edited.cfg")


@pytest.mark.parametrize(
    "change, words",
    [
        (("filters=16", "filters=20"), "layer 1 .*line 15.* needs 20x8x3x3, the file has 16x8x3x3"),
        (("batch_normalize=1\nfilters=8", "filters=8"), "layer 0 .* needs 8, the file has nothing"),
        (("[yolo]", "[convolutional]\nfilters=24\nactivation=linear\n\n[yolo]"), "layer 3 .*nothing"),
    ],
)
def test_weights_of_another_cfg_name_the_first_layer(tmp_path, change, words):
    path = save_run(tmp_path, random_network())
    (tmp_path / "other.cfg").write_text(CFG.replace(*change, 1))
    for attempt in (
        lambda: load_network(path, tmp_path / "other.cfg"),
        lambda: load_weights(build_network_from_text((tmp_path / "other.cfg").read_text(), "other.cfg"), path),
    ):
        with pytest.raises(UserError, match=words):
            attempt()


def test_a_file_with_more_layers_than_the_cfg_is_refused(tmp_path):
    path = save_run(tmp_path, build_network_from_text(CFG.replace("[yolo]", EXTRA + "[yolo]"), "long.cfg"))
    with pytest.raises(UserError, match="another cfg"):
        load_network(path)  # the checkpoint says tiny.cfg


EXTRA = "[convolutional]\nfilters=24\nsize=1\nactivation=linear\n\n"


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/yolo_lab_evil",)


def test_bad_files(tmp_path):
    good = save_run(tmp_path, random_network()).read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, this is no network")
    (tmp_path / "cut").write_bytes(good[: len(good) // 2])
    (tmp_path / "pickle").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, tmp_path / "evil")
    torch.save({"a": 1}, tmp_path / "foreign")
    save_checkpoint(tmp_path / "bare", {"names": ["a"]})
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("empty", "text", "cut", "pickle", "evil", "foreign", "bare", "zip", "missing"):
        with pytest.raises(UserError) as caught:
            load_network(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not os.path.exists("/tmp/yolo_lab_evil")


def set_to(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


NORM, KERNEL = "layers.0.bn.running_var", "layers.1.conv.weight"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            KERNEL,
            lambda t: set_to(t, torch.nan),
            r"layer 1 \(\[convolutional\], line 15, conv.weight\) has numbers that",
        ),
        (KERNEL, lambda t: set_to(t, -torch.inf), "not finite"),
        (KERNEL, lambda t: set_to(t.double(), 1e300), "not finite"),
        (KERNEL, lambda t: t.to(torch.int32), "has whole numbers"),
        (KERNEL, lambda t: t.to(torch.complex64), "ComplexFloatStorage|no real numbers"),
        (KERNEL, lambda t: t > 0, "no real numbers"),
        (KERNEL, lambda t: t.to_sparse(), "sparse"),
        (NORM, lambda t: set_to(t, -2e-5), "layer 0 .* negative variance"),
        (NORM, lambda t: set_to(t, -1e-5), "layer 0 .* negative variance"),
        ("layers.0.bn.num_batches_tracked", lambda t: t.float(), "has no whole numbers"),
    ],
)
def test_numbers_that_no_network_can_compute_with_are_refused(tmp_path, name, change, words):
    path = save_run(tmp_path, random_network())
    content = torch.load(path, weights_only=True)
    content["ema"][name] = change(content["ema"][name])
    torch.save(content, path)
    network = random_network(1)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    for attempt in (lambda: load_network(path), lambda: load_weights(network, path)):
        with pytest.raises(UserError, match=words):
            attempt()
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("variance", [-7e-44, -9.9999e-6, 0.0])
def test_a_variance_that_the_epsilon_makes_positive_is_read_in_every_format(tmp_path, variance):
    network = random_network()
    with torch.no_grad():
        network.layers[0].bn.running_var[3] = variance
    save_darknet_weights(network, tmp_path / "tiny.weights")
    (tmp_path / "tiny.cfg").write_text(CFG)
    for path in (save_run(tmp_path, network), tmp_path / "tiny.weights"):
        loaded = load_network(path).network
        assert loaded.layers[0].bn.running_var[3].item() == pytest.approx(variance, rel=1e-3)
        assert all(torch.isfinite(raw).all() for raw in loaded.eval()(torch.rand(1, 3, 64, 96)))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("cfg_name", None), ("cfg_text", 3), ("names", []), ("names", ["a", "b", "\ud800"]), ("names", [1, 2, 3]),
        ("options", []), ("options", {1: 2}), ("options", {"data": {"a": 1}}), ("options", {"data": 10**500}),
        ("history", [1]), ("ema", {"x": 1}), ("ema", {1: torch.zeros(1)}),
    ],
)  # fmt: skip
def test_a_part_of_another_type_is_named(tmp_path, part, value):
    path = save_run(tmp_path, random_network())
    torch.save(torch.load(path, weights_only=True) | {part: value}, path)
    with pytest.raises(UserError, match=r"best\.pt: damaged") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)
