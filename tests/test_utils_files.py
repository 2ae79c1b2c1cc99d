"""Files that are written whole or not at all."""

import json

import pytest

from utils.errors import UserError
from utils.files import atomic_path, read_text, write_json_atomically, write_text_atomically


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.touch()


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json_atomically(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        write_json_atomically(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_text_is_read_up_to_a_limit_and_named_by_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n")
    assert read_text(path, 8) == "one\r\n"
    with pytest.raises(UserError, match=r"a\.txt: has more than 7 bytes"):
        read_text(path, 7)
    path.write_bytes(b"one\ntwo\xff\n")
    with pytest.raises(UserError, match=r"a\.txt:2: is not a UTF-8 text file"):
        read_text(path, 100)
    with pytest.raises(OSError):
        read_text(tmp_path, 100)


@pytest.mark.parametrize(("text", "written"), [("a\udcffb", "a\\udcffb"), ("\ud800", "\\ud800"), ("é", "é")])
def test_letters_that_utf8_does_not_have_are_written_all_the_same(tmp_path, text, written):
    write_text_atomically(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == written
