"""The report of an evaluation: its numbers, the boxes of its images, and what a browser makes of the images."""

import base64
import html
import json
import re

import cv2
import numpy as np
import pytest

from analysis.diagnosis import Diagnosis
from analysis.error_pictures import ImageSource
from analysis.evaluation_images import hardest_images
from analysis.evaluation_report import EvaluationFindings, number_tables, write_evaluation_report
from analysis.output.pictures import IMAGE_PIXELS, BoxOnImage, JpegBudget, ReportImage, images_data
from analysis.output.report import write_page
from analysis.output.result import Plot, ReportSection, Table
from engine.evaluate_results import ResultsOptions, compare_results
from evaluation.error_kinds import error_kinds
from evaluation.image_losses import ap50_lost_by_image
from evaluation.matches import CocoMatcher
from tests.html_pages import NASTY, Elements, browse, needs_browser
from utils.figures import new_figure

SIZE_WH = (120, 80)


def box_row(image, category, box, **more):
    return {"image_id": image, "category_id": category, "bbox": list(box), **more}


def scene():
    """Image 1: one found, one missed, a wrong class, a crowd region. Image 2: a further detection. Image 3: nothing.

    All scores are equal, so that all detections are at the working point; of equal ones the first chooses first.
    """
    truth = {
        "images": [
            {"id": number, "file_name": f"{number}{NASTY}.png", "width": 120, "height": 80} for number in (1, 2, 3)
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": NASTY}],
        "annotations": [
            {**box_row(1, 5, (10, 10, 20, 20)), "id": 1, "area": 400, "iscrowd": 0},
            {**box_row(1, 9, (60, 10, 20, 20)), "id": 2, "area": 400, "iscrowd": 0},
            {**box_row(1, 5, (0, 50, 120, 30)), "id": 3, "area": 3600, "iscrowd": 1},
            {**box_row(2, 9, (10, 10, 40, 40)), "id": 4, "area": 1600, "iscrowd": 0},
        ],
    }
    results = [
        box_row(1, 5, (11, 10, 20, 20), score=0.9),
        box_row(1, 5, (60, 10, 20, 20), score=0.9),  # the object there is of the other class
        box_row(1, 5, (30, 55, 20, 20), score=0.9),  # in the crowd region
        box_row(2, 9, (10, 10, 40, 38), score=0.9),
        box_row(2, 9, (10, 12, 40, 38), score=0.9),
    ]
    return truth, results


def images_of(results, count, truth=None):
    """The hardest images of some detectors."""
    truth = truth or scene()[0]
    detectors = {name: error_kinds(CocoMatcher(truth, rows)) for name, rows in results.items()}
    lost = {name: ap50_lost_by_image(truth, detector) for name, detector in detectors.items()}
    return hardest_images(truth, detectors, lost, ImageSource({}), count)


def states_of(images):
    return {image.remark[:4]: [(box.state, box.score) for box in image.boxes] for image in images}


def test_the_state_of_every_box_by_hand():
    _, results = scene()
    assert states_of(images_of({"ours": results}, 3)) == {
        "id 1": [("found", None), ("explained", None), ("crowd", None),
                 ("correct", 0.9), ("class", 0.9), ("ignored", 0.9)],
        "id 2": [("found", None), ("correct", 0.9), ("duplicate", 0.9)],
        "id 3": [],
    }  # fmt: skip
    objects = [("missed", None), ("missed", None), ("crowd", None)]
    assert states_of(images_of({"ours": []}, 3)) == {"id 1": objects, "id 2": objects[:1], "id 3": []}


def test_an_object_that_only_a_weak_detection_finds_is_missed():
    _, results = scene()
    right, weak = [results[0], results[3]], [{**results[1], "category_id": 9, "score": 0.01}]
    wrong = [box_row(2, 9, (90, 10, 9, 9), score=0.02) for _ in range(9)]
    image = next(image for image in images_of({"ours": right + weak + wrong}, 3) if image.remark.startswith("id 1"))
    assert [box.state for box in image.boxes] == ["found", "missed", "crowd", "correct"]
    assert image.boxes[1].remark == "annotation 2, found with score 0.01"


def test_the_images_that_cost_most_come_first():
    _, results = scene()
    images = images_of({"ours": results}, 3)
    assert [image.remark for image in images] == [
        # Class 9 has one of two objects: 51 of 101 recalls, and half of AP50; the rest costs nothing.
        f"id 1, AP50 lost {25 / 101:.4f}",
        "id 2, AP50 lost 0.0000",
        "id 3, AP50 lost 0.0000",
    ]
    assert images[0].boxes[0] == BoxOnImage((10, 10, 30, 30), "cat", "found", None, "ours", "annotation 1")
    assert images[0].read() is None  # it is not on the disk
    # Other detections make the second image the worst.
    others = [{**results[0], "score": 0.5}, box_row(1, 9, (60, 10, 20, 20), score=0.4)]
    (worst,) = images_of({"others": others, "again": others}, 1)
    assert worst.remark.startswith("id 2") and {box.detector for box in worst.boxes} == {"others", "again"}


def test_images_are_left_out_where_the_page_is_full():
    def image(name, pixels):
        return ReportImage(name, (64, 64), [BoxOnImage((1, 2, 3, 4), "cat", "missed")], lambda: pixels)

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    size = len(cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])
    images = [image("a", noise), image("b", None), image("c", noise), image("d", noise)]
    data = images_data(images, JpegBudget(2 * size + 40))
    assert [one["name"] for one in data["images"]] == ["a", "c"]
    assert (data["unreadable"], data["left_out"]) == (1, 1)
    assert data["images"][0]["boxes"] == [[1, 2, 3, 4, 0, "missed", None, 0, ""]]
    assert list(data["states"]) == ["missed"] and data["classes"] == ["cat"] and data["detectors"] == [""]


def test_a_large_image_is_made_smaller():
    jpeg = images_data([ReportImage("a", (3000, 30), [], lambda: np.zeros((30, 3000, 3), np.uint8))], JpegBudget())
    data = base64.b64decode(jpeg["images"][0]["jpeg"].partition(",")[2])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (13, IMAGE_PIXELS, 3)
    assert (jpeg["images"][0]["width"], jpeg["images"][0]["height"]) == (3000, 30)  # boxes stay in original pixels


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What an evaluation of two detectors found, whose images are on the disk."""
    folder = tmp_path_factory.mktemp("images")
    truth, results = scene()
    paths = {}
    for image in truth["images"]:
        paths[image["id"]] = str(folder / f"{image['id']}.png")
        cv2.imwrite(paths[image["id"]], np.full((80, 120, 3), 60 * image["id"], np.uint8))
    compared = compare_results(ResultsOptions(resamples=20), truth, {NASTY: results, "half": results[::2]})
    return EvaluationFindings.of(truth, {}, compared, ImageSource(paths))


@pytest.fixture(scope="module")
def page(findings, tmp_path_factory):
    """The report of that, with names full of HTML in every place where a name can stand."""
    figure = new_figure(figsize=(2, 2))
    figure.subplots().plot([1, 2])
    table = Table("t", NASTY, (NASTY,), ((NASTY,),), explanations={NASTY: NASTY})
    box = BoxOnImage((1, 1, 9, 9), NASTY, "background", 0.5, NASTY, NASTY)
    image = ReportImage(NASTY, (20, 20), [box], lambda: np.zeros((20, 20, 3), np.uint8), NASTY)
    more = ReportSection(NASTY, NASTY, [table], [Plot(NASTY, figure, NASTY)], [image], {NASTY: NASTY}, [NASTY])
    path = tmp_path_factory.mktemp("report") / "report.html"
    detectors = {name: error_kinds(CocoMatcher(findings.truth, rows)) for name, rows in findings.results.items()}
    lost = {name: ap50_lost_by_image(findings.truth, detector) for name, detector in detectors.items()}
    images = hardest_images(findings.truth, detectors, lost, findings.source, 24)
    write_evaluation_report(path, findings, Diagnosis({}, [], [more], images), NASTY)
    return path


def test_names_cannot_break_the_page(page):
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert elements.counts["script"] == 2 and elements.counts["img"] == 2  # the plots; images are in the data
    assert not set("<>&'\u2028") & set(elements.data)
    # Command, title in the navigation, title, text, name and value of a fact, note, title, heading and cell of the
    # table, heading and text of its legend, title and text of the plot. The detector's name is in four tables.
    assert elements.text.count(NASTY) == 14 + 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    data = json.loads(elements.data)["images"]
    assert list(data) == ["script-script-alert-1-script-command-endfor-script-x-lt", "images-that-cost-most"]
    assert data["images-that-cost-most"]["classes"] == ["cat", NASTY]
    assert data["images-that-cost-most"]["images"][0]["name"] == f"1{NASTY}.png"


def test_the_page_has_the_numbers_of_the_metrics(page, findings):
    elements = Elements(page.read_text(encoding="utf-8"))
    numbers = json.loads(elements.data)["numbers"]["results"]
    assert numbers == findings.comparison
    keys = [float(value) for tag, name, value in elements.attributes if tag == "td" and name == "data-key"]
    of_detectors = [
        round(one, 3) for column in numbers["columns"] for one in column["numbers"].values() if one is not None
    ]
    assert len(of_detectors) > 12 and keys[: len(of_detectors)] == of_detectors
    assert len([1 for tag, name, _ in elements.attributes if tag == "table" and name == "class"]) == 5


def test_intervals_differences_and_what_is_undefined_in_words(findings):
    comparison = {
        "columns": [
            {"name": "a", "files": 3, "numbers": {"AP": 0.25, "APs": None}, "interval_95": {"AP": [0.2, 0.3125]},
             "over_runs": {"AP": {"std": 0.01, "interval_95": 0.02}}},
        ],
        "differences": [
            {"of": "b", "minus": "a", "numbers": {"AP": -0.01, "APs": None}, "interval_95": {"AP": [-0.03, 0.01]}},
            {"of": "c", "minus": "a", "numbers": {"AP": 0.02, "APs": 0.5}, "interval_95": {"AP": [0.01, 0.03]}},
        ],
    }  # fmt: skip
    numbers, differences = number_tables(comparison)
    assert numbers.columns == ("detector", "AP", "APs")
    assert numbers.rows == (("a", "0.250 [0.200, 0.312] ± 0.020 over 3 runs", "-"),)
    assert differences.rows == (
        ("b", "a", "-0.010 [-0.030, +0.010] (0)", "-"),
        ("c", "a", "+0.020 [+0.010, +0.030]", "+0.500"),
    )
    columns = {name for table in number_tables(findings.comparison) for name in table.columns}
    assert all(table.explanations.get(name) for table in number_tables(findings.comparison) for name in table.columns)
    assert {"AP", "AP50", "AR100", "ARl", "minus"} < columns


def seen(page, steps, window="1366,768"):
    """Do something in the browser; return the lines that ``note`` was called with, and the page."""
    script = f"""
      const lines = [], note = (...values) => lines.push(values.join(" / "));
      const root = document.querySelector("[data-images=images-that-cost-most]");
      const all = (selector) => [...root.querySelectorAll(selector)];
      const drawn = () => all("rect.box").map((one) => one.getAttribute("class").slice(4)).sort().join(" ");
      const thumbs = () => all(".strip button").map((one) => one.textContent).join(", ");
      const choose = (number, value) => {{ const one = all("select")[number]; one.value = value;
        one.dispatchEvent(new Event("change")); }};
      const tick = (name) => root.querySelector(`.filters input[value=${{name}}]`).click();
      {steps}
      document.body.append(make("pre", {{ id: "seen", textContent: lines.join("\\n") }}));
    """
    text, console = browse(page, extra=script, window=window)
    assert console == []
    return html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', text, re.S)[1]).splitlines()


@needs_browser
def test_filters_choose_images_and_boxes(page):
    lines = seen(page, """
      note(thumbs(), drawn());
      tick("explained"); note(thumbs(), drawn());
      tick("class"); note(thumbs(), drawn());
      tick("duplicate"); tick("missed"); note(thumbs(), drawn());  // missed: by the other detector
      tick("explained"); tick("class"); tick("duplicate"); tick("missed"); choose(1, 1); note(thumbs(), drawn());
      choose(1, 0); note(thumbs(), drawn());
      for (const name of ["class", "explained", "duplicate", "missed", "correct", "found", "crowd", "ignored"])
        tick(name);
      note(thumbs(), root.querySelector(".panel p").textContent, root.querySelector(".stage").hidden);
      choose(1, -1); all(".filters button")[0].click(); note(thumbs(), all(".filters input:checked").length);
      all(".filters button")[1].click(); note(thumbs(), all(".filters input:checked").length);
      tick("explained"); note(thumbs(), drawn());
    """)  # fmt: skip
    assert lines == [
        "2 errors, 1 error, 0 errors / class correct crowd explained found ignored",
        "1 error, 1 error / class correct crowd found ignored",
        "1 error / correct duplicate found",
        "4 boxes, 2 boxes / correct found",  # no kind of error is left: all boxes are counted
        "1 error, 1 error / explained",  # of the class that is missed in the first image
        "1 error / class correct crowd found ignored",
        " / No image has such a box. / true",
        "2 errors, 1 error, 0 errors / 8",
        " / 0",
        "1 error / explained",
    ]


@needs_browser
def test_a_box_is_zoomed_to_and_labels_stay_apart(page):
    lines = seen(page, """
      const svg = root.querySelector("svg");
      const shape = () => svg.getBoundingClientRect(), part = () => svg.getAttribute("viewBox");
      const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      note((shape().width / shape().height).toFixed(3), shape().width < svg.parentElement.clientWidth + 1);
      note(part(), root.querySelector(".is-zoomed") !== null);
      all(".boxes button")[0].click();
      note(part(), root.querySelector(".is-zoomed") !== null, all(".is-pale").length);
      const plates = all(".label rect").map((one) => one.getBoundingClientRect());
      const before = (a, b) => a.right <= b.left + 0.5 || a.bottom <= b.top + 0.5;
      const apart = (a, b) => before(a, b) || before(b, a);
      note(plates.length > 1, plates.every((a, i) => plates.every((b, j) => i === j || apart(a, b))));
      note(plates.every((one) => one.left >= shape().left - 2 && one.right <= shape().right + 2));
      press(svg, "0"); note(part());
      all(".tools button")[0].click(); note(part());
      press(svg, "ArrowLeft"); note(part());
      press(root, "ArrowRight"); note(root.querySelector(".panel p").textContent[6]);
    """)  # fmt: skip
    assert lines[:2] == ["1.500 / true", "0 0 120 80 / false"]
    # The missed object, 20 x 20 at (60, 10): its height is a quarter of the image's, so three times as much is shown.
    assert lines[2] == "25 0 90 60 / true / 5"
    assert lines[3:6] == ["true / true", "true", "0 0 120 80"]
    assert lines[6:] == ["30 20 60 40", "22.5 20 60 40", "2"]


@needs_browser
def test_labels_of_a_crowd_stay_apart_and_the_others_are_counted(tmp_path):
    boxes = [BoxOnImage((i, i, i + 40, i + 40), f"class {i}", "missed") for i in range(50)]
    image = ReportImage("crowd", (100, 100), boxes, lambda: np.zeros((100, 100, 3), np.uint8))
    write_page(tmp_path / "report.html", "T", "", [ReportSection("Images that cost most", images=[image])])
    lines = seen(tmp_path / "report.html", """
      const plates = all(".label rect").map((one) => one.getBoundingClientRect());
      const before = (a, b) => a.right <= b.left + 0.5 || a.bottom <= b.top + 0.5;
      note(plates.length, plates.every((a, i) => plates.every((b, j) => i === j || before(a, b) || before(b, a))));
      note(root.querySelector(".hidden-labels").textContent);
      root.querySelector(".tools input").click(); note(all(".label").length);
    """, "600,500")  # fmt: skip
    shown, apart = lines[0].split(" / ")
    assert apart == "true" and 5 < int(shown) < 50
    assert lines[1:] == [f"(no room for {50 - int(shown)} labels: zoom in)", "0"]


@needs_browser
def test_ctrl_and_the_wheel_zoom_at_the_pointer(page):
    lines = seen(page, """
      const svg = root.querySelector("svg"), frame = svg.getBoundingClientRect();
      const turn = (ctrlKey) => svg.dispatchEvent(new WheelEvent("wheel", { ctrlKey, deltaY: -100 * Math.LN2,
        clientX: frame.left, clientY: frame.top, cancelable: true }));
      note(turn(false), svg.getAttribute("viewBox"));
      note(turn(true), svg.getAttribute("viewBox").split(" ").map((one) => Math.round(one)));
    """)  # fmt: skip
    assert lines == ["true / 0 0 120 80", "false / 0,0,60,40"]  # without Ctrl the page scrolls


@needs_browser
@pytest.mark.parametrize("window", ["1366,768", "500,800"])
def test_nothing_reaches_over_the_side_of_the_window(page, window):
    (line,) = seen(page, "note(document.scrollingElement.scrollWidth - window.innerWidth)", window)
    assert int(line) <= 0
