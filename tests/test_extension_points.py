"""What CONTRIBUTING.md promises: one file and one line add a strategy, box loss, section, label format or analysis.

Each test writes the file and the line into a process of its own, and finds the addition wherever it must appear.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, folder: Path):
    """Run a program with our packages and return what it prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(ROOT)}, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


STRATEGY = """
import contextlib, io, json
from dataclasses import dataclass
import torch

# The one file: a rule and its entry. Every object gets the anchor that the options name, in its centre's cell.
from models.assignment.inputs import Pairs
from models.assignment.strategy import Strategy

@dataclass(frozen=True)
class First:
    anchor_t: float = 1.5

    def __call__(self, inputs):
        target = torch.arange(len(inputs.targets))
        anchor = torch.zeros_like(target)
        cell = inputs.cells[target, inputs.grid.head[anchor]]
        return Pairs(target, anchor, cell[:, 1], cell[:, 0], torch.ones(len(target)))

# The one line: its place in the table.
from models.assignment import strategies
strategies.STRATEGIES["first"] = Strategy("first", First)

import analyze, kmeans_anchors
from engine import train_options
from utils.config import parse_options
from models.assignment.options import AssignmentOptions, options_used
from models.assignment.assigner import build_assigner
from models.assignment.grid import slot_grid
from models.heads import Head
from utils.structures import Targets
from analysis.anchor_stats import anchor_stats
from benchmarks import assignment
from docs import make_example, make_figures, make_training_table

def help_of(groups):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse_options("d", *groups, argv=["--help"])
    return text.getvalue()

heads = (Head(((16.0, 16.0), (30.0, 30.0)), 16, 2),)
assigner = build_assigner(AssignmentOptions(match="first", anchor_t=1.2), heads)
targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
found = assigner.match(targets, slot_grid(heads, ((4, 4),), torch.device("cpu"))).base
print(json.dumps({
    "match": [found.anchor.item(), found.row.item(), found.col.item()],
    "option": assigner.make_base.anchor_t,
    "help": ["first" in help_of(groups) for groups in (train_options.GROUPS, analyze.GROUPS)],
    "used": "anchor_t" in options_used("first"),
    "analysis": "first" in strategies.prior_strategies(),
    "benchmark": "first" in assignment.VARIANTS and "first" in assignment.PRIOR_ONLY,
    "example": "first" in make_example.RUNS and "| first | base |" in make_example.tables(),
    "figures": "first" in make_figures.FIGURES["assignment_priors.png"],
    "training table": ("first", 0.0) in make_training_table.SETTINGS,
}))
"""


def test_a_strategy(tmp_path):
    found = run(STRATEGY, tmp_path)
    assert found.pop("match") == [0, 2, 2] and found.pop("option") == 1.2  # the centre lies in cell (2, 2) of 4 x 4
    assert found.pop("help") == [True, True]
    assert all(found.values()), found


BOX_LOSS = """
import json, sys, torch
from utils import boxes

# The one file is utils/boxes.py, where the kinds of IoU are; the one line is the entry.
boxes.IOU_KINDS["half"] = lambda a, b: boxes._iou(a, b) / 2

import analyze
from engine import train_options
from models.assignment.options import AssignmentOptions
from models.heads import Head
from models.loss import LossOptions, build_loss
from utils.config import build_options
from utils.structures import Targets

heads = (Head(((16.0, 16.0),), 16, 1),)
targets = Targets(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0.125, 0.125, 0.25, 0.25]]))
raw = torch.zeros(1, 1, 4, 4, 6)  # predicts the object exactly: IoU 1, half of it 0.5
parts = build_loss(LossOptions(box=64.0, box_loss="half"), AssignmentOptions(), heads)([raw], targets).parts
(chosen,) = build_options({"match": "fast", "match_iou": "half"}, [AssignmentOptions])
choices = [
    item.metadata["choices"]
    for group in (*train_options.GROUPS, *analyze.GROUPS)
    for name, item in group.__dataclass_fields__.items()
    if name in ("box_loss", "match_iou")
]

from pathlib import Path
from tests.tiny_project import make_project

make_project(Path("."), num_images=3)
words = "analyze.py --matching-stats --data tiny.data --match fast --match-iou half --workers 0 --device cpu"
sys.argv = words.split()
analyze.main()
measured = json.loads(Path("runs/analyze/matching-stats/results.json").read_text())["statistics"]
print(json.dumps({"box": parts["box"].item(), "match_iou": chosen.match_iou, "choices": choices,
                  "measured": list(measured["strategies"]["fast"]["iou"])}))
"""


def test_a_box_loss(tmp_path):
    found = run(BOX_LOSS, tmp_path)
    assert found["box"] == 0.5 and found["match_iou"] == "half"
    assert found["measured"] == ["half"]
    assert len(found["choices"]) == 3 and all("half" in choices for choices in found["choices"])


SECTION = """
import json, torch
from dataclasses import replace
from torch import nn

# The one file: its keys, its module and its builder.
from models.darknet.graph import made
from models.darknet.kind import SectionKind
from models.darknet.schema import number

class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, image):
        return image * self.by

def build(builder, section, inputs):
    return made(section, Scaled(section["factor"]), inputs[0], f"x {section['factor']:g}")

# The one line: its place in the table.
from models.darknet import kinds
kinds.KINDS["scaled"] = SectionKind("scaled", {"factor": number(2.0)}, build)

from models.darknet.cfg import parse_cfg_text
from models.network import build_network_from_text, layer_table

TEXT = "[net]\\nwidth=8\\nheight=8\\nchannels=1\\n[scaled]\\n{}=3\\n[scaled]\\n"
network = build_network_from_text(TEXT.format("factor"), "x.cfg")
image = torch.ones(1, 1, 8, 8)
for layer in network.layers:
    image = layer(image)
(message,) = parse_cfg_text(TEXT.format("facter"), "x.cfg").oddities
print(json.dumps({"value": image.unique().item(), "table": layer_table(network), "message": message}))
"""


def test_a_section_of_the_dialect(tmp_path):
    found = run(SECTION, tmp_path)
    assert found["value"] == 6  # 3 as written, 2 by default
    assert "scaled" in found["table"] and "x 3" in found["table"]
    assert found["message"].startswith("x.cfg:6: [scaled] has no key 'facter'")
    assert "did you mean 'factor'" in found["message"]


LABEL_FORMAT = """
import json
from pathlib import Path
import cv2
import numpy as np

# The one file: what reads a label file, here "name x1 y1 x2 y2" per line.
from data.labels.label_format import LabelFormat, LabelRows

def read(path):
    words = [line.split() for line in Path(path).read_text().splitlines()]
    boxes = np.array([word[1:] for word in words], dtype=np.float64).reshape(-1, 4)
    count = len(words)
    lines = np.arange(1, count + 1)
    return LabelRows(boxes, [word[0] for word in words], lines, np.zeros(count, bool), False, (0, 0), [])

# The one line: its place in the table.
from data.labels import formats
formats.FORMATS[".box"] = LabelFormat(".box", "boxes", read)

from data.splits import open_data
from data.labels.read import read_dataset
for folder in ("images", "boxes"):
    Path(folder).mkdir()
cv2.imwrite("images/a.png", np.zeros((20, 30, 3), np.uint8))
Path("boxes/a.box").write_text("cat 1 2 11 12\\ndog 3 4 13 14\\ndog 3 4 13 14\\n")
found = read_dataset(open_data("images"), "train")
print(json.dumps({"names": found.names, "labels": found.labels.tolist(), "boxes": found.boxes_xyxy.tolist(),
                  "problems": [str(problem) for problem in found.problems]}))
"""


def test_a_label_format(tmp_path):
    found = run(LABEL_FORMAT, tmp_path)
    assert found["names"] == ["cat", "dog"] and found["labels"] == [0, 1]
    assert found["boxes"] == [[1, 2, 11, 12], [3, 4, 13, 14]]
    assert len(found["problems"]) == 1 and "a.box:3" in found["problems"][0] and "duplicate" in found["problems"][0]


ANALYSIS = """
import json, sys
from dataclasses import dataclass
from pathlib import Path
import cv2
import numpy as np

# The one file: its options, its function and its mode.
from analysis.mode import Mode
from analysis.output.result import Result, Table
from utils.config import option

@dataclass(frozen=True)
class CountOptions:
    \"\"\"How objects are counted.\"\"\"
    above: float = option(0.0, "count the objects wider than so many pixels")

def count(request):
    above = request.options(CountOptions).above
    boxes = request.annotations().boxes_xyxy
    number = int((boxes[:, 2] - boxes[:, 0] > above).sum())
    table = Table("count", "Objects", ("objects",), ((number,),))
    return request.described(Result("count-objects", {}, {"objects": number}, (table,)))

# The one line: its place in the table.
from analysis import modes
modes.MODES["count_objects"] = Mode("count_objects", "number of objects", count, (CountOptions,), frozenset({"data"}))

import analyze
from utils.errors import run_command

for folder in ("images", "labels"):
    Path(folder).mkdir()
cv2.imwrite("images/a.png", np.zeros((100, 100, 3), np.uint8))
Path("labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\\n0 0.5 0.5 0.4 0.1\\n")

def status_of(*words):
    sys.argv = ["analyze.py", *words]
    try:
        run_command(analyze.main)
    except SystemExit as stop:
        return stop.code
    return 0

statuses = [status_of("--count-objects", "--data", "images", "--above", "20"), status_of("--above", "20"),
            status_of("--count-objects", "--data", "images", "--near-gap", "3")]
written = json.loads(Path("runs/analyze/count-objects/results.json").read_text())
print(json.dumps({"statuses": statuses, "mode": written["mode"], "statistics": written["statistics"],
                  "data": written["data"], "csv": Path("runs/analyze/count-objects/count.csv").read_text()}))
"""


def test_an_analysis(tmp_path):
    found = run(ANALYSIS, tmp_path)
    assert found["statuses"] == [0, 2, 2]  # an option of another analysis is refused
    assert found["mode"] == "count-objects" and found["statistics"] == {"objects": 1}  # 10 and 40 pixels wide
    assert found["data"]["data"] == "images" and found["csv"] == "objects\n1\n"
