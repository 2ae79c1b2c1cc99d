"""Tables as text, Markdown and CSV: written by hand, and read by Python's own CSV reader."""

import csv

from utils.tables import csv_table, markdown_table, text_table


def test_text_is_aligned_to_the_right():
    assert text_table([["", "a"], ["name", "1.25"], ["b", ""]]).splitlines() == ["         a", "name  1.25", "   b"]


def test_markdown_is_aligned_by_column_and_holds_no_html_and_no_cell_too_many():
    rows = [["name", "AP"], ["a|b", "1"], ["<!-- c\nd", "22.5"]]
    assert markdown_table(rows, [False, True]).splitlines() == [
        "| name      |   AP |",
        "|-----------|-----:|",
        "| a\\|b      |    1 |",
        "| \\<!-- c d | 22.5 |",
    ]


def test_csv_is_read_back():
    rows = [["name", "value"], ['say "a, b"', 0.1], ["two\nlines", None], ["one\rline", 3]]
    found = list(csv.reader(csv_table(rows).splitlines(keepends=True)))
    assert found == [["name", "value"], ['say "a, b"', "0.1"], ["two\nlines", ""], ["one line", "3"]]
