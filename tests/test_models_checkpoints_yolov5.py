"""Official yolov5 checkpoints in our cfgs: the same outputs as modules written for the test."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.checkpoints.load import load_network
from models.checkpoints.torch_zip import Record, read_torch_zip
from models.checkpoints.yolov5 import load_yolov5_checkpoint, read_yolov5_checkpoint
from models.network import build_network, build_network_from_text
from utils.config import REPOSITORY
from utils.errors import UserError

# For comparison: YOLOv5's architecture written down as torch modules, to be run on the same tensors.


class Conv(nn.Module):
    def __init__(self, inputs, outputs, size=1, stride=1, padding=None):
        super().__init__()
        padding = size // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels, add):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(channels, channels), Conv(channels, channels, 3), add

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    def __init__(self, inputs, outputs, depth, add=True):
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2, self.cv3 = Conv(inputs, half), Conv(inputs, half), Conv(outputs, outputs)
        self.m = nn.Sequential(*(Bottleneck(half, add) for _ in range(depth)))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(channels * 2, channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        return self.cv2(torch.cat((x, once, twice, self.m(twice)), 1))


class SPP(nn.Module):
    def __init__(self, channels, sizes):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(channels * 2, channels)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in sizes)

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat((x, *(pool(x) for pool in self.m)), 1))


class Focus(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.conv = Conv(12, outputs, 3)

    def forward(self, x):
        return self.conv(torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1))


class Concat(nn.Module):
    def forward(self, inputs):
        return torch.cat(inputs, 1)


ANCHORS_P5 = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
ANCHORS_P6 = [[19, 27, 44, 40, 38, 94], [96, 68, 86, 152, 180, 137], [140, 301, 303, 264, 238, 542],
              [436, 615, 739, 380, 925, 792]]  # fmt: skip


class Detect(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(c, 3 * (5 + classes), 1) for c in channels)
        pixels = torch.tensor(ANCHORS_P6 if len(channels) == 4 else ANCHORS_P5).float()
        self.stride = torch.tensor([8.0, 16.0, 32.0, 64.0][: len(channels)])
        self.register_buffer("anchors", pixels.view(-1, 3, 2) / self.stride.view(-1, 1, 1))

    def forward(self, inputs):
        return [conv(x) for conv, x in zip(self.m, inputs, strict=True)]


class Model(nn.Module):
    """Releases 6 and 7, or with ``focus`` releases 4 and 5; ``width`` 16 is n, 32 is s; with ``p6`` a fourth head."""

    def __init__(self, width, depth=1, classes=80, focus=False, p6=False):
        super().__init__()
        w, d = width, depth
        # The way down: strides 4, 8, 16 and, with p6, 32; then the last one.
        modules, sources, ends, channels = [Focus(w) if focus else Conv(3, w, 6, 2, 2)], {}, [], [w]
        for factor, blocks in [(2, 1), (4, 3 if focus else 2), (8, 3), (12, 1)][: 4 if p6 else 3]:
            modules += [Conv(channels[-1], factor * w, 3, 2), C3(factor * w, factor * w, blocks * d)]
            channels.append(factor * w)
            ends.append(len(modules) - 1)
        modules.append(Conv(channels[-1], 16 * w, 3, 2))
        spp = SPP(16 * w, (3, 5, 7) if p6 else (5, 9, 13)) if focus else SPPF(16 * w)
        modules += [spp, C3(16 * w, 16 * w, d, False)] if focus else [C3(16 * w, 16 * w, d), spp]
        # Up to stride 8 ...
        narrow, before = [], 16 * w
        for end, width in zip(ends[:0:-1], channels[:1:-1], strict=True):
            modules.append(Conv(before, width))
            narrow.append(len(modules) - 1)
            modules += [nn.Upsample(None, 2), Concat(), C3(2 * width, width, d, False)]
            sources[len(modules) - 2] = [-1, end]
            before = width
        # ... and down again, with a head at each stride.
        heads, of_heads = [len(modules) - 1], [*channels[2:], 16 * w]
        for index, before, width in zip(narrow[::-1], of_heads, of_heads[1:], strict=False):
            modules += [Conv(before, before, 3, 2), Concat(), C3(2 * before, width, d, False)]
            sources[len(modules) - 2] = [-1, index]
            heads.append(len(modules) - 1)
        modules.append(Detect(of_heads, classes))
        sources[len(modules) - 1] = heads
        self.model = nn.Sequential(*modules)
        for index, module in enumerate(self.model):
            module.f = sources.get(index, -1)
        self.names = [f"class {index}" for index in range(classes)]
        self.stride = self.model[-1].stride

    def forward(self, x):
        outputs = []
        for module in self.model:
            sources = module.f if isinstance(module.f, list) else [module.f]
            inputs = [x if not outputs else outputs[source] for source in sources]
            outputs.append(module(inputs if isinstance(module.f, list) else inputs[0]))
        return outputs[-1]


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save a model as YOLOv5 does: pickled whole, with its classes under YOLOv5's module names."""
    common, yolo = types.ModuleType("models.common"), types.ModuleType("models.yolo")
    for cls in (Conv, Bottleneck, C3, SPPF, SPP, Focus, Concat, Detect, Model):
        module = yolo if cls in (Detect, Model) else common
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, "models.common", common)
    monkeypatch.setitem(sys.modules, "models.yolo", yolo)

    def _save(model, name="a.pt", **content):
        torch.save({"epoch": -1, "model": model, "ema": None} | content, tmp_path / name)
        return tmp_path / name

    return _save


def randomised(model):
    """Give batch norms statistics of their own, some variances as small as YOLOv5's epsilon."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 1e-3, 2)
    return model.eval()


def flat(raw_maps):
    """Return raw maps [B A H W 5+C] as the convolutions' [B A(5+C) H W]."""
    return [raw.permute(0, 1, 4, 2, 3).flatten(1, 2) for raw in raw_maps]


SIZES = {"n": (16, 1), "s": (32, 1), "m": (48, 2), "l": (64, 3), "x": (80, 4)}  # width and depth
OFFICIAL = [
    f"yolov5{size}{p6}{focus}"
    for size in SIZES
    for p6 in ("", "6")
    for focus in ("", "-focus")
    if size + focus != "n-focus"
]
SMALL = ("n", "n6", "s", "s6", "s-focus", "s6-focus")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name.removeprefix("yolov5") in SMALL else pytest.mark.slow) for name in OFFICIAL],
)
def test_a_checkpoint_of_every_official_size_computes_the_same_in_its_cfg(save, name):
    p6, focus = "6" in name, "focus" in name
    model = randomised(Model(*SIZES[name[6]], focus=focus, p6=p6))
    path = save(model)
    loaded = load_network(path)  # finds the cfg
    network, report = loaded.network.eval(), loaded.report
    assert Path(network.cfg_path).name == f"{name}.cfg"
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in model.parameters())
    assert report.complete and report.total == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    images = torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        for ours, theirs in zip(flat(network(images)), model(images), strict=True):
            assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_order_of_layers_in_the_cfg_does_not_matter(save):
    # The first head moved to the end, behind a route: other layer numbers, the same network.
    text = (REPOSITORY / "cfg/yolov5n.cfg").read_text()
    before, head = text[: text.index("[yolo]")].rsplit("[convolutional]", 1)
    yolo, after = text[len(before) + len("[convolutional]") + len(head) :].split("[route]", 1)
    source = build_network(REPOSITORY / "cfg/yolov5n.cfg").head_layers[0] - 2  # what the head's convolution reads
    two_layers = "[dropout]\nprobability=0\n\n" * 2  # in their place, so that the relative numbers stay
    text = f"{before}{two_layers}[route]{after}\n[route]\nlayers={source}\n\n[convolutional]{head}{yolo}"
    network = build_network_from_text(text, "moved.cfg").eval()
    assert [head.stride for head in network.heads] == [16, 32, 8]
    model = randomised(Model(16))
    assert load_yolov5_checkpoint(network, save(model)).complete
    images = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        ours, theirs = flat(network(images)), model(images)
    for position, level in enumerate((1, 2, 0)):
        torch.testing.assert_close(ours[position], theirs[level], rtol=0, atol=1e-4)


def test_another_epsilon_in_the_cfg_is_made_up_for_in_the_variances(save):
    text = (REPOSITORY / "cfg/yolov5n.cfg").read_text().replace("bn_eps=0.001", "bn_eps=0.00001")
    network = build_network_from_text(text, "darknet-eps.cfg").eval()
    model = randomised(Model(16))
    load_yolov5_checkpoint(network, save(model))
    assert network.layers[0].bn.eps == 1e-5
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(flat(network(images)), model(images), strict=True):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_half_precision_and_the_average_of_a_training_run_are_read(save):
    model, average = Model(16).half(), Model(16).half()
    network = build_network(REPOSITORY / "cfg/yolov5n.cfg")
    load_yolov5_checkpoint(network, save(model, ema=average))
    assert network.layers[0].conv.weight.dtype == torch.float32
    assert torch.equal(network.layers[0].conv.weight, average.model[0].conv.weight.float())


def test_other_classes_keep_their_own_last_convolutions(save):
    network = build_network(REPOSITORY / "cfg/yolov5n.cfg", num_classes=3)
    before = network.head_convolution(0).conv.weight.clone()
    report = load_yolov5_checkpoint(network, save(Model(16)))
    assert (report.filled, report.total, len(report.skipped)) == (57, 60, 3)
    assert torch.equal(network.head_convolution(0).conv.weight, before)
    assert "another number of classes" in str(report)


@pytest.mark.parametrize(("variance", "is_read"), [(-7e-44, True), (-9.9e-4, True), (-1e-3, False), (-1.0, False)])
def test_a_variance_is_refused_where_its_epsilon_does_not_make_it_positive(save, variance, is_read):
    model = Model(16)
    model.model[3].bn.running_var[5] = variance
    network = build_network(REPOSITORY / "cfg/yolov5n.cfg")
    if is_read:
        assert load_yolov5_checkpoint(network, save(model)).complete
        with torch.no_grad():
            assert all(torch.isfinite(raw).all() for raw in network.eval()(torch.rand(1, 3, 64, 64)))
    else:
        with pytest.raises(UserError, match=r"model.3 has a negative variance"):
            load_yolov5_checkpoint(network, save(model))


def changed(change):
    model = Model(16)
    change(model)
    return model


@pytest.mark.parametrize("model", [lambda: Model(24), lambda: Model(32, 2), lambda: Model(16, focus=True)])
def test_sizes_that_are_not_official_need_a_cfg(save, model):
    with pytest.raises(UserError, match="none of the official sizes, whose cfgs are in cfg/"):
        load_network(save(model()))


def leaky(model):
    model.model[5].act = nn.LeakyReLU(0.1)


def no_shortcut(model):
    model.model[4].m[1].add = False


def wider(model):
    model.model[9].m = nn.MaxPool2d(7, 1, 3)


def other_anchors(model):
    model.model[24].anchors[1] *= 1.1


def not_finite(model):
    model.model[3].conv.weight.data[0, 0, 0, 0] = torch.nan


def misshapen(model):
    model.model[3].bn.running_mean = torch.zeros(5)


def rewired(model):
    model.model[12].f = [-1, 4]


def lifted(model):
    model.model[11].scale_factor = 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (leaky, r"model.5 has activation leaky, the cfg swish \(.*yolov5n.cfg:\d+\)"),
        (no_shortcut, "model.4.m.1.cv2 is a conv where the cfg has a add"),
        (wider, "model.9.m has size 7x7, the cfg 5x5"),
        (other_anchors, "other anchors than .*yolov5n.cfg; at stride 16 its are 33,67.1"),
        (not_finite, "model.3 has numbers that are not finite"),
        (misshapen, "model.3 has a tensor of another shape"),
        (rewired, "model.4.cv3 has filters 64, the cfg 128"),
        (lifted, "model.11 has stride 4, the cfg 2"),
    ],
)
def test_another_architecture_is_refused_where_it_differs(save, change, message):
    network = build_network(REPOSITORY / "cfg/yolov5n.cfg")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_yolov5_checkpoint(network, save(changed(change)))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_another_cfg_is_refused_and_the_right_one_named(save):
    path = save(Model(16))
    with pytest.raises(UserError, match=r"filters 256, the cfg 512 .*its cfg is yolov5n.cfg"):
        load_yolov5_checkpoint(build_network(REPOSITORY / "cfg/yolov5s.cfg"), path)
    with pytest.raises(UserError, match=r"its heads have strides 8, 16, 32, those of .*its cfg is yolov5n.cfg"):
        load_yolov5_checkpoint(build_network(REPOSITORY / "cfg/yolov3-tiny.cfg"), path)


@pytest.mark.parametrize(
    ("route", "wrong"),
    [
        # Line 72 joins a C3's deep way, layer 6, and the short one, layer 2; layer 4 is the start of the deep one.
        ("layers=-1,2", "layers=-1,4"),
        ("from=-3", "from=-5"),
    ],
)
def test_a_wrong_route_between_maps_of_one_shape_is_refused(save, route, wrong):
    text = (REPOSITORY / "cfg/yolov5n.cfg").read_text()
    assert route in text
    network = build_network_from_text(text.replace(route, wrong, 1), "wrong.cfg")
    with pytest.raises(UserError, match=r"model.2.cv1 is the same layer as model.2.cv2, so the connections differ"):
        load_yolov5_checkpoint(network, save(Model(16)))


def test_a_layer_that_the_cfg_has_twice_is_refused(save):
    # The last C3's cv1 gets a map of its own, made as that of its cv2 is: from layer 86, by another convolution.
    text = (REPOSITORY / "cfg/yolov5n.cfg").read_text()
    head, tail = text.rsplit("[route]\nlayers=-2\n", 1)
    conv = "[convolutional]\nbatch_normalize=1\nfilters=128\nsize=3\nstride=2\npad=1\nactivation=swish\n\n"
    text = f"{head}[route]\nlayers=86\n\n{conv}[route]\nlayers=-1,52\n{tail}"
    with pytest.raises(UserError, match=r"model.21 is also layer \d+, so the connections differ"):
        load_yolov5_checkpoint(build_network_from_text(text, "twice.cfg"), save(Model(16)))


def test_a_bias_beside_a_batch_norm_is_not_dropped(save):
    model = Model(16)
    model.model[3].conv.bias = nn.Parameter(torch.ones(64))
    with pytest.raises(UserError, match=r"model.3 has a tensor of another shape"):
        load_yolov5_checkpoint(build_network(REPOSITORY / "cfg/yolov5n.cfg"), save(model))


def test_files_without_a_detection_model_are_refused(save):
    with pytest.raises(UserError, match="nor of YOLOv5"):
        read_yolov5_checkpoint(save(None))
    with pytest.raises(UserError, match="not the module tree"):
        read_yolov5_checkpoint(save(nn.Sequential(nn.Conv2d(3, 4, 1))))
    model = Model(16)
    model.model[2].m[0] = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"model.2.m.0 is a Sequential; YOLOv5 detection models are made of Conv"):
        read_yolov5_checkpoint(save(model))


def fill(module, record):
    """Copy a record's tensors into a module of the same tree."""
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    for name, tensor in own.items():
        tensor.data.copy_(getattr(record, name))
    for name, child in record._modules.items():
        assert isinstance(child, Record)
        fill(getattr(module, name), child)


def test_the_official_yolov5n_computes_the_same_here(shared):
    path = shared / "data/weights/yolov5n.pt"
    checkpoint = read_yolov5_checkpoint(path)
    assert checkpoint.cfg_name == "yolov5n.cfg" and checkpoint.strides == (8, 16, 32)
    assert checkpoint.names[:2] == ("person", "bicycle") and len(checkpoint.names) == 80
    assert checkpoint.anchors_wh[2][2] == (373.0, 326.0)
    network = build_network(REPOSITORY / "cfg/yolov5n.cfg").eval()
    assert load_yolov5_checkpoint(network, path).complete

    reference = Model(16).eval()
    fill(reference, read_torch_zip(path)["model"])
    images = functional.interpolate(torch.rand(1, 3, 20, 28), scale_factor=16)  # 320 x 448, smooth blocks
    with torch.no_grad():
        ours, theirs, fused = flat(network(images)), reference(images), flat(network.fuse()(images))
    for mine, yours, folded in zip(ours, theirs, fused, strict=True):
        assert (mine - yours).abs().max() < 1e-5 * yours.abs().max()
        assert (mine - folded).abs().max() < 1e-5 * yours.abs().max()


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_checkpoint_that_runs_code_is_refused_by_name_wherever_it_stands(save, tmp_path):
    target = tmp_path / "made"
    evil = Evil(f"touch {target}")
    model = Model(16)
    model.names = evil
    for number, path in enumerate([save(model, "a.pt"), save(evil, "b.pt"), save(Model(16), "c.pt", date=evil)]):
        with pytest.raises(UserError, match=r"asks for 'posix.system', which is no tensor, container or layer"):
            load_network(path)
        assert not target.exists(), number
