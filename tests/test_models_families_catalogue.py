"""--cfg help: every network with its parameters, without building those that have a name."""

import shutil

import pytest
import torch

from models.families import catalogue
from models.families.table import FAMILIES, Family, found_besides_boxes
from utils.config import REPOSITORY
from utils.errors import UserError
from utils.structures import KEY_POINTS, MASKS


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_network(name):
    try:
        with torch.device("meta"):
            network = FAMILIES[name].build(catalogue.CLASSES)
    except UserError as missing:
        pytest.skip(str(missing))
    assert sum(parameter.numel() for parameter in network.parameters()) == FAMILIES[name].parameters


def test_every_network_is_a_row(tmp_path, monkeypatch, capsys):
    def refuse(num_classes):
        raise AssertionError("is built")

    (tmp_path / "cfg").mkdir()
    shutil.copy(REPOSITORY / "cfg/yolov3-nano.cfg", tmp_path / "cfg")
    monkeypatch.setattr(catalogue, "REPOSITORY", tmp_path)
    monkeypatch.setitem(FAMILIES, "mine", Family(lambda num_classes: torch.nn.Linear(num_classes, 1), "nowhere"))
    monkeypatch.setitem(FAMILIES, "known", Family(refuse, "elsewhere (requirements.txt)", 1234567))
    both = frozenset({MASKS, KEY_POINTS})
    monkeypatch.setitem(FAMILIES, "shapely", Family(refuse, "here", 7, both))
    assert found_besides_boxes("shapely") is both
    with pytest.raises(SystemExit, match="0"):
        catalogue.print_if_asked("help")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["yolov3-nano.cfg", "719,053", "boxes", "cfg/"] in lines
    assert ["mine", "81", "boxes", "nowhere"] in lines
    assert ["known", "1,234,567", "boxes", "elsewhere", "(requirements.txt)"] in lines
    assert ["shapely", "7", "boxes,", "key", "points,", "masks", "here"] in lines
    assert len(lines) == 1 + 1 + len(FAMILIES) + 1
