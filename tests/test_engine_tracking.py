"""Tracks of objects that move as is known: numbers stay with them, and stand in the files."""

import builtins

import pytest
import torch

from engine.tracking import Tracker
from utils.errors import UserError
from utils.structures import Detections


def found(*rows):
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Detections(table[:, :4].float(), table[:, 4].float(), table[:, 5].long())


def two_objects(frame):
    """One moves right, one down; their order changes from frame to frame."""
    right = (10 + 3 * frame, 10, 40 + 3 * frame, 40, 0.9, 0)
    down = (100, 20 + 2 * frame, 130, 60 + 2 * frame, 0.8, 1)
    return (right, down) if frame % 2 else (down, right)


def test_objects_keep_their_numbers_through_a_gap():
    pytest.importorskip("trackers")
    tracker = Tracker(fps=30.0, confidence=0.3)
    numbers = {0: set(), 1: set()}
    for frame in range(30):
        rows = two_objects(frame) if frame not in (12, 13) else two_objects(frame)[:1]
        given = found(*rows)
        tracked = tracker.update(given)
        assert torch.equal(tracked.boxes_xyxy, given.boxes_xyxy) and torch.equal(tracked.labels, given.labels)
        if frame == 0:
            assert tracked.track_ids.tolist() == [0, 0]  # nobody knows yet whether they are there
        else:
            for label, number in zip(tracked.labels.tolist(), tracked.track_ids.tolist(), strict=True):
                numbers[label].add(number)
    assert sorted(map(len, numbers.values())) == [1, 1] and numbers[0] | numbers[1] == {1, 2}


def test_empty_frames_and_weak_detections():
    pytest.importorskip("trackers")
    tracker = Tracker(fps=10.0, confidence=0.01)
    assert tracker.update(found()).track_ids.tolist() == []
    for frame in range(4):
        tracked = tracker.update(found((10, 10, 40, 40, 0.6, 0), (200 + 5 * frame, 10, 230 + 5 * frame, 40, 0.1, 0)))
    assert tracked.track_ids.tolist() == [1, 0]  # too weak to begin a track
    assert len(tracker.update(found())) == 0
    assert tracker.update(found((10, 10, 40, 40, 0.6, 0))).track_ids.tolist() == [1]
    assert tracker.update(found((10, 10, 40, 40, 0.1, 0))).track_ids.tolist() == [1]  # but it can go on with one


def test_without_the_package_it_is_one_line(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name in ("trackers", "supervision"):
            raise ImportError(f"No module named '{name}'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"--track needs the package trackers: pip install .*requirements-tracking.txt"):
        Tracker(30.0, 0.3)
