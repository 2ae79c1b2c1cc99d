"""``test.py --task study``: the numbers of single evaluations, its files, and what is refused."""

import csv
import json

import pytest

import test as script
from engine.study import StudyOptions, StudyRow, _lines, read_study, study_sizes
from models.network import build_network_from_text
from tests.tiny_project import CFG, make_project

HEAD = "network,size,ap,ap50,inference_ms,nms_ms,total_ms\n"
QUICK = ("--workers", "0", "--device", "cpu", "--batch-size", "3")


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_project(tmp_path, num_images=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_are_those_of_single_evaluations(project, run_main):
    arguments = ("--task", "study", "--study-sizes", "96", "64", "96", "--augment", "--augment-scales", "1", "1")
    status, out, error = run_main(script, *arguments, *QUICK)
    assert status == 0, error
    folder = project / "runs/test/exp"
    rows = read_study(str(folder / "study.csv"))
    assert [row.size for row in rows] == [64, 96] and len({row.network for row in rows}) == 1
    for row in rows:
        status, _, error = run_main(script, "--img-size", row.size, *arguments[6:], *QUICK, "--name", f"size{row.size}")
        assert status == 0, error
        metrics = json.loads((project / f"runs/test/size{row.size}/metrics.json").read_text())
        assert (row.ap, row.ap50) == (metrics["ap"], metrics["ap50"]) and row.ap > 0.01
        assert row.total_ms == pytest.approx(row.inference_ms + row.nms_ms) and row.inference_ms > 0
        assert f"{row.size:>14}{row.ap:>14.4f}{row.ap50:>14.4f}" in out
    written = json.loads((folder / "study.json").read_text())
    with (folder / "study.csv").open() as stream:
        assert [int(row["size"]) for row in csv.DictReader(stream)] == [row["size"] for row in written["rows"]]
    assert written["options"]["augment"] and written["options"]["nms"] == "cfg"
    assert (folder / "study.png").read_bytes()[:4] == b"\x89PNG"
    again = run_main(script, "--task", "study", "--study-sizes", 64, "--study-beside", folder / "study.csv", *QUICK)
    assert again[0] == 0, again[2]


def test_sizes_are_whole_strides():
    network = build_network_from_text(CFG, "tiny.cfg")  # of stride 8
    assert study_sizes(StudyOptions(), network) == tuple(range(256, 641, 8))
    assert study_sizes(StudyOptions((64, 32, 64)), network) == (32, 64)


def test_a_line_per_study_that_says_where_it_comes_from():
    def row(network, size, ap):
        return StudyRow(network, size, ap, ap, 1.0, 0.5, size / 64)

    rows = [row("a.pt", 64, 0.1), row("a.pt", 128, None), row("a.pt", 192, 0.2)]
    beside = {"b.csv": [row("b.pt", 64, 0.3)], "c.csv": [row("a.pt", 64, 0.4), row("a.pt", 128, 0.5)]}
    assert _lines(rows, beside) == {
        "a.pt": [(1.0, 0.1, 64), (3.0, 0.2, 192)],
        "b.pt": [(1.0, 0.3, 64)],
        "a.pt (c.csv)": [(1.0, 0.4, 64), (2.0, 0.5, 128)],
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--study-sizes", "64"), "--study-sizes and --study-beside are for --task study"),
        (("--task", "study", "--img-size", "64"), "--img-size is not for --task study"),
        (("--task", "study", "--save-json"), "--save-json is not for --task study"),
        (("--task", "study", "--results", "a.json"), "--results is not for --task study"),
        (("--task", "study", "--study-sizes", "64", "60"), "image size 60 is not a multiple of 8"),
        (("--task", "study", "--study-beside", "none.csv"), "none.csv"),
    ],
)
def test_options_that_do_not_go_together_are_refused(project, run_main, arguments, words):
    status, _, error = run_main(script, *arguments, *QUICK)
    assert status == 2 and words in error and len(error.splitlines()) == 1, error
    assert not (project / "runs/test").exists()


@pytest.mark.parametrize(
    "text, line",
    [
        ("", ""),
        (HEAD, ""),
        ("a,b\n1,2\n", ":2"),
        (HEAD + "a.pt,64,0.1,0.2,1,2,3\na.pt,sixty,0.1,0.2,1,2,3\n", ":3"),
        (HEAD + "a.pt,64,nan,0.2,1,2,3\n", ":2"),
        (HEAD + "a.pt,64,0.1\n", ":2"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, run_main, text, line):
    path = tmp_path / "study.csv"
    path.write_text(text)
    status, _, error = run_main(script, "--task", "study", "--study-beside", path)
    assert status == 2 and f"{path}{line}: " in error and len(error.splitlines()) == 1, error


def test_an_undefined_number_is_empty(tmp_path):
    path = tmp_path / "study.csv"
    path.write_text(HEAD + "a.pt,64,,,1,2,3\n")
    assert read_study(str(path)) == [StudyRow("a.pt", 64, None, None, 1.0, 2.0, 3.0)]
