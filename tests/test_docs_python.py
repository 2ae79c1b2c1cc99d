"""Every example of docs/python.md is run, in the order of the page, as one program in one folder."""

import importlib.util
import inspect
import re

import cv2
import numpy as np
import pytest

from engine.image_result import ImageResult
from engine.predictor import Predictor, load
from tests.tiny_project import REPOSITORY, make_project

PAGE = (REPOSITORY / "docs/python.md").read_text()
BLOCKS = re.findall(r"^```python(.*)\n((?:.*\n)*?)^```$", PAGE, flags=re.MULTILINE)
FOLDER = "/path/to/this/folder"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The files that the examples name: best.pt, photo.jpg, broken.jpg, photos/ and film.avi."""
    make_project(tmp_path).rename(tmp_path / "best.pt")
    image = cv2.imread(str(tmp_path / "images/000.png"))
    cv2.imwrite(str(tmp_path / "photo.jpg"), image)
    (tmp_path / "broken.jpg").write_text("no picture")
    (tmp_path / "images").rename(tmp_path / "photos")
    video = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 4.0, (120, 80))
    for shift in range(5):
        video.write(np.roll(image, shift, axis=1))
    video.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_examples(wanted):
    """Run the blocks of the page that are wanted, one after the other; return the names that they leave."""
    names = {}
    for words, text in BLOCKS:
        if words.strip() in wanted:
            line = PAGE[: PAGE.index(text)].count("\n")
            code = compile("\n" * line + text.replace(FOLDER, str(REPOSITORY)), "docs/python.md", "exec")
            exec(code, names)
    return names


def test_every_example_runs(project, capsys):
    assert len(BLOCKS) == len(re.findall("```", PAGE)) // 2
    wanted = {""} | ({"supervision"} if importlib.util.find_spec("supervision") else set())
    names = run_examples(wanted)
    printed = capsys.readouterr().out
    for comment in (
        "<detector best.pt (tiny.cfg): 3 classes, letterbox to 96x64",
        "use 96 or 104",
        "broken.jpg: not an",
    ):
        assert comment in PAGE and comment in printed
    assert len(names["counts"]) == 16 and len(set(names["counts"])) == 1
    assert len((project / "found.csv").read_text().splitlines()) > 7
    assert sorted(path.name for path in (project / "drawn").iterdir()) == [f"00{n}.png" for n in range(7)]


def test_the_tables_name_what_there_is():
    tables = re.findall(r"^\| `(.*)$", PAGE, flags=re.MULTILINE)
    named = {name for row in tables for name in re.findall(r"`(\w+)(?:\([\w=]*\))?`", "`" + row.split(" | ")[0])}
    arguments = [*inspect.signature(load).parameters, *list(inspect.signature(Predictor.__call__).parameters)[2:]]
    public = [name for name in (*dir(ImageResult), *ImageResult.__dataclass_fields__) if not name.startswith("_")]
    assert named == {*arguments, *public}
