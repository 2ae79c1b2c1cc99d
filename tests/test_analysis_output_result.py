"""One result as Markdown, CSV, JSON and pictures."""

import csv
import io
import json
import re

import numpy as np
import pytest

from analysis.output.plots import anchor_scatter, bars, cumulative_counts, curves, histogram_grid
from analysis.output.result import (
    Result,
    Table,
    as_csv,
    as_markdown,
    counted,
    distribution,
    plain,
    print_result,
    rows_of,
    share,
    table_of,
    write_result,
)

TABLE = Table(
    "things",
    "Things",
    ("name", "count", "share of all", "mean"),
    (("a|b", 1234, 0.25, 0.61987), ("c", np.int64(2), None, np.float32(12345.67))),
)


def test_markdown():
    assert as_markdown(TABLE).splitlines() == [
        "### Things",
        "",
        "| name | count | share of all |     mean |",
        "|------|------:|-------------:|---------:|",
        "| a\\|b | 1,234 |      25.00 % |   0.6199 |",
        "| c    |     2 |            - | 12,345.7 |",
    ]


def test_a_long_table_is_cut_and_says_so():
    table = Table("rows", "Rows", ("n",), tuple((n,) for n in range(10)))
    text = as_markdown(table, max_rows=3)
    assert "|   2 |" in text
    assert "|   3 |" not in text
    assert "7 more rows in rows.csv" in text


def test_csv_keeps_numbers_as_they_are():
    rows = list(csv.reader(as_csv(TABLE).splitlines()))
    assert rows == [
        ["name", "count", "share of all", "mean"],
        ["a|b", "1234", "0.25", "0.61987"],
        ["c", "2", "", str(float(np.float32(12345.67)))],
    ]


def test_plain_values_are_what_json_knows():
    value = {"a": np.arange(3), "b": (np.float64("nan"), float("inf"), np.bool_(True)), 3: {"c": None}}
    assert plain(value) == {"a": [0, 1, 2], "b": [None, None, True], "3": {"c": None}}
    json.dumps(plain(value), allow_nan=False)


def test_share():
    assert share(1, 4) == 0.25
    assert share(0, 0) is None


def test_counts_and_shares_by_hand():
    assert counted(np.array([True, False, True, True])) == {"objects": 3, "object_share": 0.75}
    assert counted(np.zeros(0, dtype=bool)) == {"objects": 0, "object_share": None}
    # Four objects have 0, 3, 1 and 1: mean 5/4; one with none, two with one, none with two, one with three.
    assert distribution(np.array([0, 3, 1, 1])) == {"mean": 1.25, "max": 3, "counts": [1, 2, 0, 1]}
    assert distribution(np.zeros(0, dtype=np.int64)) == {"mean": None, "max": 0, "counts": []}


def test_a_table_of_mappings():
    found = {"a": {"objects": 4, "unmatched": {"objects": 1}}, "b": {"objects": 0, "unmatched": {"objects": None}}}
    columns = {"strategy": "strategy", "lost": "unmatched/objects", "objects": lambda row: str(row["objects"])}
    table = table_of("stem", "Title", rows_of(found, "strategy"), columns, listing=True)
    rows = (("a", 1, "4"), ("b", None, "0"))
    assert table == Table("stem", "Title", ("strategy", "lost", "objects"), rows, listing=True)
    assert table_of("stem", "Title", [], columns).rows == ()


def test_a_column_that_a_row_does_not_have_is_an_error():
    with pytest.raises(KeyError, match="unmatchd"):
        table_of("stem", "Title", [{"unmatched": {"objects": 1}}], {"lost": "unmatchd/objects"})


def test_write_and_print(tmp_path, capsys):
    histogram = {"edges": [0, 1, 2], "counts": [3, 4]}
    statistics = {
        "bars": bars(["a", "b"], {"x": [1, 2], "y": [3, 4]}, "title", "unit"),
        "histograms": histogram_grid({"one": histogram, "two": histogram}, {"one": ("One", "a"), "two": ("Two", "b")}),
        "scatter": anchor_scatter(np.ones((30000, 2)), {"anchors": np.ones((3, 2))}, "title"),
        "curves": curves({"mAP": {"a": [(np.arange(3), np.arange(3))], "b": []}, "AP": {}}, "epoch"),
        "cumulative": cumulative_counts({"a": [1, 2], "b": [0, 0, 3]}, "title", "positives"),
        "nothing": cumulative_counts({"a": []}, "title", "positives"),
        "empty": bars([], {"x": []}, "title", "unit"),
    }
    result = Result("mode", {"data": "d"}, {"x": np.float64(1.5), "y": float("nan")}, (TABLE,), statistics, ("note",))
    write_result(result, tmp_path / "out", "python x.py --y")
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document == {
        "schema": "yolo-lab-analysis-2",
        "mode": "mode",
        "command": "python x.py --y",
        "data": {"data": "d"},
        "statistics": {"x": 1.5, "y": None},
        "notes": ["note"],
    }
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "tables.md", "things.csv", *(f"{stem}.png" for stem in statistics)}
    for stem in statistics:
        assert (tmp_path / f"out/{stem}.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out/tables.md").read_text()
    assert "`python x.py --y`" in text
    assert "| c    |     2 |" in text
    assert "- note" in text
    print_result(result)
    assert "### Things" in capsys.readouterr().out


def test_listings_are_short_in_markdown_and_whole_in_csv(tmp_path):
    table = Table("objects", "Objects", ("n",), tuple((n,) for n in range(1000)), listing=True)
    write_result(Result("mode", {}, {}, (table,)), tmp_path, "c")
    assert len((tmp_path / "objects.csv").read_text().splitlines()) == 1001
    assert "992 more rows in objects.csv" in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.25, 999.99])
def test_numbers_survive_the_csv(value):
    assert float(as_csv(Table("t", "T", ("v",), ((value,),))).splitlines()[1]) == value


def test_cumulative_counts_by_hand():
    # Of four objects one has none, one has one and two have three: 1/4, 2/4, 2/4, 4/4.
    axes = cumulative_counts({"a": [1, 1, 0, 2], "b": [5]}, "title", "positives").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.25, 0.5, 0.5, 1.0]
    assert axes.lines[1].get_ydata().tolist() == [1.0] * 4


def test_bars_say_what_they_leave_out():
    axes = bars([str(n) for n in range(50)], {"x": list(range(50))}, "Classes", "objects").axes[0]
    assert axes.get_title() == "Classes (the first 40 of 50)" and len(axes.patches) == 40


NAMES = ("<!--<script>", "</td>|x", "a\nb\r\nc\u2028d", 'a "quote", a comma', "lone\rreturn", "5 < 6 & 7", "=1+1")


def test_names_break_neither_markdown_nor_csv(tmp_path):
    table = Table("t", "Title <!--\n# x", ("name <b>", "n|m"), tuple((name, 1) for name in NAMES))
    write_result(Result("x", {}, {}, (table,), notes=("of <!-- a\nfile",)), tmp_path, "command")
    text = (tmp_path / "tables.md").read_text()
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(NAMES) and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert not re.search(r"(?<!\\)<[A-Za-z/!?]", text) and "5 < 6 & 7" in text
    assert lines[-1] == r"- of \<!-- a file" and len([line for line in lines if line.startswith("#")]) == 2
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert [row[0] for row in read[1:]] == [name.replace("\r", " ") for name in NAMES]


@pytest.mark.parametrize("name", ["$x_$", "$\\frac$", "a$b", "\\$", "$$", "50 $ to 60 $"])
def test_dollar_signs_in_names_are_no_mathematics(name):
    figures = (
        bars([name, "b"], {name: [1, 2], "c": [1, 2]}, "title", "unit"),
        cumulative_counts({name: [1, 2]}, "title", "x"),
        anchor_scatter(np.ones((3, 2)), {name: np.ones((2, 2))}, "title"),
        curves({"panel": {name: [(np.arange(2), np.arange(2))]}}, "x"),
    )
    for figure in figures:
        figure.savefig(io.BytesIO(), format="png")
