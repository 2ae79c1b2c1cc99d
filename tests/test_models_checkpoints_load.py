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
