"""Records that cross package borders: where things of an image lie in the network input."""

import torch

from utils.structures import ImageMeta


def test_key_points_lie_where_the_corners_of_boxes_lie():
    meta = ImageMeta(1, "", (100, 80), scale_xy=(2.0, 3.0), offset_xy=(10.0, 0.0))
    points = torch.tensor([[[20.0, 30, 2], [-5, 90, 0.3]]])  # 1 K 3; the second is outside of the image
    moved = meta.points_to_network(points)
    assert moved.tolist() == torch.tensor([[[50.0, 90, 2], [0, 270, 0.3]]]).tolist()
    assert torch.equal(meta.points_to_original(moved), points)
    assert meta.points_to_network(torch.zeros(0, 17, 3)).shape == (0, 17, 3)
