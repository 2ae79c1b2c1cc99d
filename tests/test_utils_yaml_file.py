"""YAML files: plain values with their lines; what is not plain, or stands for too much, is one line with the place."""

import os

import pytest
import yaml

from utils.errors import UserError
from utils.files import write_text_atomically
from utils.yaml_file import MAX_BYTES, MAX_VALUES, read_yaml


def read(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path)


def refusal(tmp_path, text):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return str(error.value).replace(str(tmp_path), "")


def test_plain_values_are_those_of_yaml_and_know_their_lines(tmp_path):
    text = (
        "\ufeff# head\npath: ../set\nnc: 2\n\nnames:\n  0: cat\n  1: 'no'\nlr: 1.5e-3\nsizes: [1, [2, ~]]\nflip: yes\n"
    )
    values, lines = read(tmp_path, text)
    assert values == yaml.safe_load(text.removeprefix("\ufeff"))
    assert lines == {"path": 2, "nc": 3, "names": 5, "lr": 8, "sizes": 9, "flip": 10}


@pytest.mark.parametrize("text", ["", "# nothing\n", "~\n", "---\n...\n", "\r\n"])
def test_a_file_without_values_has_no_keys(tmp_path, text):
    assert read(tmp_path, text) == ({}, {})


def test_dates_stay_text_and_keys_are_as_written(tmp_path):
    values, _ = read(tmp_path, "day: 2024-01-31\nbad: 2024-13-45\nat: [2001-12-14 21:59:43]\nyes: 1\n7: 2\nnull: 3\n")
    assert values == {
        "day": "2024-01-31",
        "bad": "2024-13-45",
        "at": ["2001-12-14 21:59:43"],
        "yes": 1,
        "7": 2,
        "null": 3,
    }


def test_a_path_that_is_not_utf8_comes_back(tmp_path):
    path = os.fsdecode(b"dir/\xff\xe9.data")
    write_text_atomically(tmp_path / "x.yaml", yaml.safe_dump({"data": path}, allow_unicode=True))
    assert read_yaml(tmp_path / "x.yaml").values == {"data": path}


def test_an_honest_alias_is_followed(tmp_path):
    assert read(tmp_path, "train: &here images\nval: *here\na: &l [1, 2]\nb: *l\n").values == {
        "train": "images", "val": "images", "a": [1, 2], "b": [1, 2]
    }  # fmt: skip


LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, f"stands for more than {MAX_VALUES:,} values"),
        (LAUGHS.replace("[", "{x: ").replace("]", "}").replace(", ", ", y: "), "is given twice"),
        ("a: &a [1, *a]\n", "x.yaml:1: not valid YAML: more than 20 levels"),
        ("a: &a {b: *a}\n", "x.yaml:1: not valid YAML: more than 20 levels"),
        ("x: 1\ny: " + "[" * 300_000 + "\n", "x.yaml:2: not valid YAML: more than 20 levels"),
        ("{a: " * 100_000, "more than 20 levels"),
        ("- " * 100_000, "more than 20 levels"),
        ("? " * 100_000, "more than 20 levels"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n", "x.yaml:3: not valid YAML: '<<' is no plain value"),
        ("x: 1\n" * 2, "x.yaml:2: not valid YAML: 'x' is given twice"),
        ("names:\n  0: a\n  0: b\n", "x.yaml:3: not valid YAML: '0' is given twice"),
        ("# " + "x" * MAX_BYTES, f"has more than {MAX_BYTES:,} bytes"),
    ],
)
def test_what_stands_for_too_much_is_refused_soon(tmp_path, text, words):
    assert words in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: " + "9" * 5000, "x.yaml:1: not valid YAML: '9999"),
        ("x: 0x" + "f" * 5000, "is no number"),
        ("x: 99999999999999999999\n", "is no number"),
        ("x: 0x_\n", "is no number"),
        ("x: 9:59:59:59" + ":59" * 400 + ".5\n", "is no number"),
        ('a: 1\nx: "\\ud800"\n', "x.yaml:2: not valid YAML: half of a surrogate pair"),
        ("a: 1\nx: \x00\n", "x.yaml:2: not valid YAML: character U+0000"),
        ("a: 1\nx: !!python/object:os.system y\n", "x.yaml:2: not valid YAML: 'y' is no plain value"),
        ("x: !!int ''\n", "'' is no plain value"),
        ("x: !!bool maybe\n", "'maybe' is no plain value"),
        ("x: !!binary aGk=\n", "no plain value"),
        ("x: !!set {a, b}\n", "'tag:yaml.org,2002:set' is not read"),
        ("x: !!omap [a: 1]\n", "'tag:yaml.org,2002:omap' is not read"),
        ("? [a]\n: 1\n", "x.yaml:1: not valid YAML: a key must be"),
        ("x: 1\n---\ny: 2\n", "x.yaml:2: not valid YAML"),
        ("x: [1\n", "x.yaml:2: not valid YAML"),
        ("- 1\n", "not a list of 'option: value' lines"),
        ("text\n", "not a list of 'option: value' lines"),
        (b"a: 1\nx: \xff\n", "x.yaml:2: is not a UTF-8 text file"),
    ],
)
def test_what_is_not_plain_names_its_line(tmp_path, text, words):
    assert words in refusal(tmp_path, text)


def test_a_device_that_never_ends_is_refused():
    with pytest.raises(UserError, match="more than"):
        read_yaml("/dev/zero")
