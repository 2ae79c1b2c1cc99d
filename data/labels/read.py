"""A split of a data set -> Annotations, whatever the label format.

Images come from a list, a folder or a VOC ``ImageSets/Main`` list; each image's label file is the first that exists of
``labels/….txt`` (the last ``images`` or ``JPEGImages`` of the path replaced), ``….txt`` beside it,
``Annotations/….xml``, ``….xml`` beside it. An image without a label file has no objects. A COCO JSON holds everything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from data.description import DataDescription
from data.labels import cache
from data.labels.annotations import Annotations, Problem, category_ids_for
from data.labels.coco import read_coco
from data.labels.find import image_and_label_files, label_candidates, names_beside
from data.labels.formats import FORMATS
from data.labels.headers import CheckedImages, check_images
from data.labels.key_points import with_key_points
from data.labels.label_format import LabelRows
from data.labels.progress import with_progress
from data.labels.row_table import RowTable
from data.labels.yolo import yolo_to_xyxy
from data.labels.yolo_shapes import columns_of_rows
from data.shapes import ensure_drawn
from utils.class_names import MAX_CLASSES, read_names
from utils.errors import UserError, suggestion
from utils.structures import KEY_POINTS

DRAWINGS = {"shapes": ensure_drawn}  # built-in sets, the values of ``draw =`` in a .data file


def read_dataset(
    description: DataDescription, split: str, need_images: bool = True, wants: frozenset[str] = frozenset()
) -> Annotations:
    """Read the images and objects of a split.

    Args:
        description: what the data set consists of.
        split: "train", "valid" or "test"; where validation images are held out, the first two are the parts.
        need_images: False where annotations are enough (COCO JSON, VOC XML); missing images are no problem then.
        wants: MASKS, KEY_POINTS, both or nothing besides boxes.

    Raises:
        UserError: the data are not on the disk, a list is empty, no image has a label, a class index is too large.
    """
    if description.draw:
        DRAWINGS[description.draw]()
    sources = description.sources(split)
    if any(source.suffix.lower() == ".json" for source in sources):
        if len(sources) > 1:
            raise UserError(
                f"{description.path}: '{split}' names {len(sources)} files; merge the COCO JSON files to one"
            )
        annotations = read_coco(sources[0], description, split, need_images, wants)
    else:
        annotations = _read_label_files(sources, description, need_images, wants)
    annotations = annotations.with_a_mask_each(f"{description.path} ({split})")
    if not description.val_fraction or split not in ("train", "valid"):
        return annotations
    held_out = held_out_images(annotations, description.val_fraction)
    return annotations.select_images(held_out if split == "valid" else ~held_out)


def held_out_images(annotations: Annotations, fraction: float) -> np.ndarray:
    """Return [N] bool, which images are held out: those whose file names have the smallest hashes.

    So the choice depends neither on a seed nor on the order of the files, and mostly stays when images are added.

    Raises:
        UserError: there is only one image.
    """
    if len(annotations) < 2:
        raise UserError("--val-fraction cannot hold an image out: the data set has only one")
    named = [
        os.path.basename(path) or str(id_)
        for path, id_ in zip(annotations.image_paths, annotations.image_ids.tolist(), strict=True)
    ]
    hashes = [hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in named]
    count = min(max(1, round(fraction * len(annotations))), len(annotations) - 1)
    held_out = np.zeros(len(annotations), dtype=bool)
    held_out[sorted(range(len(hashes)), key=hashes.__getitem__)[:count]] = True
    return held_out


def _read_label_files(
    sources: Sequence[Path], description: DataDescription, need_images: bool, wants: frozenset[str]
) -> Annotations:
    """Read the images of lists and folders, each with its label file."""
    problems: list[Problem] = []
    images: list[str] = []
    labels: list[str] = []
    for source in sources:
        of_source = image_and_label_files(source, description, problems, need_images)
        images += of_source[0]
        labels += of_source[1]
    if not any(labels):
        raise UserError(
            f"{sources[0]}: none of its {len(images)} images has a label file "
            f"(expected, for example, {label_candidates(images[0])[0]})"
        )
    if not description.names:
        image, label = next(pair for pair in zip(images, labels, strict=True) if pair[1])
        path = names_beside(sources[0], image, label, description.num_classes)
        if path:  # messages about classes then name this file
            names = read_names(path)
            description = replace(description, path=path, names=names, num_classes=len(names))
    annotations = _read_or_recall(sources[0], images, labels, description, need_images, wants)
    missing = sum(not label for label in labels)
    if missing:
        first = images[labels.index("")]
        kind = "images without a label file, taken as empty"
        problems.append(Problem(str(sources[0]), 0, kind, f"{missing}, as {first}"))
    return replace(annotations, problems=(*problems, *annotations.problems))


def _read_or_recall(
    source: Path,
    images: list[str],
    labels: list[str],
    description: DataDescription,
    need_images: bool,
    wants: frozenset[str],
) -> Annotations:
    """Parse the label files, or take what an earlier run parsed of the very same files."""
    if len(images) < cache.MIN_IMAGES:
        return _read_pairs(images, labels, description, need_images, wants)
    path = cache.cache_path(source, wants)
    said = (str(description.num_classes), str(need_images), *description.names)
    said += (*sorted(wants), str(description.keypoint_mirror)) if wants else ()
    key = cache.content_key(images, labels, said, description.keypoint_shape)
    annotations = cache.load(path, key)
    if annotations is None:
        annotations = _read_pairs(images, labels, description, need_images, wants)
        cache.store(path, key, annotations)
    return annotations


# An image without a label file has no objects.
NO_ROWS = LabelRows(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool), True, (0, 0), [])


def _read_pairs(
    images: list[str], labels: list[str], description: DataDescription, need_images: bool, wants: frozenset[str]
) -> Annotations:
    """Read one label file per image: parse each, join the rows into one table, check and clip the boxes."""
    problems: list[Problem] = []
    kept, per_image = [], []
    for index, label in enumerate(with_progress(labels, "reading labels")):
        try:
            rows = FORMATS[os.path.splitext(label)[1].lower()].read(label) if label else NO_ROWS
        except ValueError as error:  # not text, or not XML
            reason = "is not a UTF-8 text file" if isinstance(error, UnicodeDecodeError) else str(error)
            problems.append(Problem(label, 0, "label file that cannot be read, its image left out", reason))
            continue
        kept.append(index)
        per_image.append(rows)
    if not kept:
        raise UserError(f"{labels[0]}: none of the {len(labels)} label files can be read ({problems[0]})")
    images, labels = [images[i] for i in kept], [labels[i] for i in kept]
    per_image, pose_columns = with_key_points(
        per_image, labels, description.keypoint_shape, problems, KEY_POINTS in wants
    )
    problems += [problem for rows in per_image for problem in rows.problems]

    # The names also of images that are left out next.
    names = description.names or _names_in(per_image, labels, description.num_classes)
    found = _check_images(images, labels, per_image, need_images)
    problems += found.problems
    good = np.flatnonzero(~found.is_bad)
    images, labels = [images[i] for i in good], [labels[i] for i in good]
    per_image = [per_image[i] for i in good]
    image_wh = found.image_wh[good]
    table = _table(per_image, labels, image_wh, names)
    shapes = columns_of_rows(labels, per_image, image_wh, description, wants, pose_columns, problems) if wants else {}
    _refuse_large_classes(table, labels, names, description)
    unlearnable = table.drop_bad_boxes(image_wh)
    unlearnable.extend(_unlearnable_rows(per_image, labels, image_wh, names))
    table.drop(table.duplicates(), "duplicate box", lambda row: "the later one is left out")
    shared = Annotations(
        image_paths=images,
        image_ids=_image_ids(images),
        image_wh=image_wh.astype(np.int32),
        names=names,
        category_ids=category_ids_for(names),
        orientation=found.orientation[good],
        **_columns_of(table, image_wh, 1, shapes),
    )
    annotations = replace(shared, problems=(*problems, *table.problems))
    if not len(unlearnable):
        return annotations
    columns = _columns_of(unlearnable, image_wh, len(table) + 1)
    if shared.key_points is not None:
        columns["key_points"] = shared.key_points.unlabelled(len(unlearnable))
    return replace(annotations, unlearnable=replace(shared, **columns))


def _unlearnable_rows(
    per_image: list[LabelRows], labels: list[str], image_wh: np.ndarray, names: tuple[str, ...]
) -> RowTable:
    """Return the boxes of known classes that the readers of the files set aside; their problems are recorded."""
    table = _table([rows.unlearnable or NO_ROWS for rows in per_image], labels, image_wh, names)
    known = (table["label"] < len(names)) & np.isfinite(table["xyxy"]).all(1)
    table.columns = {name: column[known] for name, column in table.columns.items()}
    return table


def _columns_of(
    table: RowTable, image_wh: np.ndarray, first_id: int, shapes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the columns of boxes for :class:`Annotations`: by image, clipped to it, numbered from ``first_id``.

    ``shapes`` are the columns of masks and key points of the rows as they were before some were dropped.
    """
    order = np.argsort(table["image"], kind="stable")
    xyxy = np.clip(table["xyxy"], 0, np.tile(image_wh, 2)[table["image"]])
    as_read = (xyxy == table["xyxy"]).reshape(-1, 2, 2).all(axis=1)  # M 2, by axis: nothing was clipped
    wh = np.where(as_read, table["wh"], xyxy[:, 2:] - xyxy[:, :2])
    return {
        "box_image": table["image"][order].astype(np.int32),
        "boxes_xyxy": xyxy[order],
        "boxes_xywh": np.concatenate((xyxy[:, :2], wh), axis=1)[order],
        "labels": table["label"][order].astype(np.int32),
        "crowd": table["crowd"][order],
        "areas": wh.clip(min=0).prod(axis=1)[order],
        "annotation_ids": np.arange(first_id, first_id + len(table), dtype=np.int64),
        **dict.fromkeys(cache.SHAPES),
        **{name: column.select(table["row"][order]) for name, column in shapes.items() if column is not None},
    }


def _check_images(images: list[str], labels: list[str], per_image: list[LabelRows], need_images: bool) -> CheckedImages:
    """Look at the image files that are needed, and at those whose size the label file does not say."""
    said_wh = np.array([rows.wh for rows in per_image], dtype=np.int64).reshape(-1, 2)
    sizeless = (said_wh <= 0).any(axis=1)
    for index in np.flatnonzero(sizeless):
        if not images[index]:
            raise UserError(f"{labels[index]}: does not say the image's size, and the image is not on the disk")
    return check_images(
        [image if need_images or lacks else "" for image, lacks in zip(images, np.asarray(sizeless), strict=True)],
        said_wh,
    )


def _names_in(per_image: list[LabelRows], labels: list[str], num_classes: int) -> tuple[str, ...]:
    """Return class names where no names file gives them: those of the XML files, sorted, or the numbers.

    Raises:
        UserError: another number of names than the data file says, or a class number that no data set has.
    """
    words = {word for rows in per_image if isinstance(rows.labels, list) for word in rows.labels}
    if words:
        if num_classes not in (0, len(words)):
            raise UserError(
                f"the data file says classes = {num_classes}, but the labels name {len(words)} "
                f"({', '.join(sorted(words))}); give the classes and their order with 'names = …'"
            )
        return tuple(sorted(words))
    largest = 0
    for label, rows in zip(labels, per_image, strict=True):
        indices = np.asarray(rows.labels, dtype=np.int64)
        largest = max(largest, int(indices.max(initial=0)))
        if largest >= MAX_CLASSES and not num_classes:  # else the data file refuses it
            line = rows.lines[indices.argmax()]
            raise UserError(f"{label}:{line}: class {largest} is outside 0..{MAX_CLASSES - 1:,}; correct the label")
    return tuple(str(index) for index in range(num_classes or largest + 1))


def _table(per_image: list[LabelRows], labels: list[str], image_wh: np.ndarray, names: tuple[str, ...]) -> RowTable:
    """Join the rows of all N files into columns [M ...], with boxes in pixels; drop the objects of unknown name."""
    counts = [len(rows.lines) for rows in per_image]
    image = np.repeat(np.arange(len(per_image)), counts)
    boxes = np.concatenate([rows.boxes for rows in per_image])
    relative = np.repeat([rows.relative for rows in per_image], counts)
    with np.errstate(over="ignore", invalid="ignore"):  # the rows that are not finite are dropped later
        xyxy = np.where(relative[:, None], yolo_to_xyxy(boxes, image_wh[image]), boxes)
        wh = np.where(relative[:, None], boxes[:, 2:] * image_wh[image], boxes[:, 2:] - boxes[:, :2])
    index_of = {name: index for index, name in enumerate(names)}
    label = [
        np.array([index_of.get(word, -1) for word in rows.labels], dtype=np.int64)
        if isinstance(rows.labels, list)
        else rows.labels
        for rows in per_image
    ]
    table = RowTable(
        lambda i, line: (labels[i], line),
        image=image,
        line=np.concatenate([rows.lines for rows in per_image]),
        label=np.concatenate(label),
        crowd=np.concatenate([rows.crowd for rows in per_image]),
        xyxy=xyxy,
        wh=wh,
        row=np.arange(len(image)),
        within=np.concatenate([np.arange(count) for count in counts]),  # place in its file, for the message below
    )

    def unknown(row: int) -> str:
        word = per_image[table["image"][row]].labels[table["within"][row]]
        return f"'{word}'{suggestion(word, names)}"

    table.drop(table["label"] < 0, "unknown class name", unknown)
    return table


def _refuse_large_classes(
    table: RowTable, labels: list[str], names: tuple[str, ...], description: DataDescription
) -> None:
    """Refuse class indices that the data file has no class for; then labels and data file do not belong together."""
    bad = np.flatnonzero(table["label"] >= len(names))
    if len(bad):
        row = bad[0]
        raise UserError(
            f"{labels[table['image'][row]]}:{table['line'][row]}: class {table['label'][row]} is outside "
            f"0..{len(names) - 1}, the classes of {description.path} ({len(bad)} such rows); "
            "correct the label or 'classes' and 'names' of the data file"
        )


def _image_ids(images: list[str]) -> np.ndarray:
    """Return image ids [N]: the file names, as in COCO, where these are different whole numbers; else 1..N."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in images]
    if all(stem.isdecimal() and len(stem) < 18 for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return np.array([int(stem) for stem in stems], dtype=np.int64)
    return np.arange(1, len(images) + 1, dtype=np.int64)
