"""data.yaml as Roboflow and ultralytics write it: what it may say, where its paths lead, one line for every mistake."""

from pathlib import Path

import pytest

from data.data_yaml import read_data_yaml
from utils.errors import UserError

ROBOFLOW = """train: ../train/images
val: ../valid/images
test: ../test/images

nc: 3
names: ['cat', 'dog', 'bird']

roboflow:
  workspace: example
  license: CC BY 4.0
"""


def write(folder: Path, text: str, *folders: str) -> Path:
    """Write a data.yaml and the folders that it may speak of."""
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def test_roboflows_paths_are_meant_from_the_yaml_although_they_say_the_folder_above(tmp_path):
    data = read_data_yaml(write(tmp_path / "set", ROBOFLOW, "train/images", "valid/images"))
    assert data.names == ("cat", "dog", "bird") and data.num_classes == 3 and not data.is_one_set
    assert data.sources("train") == (tmp_path / "set" / "train/images",)
    assert data.sources("valid") == (tmp_path / "set" / "valid/images",)
    assert data.notes == (f"{tmp_path}/set/data.yaml: not used here: roboflow",)
    with pytest.raises(UserError, match=r"test = \.\./test/images is not on the disk"):
        data.sources("test")


def test_a_path_that_exists_as_it_is_written_counts_first(tmp_path):
    data = read_data_yaml(write(tmp_path / "set", ROBOFLOW, "train/images", "../train/images"))
    assert data.sources("train")[0].resolve() == tmp_path / "train/images"


@pytest.mark.parametrize("path", ["{here}/d", "d", "../datasets/d", "./d", "..\\\\datasets\\\\d"])
def test_the_key_path_is_meant_from_here_from_the_yaml_or_in_the_folder_datasets(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    folder = "d" if path in ("{here}/d", "./d") else "datasets/d"
    text = f"path: {path.format(here=tmp_path)}\ntrain: images/a\nval: [images/b, images/c]\nnames: [x]\n"
    file = write(tmp_path / "elsewhere", text)
    for name in "abc":
        (tmp_path / folder / "images" / name).mkdir(parents=True)
    data = read_data_yaml(file)
    assert data.sources("train")[0].samefile(tmp_path / folder / "images/a")
    assert [source.name for source in data.sources("valid")] == ["b", "c"]


@pytest.mark.parametrize(
    "names, expected",
    [
        ("[cat, dog]", ("cat", "dog")),
        ("{0: cat, 1: dog}", ("cat", "dog")),
        ("\n  1: dog\n  0: cat", ("cat", "dog")),
        ("\n- yes\n- 1e3\n- 2020-01-01\n- null", ("yes", "1e3", "2020-01-01", "null")),  # texts, whatever YAML thinks
        ("[' cat ', 'a: b']", ("cat", "a: b")),
        ("x.names", ("one", "two")),
    ],
)
def test_names_as_list_as_mapping_and_as_file(tmp_path, names, expected):
    (tmp_path / "x.names").write_text("one\ntwo\n")
    data = read_data_yaml(write(tmp_path, f"train: a\nnames: {names}\n"))
    assert data.names == expected and data.num_classes == len(expected)


def test_classes_without_names_and_keys_without_use(tmp_path):
    data = read_data_yaml(write(tmp_path, "valid: b\nnc: 4\ncolor: red\nvla: 1\n"))
    assert data.num_classes == 4 and data.names == () and data.splits == {"valid": ("b",)}
    assert data.notes == (f"{tmp_path}/data.yaml: not used here: color, vla; did you mean 'val'?",)
    data = read_data_yaml(write(tmp_path, "train: b\ndownload: |\n  import os\n  os.remove('x')\n"))
    assert data.download == "import os os.remove('x')" and data.num_classes == 0
    with pytest.raises(UserError, match="fetch it with: import os"):  # shown, not run
        data.sources("train")


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: a\nnc: 3\nnames: [x, y]\n", r"data\.yaml:2: nc: 3, but 'names' has 2 names"),
        ("train: a\nnc: many\n", r"data\.yaml:2: nc: many is not a usable number"),
        ("train: a\nnc: 1000000000\n", r"data\.yaml:2: nc: 1000000000 is not a usable number"),
        ("train: a\nnames: [x, x]\n", r"data\.yaml:2: duplicate class name 'x'"),
        ("train: a\nnames: [x, '']\n", r"data\.yaml:2: the name of class 1 is empty"),
        ("train: a\nnames: [x, [y]]\n", r"data\.yaml:2: 'names' must be a list of single values"),
        ("train: a\nnames: {1: x, 2: y}\n", r"data\.yaml:2: 'names' must number the classes from 0 on; 0 is missing"),
        ("train: a\nnames: {0: [x]}\n", r"data\.yaml:2: each of 'names' must be a single value"),
        ("train: {a: b}\n", r"data\.yaml:1: 'train' must be a single value"),
        ("train: a\nval: b\nvalid: c\n", r"data\.yaml:3: 'valid' and another key both name the split 'valid'"),
        ("names: [x]\n", r"data\.yaml: names no images; .* \(it has names\)"),
        ("", r"data\.yaml: names no images"),
        ("- a\n- b\n", r"data\.yaml: not a list of"),
        ("train: [a\nnc: 1\n", r"data\.yaml:\d+: not valid YAML"),
        ("train: a\nnames: [*x]\n", r"data\.yaml:2: not valid YAML"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_data_yaml(write(tmp_path, text))


@pytest.mark.parametrize("text, shape", [("[17, 3]", (17, 3)), ("[0, 0]", (0, 0)), ("[4, 2]", (4, 2)), ("", None)])
def test_the_shape_of_key_points(tmp_path, text, shape):
    path = write(tmp_path, f"train: images\nkpt_shape: {text}\nnames: [a]\n", "images")
    data = read_data_yaml(path)  # without key points, (0, 0), longer rows are polygons
    assert data.keypoint_shape == shape and not any("kpt_shape" in note for note in data.notes)


@pytest.mark.parametrize("text", ["17", "[17]", "[17, 4]", "[17, 3, 1]", "[-1, 3]", "[a, b]", "{a: 1}", "[99999, 3]"])
def test_a_shape_that_key_points_cannot_have(tmp_path, text):
    with pytest.raises(UserError, match=r"data\.yaml:2: 'kpt_shape' must be"):
        read_data_yaml(write(tmp_path, f"train: images\nkpt_shape: {text}\nnames: [a]\n", "images"))
