"""Numbers of slots: by hand, and that every number leads back to its slot."""

import torch

from models.assignment.grid import slot_grid
from tests.assignment_cases import SHAPES, two_heads
from utils.structures import Matches

CPU = torch.device("cpu")


def test_numbers_by_hand():
    # The coarse head has 2 anchors on 3 rows x 5 columns, the fine one 3 anchors on 6 x 10: 30 + 180 slots an image.
    grid = slot_grid(two_heads(), SHAPES, CPU)
    assert grid.slots_per_image == 210 and grid.first_slot.tolist() == [0, 15, 30, 90, 150]
    anchor, row, col, image = (
        torch.tensor(values) for values in ([0, 1, 2, 4], [0, 2, 0, 5], [4, 1, 0, 9], [0, 0, 1, 2])
    )
    # 4; 15 + 2 * 5 + 1; 210 + 30; 2 * 210 + 150 + 5 * 10 + 9
    assert grid.number(anchor, row, col, image).tolist() == [4, 26, 240, 629]
    assert grid.number(anchor, row, col).tolist() == [4, 26, 30, 209]


def test_locate_is_the_inverse_of_number():
    grid = slot_grid(two_heads(), SHAPES, CPU)
    numbers = torch.arange(3 * grid.slots_per_image)
    place = grid.locate(numbers)
    assert torch.equal(grid.number(place.anchor, place.row, place.col, place.image), numbers)
    rows, cols = torch.tensor(SHAPES)[grid.head[place.anchor]].unbind(dim=1)
    assert ((place.row >= 0) & (place.row < rows) & (place.col >= 0) & (place.col < cols)).all()
    assert place.image.unique().tolist() == [0, 1, 2]


def test_matches_are_numbered_by_head_and_anchor():
    grid = slot_grid(two_heads(), SHAPES, CPU)
    one = torch.ones(2)
    head, anchor, row, col = (torch.tensor(values) for values in ([0, 1], [1, 2], [2, 5], [1, 9]))
    matches = Matches(torch.tensor([0, 0]), torch.tensor([0, 1]), head, anchor, row, col, one, one, (1, 1))
    # Anchor 1 of the coarse head is number 1 of all, anchor 2 of the fine head is number 2 + 2.
    assert grid.anchor_of_matches(matches).tolist() == [1, 4]
    assert grid.number_of_matches(matches).tolist() == [26, 210 + 150 + 59]
    assert [[index.tolist() for index in place] for place in matches.place_per_head()] == [
        [[0], [1], [2], [1]], [[1], [2], [5], [9]]
    ]  # fmt: skip


def test_cells_are_in_network_pixels():
    grid = slot_grid(two_heads(), SHAPES, CPU)
    # Strides 32 and 16: column 1, row 2 of the coarse head, column 9, row 5 of the fine one.
    assert grid.cells_xyxy(grid.locate(torch.tensor([26, 209]))).tolist() == [[32, 64, 64, 96], [144, 80, 160, 96]]
