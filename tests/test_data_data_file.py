"""The .data file: what it may say, and one clear line for everything else."""

import os

import pytest

from data.data_file import read_data_file
from data.labels.read import read_dataset
from data.splits import open_data
from utils.class_names import read_names
from utils.errors import UserError

GOOD = "classes = 2\ntrain = a.txt\nvalid=b.txt # a comment\n\n; another\nnames = x.names\nbackup = backup/\n"


def write(folder, text, names="cat\ndog\n"):
    (folder / "x.data").write_text(text)
    (folder / "x.names").write_text(names)
    return folder / "x.data"


def test_a_data_file_in_any_spacing(tmp_path):
    data = read_data_file(write(tmp_path, GOOD.replace("valid=b.txt", "  valid   =b.txt\t")))
    assert data.num_classes == 2 and data.names == ("cat", "dog")
    assert data.splits == {"train": ("a.txt",), "valid": ("b.txt",)}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("valid=", "vaild=", r"x\.data:3: unknown key 'vaild'; did you mean 'valid'\?"),  # codespell:ignore vaild
        ("classes = 2", "classes = two", r"x\.data:1: classes = two is not a usable number of classes"),
        ("classes = 2", "classes = 3", r"x\.data:1: classes = 3, but .*x\.names has 2 names"),
        ("classes = 2", "classes = 1000000000", r"x\.data:1: classes = 1000000000 is not a usable number of classes"),
        ("train = a.txt\nvalid=b.txt", "", r"x\.data: names no images; it needs a line such as 'train = …'"),
        ("train = a.txt", "train", r"x\.data:2: expected 'key = value', found 'train'"),
        ("train = a.txt", "train =", r"x\.data:2: expected 'key = value'"),
        ("names = x.names", "names = y.names", r"x\.data:6: names = y\.names does not exist"),
        ("backup = backup/", "train = c.txt", r"x\.data:7: 'train' is given twice \(first in line 2\)"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message):
        read_data_file(write(tmp_path, GOOD.replace(old, new)))


def test_names_files(tmp_path):
    (tmp_path / "n").write_text("a b\n c\n\n")
    assert read_names(tmp_path / "n") == ("a b", "c")
    (tmp_path / "n").write_text("a\n\nb\n")
    with pytest.raises(UserError, match=":2: an empty line"):
        read_names(tmp_path / "n")
    (tmp_path / "n").write_text("a\nb\na\n")
    with pytest.raises(UserError, match=":3: duplicate class name 'a'"):
        read_names(tmp_path / "n")
    (tmp_path / "n").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        read_names(tmp_path / "n")


def test_relative_paths_here_then_beside_the_data_file_then_in_the_repository(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    data = read_data_file(write(there, GOOD))
    assert data.find("a.txt") is None
    (there / "a.txt").write_text("")
    assert data.find("a.txt") == there / "a.txt"
    (here / "a.txt").write_text("")
    assert os.path.samefile(data.find("a.txt"), here / "a.txt")
    assert data.find("cfg/coco.names").name == "coco.names"


def test_data_that_are_not_there_come_with_the_command_that_fetches_them(tmp_path, monkeypatch):
    write(tmp_path, GOOD + "download = python -m data.download_coco\n")
    with pytest.raises(
        UserError,
        match=r"train = a\.txt is not on the disk \(looked in .*\); fetch it with: cd .* && python -m data\.download",
    ):
        read_dataset(read_data_file(tmp_path / "x.data"), "train")
    assert read_data_file("coco2017.data").download == "python -m data.download_coco"
    with pytest.raises(UserError, match=r"has no 'test' \(it has train, valid\)"):
        read_dataset(read_data_file(tmp_path / "x.data"), "test")


def test_a_data_file_needs_only_what_is_read(tmp_path):
    write(tmp_path, "valid = b.txt\nnames = x.names\n")  # enough for `darknet detector map`
    data = read_data_file(tmp_path / "x.data")
    assert data.num_classes == 2 and data.names == ("cat", "dog") and data.splits == {"valid": ("b.txt",)}
    data = read_data_file(write(tmp_path, "train = c#1/a#2.txt  # a comment\n# another\n"))
    assert data.num_classes == 0 and data.names == () and data.splits == {"train": ("c#1/a#2.txt",)}
    with pytest.raises(UserError, match=r"has no 'valid' \(it has train\); --val-fraction 0\.2 holds a fifth"):
        data.sources("valid")


def test_paths_of_the_annotators_machine_are_found_beside_the_file(tmp_path):
    text = "classes = 2\ntrain = data/sub/train.txt\nvalid = C:\\mine\\val.txt\nnames = data/x.names\n"
    data = read_data_file(write(tmp_path, text))
    (tmp_path / "sub").mkdir()
    for name in ("sub/train.txt", "train.txt", "val.txt"):
        (tmp_path / name).write_text("")
    assert data.names == ("cat", "dog")
    assert data.sources("train") == (tmp_path / "sub/train.txt",)  # the longest part of the path that exists
    assert data.sources("valid") == (tmp_path / "val.txt",)
    assert data.found_elsewhere("train") == [f"data/sub/train.txt is read from {tmp_path}/sub/train.txt"]


@pytest.mark.parametrize("name", ["coco2017.data", "shapes.data", "bccd.data"])
def test_shipped_data_files_are_right(name):
    data = read_data_file(name)
    assert len(data.names) == data.num_classes


def test_open_data_takes_what_stands_for_a_data_file(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path, tmp_path / "x.json"):
        data = open_data(str(path))
        assert data.sources("train") == data.sources("test") == (path,) and data.num_classes == 0
    with pytest.raises(UserError, match=r"data file 'nosuch\.data' does not exist.*shapes\.data"):
        open_data("nosuch.data")
