"""ONNX files against torch: published networks, every kind of section and activation, several sizes and batches."""

import numpy as np
import pytest
import torch

from engine.export_check import compare
from models.activations import FUNCTIONS, MODULES
from models.darknet.kinds import KINDS
from models.exported.graph import DetectionGraph
from models.exported.metadata import ExportMetadata
from models.exported.onnx_nms import GraphNms
from models.network import build_network, build_network_from_text
from models.nms import non_max_suppression
from tests.tiny_project import REPOSITORY, random_network
from utils.errors import UserError

pytest.importorskip("onnxscript", reason="needs the packages of requirements-export.txt")
from models.exported.onnx_file import open_onnx, write_onnx

CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=3\nstride={}\npad=1\nactivation={}\n"
# Kinds of a fixed size, or for one frame of a video, are in cfgs of their own.
OTHERS = {"connected", "local", "crop", "detection", "rnn", "gru", "lstm", "crnn", "conv_lstm"}
HEADS = {
    "yolo": ("anchors=10,14, 23,27\nnum=2\nclasses=3\nscale_x_y=1.1\n", 16),
    "region": ("anchors=1,2, 2,1\nnum=2\nclasses=3\nsoftmax=1\n", 16),
    "Gaussian_yolo": ("anchors=10,14, 23,27\nnum=2\nclasses=3\n", 24),
}


def every_section():
    """Return a cfg with every kind of section that works at any size, and every activation."""
    parts = ["[net]\nwidth=64\nheight=96\nchannels=3\n", CONV.format(16, 2, "leaky"), CONV.format(16, 2, "mish")]
    parts += [
        "[shortcut]\nfrom=-1\nactivation=linear\nweights_type=per_channel\nweights_normalization=softmax\n",
        "[batchnorm]\n", "[dropout]\nprobability=0.2\n", "[silence]\n", "[cost]\n",
        "[convolutional]\nfilters=16\nsize=3\nstride=1\npad=1\nantialiasing=1\ngroups=4\nactivation=swish\n",
        "[maxpool]\nsize=5\nstride=1\n", "[local_avgpool]\nsize=3\nstride=1\n", "[avgpool]\n",
        "[scale_channels]\nfrom=-4\n", "[sam]\nfrom=-3\n", "[contrastive]\n",
        "[route]\nlayers=-2\ngroups=2\ngroup_id=1\n", "[route_lhalf]\nlayers=-3\n", "[route]\nlayers=-1,-2\n",
        "[implicit_add]\nfilters=16\n", "[route]\nlayers=-2\n", "[shift_channels]\nfrom=-2\n",
        "[implicit_mul]\nfilters=16\n", "[route]\nlayers=-2\n", "[control_channels]\nfrom=-2\n",
        "[implicit]\nfilters=16\n", "[route]\nlayers=-2\n",
        "[reorg]\nstride=2\n", "[upsample]\nstride=2\n", CONV.format(16, 1, "relu"), "[reorg3d]\nstride=2\n",
        "[softmax]\nspatial=1\n", CONV.format(16, 2, "linear"),
    ]  # fmt: skip
    for name in (*MODULES, *FUNCTIONS):
        parts += ["[convolutional]\nbatch_normalize=1\nfilters=16\nsize=1\nactivation=linear\n"]
        parts += [f"[activation]\nactivation={name}\n"]
    for kind, (keys, filters) in HEADS.items():
        parts += ["[route]\nlayers=0\n", CONV.format(16, 8, "leaky")] if kind != "yolo" else []
        parts += [f"[convolutional]\nfilters={filters}\nsize=1\nactivation=linear\n", f"[{kind}]\n{keys}"]
    return "\n".join(parts)


def metadata_of(network, dynamic):
    return ExportMetadata(
        names=tuple(map(str, range(network.num_classes))), input_wh=network.input_wh,
        strides=tuple(head.stride for head in network.heads), max_stride=network.max_stride, cfg_name="x.cfg",
        cfg_text=network.cfg_text, weights_sha256="", batch_size=0 if dynamic else 1, dynamic=dynamic,
    )  # fmt: skip


def shaken(network):
    """Return the network with running statistics and weights as after a training: none of them at its start."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def assert_same(network, path, shapes, **options):
    graph = DetectionGraph(network)
    write_onnx(graph, metadata_of(network, **options), path)
    run = torch.inference_mode()(lambda images: [part.numpy() for part in graph(torch.from_numpy(images))])
    generator = np.random.default_rng(0)
    images = [generator.random(shape, dtype=np.float32) for shape in shapes]
    found = compare(run, open_onnx(path).boxes_and_scores, images)
    assert max(found.boxes, found.scores) < 1e-4, found


@pytest.mark.parametrize(
    "cfg",
    [
        "yolov3-nano.cfg",
        *(pytest.param(name, marks=pytest.mark.slow) for name in (
            "yolov3-tiny.cfg", "yolov5n.cfg", "yolov5s.cfg", "yolov3-spp.cfg", "yolov4-csp.cfg", "yolov2-voc.cfg")),
    ],
)  # fmt: skip
def test_published_networks_at_three_sizes_and_batches(cfg, tmp_path):
    network = shaken(build_network(REPOSITORY / "cfg" / cfg))
    assert_same(network, tmp_path / "a.onnx", [(1, 3, 64, 64), (2, 3, 96, 160), (3, 3, 128, 64)], dynamic=True)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_kind_of_section_and_activation(tmp_path, dynamic):
    network = shaken(build_network_from_text(every_section(), "every.cfg"))
    assert {section.kind for section in network.config.sections} == KINDS.keys() - OTHERS
    shapes = [(1, 3, 96, 64), (2, 3, 160, 96), (3, 3, 64, 64)] if dynamic else [(1, 3, 96, 64)]
    assert_same(network, tmp_path / "a.onnx", shapes, dynamic=dynamic)


def test_a_free_file_says_so(tmp_path):
    onnx = pytest.importorskip("onnx")
    write_onnx(DetectionGraph(random_network()), metadata_of(random_network(), True), tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert dims == [["batch", 3, "height", "width"]]
    assert model.opset_import[0].version == 18
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["names"] == '["0", "1", "2"]' and properties["strides"] == "[8]"


def test_float16_weights_give_nearly_the_same(tmp_path):
    network = random_network()
    images = np.random.default_rng(0).random((1, 3, 64, 96), dtype=np.float32)
    write_onnx(DetectionGraph(network).half(), metadata_of(network, False), tmp_path / "half.onnx")
    write_onnx(DetectionGraph(network), metadata_of(network, False), tmp_path / "full.onnx")
    half, full = (open_onnx(tmp_path / f"{name}.onnx").boxes_and_scores(images) for name in ("half", "full"))
    assert 0 < np.abs(half[1] - full[1]).max() < 0.02
    assert (tmp_path / "half.onnx").stat().st_size < (tmp_path / "full.onnx").stat().st_size


@pytest.mark.parametrize("limit", [300, 2])
def test_the_nms_in_the_file_keeps_what_ours_keeps_class_by_class(tmp_path, limit):
    network = random_network()
    nms = GraphNms(confidence=0.1, iou=0.4, max_per_class=limit)
    write_onnx(DetectionGraph(network), metadata_of(network, True), tmp_path / "nms.onnx", nms=nms)
    images = torch.rand(2, 3, 64, 96)
    detections = open_onnx(tmp_path / "nms.onnx").runtime(images.numpy())[0]
    boxes, scores = DetectionGraph(network)(images)
    wanted = []
    for image in range(2):
        for label in range(3):
            slots = (scores[image, :, label] > 0.1).nonzero().flatten()
            values = scores[image, slots, label]
            kept = non_max_suppression(boxes[image, slots], values, torch.zeros_like(slots), 0.4, limit)
            wanted += [[image, *boxes[image, slots[k]].tolist(), values[k].item(), label] for k in kept.tolist()]
    assert len(wanted) > 5
    np.testing.assert_allclose(detections, np.array(wanted), rtol=1e-4, atol=1e-3)


def test_what_no_graph_can_hold_is_refused():
    layers = "[convolutional]\nfilters=8\nsize=1\n[yolo]\nanchors=1,2\nnum=1\nclasses=3\n"
    text = f"[net]\nwidth=32\nheight=32\nchannels=1\n{layers}"
    with pytest.raises(UserError, match="grey"):
        DetectionGraph(build_network_from_text(text, "grey.cfg"))
