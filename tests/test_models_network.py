"""Networks from cfgs: published sizes, strides, heads, fusion, and one clear line for a graph that cannot be."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.detection_network import check_image_size
from models.head_biases import initialise_head_biases
from models.network import (
    build_network,
    build_network_from_text,
    layer_table,
    select_classes,
)
from tests import published_cfgs
from utils.errors import UserError

CFG = Path(__file__).resolve().parent.parent / "cfg"
NET = "[net]\nwidth=64\nheight=64\n"
CONV = "[convolutional]\nfilters=8\nstride=2\nactivation=leaky\n"
HEAD = "[convolutional]\nfilters=14\nactivation=linear\n"
YOLO = "[yolo]\nmask=0,1\nnum=2\nclasses=2\nanchors=4,5, 6,7\n"
SMALL = NET + CONV + HEAD + YOLO  # stride 2, two anchors, two classes


def build(text, **options):
    return build_network_from_text(text, "x.cfg", **options)


def on_meta(path, **options):
    with torch.device("meta"):  # shapes without numbers
        return build_network(path, **options)


def randomised(network):
    """Give every batch norm statistics that fusing must not lose."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


# ---- the shipped cfgs

PUBLISHED = {  # trainable numbers and strides in cfg order, with 80 classes
    "yolov3": (61_949_149, [32, 16, 8]),
    "yolov3-spp": (62_998_749, [32, 16, 8]),
    "yolov3-tiny": (8_852_366, [32, 16]),
    "yolov4": (64_363_101, [8, 16, 32]),
    "yolov4-tiny": (6_056_606, [32, 16]),
    "yolov4-csp": (52_921_437, [8, 16, 32]),
    "yolov7": (36_928_413, [8, 16, 32]),
    "yolov7-tiny": (6_227_101, [8, 16, 32]),
    "yolov5s": (7_235_389, [8, 16, 32]),
    "yolov5n": (1_872_157, [8, 16, 32]),
    "yolov5s-focus": (7_276_605, [8, 16, 32]),
    "yolov5m-focus": (21_375_645, [8, 16, 32]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_strides_are_the_published_ones(name):
    network = on_meta(CFG / f"{name}.cfg")
    parameters, strides = PUBLISHED[name]
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert [head.stride for head in network.heads] == strides
    assert (network.max_stride, network.num_classes) == (32, 80)


# As YOLOv5 prints them where it tests and detects, releases 6 and 7.
FUSED = {
    "yolov5n": 1_867_405, "yolov5s": 7_225_885, "yolov5m": 21_172_173, "yolov5l": 46_533_693, "yolov5x": 86_705_005,
    "yolov5n6": 3_239_884, "yolov5s6": 12_612_508, "yolov5m6": 35_704_908, "yolov5l6": 76_726_332,
    "yolov5x6": 140_730_220,
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_parameters_once_fused(name):
    network = on_meta(CFG / f"{name}.cfg")
    # Of the two numbers that a batch norm learns per channel, a bias of the convolution is left.
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert sum(p.numel() for p in network.parameters()) - sum(norm.num_features for norm in norms) == FUSED[name]
    assert [head.stride for head in network.heads] == [8, 16, 32, 64][: 4 if "6" in name else 3]
    assert network.input_wh == ((1280, 1280) if "6" in name else (640, 640))


def test_fusing_leaves_as_many_parameters():
    assert sum(p.numel() for p in build_network(CFG / "yolov5n.cfg").fuse().parameters()) == FUSED["yolov5n"]


def test_masks_of_tiny_and_heads_of_yolov5():
    tiny = on_meta(CFG / "yolov3-tiny.cfg")
    assert [head.mask for head in tiny.heads] == [(3, 4, 5), (0, 1, 2)]
    assert tiny.heads[1].anchors_wh == ((10, 14), (23, 27), (37, 58))
    assert len(tiny.heads[1].all_anchors_wh) == 6
    network = on_meta(CFG / "yolov5n.cfg")
    assert all(head.new_coords and head.scale_x_y == 2.0 for head in network.heads)
    assert (network.layers[0].bn.eps, network.layers[0].bn.momentum) == (1e-3, 0.03)


def test_nano_is_small_and_has_three_heads():
    network = build_network(CFG / "yolov3-nano.cfg")
    assert sum(p.numel() for p in network.parameters()) < 800_000
    assert [head.stride for head in network.heads] == [32, 16, 8]
    assert sorted(index for head in network.heads for index in head.mask) == list(range(9))
    assert network.input_wh == (320, 320)


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov3-nano"])
def test_non_square_input_batch_and_fusion(name):
    network = randomised(build_network(CFG / f"{name}.cfg", num_classes=3))
    images = torch.rand(2, 3, 64, 96).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        raw_maps = network(images)
        alone = network(images[1:].contiguous())
        fused = network.fuse().to(memory_format=torch.channels_last)(images)
    for raw, one, folded, head in zip(raw_maps, alone, fused, network.heads, strict=True):
        assert raw.shape == (2, 3, 64 // head.stride, 96 // head.stride, 8)
        torch.testing.assert_close(one, raw[1:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(folded, raw, atol=1e-5, rtol=1e-4)
    assert network.layers[0].bn is not None  # fuse left the original alone


# ---- published structures, by the size of their .weights file: 20 bytes of header, 4 per number


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("yolov4", 257_717_640),
        ("yolov4-tiny", 24_251_276),
        ("yolov4-csp", 211_944_840),
        ("yolov7", 147_898_248),
        ("yolov7-tiny", 24_967_560),
    ],
)
def test_published_weight_file_fits(name, size):
    network = on_meta(CFG / f"{name}.cfg")
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert 20 + 4 * (statistics + sum(p.numel() for p in network.parameters())) == size


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (published_cfgs.yolov4_tiny, [(2, 3, 2, 3, 85), (2, 3, 4, 6, 85)]),
        (published_cfgs.squeeze_excite_detector, [(2, 3, 2, 3, 85)]),
        (published_cfgs.grouped_classifier, [(2, 10, 1, 1)]),
        (published_cfgs.implicit_detector, [(2, 3, 16, 24, 85)]),
        (published_cfgs.everything, [(2, 1, 32, 48, 7)]),
    ],
)
def test_published_structures_run_at_other_sizes_and_fuse(make, shapes):
    network = randomised(build(make().text))
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        outputs, fused = network(images), network.fuse()(images)
    assert [tuple(x.shape) for x in outputs] == shapes
    for output, folded in zip(outputs, fused, strict=True):
        torch.testing.assert_close(folded, output, atol=1e-5, rtol=1e-4)


def test_yolov7_tiny_builds():
    with torch.device("meta"):
        network = build(published_cfgs.yolov7_tiny().text)
        shapes = [raw.shape[2:4] for raw in network(torch.rand(1, 3, 64, 96))]
    assert [head.stride for head in network.heads] == [8, 16, 32]
    assert shapes == [(8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("yolov4", published_cfgs.yolov4),
        ("yolov4-tiny", published_cfgs.yolov4_tiny),
        ("yolov7-tiny", published_cfgs.yolov7_tiny),
    ],
)
def test_the_shipped_cfg_is_the_network_of_its_description(name, make):
    shipped = on_meta(CFG / f"{name}.cfg")
    with torch.device("meta"):
        described = build(make().text)
    assert (shipped.sources, str(shipped.layers)) == (described.sources, str(described.layers))
    assert [(head.mask, head.scale_x_y, head.new_coords) for head in shipped.heads] == [
        (head.mask, head.scale_x_y, head.new_coords) for head in described.heads
    ]


@pytest.mark.parametrize("make", [published_cfgs.everything, published_cfgs.implicit_detector])
def test_every_parameter_gets_a_gradient(make):
    network = build(make().text)
    sum(raw.square().sum() for raw in network(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_network_without_heads_gives_its_last_layer_and_is_no_detector():
    network = build(published_cfgs.grouped_classifier().text)
    (output,) = network.eval()(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(output.sum(1), torch.ones(2, 1, 1))  # softmax
    with pytest.raises(UserError, match=r"x\.cfg: no \[yolo\] section"):
        network.require_heads()
    build(SMALL.replace("[convolutional]", "channels=1\n[convolutional]", 1)).require_heads()  # grey images
    with pytest.raises(UserError, match=r"x\.cfg:4: \[net\] channels=4: a detector needs 3"):
        build(SMALL.replace("[convolutional]", "channels=4\n[convolutional]", 1)).require_heads()


def test_layers_that_no_head_depends_on():
    side_branch = "[convolutional]\nfilters=4\nsize=1\nactivation=linear\n[maxpool]\nsize=2\n[route]\nlayers=-3\n"
    network = build(SMALL.replace("[convolutional]", "[convolutional]\nfilters=4\nsize=1\nactivation=linear\n"
                                  + side_branch + "[convolutional]", 1))  # fmt: skip
    assert network.parts_without_effect() == [1, 2] and build(SMALL).parts_without_effect() == []


# ---- graph rules


def test_routes_count_from_here_or_from_the_start():
    text = NET + CONV + "[convolutional]\nfilters=4\nsize=3\npad=1\n[route]\nlayers=-1,0,1\n"
    with pytest.raises(UserError, match=r"x\.cfg:11: \[route\] .* 32 x 32 x 4.*layer|joins"):
        build(NET + CONV + CONV + "[route]\nlayers=-1,0\n")
    (output,) = build(text)(torch.rand(1, 3, 64, 64))
    assert output.shape == (1, 4 + 8 + 4, 32, 32)


def test_layers_still_needed_are_kept_and_others_released():
    network = build(NET + CONV + "[convolutional]\n[convolutional]\n[shortcut]\nfrom=-3\n")
    assert network.sources == ((-1,), (0,), (1,), (2, 0))
    assert network._released == ((-1,), (), (1,), (0, 2))


def test_logistic_before_a_new_coords_head_moves_into_the_head():
    logistic = HEAD.replace("linear", "logistic")
    torch.manual_seed(1)
    plain = build(SMALL)
    torch.manual_seed(1)
    moved = build(NET + CONV + logistic + YOLO + "new_coords=1\n")
    torch.manual_seed(1)
    kept = build(NET + CONV + logistic + YOLO)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(moved(images)[0], plain(images)[0])  # logits
    torch.testing.assert_close(kept(images)[0], plain(images)[0].sigmoid())  # as Darknet: applied twice by the decode


def test_other_number_of_classes():
    network = build(SMALL, num_classes=5)
    assert network.heads[0].num_classes == network.num_classes == 5
    assert network(torch.rand(1, 3, 32, 64))[0].shape == (1, 2, 16, 32, 10)
    assert network.cfg_text == SMALL  # the text stays what the file says
    vector = build(
        published_cfgs.implicit_detector().text, num_classes=1
    )  # the vector behind the convolution adapts too
    assert vector(torch.rand(1, 3, 32, 32))[0].shape == (1, 3, 8, 8, 6)


@pytest.mark.parametrize(
    "make, classes",
    [
        (lambda: SMALL.replace("filters=14", "batch_normalize=1\nfilters=14"), [1, 0]),
        (lambda: published_cfgs.yolov4_tiny().text, [7, 2, 79]),  # two heads
        (lambda: published_cfgs.implicit_detector().text, [3]),  # channels also in vectors behind the convolution
    ],
)
def test_selected_classes_are_columns_of_the_raw_maps(make, classes):
    network = randomised(build(make()))
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        chosen = select_classes(network, classes)
        assert chosen.num_classes == len(classes) and not chosen.training
        for ours, theirs in zip(chosen(images), network(images), strict=True):
            torch.testing.assert_close(ours, theirs[..., [*range(5), *(5 + index for index in classes)]])


def test_filters_in_groups_cannot_be_selected():
    grouped = build(NET + CONV + HEAD.replace("filters=14", "filters=14\ngroups=2") + YOLO)
    with pytest.raises(UserError, match=r"x\.cfg:\d+: \[convolutional\] groups: the classes of this head cannot"):
        select_classes(grouped, [1, 0])


def test_network_copies_and_pickles():
    network = build(SMALL).eval()
    images = torch.rand(1, 3, 64, 64)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images)[0], network(images)[0])


def test_raw_map_is_a_view_of_the_channels_last_convolution():
    network = build(SMALL).to(memory_format=torch.channels_last)
    raw = network(torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last))[0]
    assert raw.stride() == (32 * 32 * 14, 7, 32 * 14, 14, 1)


def test_batch_norm_settings():
    text = SMALL.replace("leaky", "leaky\nbatch_normalize=1")
    assert build(text).layers[0].bn.eps == 1e-5  # Darknet's
    assert build(text, bn_eps=1e-6).layers[0].bn.eps == 1e-6
    own = text.replace("[net]\n", "[net]\nbn_eps=0.001\nbn_momentum=.1\n")
    assert (build(own).layers[0].bn.eps, build(own).layers[0].bn.momentum) == (1e-3, 0.1)
    assert build(own, bn_eps=1e-6).layers[0].bn.eps == 1e-6


def test_head_biases():
    network = build(SMALL)
    bias = network.layers[1].conv.bias
    bias.data.zero_()
    initialise_head_biases(network, "yolov3")
    # ln(.6 / (2 - .99)) = -.52077; boxes keep their bias.
    assert bias.view(2, 7)[1].tolist() == pytest.approx([0, 0, 0, 0, -4.5, -0.52077, -0.52077], abs=1e-5)
    bias.data.zero_()
    initialise_head_biases(network, "yolov5")
    # ln(8 / 320²) = -9.45720 at stride 2; ln(.6 / 1.00001) = -.51084.
    assert bias.view(2, 7)[0].tolist() == pytest.approx([0, 0, 0, 0, -9.45720, -0.51084, -0.51084], abs=1e-5)


def test_image_sizes():
    network = on_meta(CFG / "yolov3-tiny.cfg")
    check_image_size(network, 416)
    check_image_size(network, (640, 384))
    for size in (16_416, 960_000_000, (416, 2**62)):
        with pytest.raises(UserError, match="above 16,384 pixels"):
            check_image_size(network, size)
    with pytest.raises(UserError, match=r"image size 333 is not a multiple of 32.*use 320 or 352"):
        check_image_size(network, (320, 333))
    with pytest.raises(UserError, match="use 32"):
        check_image_size(network, 5)


def test_layer_table():
    table = layer_table(on_meta(CFG / "yolov3-tiny.cfg")).splitlines()
    assert table[0].split() == [
        "layer",
        "type",
        "filters",
        "size",
        "/",
        "stride",
        "input",
        "output",
        "parameters",
        "GFLOPs",
    ]
    # 2 x 3 x 9 x 16 x 416² operations; 3 x 9 x 16 weights and two numbers per batch-normalised filter.
    assert " ".join(table[1].split()) == "0 convolutional 16 3 x 3 / 1 416 x 416 x 3 416 x 416 x 16 464 0.150"
    assert " ".join(table[12].split()) == "11 maxpool 2 x 2 / 1 13 x 13 x 512 13 x 13 x 512 0.000"
    assert "24 layers, 8,852,366 parameters, 5.572 GFLOPs at 416 x 416" in table


def test_command_prints_the_table_or_one_line():
    def run(*arguments):
        command = [sys.executable, "-m", "models.network", *arguments]
        return subprocess.run(command, cwd=CFG.parent, capture_output=True, text=True, timeout=120)

    good = run("yolov3-nano.cfg", "--num-classes", "3")
    assert (good.returncode, good.stderr) == (0, "")
    assert "3 classes; heads: stride 32" in good.stdout
    bad = run("yolov9.cfg")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


def test_a_folder_of_cfgs_becomes_a_table(tmp_path, capsys, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/good.cfg").write_text(SMALL)
    (tmp_path / "fixed.cfg").write_text("[net]\nwidth=9\nheight=8\n[connected]\noutput=3\n")
    (tmp_path / "vector.cfg").write_text("[net]\ninputs=9\n[lstm]\noutput=3\n")
    (tmp_path / "graph.cfg").write_text(SMALL + "[route]\nlayers=99\n")
    (tmp_path / "text.cfg").write_text("[net]\nwidth=many\n")
    monkeypatch.setattr("sys.argv", ["published_cfgs", str(tmp_path)])
    published_cfgs.main()
    good, fixed, graph, text, vector, total = capsys.readouterr().out.splitlines()
    assert good == "forward  a/good.cfg: 1 heads, 2 classes"
    assert fixed == "forward  fixed.cfg: no detector" and vector == "forward  vector.cfg: no detector"
    assert graph.startswith("parsed   graph.cfg: ") and "layers=99 is not one of the layers" in graph
    assert text.startswith("refused  text.cfg: ") and "width=many: expected a whole number" in text
    assert total == "3 forward, 1 parsed, 1 refused"
