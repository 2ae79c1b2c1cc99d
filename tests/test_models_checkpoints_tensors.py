"""Files of tensors alone, as torchvision and effdet publish them: the network is named, the classes are COCO's."""

import pytest
import torch

from models.checkpoints.load import cfg_of_weights, load_network, load_weights
from models.families.table import open_network
from utils.class_names import places_in, read_names
from utils.config import REPOSITORY
from utils.errors import UserError

detection = pytest.importorskip("torchvision.models.detection", exc_type=(ImportError, RuntimeError))
NAME = "ssdlite320_mobilenet_v3_large"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return torchvision's model, and its file in both of torch's formats; the older one was written frozen."""
    torch.manual_seed(0)
    model = getattr(detection, NAME)(weights=None, weights_backbone=None, num_classes=91).eval()
    folder = tmp_path_factory.mktemp("weights")
    state = model.state_dict()
    torch.save(state, folder / "new.pth")
    frozen = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(frozen, folder / "old.pth", _use_new_zipfile_serialization=False)
    return model, folder


@pytest.mark.parametrize("file", ["new.pth", "old.pth"])
def test_it_is_the_librarys_network_with_cocos_names(published, file):
    model, folder = published
    found = load_network(folder / file, NAME)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[key[6:]]) for key, tensor in found.network.state_dict().items()
               if not key.endswith("num_batches_tracked"))  # fmt: skip
    assert found.network.num_classes == 90 and found.names[0] == "person" and found.names[89] == "toothbrush"
    assert found.names[11] == "unused 12" and len(set(found.names)) == 90
    coco = read_names(REPOSITORY / "cfg/coco.names")
    places = places_in(coco, found.names)  # ours are Darknet's words: "motorbike", "aeroplane", "sofa", …
    assert places.count(None) == 0 and len(set(places)) == 80


def test_a_training_keeps_all_but_the_last_layers(published):
    _, folder = published
    network = open_network(NAME, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_weights(network, folder / "new.pth")
    source = load_network(folder / "new.pth", NAME).network.state_dict()
    for name, tensor in network.state_dict().items():
        is_last = tensor.shape != source[name].shape
        assert torch.equal(tensor, before[name] if is_last else source[name])
        assert not is_last or network.depends_on_classes(name)
    assert report.classes == (90, 3) and report.skipped and not report.complete


@pytest.mark.slow
def test_effdets_files_have_cocos_slots_from_1(tmp_path):
    effdet = pytest.importorskip("effdet", reason="needs effdet: pip install -r requirements-detectors.txt")
    torch.manual_seed(0)
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    state = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    file = tmp_path / "tf_efficientdet_lite0.pth"
    torch.save(state, file)
    found = load_network(file, "efficientdet_lite0")
    assert all(torch.equal(tensor, state[key[6:]]) for key, tensor in found.network.state_dict().items())
    assert found.network.num_classes == 90
    # category_id of COCO's annotations, less 1
    assert [found.names.index(name) for name in ("person", "stop sign", "toothbrush")] == [0, 12, 89]
    network = open_network("efficientdet_lite0", 3)
    report = load_weights(network, file)
    assert report.classes == (90, 3) and len(report.skipped) == 1
    with pytest.raises(UserError, match="another network than efficientdet_d0, for one of them lacks backbone"):
        load_network(file, "efficientdet_d0")


def test_mistakes(published, tmp_path):
    model, folder = published
    for named, words in (("", "name it with --cfg"), ("yolov3-nano.cfg", "name it with --cfg"),
                         ("centernet_resnet18", "none are known for centernet_resnet18"),
                         ("ssd300_vgg16", "another network than ssd300_vgg16")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            load_network(folder / "new.pth", named)
    with pytest.raises(UserError, match="name it with --cfg"):
        cfg_of_weights(folder / "new.pth")
    with pytest.raises(UserError, match="none are known for centernet_resnet18"):
        load_weights(open_network("centernet_resnet18", 3), folder / "new.pth")
    state = dict(model.state_dict())
    key = next(iter(state))
    torch.save(state | {key: torch.full_like(state[key], float("nan"))}, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=f"damaged, model.{key}"):
        load_network(tmp_path / "nan.pth", NAME)
