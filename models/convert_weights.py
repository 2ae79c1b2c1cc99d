"""Convert weights: ``python models/convert_weights.py a.pt b.weights`` and back, and cut backbones off.

The source is a checkpoint of ``train.py``, Darknet ``.weights`` or an official yolov5 ``.pt``. The target's name says
what is written: ``.pt`` a checkpoint of this toolkit, ``.weights`` Darknet's whole file, ``name.conv.N`` its first N
layers, as Darknet's command ``partial`` cuts them. Beside ``.weights`` a cfg of the same name is written, with the
classes of the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path, from any folder: the packages are in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
import re

import torch
from torch import nn

from models.checkpoints.darknet_weights import VERSION, save_darknet_weights
from models.checkpoints.format import save_checkpoint
from models.checkpoints.load import LoadedNetwork, load_network
from models.checkpoints.report import LoadReport
from models.darknet.cfg import parse_cfg_text
from models.exported.network import ExportedNetwork
from models.layers import running_statistics
from models.network import DARKNET_BN_EPS, Network, require_cfg
from utils.class_names import read_names
from utils.config import REPOSITORY, Parser
from utils.files import write_text_atomically

COCO_CLASSES = 80


def main() -> None:
    """Convert the file named first into the one named second."""
    parser = Parser(description="Convert weights between this toolkit's .pt and Darknet's .weights.")
    parser.add_argument("source", help="a .pt of this toolkit, Darknet .weights, or an official yolov5 .pt")
    parser.add_argument("target", help="x.pt, x.weights, or x.conv.N for the first N layers")
    parser.add_argument("--cfg", default="", help="the network, for Darknet weights; default: the cfg of their name")
    parser.add_argument("--names", default="", help="file of class names for a .pt; default: COCO's for 80 classes")
    parser.add_argument("--seen", type=int, help="images trained on, for Darknet's header; default: the source's, or 0")
    parser.add_argument(
        "--for-darknet",
        action="store_true",
        help="make up for another batch-norm epsilon than Darknet's 1e-5 (YOLOv5's is 1e-3) in the variances",
    )
    options = parser.parse_args()
    loaded = load_network(options.source, options.cfg)
    if isinstance(loaded.network, ExportedNetwork):
        raise UserError(f"{options.source}: is exported and cannot be converted; name the weights that were exported")
    network = require_cfg(loaded.network, options.source)
    print(loaded.report)
    target = Path(options.target)
    if target.suffix == ".pt":
        names = read_names(Path(options.names)) if options.names else default_names(loaded)
        write_checkpoint(network, names, target, loaded.report.resize)
        print(f"Written: {target}, for test.py, detect.py, analyze.py and train.py --weights")
        return
    if options.seen is not None and not 0 <= options.seen < 1 << 64:
        raise UserError(f"--seen {options.seen}: a number of images")
    if options.for_darknet:
        use_darknet_epsilon(network)
    seen = loaded.report.seen if options.seen is None else options.seen
    write_darknet(network, loaded.report, target, seen)


def write_checkpoint(network: Network, names: tuple[str, ...], target: Path, resize: str = "") -> None:
    """Write a checkpoint of this toolkit: all that test, detect, analyze and ``train.py --weights`` need.

    Args:
        network: filled.
        names: of its classes.
        target: the file.
        resize: how its training showed images; empty where that is not known.

    Raises:
        UserError: not as many names as classes.
    """
    if len(names) != network.num_classes:
        raise UserError(f"{len(names)} class names for the {network.num_classes} classes of {network.cfg_path}")
    content = {
        "cfg_name": Path(network.cfg_path).name,
        "cfg_text": network.cfg_text,
        "names": list(names),
        "options": {"resize": resize} if resize else {},
        "model": network.state_dict(),
    }
    save_checkpoint(target, content)


def write_darknet(network: Network, report: LoadReport, target: Path, seen: int) -> None:
    """Write ``.weights`` and the cfg beside it, or a cut-off backbone.

    Raises:
        UserError: the target's name ends in nothing that can be written, or cuts off more layers than there are.
    """
    version = report.version or VERSION
    cut = re.fullmatch(r".+\.conv\.(\d+)", target.name)
    if cut:
        count = int(cut[1])
        if not 0 < count <= len(network.layers):
            raise UserError(f"{target}: {network.cfg_path} has {len(network.layers)} layers, not {count}")
        save_darknet_weights(network, target, seen, version, upto=count)
        print(f"Written: {target}, the first {count} layers of {network.cfg_path}")
        return
    if target.suffix != ".weights":
        raise UserError(f"{target}: the name must end in .pt, .weights or .conv.N, to say what is wanted")
    save_darknet_weights(network, target, seen, version)
    print(f"Written: {target}, {target.stat().st_size:,} bytes")
    cfg, text = target.with_suffix(".cfg"), cfg_for_darknet(network, report.resize)
    if cfg.exists() and cfg.read_text(encoding="utf-8") != text:
        print(f"Left as it is: {cfg}, which may differ from the cfg of these weights")
    else:
        write_text_atomically(cfg, text)
        print(f"Written: {cfg}")
    eps = {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    if eps - {DARKNET_BN_EPS}:
        print(f"Note: bn_eps={max(eps):g} is known to this toolkit only; for Darknet itself convert with --for-darknet")


@torch.no_grad()
def use_darknet_epsilon(network: Network) -> None:
    """Set every batch norm's epsilon to Darknet's and add the difference to its variances: the same outputs."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            _, variance = running_statistics(module)
            variance.add_(module.eps - DARKNET_BN_EPS)
            module.eps = DARKNET_BN_EPS


def cfg_for_darknet(network: Network, resize: str = "") -> str:
    """Return the cfg's text as it describes a network with its weights.

    Args:
        network: whose classes, filters and epsilon may differ from those in its cfg.
        resize: how its training showed images; empty where that is not known.
    """
    lines = network.cfg_text.split("\n")
    # Change only the lines whose values differ: the text keeps its comments and its order.
    written = parse_cfg_text(network.cfg_text, network.cfg_path).sections
    for section, original in zip(network.config.sections, written, strict=True):
        for key in ("classes", "filters"):
            if key not in section or section[key] == original[key]:
                continue
            if key in original.lines:
                lines[original.lines[key] - 1] = f"{key}={section[key]}"
            else:
                lines[original.line - 1] += f"\n{key}={section[key]}"
    net = network.config.net
    letter_box = int(resize == "letterbox")
    if resize and letter_box != bool(net["letter_box"]):
        if "letter_box" in net.lines:
            lines[net.lines["letter_box"] - 1] = f"letter_box={letter_box}"
        else:
            lines[net.line - 1] += f"\nletter_box={letter_box}"
    eps = {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    if "bn_eps" in network.config.net.lines and eps == {DARKNET_BN_EPS}:
        lines[network.config.net.lines["bn_eps"] - 1] = ""
    return "\n".join(lines)


def default_names(loaded: LoadedNetwork) -> tuple[str, ...]:
    """Return the class names of the source, COCO's for 80 classes, else ``class 0`` and so on."""
    classes = loaded.network.num_classes
    if loaded.names or classes != COCO_CLASSES:
        return loaded.names or tuple(f"class {index}" for index in range(classes))
    return read_names(REPOSITORY / "cfg" / "coco.names")


if __name__ == "__main__":
    run_command(main)
