"""A share of the damaged files of tests/mutated_files.py; all of them: python -m tests.mutated_files."""

from pathlib import Path

import pytest

from tests.mutated_files import KINDS, outcome_of

CHECKED = {"voc", "yolo", "list", "image", "cache", "names"}  # much of what is wrong in them is left out, or read anew


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its memory as only Linux can")
@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_every_damaged_file_is_read_or_refused_in_one_line(name, count):
    kind = KINDS[name]
    if kind.needs and not kind.needs.is_file():
        pytest.skip(f"needs {kind.needs}, which is not part of the repository")
    found = outcome_of(name, count)
    assert found["wrong"] == []
    assert found["read"] + found["refused"] == count
    assert name in CHECKED or found["refused"] > count / 4  # or the damage would prove little
