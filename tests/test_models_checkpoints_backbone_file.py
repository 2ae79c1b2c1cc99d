"""--weights-backbone: the tensors that torchvision puts into its own detectors; nothing else is touched."""

import pytest
import torch

import train
from engine.train_options import TrainOptions
from models.checkpoints.backbone_file import load_backbone
from models.checkpoints.format import read_checkpoint
from models.families import torchvision_networks
from models.families.table import open_network
from tests.tiny_project import make_project
from utils.errors import UserError

models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
WEIGHTS = {"resnet50": "ResNet50_Weights", "vgg16": "VGG16_Weights", "mobilenet_v3_large": "MobileNet_V3_Large_Weights"}
SMALL = "ssdlite320_mobilenet_v3_large"
EVERY = [pytest.param(name, marks=() if name == SMALL else pytest.mark.slow) for name in torchvision_networks.DETECTORS]


def published(classifier, tmp_path):
    """Return the tensors of a classifier, no two of which are equal, and a file with them."""
    torch.manual_seed(0)
    state = getattr(models, classifier)(weights=None).state_dict()
    for tensor in state.values():
        if tensor.dim():
            tensor.uniform_(0.5, 1.5)
    file = tmp_path / f"{classifier}.pth"
    torch.save({key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}, file)
    return state, file


@pytest.mark.parametrize("name", EVERY)
def test_the_backbone_is_that_of_torchvisions_own_detector(name, tmp_path, monkeypatch):
    network = open_network(name, 3)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state, file = published(network.backbone_source.classifier, tmp_path)
    line = load_backbone(network, file)
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: state)  # instead of a download
    of_backbone = next(iter(getattr(models, WEIGHTS[network.backbone_source.classifier])))
    theirs = getattr(models.detection, name)(weights=None, weights_backbone=of_backbone, num_classes=4).state_dict()
    values = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    known = {tensor.double().sum().item() for tensor in values}
    taken = 0
    for key, tensor in network.state_dict().items():
        there = theirs.get(key.removeprefix("model."))
        is_of_backbone = there is not None and there.shape == tensor.shape and there.double().sum().item() in known
        assert torch.equal(tensor, there if is_of_backbone else before[key]), key
        taken += is_of_backbone
    assert line == (
        f"{file}: {taken} of its {len(values)} tensors taken as the backbone ({network.backbone_source.classifier}) of "
        f"{name}; everything else starts fresh"
    )


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_centernets_backbone_computes_what_the_classifier_does(depth, tmp_path):
    state, file = published(f"resnet{depth}", tmp_path)
    network = open_network(f"centernet_resnet{depth}", 3).eval()
    load_backbone(network, file)
    classifier = getattr(models, f"resnet{depth}")(weights=None).eval()
    classifier.load_state_dict(state)
    maps = []
    classifier.layer4.register_forward_hook(lambda *found: maps.append(found[2]))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        classifier(images)
        torch.testing.assert_close(network.backbone(images), maps[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientdet_d0", "efficientdet_d2", "efficientdet_lite0"])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_effdets_backbone_computes_what_timms_classifier_does(name, kind, tmp_path):
    pytest.importorskip("effdet", reason="needs effdet: pip install -r requirements-detectors.txt")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = open_network(name, 3).eval()
    classifier = timm.create_model(network.backbone_source.classifier).eval()
    file = tmp_path / f"timm.{kind}"
    save = torch.save if kind == "pth" else pytest.importorskip("safetensors.torch").save_file
    save(classifier.state_dict(), file)
    load_backbone(network, file)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = classifier.forward_intermediates(images, indices=[2, 3, 4], intermediates_only=True)
        found = network.model.backbone(images)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_mistakes(tmp_path):
    network = open_network("centernet_resnet18", 3)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state, _ = published("resnet18", tmp_path)
    deeper = state | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}
    for content, words in (
        ({key: tensor for key, tensor in state.items() if "layer3" not in key}, "layer3.0.conv1.weight is missing"),
        (state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, "conv1.weight has another shape"),
        (deeper, "there is no place for layer1.2.conv1.weight"),
        (state | {"bn1.running_var": -torch.ones(64)}, "damaged, bn1.running_var has a negative variance"),
        (state | {"conv1.weight": state["conv1.weight"] / 0}, "damaged, conv1.weight has numbers that are not finite"),
        ({"state": state, "epoch": 1}, "takes the tensors of a classifier"),
    ):
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=words):
            load_backbone(network, tmp_path / "wrong.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    with pytest.raises(UserError, match=r"^--weights-backbone: .*nano.cfg takes .*--weights darknet53.conv.74$"):
        load_backbone(open_network("yolov3-nano.cfg", 3), tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="do not exist"):
        load_backbone(network, tmp_path / "none.pth")


def test_not_together_with_weights():
    with pytest.raises(ValueError, match=r"^--weights-backbone: leave it out; --weights fills"):
        TrainOptions(weights="a.pt", weights_backbone="b.pth")


@pytest.mark.slow
def test_a_training_starts_from_it_and_goes_on_without_the_file(tmp_path, monkeypatch, run_main):
    make_project(tmp_path, num_images=4)
    monkeypatch.chdir(tmp_path)
    state, file = published("resnet18", tmp_path)
    flags = ["--data", "tiny.data", "--cfg", "centernet_resnet18", "--img", 64, "--workers", 0, "--device", "cpu"]
    status, out, error = run_main(
        train, *flags, "--weights-backbone", file.name, "--epochs", 1, "--freeze", 5, "--name", "one"
    )
    assert status == 0 and out.count("of its 102 tensors taken as the backbone (resnet18)") == 1, error
    trained = read_checkpoint("runs/train/one/last.pt")["model"]
    assert torch.equal(trained["backbone.4.0.conv1.weight"], state["layer1.0.conv1.weight"])
    file.unlink()
    status, out, error = run_main(train, "--resume", "runs/train/one", "--epochs", 2)
    assert status == 0 and "taken as the backbone" not in out, error
