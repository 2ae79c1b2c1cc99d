"""Cfg texts with the structure of published networks, for tests of the builder; and a look at a folder of real ones.

    python -m tests.published_cfgs FOLDER

prints for each ``.cfg`` in it how far it comes - refused, parsed, built, forward - and the line that refuses it.
``forward`` has computed an image of zeros, the smallest that the network takes. The texts here are written from the
descriptions of the networks.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch

from models.darknet.cfg import parse_cfg
from models.network import Network, build_network
from utils.errors import UserError

ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"


class CfgText:
    """A cfg that grows section by section; ``count`` is the number of layers so far."""

    def __init__(self, activation, side=416):
        self.text = f"[net]\nwidth={side}\nheight={side}\nchannels=3\nmosaic=1\nletter_box=1\n"
        self.activation = activation
        self.count = 0

    def add(self, kind, **values):
        self.text += f"\n[{kind}]\n" + "".join(f"{key.rstrip('_')}={value}\n" for key, value in values.items())
        self.count += 1
        return self.count - 1

    def conv(self, filters, size=1, stride=1, activation="", **more):
        return self.add(
            "convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1,
            activation=activation or self.activation, **more,
        )  # fmt: skip

    def route(self, *layers, **more):
        return self.add("route", layers=", ".join(map(str, layers)), **more)

    def head(self, mask, anchors=ANCHORS, classes=80, activation="linear", **more):
        filters = (mask.count(",") + 1) * (5 + classes)
        self.add("convolutional", size=1, stride=1, pad=1, filters=filters, activation=activation)
        return self.add(
            "yolo", mask=mask, anchors=anchors, classes=classes, num=anchors.count(",") // 2 + 1, jitter=".3",
            ignore_thresh=".7", truth_thresh=1, iou_loss="ciou", nms_kind="greedynms", beta_nms=0.6, **more,
        )  # fmt: skip

    def spp(self):
        self.add("maxpool", stride=1, size=5)
        self.route(-2)
        self.add("maxpool", stride=1, size=9)
        self.route(-4)
        self.add("maxpool", stride=1, size=13)
        self.route(-1, -3, -5, -6)


def yolov4():
    """YOLOv4 (arXiv 2004.10934): CSPDarknet-53, SPP, path aggregation."""
    cfg = CfgText("mish")
    cfg.conv(32, 3)
    ends = {}
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        half = filters // 2 if blocks > 1 else filters
        cfg.conv(filters, 3, 2)
        cfg.conv(half)
        cfg.route(-2)
        cfg.conv(half)
        for _ in range(blocks):
            cfg.conv(half if blocks > 1 else 32)
            cfg.conv(half, 3)
            cfg.add("shortcut", from_=-3, activation="linear")
        cfg.conv(half)
        cfg.route(-1, -(3 * blocks + 4))
        ends[filters] = cfg.conv(filters)
    cfg.activation = "leaky"

    def five(filters, sizes=(1, 3, 1, 3, 1)):
        for size in sizes:
            end = cfg.conv(filters if size == 1 else 2 * filters, size)
        return end

    five(512, (1, 3, 1))
    cfg.spp()
    up = {512: five(512, (1, 3, 1))}
    for filters in (256, 128):
        cfg.conv(filters)
        cfg.add("upsample", stride=2)
        cfg.route(ends[2 * filters])
        cfg.conv(filters)
        cfg.route(-1, -3)
        up[filters] = five(filters)
    cfg.conv(256, 3)
    cfg.head("0,1,2", scale_x_y=1.2, iou_thresh=0.213, cls_normalizer=1.0, iou_normalizer=0.07, max_delta=5)
    for filters, mask, scale in ((256, "3,4,5", 1.1), (512, "6,7,8", 1.05)):
        cfg.route(-4)
        cfg.conv(filters, 3, 2)
        cfg.route(-1, up[filters])
        five(filters)
        cfg.conv(2 * filters, 3)
        cfg.head(mask, scale_x_y=scale, iou_thresh=0.213, random=1)
    return cfg


def yolov4_tiny():
    """YOLOv4-tiny (arXiv 2011.08036): cross stage partial blocks that split by route groups."""
    cfg = CfgText("leaky")
    cfg.conv(32, 3, 2)
    cfg.conv(64, 3, 2)
    for filters in (64, 128, 256):
        cfg.conv(filters, 3)
        cfg.route(-1, groups=2, group_id=1)
        cfg.conv(filters // 2, 3)
        cfg.conv(filters // 2, 3)
        cfg.route(-1, -2)
        last = cfg.conv(filters)
        cfg.route(-6, -1)
        cfg.add("maxpool", size=2, stride=2)
    cfg.conv(512, 3)
    anchors = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
    cfg.conv(256)
    cfg.conv(512, 3)
    cfg.head("3,4,5", anchors, scale_x_y=1.05)
    cfg.route(-4)
    cfg.conv(128)
    cfg.add("upsample", stride=2)
    cfg.route(-1, last)
    cfg.conv(256, 3)
    cfg.head("1,2,3", anchors, scale_x_y=1.05)
    return cfg


def yolov7_tiny():
    """YOLOv7-tiny (arXiv 2207.02696): blocks that gather every intermediate map, new coordinates."""
    cfg = CfgText("leaky")

    def gather(filters):
        cfg.conv(filters)
        cfg.route(-2)
        cfg.conv(filters)
        cfg.conv(filters, 3)
        cfg.conv(filters, 3)
        cfg.route(-5, -3, -2, -1)
        return cfg.conv(2 * filters)

    cfg.conv(32, 3, 2)
    cfg.conv(64, 3, 2)
    ends = [gather(32)]
    for filters in (64, 128, 256):
        cfg.add("maxpool", size=2, stride=2)
        ends.append(gather(filters))
    cfg.conv(256)
    cfg.route(-2)
    cfg.conv(256)
    cfg.spp()
    cfg.conv(256)
    cfg.route(-10, -1)
    up = [cfg.conv(256)]
    for filters, end in ((128, ends[2]), (64, ends[1])):
        cfg.conv(filters)
        cfg.add("upsample", stride=2)
        cfg.route(end)
        cfg.conv(filters)
        cfg.route(-1, -3)
        up.append(gather(filters // 2))
    outs = [up[2]]
    for filters, other in ((128, up[1]), (256, up[0])):
        cfg.conv(filters, 3, 2)
        cfg.route(-1, other)
        outs.append(gather(filters // 2))
    for out, filters, mask in zip(outs, (128, 256, 512), ("0,1,2", "3,4,5", "6,7,8"), strict=True):
        cfg.route(out)
        cfg.conv(filters, 3)
        cfg.head(mask, activation="logistic", scale_x_y=2.0, new_coords=1, objectness_smooth=1, resize=1.5)
    return cfg


def squeeze_excite_detector():
    """Inverted residuals with squeeze and excitation, as enet-coco: depth-wise 5x5, gates from an average pool."""
    cfg = CfgText("swish", side=64)
    cfg.conv(16, 3, 2)
    cfg.conv(24)
    for number, (size, stride) in enumerate(((3, 2), (5, 1), (5, 2), (5, 2), (3, 2))):
        cfg.conv(96)
        cfg.conv(96, size, stride, groups=96)
        cfg.add("avgpool")
        cfg.add("convolutional", filters=8, size=1, stride=1, activation="swish")
        cfg.add("convolutional", filters=96, size=1, stride=1, activation="logistic")
        cfg.add("scale_channels", from_=-4)
        cfg.conv(24, activation="linear")
        if number == 1:
            cfg.add("dropout", probability=".0")
            cfg.add("shortcut", from_=-9, activation="linear")
    cfg.head("0,1,2")
    return cfg


def grouped_classifier():
    """A grouped residual classifier, as cspresnext50: 7x7 stem, cardinality 32, average pool, softmax."""
    cfg = CfgText("leaky", side=64)
    cfg.conv(64, 7, 2)
    cfg.add("maxpool", size=2, stride=2)
    cfg.conv(128)
    cfg.route(-2)
    cfg.conv(64)
    for _ in range(2):
        cfg.conv(128)
        cfg.conv(128, 3, groups=32)
        cfg.conv(128 if cfg.count > 8 else 64, activation="linear")
        cfg.add("shortcut", from_=-4, activation="leaky")
    cfg.conv(128)
    cfg.route(-1, 2)
    cfg.conv(256)
    cfg.add("avgpool")
    cfg.add("convolutional", filters=10, size=1, stride=1, pad=1, activation="linear")
    cfg.add("softmax", groups=1)
    cfg.add("cost", type="sse")
    return cfg


def implicit_detector():
    """YOLOR's head (arXiv 2105.04206): a learned vector added before the last convolution, another one multiplied."""
    cfg = CfgText("silu", side=64)
    cfg.conv(16, 3, 2)
    body = cfg.conv(32, 3, 2)
    shift = cfg.add("implicit_add", filters=48)
    scale = cfg.add("implicit_mul", filters=255)
    cfg.route(body)
    cfg.conv(48, 3)
    cfg.add("shift_channels", from_=shift)
    cfg.add("convolutional", size=1, stride=1, pad=1, filters=255, activation="linear")
    cfg.add("control_channels", from_=scale)
    cfg.add("yolo", mask="0,1,2", anchors=ANCHORS, classes=80, num=9)
    return cfg


def everything():
    """One of each section that no other text here has."""
    cfg = CfgText("mish", side=32)
    first = cfg.add("conv", batch_normalize=1, filters=16, size=3, stride_x=2, stride_y=1, pad=1, activation="gelu")
    cfg.add("conv", filters=16, size=3, stride_x=1, stride_y=2, padding=1, antialiasing=1, activation="relu6")
    cfg.add("batchnorm")
    cfg.add("activation", activation="elu")
    cfg.add("local_avgpool", size=3, stride=1)
    cfg.add("max", size=3, stride=2, antialiasing=2)
    cfg.add("reorg", stride=2)
    cfg.add("reorg", stride=2, reverse=1)
    cfg.add("reorg3d", stride=2)
    cfg.conv(64, 3, dilation=2)
    cfg.add("reorg3d", stride=2, reverse=1)
    body = cfg.conv(16)
    cfg.add("conv", filters=1, size=1, activation="logistic")
    cfg.add("scale_channels", from_=body, scale_wh=1)
    cfg.add("conv", filters=16, size=1, activation="normalize_channels_softmax")
    cfg.add("sam", from_=-2)
    cfg.add("dropout", probability=0.1, dropblock=1, dropblock_size_rel=0.3)
    cfg.add("shortcut", from_=f"-2,{body}", weights_type="per_channel", weights_normalization="softmax")
    cfg.add("shortcut", from_="-4", weights_type="per_feature", weights_normalization="relu", activation="mish")
    cfg.add("maxpool", maxpool_depth=1, out_channels=4)
    cfg.add("silence")
    cfg.add("implicit", filters=4, atoms=1, mean=0.5, std=0.1)
    cfg.add("route", layers=-2)
    cfg.add("control_channels", from_=-2)
    cfg.add("upsample", stride=2, scale=0.5)
    cfg.head("1", "4,4, 8,8", classes=2)
    assert first == 0
    return cfg


def how_far(path: Path) -> tuple[str, str]:
    """Return the last step that a cfg file passes, and the line that refuses the next one, or what it is."""
    step = "refused"
    try:
        parse_cfg(path)
        step = "parsed"
        with torch.device("meta"):
            build_network(path)
        step = "built"
        network = build_network(path).eval()
        with torch.no_grad():
            network(torch.zeros(1, *smallest_image(network)))
    except UserError as error:
        return step, str(error)
    return "forward", f"{len(network.heads)} heads, {network.num_classes} classes" if network.heads else "no detector"


def smallest_image(network: Network) -> tuple[int, int, int]:
    """Return channels, rows and columns of an image that is cheap to look at."""
    net, (width, height) = network.config.net, network.input_wh
    vectors = any(section.kind in ("connected", "rnn", "gru", "lstm") for section in network.config.sections)
    if not network.fixed_size and not vectors and width % network.max_stride == height % network.max_stride == 0:
        width, height = (min(side, 2 * network.max_stride) for side in (width, height))
    return net["inputs"] or net["channels"], height, width


def main() -> None:
    """Print a table of the cfgs in a folder, and how many come how far."""
    parser = argparse.ArgumentParser(description="How far each cfg of a folder comes.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    steps: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.cfg")):
        step, line = how_far(path)
        steps[step] += 1
        print(f"{step:<8} {path.relative_to(folder)}: {line}", flush=True)
    print(", ".join(f"{count} {step}" for step, count in steps.most_common()))


if __name__ == "__main__":
    main()
