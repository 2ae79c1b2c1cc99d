"""The numbers of docs/assignment.md: tables are what the script prints, the arithmetic is what the code computes."""

import pytest
import torch

from benchmarks import assignment_example, train_strategies
from models.build_targets import STRATEGIES, AssignmentOptions
from models.heads import decode_map
from utils.boxes import box_iou, cxcywh_to_xyxy


def document():
    return assignment_example.DOCUMENT.read_text(encoding="utf-8")


def test_the_tables_of_the_document_are_what_the_script_prints():
    text = document()
    assert "| tal | std |" in text
    assert assignment_example.document_with(assignment_example.tables(), text) == text, (
        "run: python -m benchmarks.assignment_example --write"
    )


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
            for raw, head in zip(assignment_example.raw_maps(), assignment_example.HEADS, strict=True)]  # fmt: skip
    for ((head, anchor, col, row), name), value in expected.items():
        box = maps[head][0, anchor, row, col][None]
        truth = torch.tensor([assignment_example.OBJECTS[name]]).float()
        assert box_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(truth)).item() == pytest.approx(value, abs=1e-5)


def test_the_alpha_weighted_example():
    std = (0.75 + 0.2 + 0) / 3 + (1 - 640 / 1200)
    new = ((1 - 930 / 1470) + (1 - 36 / 64)) / 2 + (1 - 1200 / 1320)
    rows = [line.split("|") for line in assignment_example.tables().splitlines() if line.startswith("| α = ")]
    found = {float(cells[1].split("=")[1]): float(cells[2]) for cells in rows}
    assert found == pytest.approx({alpha: (1 - alpha) * std + alpha * new for alpha in (0, 0.3, 0.5, 1)}, abs=6e-5)


def test_the_document_names_every_strategy_and_option():
    text = document()
    for name in STRATEGIES:
        assert f"| `{name}` |" in text
    for name in AssignmentOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text, name


def test_a_table_of_results_is_put_in_once_and_then_replaced():
    text = document()
    assert "<!-- end of training results -->" in text
    once = train_strategies.document_with("| one |", "cfg/shapes.data", text)
    both = train_strategies.document_with("| two |", "bccd.data", once)
    again = train_strategies.document_with("| three |", "shapes.data", both)
    assert "| one |" in both and "| two |" in both
    assert "| one |" not in again and again.count("| three |") == 1 and again.count("| two |") == 1
