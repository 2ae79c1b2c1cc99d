"""The numbers of docs/assignment.md: tables are what the script prints, the arithmetic is what the code computes."""

import subprocess
import sys

import pytest
import torch

from benchmarks import assignment
from benchmarks.harness import Timing
from docs import make_example, make_training_table
from docs.document import read_document, with_part
from models.assignment.options import AssignmentOptions
from models.assignment.strategies import STRATEGIES
from models.heads import decode_map
from utils.boxes import box_iou, cxcywh_to_xyxy
from utils.config import REPOSITORY


def test_the_tables_of_the_document_are_what_the_script_prints():
    text = read_document()
    assert "| tal | base |" in text
    assert with_part(text, "example", make_example.tables()) == text, "run: python -m docs.make_example --write"


def test_the_predictions_are_those_of_the_document():
    # IoUs as worked out in the document, by (head, anchor, column, row) and object.
    expected = {
        ((0, 0, 3, 2), "a"): 300 / 1200,
        ((0, 1, 3, 2), "a"): 960 / 1200,
        ((1, 0, 1, 1), "a"): 640 / 1200,
        ((1, 1, 1, 1), "a"): 1200 / 1320,
        ((0, 0, 4, 2), "a"): 930 / 1470,
        ((0, 0, 6, 1), "b"): 1.0,
        ((0, 0, 6, 1), "c"): 20 / 136,
        ((0, 1, 6, 1), "b"): 42 / 142,
        ((0, 1, 6, 1), "c"): 36 / 64,
    }
    maps = [decode_map(raw, head) * head.stride
            for raw, head in zip(make_example.example_maps(), make_example.HEADS, strict=True)]  # fmt: skip
    for ((head, anchor, col, row), name), value in expected.items():
        box = maps[head][0, anchor, row, col][None]
        truth = torch.tensor([make_example.OBJECTS[name]]).float()
        assert box_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(truth)).item() == pytest.approx(value, abs=1e-5)


def test_the_alpha_weighted_example():
    base = (0.75 + 0.2 + 0) / 3 + (1 - 640 / 1200)
    extra = ((1 - 930 / 1470) + (1 - 36 / 64)) / 2 + (1 - 1200 / 1320)
    rows = [line.split("|") for line in make_example.tables().splitlines() if line.startswith("| α = ")]
    found = {float(cells[1].split("=")[1]): float(cells[2]) for cells in rows}
    assert found == pytest.approx({alpha: (1 - alpha) * base + alpha * extra for alpha in (0, 0.3, 0.5, 1)}, abs=6e-5)


def test_the_document_names_every_strategy_and_option():
    text = read_document()
    for name in STRATEGIES:
        assert f"| `{name}` |" in text
    for name in AssignmentOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text, name


def test_a_table_of_results_is_put_in_once_and_then_replaced():
    text = read_document()
    assert "<!-- end of training results -->" in text
    once = make_training_table.document_with("| one |", "cfg/shapes.data", text)
    both = make_training_table.document_with("| two |", "bccd.data", once)
    again = make_training_table.document_with("| three |", "shapes.data", both)
    empty = "<!-- training results -->\n\nNot run yet.\n\n<!-- end of training results -->\n"
    assert "Not run yet" not in make_training_table.document_with("| one |", "shapes.data", empty)
    assert "| one |" in both and "| two |" in both
    assert "| one |" not in again and again.count("| three |") == 1 and again.count("| two |") == 1


def test_the_benchmark_says_median_and_best_and_whether_a_limit_fails(capsys):
    times = {"standard": Timing(2.5, 1.5), "fast": Timing(4.0, 3.0), "split on the map": Timing(10.0, 10.0)}
    assert assignment.print_verdicts(times, {"fast": 100.0})
    out = capsys.readouterr().out
    assert "holds: standard at 16 x 7: 1.50 ms at best, 2.50 in the median" in out and "FAILS" not in out
    assert not assignment.print_verdicts({"standard": Timing(2.5, 2.1)}, {})
    assert not assignment.print_verdicts({}, {"fast": 1025.0})
    assert "FAILS: 64 x 100: at most 1025 MiB (fast)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", assignment.VARIANTS)
def test_matching_64_images_with_100_objects_takes_less_than_1_gib(name):
    """A process of its own, for the peak of the memory; split on the map builds every pair, so 16 x 100 must do."""
    images = 16 if name == "split on the map" else 64
    code = f"""
import torch
from benchmarks.assignment import CLASSES, VARIANTS, random_batch
from benchmarks.harness import peak_mib, yolov3_heads
from models.assignment.assigner import AssignmentOptions, build_assigner
from models.assignment.grid import grid_of_maps
torch.set_num_threads(1)
values = VARIANTS[{name!r}]
heads, device = yolov3_heads(CLASSES), torch.device("cpu")
raw_maps, targets = random_batch({images}, 100, heads, device)
assigner = build_assigner(AssignmentOptions(**values), heads)
grid = grid_of_maps(heads, raw_maps)
print(peak_mib(lambda: assigner.match(targets, grid, raw_maps), device))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout.split()[-1]) < assignment.MEMORY_LIMIT
