"""Files of many pictures by hand: what Darknet's printf, PASCAL VOC and MOT16 ask for, and names that need care."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data.video import Picture
from engine.result_files import CocoFile, CsvFile, DarknetJsonFile, Found, MotFiles, VocFiles
from engine.writers import DetectionWriter
from utils.structures import Detections

NAMES = ("disc", 'a "b"/c')
PAIR = Detections(
    torch.tensor([[10.0, 5.0, 30.0, 25.0], [0.0, 0.5, 80.0, 40.0]]), torch.tensor([0.75, 0.5]), torch.tensor([0, 1])
)
NOTHING = PAIR.select(torch.tensor([False, False]))


def found(path, detections=PAIR, frame=0, video_stem=""):
    picture = Picture(np.zeros((40, 80, 3), np.uint8), path, frame)
    return Found(picture, detections, f"{video_stem}_{frame}" if video_stem else "a", video_stem)


def test_darknet_json_to_the_letter(tmp_path):
    file = DarknetJsonFile(tmp_path, NAMES)
    file.add(found("p/a.jpg"))
    file.add(found("p/b.jpg", NOTHING))
    file.close()
    # Centre (20, 15) and size (20, 20) of 80 x 40; the spaces before line ends are Darknet's.
    expected = (
        '[\n{\n "frame_id":1, \n "filename":"p/a.jpg", \n "objects": [ \n'
        '  {"class_id":0, "name":"disc", "relative_coordinates":{"center_x":0.250000, "center_y":0.375000, '
        '"width":0.250000, "height":0.500000}, "confidence":0.750000}, \n'
        '  {"class_id":1, "name":"a \\"b\\"/c", "relative_coordinates":{"center_x":0.500000, "center_y":0.506250, '
        '"width":1.000000, "height":0.987500}, "confidence":0.500000}\n ] \n}, \n'
        '{\n "frame_id":2, \n "filename":"p/b.jpg", \n "objects": [ \n\n ] \n}\n]'
    )
    assert (tmp_path / "result.json").read_text() == expected
    assert json.loads(expected)[0]["objects"][1]["name"] == NAMES[1]


def test_voc_texts(tmp_path):
    files = VocFiles(tmp_path, NAMES)
    files.add(found("p/a.jpg"))
    files.add(found("p/film.avi", PAIR.select(torch.tensor([1])), 7, "film"))
    files.close()
    results = tmp_path / "results"
    assert (results / "comp4_det_test_disc.txt").read_text() == "a 0.750000 11.000000 6.000000 31.000000 26.000000\n"
    # One pixel further, but not out of the picture.
    whole = "0.500000 1.000000 1.500000 80.000000 40.000000\n"
    assert (results / "comp4_det_test_a _b__c.txt").read_text() == f"a {whole}film_7 {whole}"


def test_a_class_that_was_not_found_has_an_empty_file(tmp_path):
    files = VocFiles(tmp_path, NAMES)
    files.close()
    assert [path.read_text() for path in (tmp_path / "results").iterdir()] == ["", ""]


def test_mot_lines_count_from_one(tmp_path):
    files = MotFiles(tmp_path)
    tracked = Detections(PAIR.boxes_xyxy, PAIR.scores, PAIR.labels, torch.tensor([3, 0]))
    files.add(found("p/film.avi", tracked, 4, "film"))
    files.add(found("p/other.avi", NOTHING, 0, "other"))
    files.add(found("p/a.jpg", tracked))
    files.close()
    assert (tmp_path / "film.txt").read_text() == "5,3,11.00,6.00,20.00,20.00,0.750000,-1,-1,-1\n"
    assert (tmp_path / "other.txt").read_text() == "" and len(list(tmp_path.iterdir())) == 2


def test_tracks_of_a_video_are_a_file_when_the_next_one_begins_and_those_of_streams_together(tmp_path):
    files = MotFiles(tmp_path)
    tracked = Detections(PAIR.boxes_xyxy, PAIR.scores, PAIR.labels, torch.tensor([3, 0]))
    for number in range(5):
        files.add(found("p/film.avi", tracked, 0, f"film{number}"))
        assert len(list(tmp_path.glob("film*.txt"))) == number  # not one open file per video
    files.close()
    for frame, name in enumerate(("a", "b", "a", "b")):
        of_stream = found(f"rtsp://{name}", tracked, frame, name)
        files.add(replace(of_stream, picture=replace(of_stream.picture, seconds=frame / 10)))
    files.close()
    assert [len((tmp_path / f"{name}.txt").read_text().splitlines()) for name in "ab"] == [2, 2]


def test_csv_reads_back(tmp_path):
    file = CsvFile(tmp_path, NAMES)
    tracked = Detections(PAIR.boxes_xyxy, PAIR.scores, PAIR.labels, torch.tensor([3, 0]))
    file.add(found("p/a,1.jpg"))
    file.add(found("film.avi", tracked, 4, "film"))
    file.close()
    with open(tmp_path / "detections.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert [(row["file"], row["frame"], row["name"], row["track_id"]) for row in rows] == [
        ("p/a,1.jpg", "", "disc", ""), ("p/a,1.jpg", "", NAMES[1], ""),
        ("film.avi", "4", "disc", "3"), ("film.avi", "4", NAMES[1], ""),
    ]  # fmt: skip
    assert [rows[0][key] for key in ("label", "score", "x1", "y1", "x2", "y2")] == [
        "0", "0.750000", "10.00", "5.00", "30.00", "25.00",
    ]  # fmt: skip


def test_coco_json_names_the_track_only_where_there_is_tracking(tmp_path):
    file = CocoFile(tmp_path, NAMES)
    tracked = Detections(PAIR.boxes_xyxy, PAIR.scores, PAIR.labels, torch.tensor([3, 0]))
    file.add(found("p/7.jpg", PAIR))
    file.add(found("film.avi", tracked, 4, "film"))
    file.close()
    results = json.loads((tmp_path / "detections.json").read_text())
    assert [result.get("track_id", "none") for result in results] == ["none", "none", 3, None]
    assert (tmp_path / "detections.json").read_text() == json.dumps(results) + "\n"


@pytest.mark.parametrize("kind", [CocoFile, CsvFile, DarknetJsonFile, VocFiles])
def test_without_a_picture_each_file_is_there_and_can_be_read(tmp_path, kind):
    kind(tmp_path, NAMES).close()
    assert list(tmp_path.iterdir())
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text()) == []


def test_crops_are_the_pixels_of_the_boxes_rounded_out(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 5)  # smooth, so that JPEG changes little
    boxes = torch.tensor([[10.2, 5.7, 30.0, 24.1], [-3.0, 0, 90, 40], [50, 20, 50, 20], [10.0, 5.0, 30.0, 25.0]])
    detections = Detections(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 0]))
    writer = DetectionWriter(tmp_path, NAMES, pictures=False, crops=True)
    writer.write_crops(Picture(image, "p/x.png", 0), detections, None)
    parts = {"disc/x": image[5:25, 10:30], "a _b__c/x": image, "disc/x_2": image[5:25, 10:30]}
    assert {path.relative_to(tmp_path / "crops").as_posix() for path in (tmp_path / "crops").rglob("*.jpg")} == {
        f"{name}.jpg" for name in parts
    }
    for name, part in parts.items():
        crop = cv2.imread(str(tmp_path / "crops" / f"{name}.jpg"))
        assert crop.shape == part.shape and np.abs(crop.astype(int) - part).mean() < 4
