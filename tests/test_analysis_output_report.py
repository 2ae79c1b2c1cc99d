"""The HTML report: what is in it, and what a real browser makes of it (skipped where there is no Chromium)."""

import html
import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from analysis.matching.browser import bits, browser_data
from analysis.matching.views import ImageView, MatchedSlot, lost_picture, matched_slots, picture
from analysis.output.report import sorting_keys, unique_names, write_page, write_report
from analysis.output.result import ReportSection, Result, Table
from models.assignment.options import AssignmentOptions
from models.heads import Head
from tests.analysis_scenes import match_sets, plain_iou, random_scene, read_slots
from tests.html_pages import NASTY, Elements, browse, needs_browser
from utils.structures import Batch, Detections, ImageMeta, Targets

HEADS = (Head(((10.0, 20.0),), 16, 2), Head(((40.0, 40.0), (60.0, 30.0)), 32, 2))
STRATEGIES = {"standard": AssignmentOptions(), "fast": AssignmentOptions(match="fast")}


def view(number):
    """An image with two objects; standard matches one slot of each, fast (extra) one more of the first."""
    slots = (
        MatchedSlot(0, 0, 0, 1, 2, (32, 16, 48, 32), (30.0, 10.0, 60.0, 40.0), 0.5, 0.9, (True, True), (False, False)),
        MatchedSlot(0, 1, 1, 0, 1, (32, 0, 64, 32), (35.0, 12.0, 61.0, 39.0), 0.8, 0.4, (False, False), (False, True)),
        MatchedSlot(
            1, 1, 0, 1, 3, (96, 32, 128, 64), (90.0, 30.0, 150.0, 80.0), 0.7, 0.2, (True, False), (False, False)
        ),
    )
    pixels = np.full((80, 160, 3), 40 * number, dtype=np.uint8)
    found = Detections(torch.tensor([[31.0, 11.0, 61.0, 41.0]]), torch.tensor([0.75]), torch.tensor([1]))
    boxes = np.array([[30.0, 10.0, 62.0, 42.0], [92.0, 28.0, 148.0, 78.0]])
    return ImageView(number, 100 + number, f"folder/{number}.jpg", pixels, boxes, (0, 1), (7, 8), found, slots)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report that has names full of HTML and quotes in every place where a name can stand."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    plan = SimpleNamespace(strategies=STRATEGIES, kinds=("iou",), detector=SimpleNamespace(heads=HEADS))
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([1, 2])
    table = Table("t", f"Title {NASTY}", (NASTY, "share of x"), ((NASTY, 0.25), ("a|b", None)))
    result = Result("matching-stats", {"data": NASTY}, {}, (table,), {"plot": figure}, (NASTY,))
    browser = browser_data([view(0), view(1), view(2)], ("cat", NASTY), plan)
    write_report([result, Result("dataset-stats", {}, {}, ()), Result("x", {}, {}, (), browser=browser)], path, NASTY)
    return path


def test_names_cannot_break_the_page(report):
    page = Elements(report.read_text(encoding="utf-8"))
    assert page.counts["script"] == 2  # the data and the program
    assert not set("<>&'\u2028") & set(page.data)  # "<!--<script>" would keep the data element open to the page's end
    data = json.loads(page.data)["matches"]
    assert data["images"][0]["objects"][1]["name"] == NASTY
    assert data["strategies"] == ["standard", "fast"]
    assert page.text.count(NASTY) == 6  # command, fact, note, and the title, a column's name and a cell of the table


def test_the_page_names_nothing_outside_itself(report):
    text = report.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    assert "default-src 'none'" in text  # the browser itself refuses everything else


def test_browser_data_by_hand():
    plan = SimpleNamespace(strategies=STRATEGIES, kinds=("giou",), detector=SimpleNamespace(heads=HEADS))
    data = browser_data([view(1)], ("cat", "dog"), plan)
    assert data["kind"] == "giou"
    assert data["heads"] == [{"stride": 16, "anchors": [[10.0, 20.0]]},
                             {"stride": 32, "anchors": [[40.0, 40.0], [60.0, 30.0]]}]  # fmt: skip
    (image,) = data["images"]
    assert (image["id"], image["name"], image["width"], image["height"]) == (101, "1.jpg", 160, 80)
    assert image["objects"][0] == {"box": [30.0, 10.0, 62.0, 42.0], "name": "cat", "id": 7}
    assert image["detections"][0]["score"] == 0.75 and image["detections"][0]["name"] == "dog"
    # The second slot: object 0, head 1, anchor 1, row 0, column 1; not base; extra by the second strategy: bit 1 = 2.
    assert image["slots"][1] == [0, 1, 1, 0, 1, [32.0, 0.0, 64.0, 32.0], [35.0, 12.0, 61.0, 39.0], 0.8, 0.4, 0, 2]
    assert bits((True, False, True)) == 5


def test_a_long_table_is_cut_and_says_so(tmp_path):
    table = Table("many", "Many", ("n", "share"), tuple((i, 0.5) for i in range(250)), listing=True)
    write_report([Result("x", {}, {}, (table,))], tmp_path / "report.html", "")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<tr>") == 1 + 40 and "210 more rows in many.csv" in text and "50.00 %" in text


def test_views_show_the_matches_of_training(monkeypatch):
    heads, raw_maps, targets, rows = random_scene(5, images=1, objects=9)
    options = {"standard": AssignmentOptions(), "fast": AssignmentOptions(match="fast", extra_iou=0.15)}
    plan = SimpleNamespace(strategies=options, kinds=("iou",), detector=SimpleNamespace(heads=heads))
    meta = ImageMeta(1, "", (192, 128), (0.5, 0.5), (0.0, 0.0))  # the original is twice as large
    batch = Batch(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), targets, Targets.empty(), (meta,))
    found = matched_slots(batch, raw_maps, plan)
    slots = read_slots(heads, raw_maps, 0)
    for number, one in enumerate(options.values()):
        shown = {(s.target, (0, s.head, s.anchor, s.row, s.col)) for s in found if s.base[number] or s.extra[number]}
        assert shown == match_sets(heads, raw_maps, targets, one)
    assert any(s.extra[1] and not s.base[1] for s in found)
    for s in found:
        box = slots[0, s.head, s.anchor, s.row, s.col][0]
        assert s.box_xyxy == pytest.approx([2 * value for value in box], rel=1e-4, abs=1e-3)
        assert s.q == pytest.approx(plain_iou(box, rows[s.target][2:], "iou"), abs=1e-5)
        stride = 2 * heads[s.head].stride
        assert s.cell_xyxy == (s.col * stride, s.row * stride, (s.col + 1) * stride, (s.row + 1) * stride)


def test_pictures_have_a_panel_for_each_view():
    one = view(1)
    drawn = picture(one, ("cat", "dog"), ("standard", "fast"))
    # 160x80 is drawn 640 wide, 320 high, three times with gaps of 8, under captions of 26 pixels.
    assert drawn.shape == (320 + 26, 3 * 640 + 2 * 8, 3)
    truth, found, matched = (drawn[26:, left : left + 640] for left in (0, 648, 1296))
    assert not (truth == found).all() and not (found == matched).all()
    assert lost_picture(one, ("cat", "dog")).shape == (346, 2 * 640 + 8, 3)


def drawn(text):
    """Numbers of the drawn elements by class."""
    svg = text[text.index("<svg") : text.index("</svg>")]
    return Counter(re.findall(r'<rect[^>]* class="([\w-]+)"', svg))


@needs_browser
def test_the_page_opens_from_disk_without_errors(report):
    text, console = browse(report)
    assert console == []
    # The first strategy, all heads: two slots of the first image, as cells and as boxes; detections are off.
    assert drawn(text) == {"truth": 2, "slot-cells": 2, "slot-boxes": 2}
    assert "Image 1 of 3: 0.jpg, objects: 2, detections: 1." in text


@needs_browser
def test_an_error_in_the_console_would_be_seen(report):
    _, console = browse(report, extra="undefinedFunction();")
    assert any("undefinedFunction" in line for line in console)
    _, console = browse(report, extra="fetch('https://example.com/');")
    assert any("Content Security Policy" in line for line in console)


@needs_browser
def test_a_figure_is_enlarged_by_a_click_and_by_a_key(report):
    enlarge = "const button = document.querySelector('figure button'); button.click();"
    text, console = browse(report, extra=enlarge)
    assert console == [] and text.count('<figure class="large">') == 1
    text, _ = browse(report, extra=f"{enlarge} button.click();")  # as Enter on a button does
    assert '<figure class="large">' not in text


@needs_browser
@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("match=0,1", {"truth": 2, "slot-cells": 3, "slot-boxes": 3}),
        ("match=1", {"truth": 2, "slot-cells": 2, "slot-boxes": 2}),
        ("match=0,1&head=0", {"truth": 2, "slot-cells": 1, "slot-boxes": 1}),
        ("match=&show=truth,boxes,detections", {"truth": 2, "detection": 1}),
        ("match=0,1&object=1&show=truth,boxes", {"truth": 1, "slot-boxes": 1}),
        ("image=99&object=99&show=cells", {"slot-cells": 2}),
    ],
)
def test_the_address_says_what_is_drawn(report, fragment, expected):
    text, console = browse(report, f"#browser?{fragment}")
    assert drawn(text) == expected and console == []


@needs_browser
def test_switches_and_keys_change_what_is_drawn(report):
    # Each step is written into the page; at the end the page is read once.
    steps = """
      const seen = [];
      const note = () => seen.push([location.hash, document.querySelectorAll("rect.slot-boxes").length,
        document.querySelectorAll("rect.truth").length, document.querySelectorAll("rect.detection").length,
        byId("about").textContent].join(" / "));
      const press = (key) => { document.dispatchEvent(new KeyboardEvent("keydown", { key })); note(); };
      byId("match-1").click(); note();
      byId("head-0").click(); note();
      byId("show-detections").click(); note();
      ["1", "w", "w", "q", "t", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown",
       "ArrowDown", "ArrowUp", "Escape"].forEach(press);
      byId("next").click(); note();
      document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: seen.join("\\n") }));
    """
    text, console = browse(report, extra=steps)
    assert console == []
    lines = html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', text, re.S)[1]).splitlines()
    counts = [tuple(map(int, line.split(" / ")[1:4])) for line in lines]
    images = [int(line.split("Image ")[1][0]) for line in lines]
    # After: fast on, head of stride 16 off, detections on, key 1 (standard off), w twice (stride 32 off and on),
    # q (stride 16 on), t (truth off), the images 2, 3, 1 and 3 again, object 1, 2, all, 2, Esc, next image.
    boxes = [count[0] for count in counts]
    assert boxes == [3, 2, 2, 1, 0, 1, 2, 2, 2, 2, 2, 2, 2, 0, 2, 0, 2, 2]
    assert [count[1] for count in counts] == [2] * 7 + [0] * 11
    assert [count[2] for count in counts] == [0, 0] + [1] * 16
    assert images == [1] * 8 + [2, 3, 1, 3, 3, 3, 3, 3, 3, 1]
    assert lines[0].startswith("#browser?image=0&object=-1&match=0,1&head=0,1&show=boxes,cells,truth")


SORTED = (
    ("0.159 [0.140, 0.194]", 0.159),
    ("+0.012 [-0.003, +0.038] (0)", 0.012),
    ("-0.5 ± 0.1 over 3 runs", -0.5),
    ("1,234", 1234),
    ("12.5 %", 12.5),
    ("-", None),
    (None, None),
    (7, 7),
)


def test_numbers_are_sorted_by_their_value():
    assert sorting_keys([value for value, _ in SORTED]) == [key for _, key in SORTED]
    assert sorting_keys(["3 cats", "0.2"]) is None  # one text makes it a column of texts
    assert sorting_keys(["-", None]) is None
    assert sorting_keys([float("nan"), 2.0]) == [None, 2.0]


def test_sections_have_addresses_of_their_own():
    names = unique_names(["Images!", "images", "browser", "Würfel", "#"])
    assert names == ["images", "images-2", "browser-2", "w-rfel", "section"]


def test_every_heading_is_a_button_with_its_explanation(tmp_path):
    table = Table("t", "T", ("strategy", "mine", "new"), (("a", 1, 2),), explanations={"mine": NASTY})
    write_page(tmp_path / "report.html", "Title", "", [ReportSection("S", tables=[table])])
    page = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [value for tag, name, value in page.attributes if tag == "button" and name == "title"] == [
        "the rule that decides which slot learns from which object", NASTY, ""]  # fmt: skip
    assert page.counts["dt"] == 2 and NASTY in page.text  # what has an explanation is in the legend, too


def order_of(text):
    """Cells of the first column of the sorted table."""
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    return re.findall(r"<tr>\s*<td[^>]*>(.*?)</td>", body)


@needs_browser
def test_a_click_on_a_heading_sorts(tmp_path):
    rows = (("b", "0.20 [0.1, 0.3]"), ("a10", "-"), ("a9", "0.10 [0.0, 0.9]"), ("c", "0.30"))
    section = ReportSection("S", tables=[Table("t", "T", ("name", "AP"), rows)])
    write_page(tmp_path / "report.html", "Title", "", [section])

    def click(*columns):
        steps = "".join(f"document.querySelectorAll('th button')[{column}].click();" for column in columns)
        text, console = browse(tmp_path / "report.html", extra=steps)
        assert console == []
        return order_of(text), re.findall(r'aria-sort="(\w+)"', text[text.index("<thead>") :])

    assert click() == (["b", "a10", "a9", "c"], [])
    assert click(1) == (["c", "b", "a9", "a10"], ["descending"])
    assert click(1, 1) == (["a9", "b", "c", "a10"], ["ascending"])  # what is undefined stays last
    assert click(1, 0) == (["a9", "a10", "b", "c"], ["ascending"])


@needs_browser
def test_a_report_without_images_has_no_browser(tmp_path):
    path = tmp_path / "plain.html"
    write_report([Result("dataset-stats", {"images": 3}, {}, ())], path, "python analyze.py --report")
    text, console = browse(path)
    assert console == [] and "<svg" not in text[: text.index("<script")] and "dataset-stats" in text
